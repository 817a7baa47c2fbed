"""What a framework gains: `python -m bench.frameworks` times its own batch normalization beside fastbn's adapter.

A framework is one file here, NAME_.py, which imports the framework inside its functions only and has

    NAME          how the table calls it
    REPLACES      what of the framework is replaced
    version()     its version; an ImportError leaves it out, with a line that says so
    pair(case)    (own, ours): functions without arguments that compute forward and backward in training, or forward
                  alone where the framework has no gradient, and return the results in the same order: arrays or
                  tensors, in tuples; None stands for one that is not there
    overhead()    optional: microseconds of the adapter's own cost at (1, 64), or None

case.x and case.dy are float32 arrays, case.gamma and case.beta of shape (C,), case.axis is 1, case.eps 1e-5. A function
returns only when its results are there (block_until_ready), and leaves the arrays of the case as they were.

__main__.py   the flags
cases.py      the two shapes and their data
compare.py    whether own and ours agree
run.py        all frameworks, one after the other; own and ours alternate as in bench/timing.py
table.py      the table
autograd_mlp.py  a training step of autograd with batch norm and without, a run of its own
"""
