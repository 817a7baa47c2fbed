"""Moments of a block with NaN entries, which are missing values, of each feature by itself.

The missing ones are given a value p of their feature, so that the fast sums of whole tables can be used, and then taken
out again. With n entries that are there, k that are not, and the moments (mean, M2) of all N = n + k:
    mean_n = mean + (mean - p) * k / n          M2_n = M2 - (mean_n - p)^2 * n * k / N
(the formula of Moments.merge, backwards). p is an entry of the feature: then nothing is left of M2 where all entries are
equal. Where it is so far from the mean that the difference would lose digits, the mean takes its place.
"""
import numpy as np

from ._canonical import arrange
from ._engine import moments_by
from ._extras import NONE
from ._moments import Moments

_ROUNDS = 4


def moments_of_present(block, axes, num_threads=None):
    """The Moments of what is not NaN; count: an int64 array of shape (C,). axes: ascending. Inf gives NaN for M2."""
    x = arrange(block, axes).readable(block)
    there = x == x
    count = np.count_nonzero(there, axis=(0, 2))
    missing = x.shape[0] * x.shape[2] - count
    p = _entry_of_each(x, there)
    for _ in range(_ROUNDS):
        found = moments_by(np.where(there, x, p[:, None]), (1,), NONE, num_threads or 0)[0]
        mean, M2, taken_out = _without(found, p, count, missing)
        far = taken_out > M2
        if not far.any():
            break
        p = np.where(far, mean, p).astype(x.dtype)
    return Moments.of_arrays(count, mean, M2)


def _entry_of_each(x, there):
    """For each feature of x, (n, c, s), its first entry that is there; 0 where none is."""
    p = x[0, :, 0].copy()
    absent = np.flatnonzero(p != p)
    if absent.size:
        rows = np.moveaxis(x[:, absent], 1, 0).reshape(absent.size, -1)
        first = np.moveaxis(there[:, absent], 1, 0).reshape(absent.size, -1).argmax(axis=1)
        p[absent] = np.nan_to_num(rows[np.arange(absent.size), first])
    return p


def _without(found, p, count, missing):
    """(mean, M2, what was taken out of M2) of the entries that are there; zeros where none is."""
    p = p.astype(np.float64)
    with np.errstate(all="ignore"):
        mean = found.mean + (found.mean - p) * (missing / count)
        taken_out = (mean - p) ** 2 * (count * (missing / (count + missing)))
    none = count == 0
    mean, taken_out = np.where(none, 0.0, mean), np.where(none, 0.0, taken_out)
    return mean, np.where(none, 0.0, np.maximum(found.M2 - taken_out, 0.0)), taken_out
