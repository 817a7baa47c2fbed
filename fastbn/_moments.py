"""Count, mean and sum of squared deviations of each feature, mergeable."""
import numbers

import numpy as np

from . import _checks


class Moments:
    """Statistics of some entries of C features, which can be merged with those of others.

    count: entries of each feature, an int; of weighted ones the sum of their weights. An array of shape (C,), of int64
        or float64, where features have counts of their own (nan_policy="omit"); so has what they are merged to.
    mean, M2: float64 arrays of shape (C,): the mean, and the sum of (x - mean)^2.

    The moments of two sets of entries give those of their union, as if all had been seen at once:
        delta = mean_b - mean_a
        mean  = mean_a + delta * n_b / n
        M2    = M2_a + M2_b + delta^2 * n_a * n_b / n
    Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    """

    __slots__ = ("count", "mean", "M2")

    def __init__(self, count, mean, M2):
        """Raises TypeError, ValueError where count is no finite number of at least 0, or an array of such, or the arrays are
        not of one shape (C,).
        """
        count = _count(count)
        if np.any(np.less(count, 0)):
            raise ValueError(f"count is {count}, expected 0 or more")
        mean, M2 = np.array(mean, np.float64), np.array(M2, np.float64)
        if mean.ndim != 1 or mean.shape != M2.shape:
            raise ValueError(f"mean has shape {mean.shape} and M2 {M2.shape}, expected one shape (C,)")
        if np.shape(count) not in ((), mean.shape):
            raise ValueError(f"count has shape {count.shape}, expected {mean.shape}, or a number")
        self.count, self.mean, self.M2 = count, mean, M2

    @classmethod
    def of_arrays(cls, count, mean, M2):
        """Without checks, and without copies of the arrays."""
        self = cls.__new__(cls)
        self.count, self.mean, self.M2 = count, mean, M2
        return self

    @classmethod
    def of_variance(cls, count, mean, var):
        """From a batch's biased variance as the core gives it, M2 * (1 / count): biased_var gives it back, every bit.

        Dividing by the rounded 1 / count misses the core's M2 by up to three steps; any M2 that leads to `var` will do.
        """
        if isinstance(count, int) and count == 0:
            return cls.of_arrays(0, mean.copy(), np.zeros_like(var))
        with np.errstate(all="ignore"):
            M2 = up = down = var * count
            for _ in range(3):
                up, down = np.nextafter(up, np.inf), np.nextafter(down, -np.inf)
                for near in (up, down):
                    M2 = np.where((M2 * (1.0 / count) != var) & (near * (1.0 / count) == var), near, M2)
        return cls.of_arrays(count, mean.copy(), np.where(np.equal(count, 0), 0.0, M2))

    def biased_var(self):
        """The biased variance, with the bits that a training forward call normalizes by."""
        with np.errstate(all="ignore"):
            return np.where(np.greater(self.count, 0), self.M2 * np.divide(1.0, self.count), np.nan)

    def var(self, ddof=0):
        """The variance M2 / (count - ddof), shape (C,), float64; NaN where count <= ddof."""
        with np.errstate(all="ignore"):
            return np.where(np.greater(self.count, ddof), np.divide(self.M2, np.subtract(self.count, ddof)), np.nan)

    def merge(self, other):
        """The moments of the entries of both, a new object. Raises TypeError, ValueError (another number of features)."""
        if not isinstance(other, Moments):
            raise TypeError(f"other is a {type(other).__name__}, expected Moments")
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"other has {other.mean.size} features, expected {self.mean.size}")
        return Moments(self.count + other.count, *merged(self.count, self.mean, self.M2, other.count, other.mean, other.M2))

    @staticmethod
    def merge_all(parts):
        """The moments of all the entries of several Moments: neighbours are merged, then theirs."""
        counts = np.stack([np.broadcast_to(np.asarray(part.count, float), part.mean.shape) for part in parts])
        mean, M2 = np.stack([part.mean for part in parts]), np.stack([part.M2 for part in parts])
        return Moments.of_arrays(sum(part.count for part in parts), *merge_rows(counts, mean, M2)[1:])

    def __add__(self, other):
        return self.merge(other) if isinstance(other, Moments) else NotImplemented

    def __radd__(self, other):
        """So that sum() over moments works: it starts from 0."""
        if isinstance(other, numbers.Integral) and other == 0:
            return Moments(self.count, self.mean, self.M2)
        return NotImplemented

    def __eq__(self, other):
        if not isinstance(other, Moments):
            return NotImplemented
        return (self.mean.shape == other.mean.shape and bool(np.all(np.equal(self.count, other.count)))
                and np.array_equal(self.mean, other.mean, equal_nan=True)
                and np.array_equal(self.M2, other.M2, equal_nan=True))

    __hash__ = None

    def __repr__(self):
        return f"Moments(count={self.count!r}, mean={self.mean!r}, M2={self.M2!r})"


def merge_rows(counts, mean, M2):
    """(count, mean, M2), float64 arrays of shape (C,), of all the entries whose moments are the rows of (parts, C) arrays."""
    while len(counts) > 1:
        even = len(counts) // 2 * 2
        a, b = slice(0, even, 2), slice(1, even, 2)
        pairs = counts[a] + counts[b], *merged(counts[a], mean[a], M2[a], counts[b], mean[b], M2[b])
        if even < len(counts):
            pairs = (np.concatenate([pair, one[even:]]) for pair, one in zip(pairs, (counts, mean, M2)))
        counts, mean, M2 = pairs
    return counts[0], mean[0], M2[0]


def by_feature(moments):
    """The same with a count for each feature."""
    return Moments.of_arrays(np.array(np.broadcast_to(moments.count, moments.mean.shape)), moments.mean, moments.M2)


def _count(value):
    if isinstance(value, np.ndarray) and value.ndim:
        if value.dtype.kind not in "fiu" or not np.isfinite(value).all():
            raise ValueError(f"count is {value!r}, expected finite numbers of at least 0")
        return value.astype(np.float64 if value.dtype.kind == "f" else np.int64)
    return int(value) if _checks.is_whole(value) else _checks.finite(value, "count")


def merged(count_a, mean_a, M2_a, count_b, mean_b, M2_b):
    """(mean, M2) of the union, by the formulas above; where one side has no entries, what the other has."""
    with np.errstate(all="ignore"):
        share = np.divide(count_b, np.add(count_a, count_b))
        delta = mean_b - mean_a
        mean, M2 = mean_a + delta * share, M2_a + M2_b + delta * delta * (count_a * share)
    only_a, only_b = np.equal(count_b, 0), np.equal(count_a, 0)
    return (np.where(only_b, mean_b, np.where(only_a, mean_a, mean)),
            np.where(only_b, M2_b, np.where(only_a, M2_a, M2)))
