"""What everything above computes with. In reading order:

checks.py       arguments, and errors that say what is wrong with them
dlpack.py       arrays of other libraries through DLPack
layout.py       an array of any layout as the core's shape (n, c, s)
activations.py  activations by name
weights.py      masks, weights and lengths: how much each entry counts
fusion.py       what a call has beyond normalization: an activation, a residual, weights
moments.py      statistics that can be merged, and the step of the moving averages
saved.py        what a forward call leaves for backward
run.py          a call of the core: where results go, forward, backward, moments
"""
