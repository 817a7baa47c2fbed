"""Training in other ways than by the plain statistics of the batch. In reading order:

variants.py         which way a call takes, and the call
ghost_batches.py    slices of the batch with statistics of their own
renormalization.py  batch renormalization
nan_policies.py     what becomes of NaN and Inf
missing.py          the moments of the entries that are there, where NaN entries are missing
omit.py             a training call by these moments
"""
