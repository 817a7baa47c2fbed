"""Benchmarks, run from a checkout: `python -m bench` compares contenders, `pytest bench` times each one alone.

A run goes from the top to the bottom of this list:

cli.py       the flags
run.py       the whole run, with its budget and its progress bar
grid.py      which cases, and in which order; layers.json has the shapes of four networks
cases.py     what is computed: operation, shape, layout, the input data, the right answer, the bytes that must move
peers/       who computes it; a new one is one file there
limit.py, .c the machine's limit: a loop that only moves those bytes
cell.py      one cell measured: everybody on one case with one number of threads
timing.py    how long it takes: alternating blocks, medians of ratios
store.py     the folder of a run: JSON as it is measured, and at the end
machine.py   what it was measured on
verdict.py   what the cells say: fastest peers, losses, shares of the limit, what is fused against the plain call
report.py    tables
charts.py    PNG and SVG
frameworks/  what a framework gains by fastbn, a run of its own: `python -m bench.frameworks`
busy/        what default threads cost beside other programs, a run of its own: `python -m bench.busy`
compare.py   two runs, cell by cell: `python -m bench.compare BEFORE AFTER`
readme.py    the documents' tables and picture, from a run: `python -m bench.readme FOLDER`
"""
