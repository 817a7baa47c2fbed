"""Benchmarks, run from a checkout: `python -m bench` compares contenders, `pytest bench` times each one alone.

cases.py       what is computed: operation, shape, layout, the input data, the right answer, the bytes that must move
contenders.py  who computes it: fastbn, NumPy, PyTorch; a new one is one class there
timing.py      how long it takes: alternating blocks, medians of ratios
report.py      tables and JSON
compare.py     the command line: puts the four together
"""
