"""NaN entries as missing values, of each feature by itself: how much of it is there, and the moments of that.

The missing ones are given a value p of their feature, so that the fast sums of whole arrays can be used, and then taken
out again. With the weight n of the entries that are there, k of those that are not, and the moments (mean, M2) of all of
the weight N = n + k:
    mean_n = mean + (mean - p) * k / n          M2_n = M2 - (mean_n - p)^2 * n * k / N
(the formula of Moments.merge, backwards). p is an entry of the feature: then nothing is left of M2 where all entries are
equal. Where it is so far from the mean that the difference would lose digits, the mean takes its place.

That is done block by block, so that no copy is larger than a block, and the blocks' moments are merged.
"""
from typing import NamedTuple

import numpy as np

from .. import _core
from .._engine.moments import merged

_ROUNDS = 4
_ENTRIES = 1 << 19  # of a block
_MOST = 1e3         # times the weight that is there, what is missing may have: the mean's rounding grows by it,
_MOST_DOUBLES = 4.0 # which data of doubles would show
_SPREAD = 1e8       # times the least weight, the largest may be
_FIRST = 8, 8       # rows and columns of it in which an entry that counts is looked for first


class Present(NamedTuple):
    """What is there of each feature: arrays of shape (C,)."""

    entries: np.ndarray  # their number, int64
    weight: np.ndarray   # the same, or the sum of their weights
    squares: np.ndarray  # the same, or the sum of the squares of these
    mean: np.ndarray
    M2: np.ndarray


def present(x, weights, threads):
    """x: (n, c, s), of any type of data; weights: (n, s), of the type of the arithmetic, or None. Inf gives NaN for M2."""
    n, c, s = x.shape
    total = Present(np.zeros(c, np.int64), *np.zeros((4, c)))
    for rows, features, columns in _blocks(n, c, s):
        some = None if weights is None else weights[rows, columns]
        found = _present_in_block(x[rows, features, columns], some, threads)
        before = Present(*(a[features] for a in total))
        mean, M2 = merged(before.weight, before.mean, before.M2, found.weight, found.mean, found.M2)
        for to, values in zip(before[:3], found):
            to += values
        before.mean[:], before.M2[:] = mean, M2
    return total


def _blocks(n, c, s):
    """Indices that cover (n, c, s), in the order of memory within a feature."""
    if not n * c * s:
        return
    long = min(s, _ENTRIES)
    group = max(1, min(c, _ENTRIES // long))
    step = max(1, _ENTRIES // (group * long))
    for feature in range(0, c, group):
        for row in range(0, n, step):
            for column in range(0, s, long):
                yield slice(row, row + step), slice(feature, feature + group), slice(column, column + long)


def _present_in_block(x, weights, threads):
    there = x == x
    entries = there.sum(axis=2, dtype=np.int32).sum(axis=0) if x.shape[2] > 1 else np.count_nonzero(there, axis=(0, 2))
    if weights is None:
        weight = squares = entries.astype(np.float64)
        missing, counts = x.shape[0] * x.shape[2] - entries, there
    else:
        wide = weights.astype(np.float64)
        weight, missing = (np.einsum("ns,ncs->c", wide, some) for some in (there, ~there))
        squares = np.einsum("ns,ncs->c", wide * wide, there)
        counts = there & (weights > 0)[:, None]
    if weights is None or wide.max() < _SPREAD * wide.min(where=wide > 0, initial=np.inf):
        p = _entry_of_each(x, counts)
        mean, M2 = _by_filling(x, there, p, weights, weight, missing, threads)
        lost = missing > (_MOST_DOUBLES if x.dtype == np.float64 else _MOST) * weight
    else:
        mean, M2 = np.zeros((2, x.shape[1]))
        lost = True
    lost = np.flatnonzero((weight > 0) & lost)
    if lost.size:
        mean[lost], M2[lost] = _of_few(x[:, lost], there[:, lost], 1.0 if weights is None else wide[:, None])
    return Present(entries, weight, squares, mean, M2)


def _by_filling(x, there, p, weights, weight, missing, threads):
    """(mean, M2) by the fast sums of whole arrays, with p in place of what is missing."""
    for _ in range(_ROUNDS):
        whole = x if there.all() else _filled(x, there, p[:, None])
        mean, M2, taken_out = _without(*_moments(whole, weights, threads), p, weight, missing)
        far = taken_out > M2
        if not far.any():
            break
        p = np.where(far, mean, p).astype(x.dtype)
    return mean, M2


def _of_few(x, there, weights):
    """(mean, M2) in double, where taking out what is missing would leave few digits: of features of which next to nothing
    is there, and by weights of all magnitudes.
    """
    w = weights * there
    x = np.where(w > 0, x, 0).astype(np.float64)
    total = w.sum(axis=(0, 2))
    mean = (w * x).sum(axis=(0, 2)) / total
    rest = (w * (x - mean[:, None])).sum(axis=(0, 2)) / total
    return mean + rest, (w * (x - (mean + rest)[:, None]) ** 2).sum(axis=(0, 2))


def _filled(x, there, p):
    """x where it is there, else p: by its bits, since np.where takes ten times as long for entries in no order."""
    bits = np.dtype(f"i{x.itemsize}")
    mask, p_bits = np.negative(there.view(np.int8), dtype=bits), p.view(bits)
    filled = np.bitwise_xor(x.view(bits), p_bits)
    filled &= mask
    filled ^= p_bits
    return filled.view(x.dtype)


def _moments(x, weights, threads):
    """(mean, M2) of a block of which nothing is missing."""
    mean, M2, extra = np.zeros(x.shape[1]), np.zeros(x.shape[1]), None
    if weights is not None:
        total = float(weights.sum(dtype=np.float64))
        if total == 0:
            return mean, M2
        squares = float(np.square(weights, dtype=np.float64).sum())
        extra = _core.Extra(weights=np.ascontiguousarray(weights).reshape(-1), total=total, squares=squares)
    _core.moments(np.ascontiguousarray(x), extra, mean, M2, threads)
    return mean, M2


def _entry_of_each(x, counts):
    """For each feature of x, (n, c, s), an entry that counts; 0 where none does. Mostly one of the first is."""
    p, absent = x[0, :, 0].copy(), np.flatnonzero(~counts[0, :, 0])
    for rows, columns in (_FIRST, x.shape[::2]):
        if not absent.size:
            break
        some = np.moveaxis(counts[:rows, absent, :columns], 1, 0).reshape(absent.size, -1)
        row, column = np.unravel_index(some.argmax(axis=1), (min(rows, x.shape[0]), min(columns, x.shape[2])))
        found = some.any(axis=1)
        p[absent] = np.where(found, x[row, absent, column], 0)
        absent = absent[~found]
    return p


def _without(mean, M2, p, weight, missing):
    """(mean, M2, what was taken out of M2) of the entries that are there; zeros where none is."""
    p = p.astype(np.float64)
    with np.errstate(all="ignore"):
        mean = np.where(missing > 0, mean + (mean - p) * (missing / weight), mean)
        taken_out = np.where(missing > 0, (mean - p) ** 2 * (weight * (missing / (weight + missing))), 0.0)
        left = M2 - taken_out
    left = np.where(left < 0, 0.0, left)
    none = weight == 0
    return np.where(none, 0.0, mean), np.where(none, 0.0, left), np.where(none, 0.0, taken_out)
