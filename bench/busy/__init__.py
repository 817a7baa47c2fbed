"""What the default number of threads costs or gains where others want the processors too: `python -m bench.busy`.

__main__.py   the flags, the tables
loops.py      calls beside busy loops, with PyTorch and scikit-learn in the same blocks
workers.py    several processes at once
mix.py        the work of those processes
callers.py    several Python threads of one process at once
network.py    a training step in which NumPy's matrix products and batch norms alternate
idle.py       the processor time that a team takes after a call
turns.py      settings that take turns in blocks, and the ratios of their times
"""
