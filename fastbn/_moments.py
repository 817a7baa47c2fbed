"""Count, mean and sum of squared deviations of each feature, mergeable."""
import numbers

import numpy as np

from . import _checks


class Moments:
    """Statistics of some entries of C features, which can be merged with those of others.

    count: entries of each feature, an int; of weighted ones the sum of their weights.
    mean, M2: float64 arrays of shape (C,): the mean, and the sum of (x - mean)^2.

    The moments of two sets of entries give those of their union, as if all had been seen at once:
        delta = mean_b - mean_a
        mean  = mean_a + delta * n_b / n
        M2    = M2_a + M2_b + delta^2 * n_a * n_b / n
    Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    """

    __slots__ = ("count", "mean", "M2")

    def __init__(self, count, mean, M2):
        """Raises TypeError, ValueError where count is no finite number of at least 0 or the arrays are not of one shape (C,)."""
        count = int(count) if _checks.is_whole(count) else _checks.finite(count, "count")
        if count < 0:
            raise ValueError(f"count is {count}, expected 0 or more")
        mean, M2 = np.array(mean, np.float64), np.array(M2, np.float64)
        if mean.ndim != 1 or mean.shape != M2.shape:
            raise ValueError(f"mean has shape {mean.shape} and M2 {M2.shape}, expected one shape (C,)")
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
        if count == 0:
            return cls.of_arrays(0, mean.copy(), np.zeros_like(var))
        with np.errstate(all="ignore"):
            M2 = up = down = var * count
            for _ in range(3):
                up, down = np.nextafter(up, np.inf), np.nextafter(down, -np.inf)
                for near in (up, down):
                    M2 = np.where((M2 * (1.0 / count) != var) & (near * (1.0 / count) == var), near, M2)
        return cls.of_arrays(count, mean.copy(), M2)

    def biased_var(self):
        """The biased variance, with the bits that a training forward call normalizes by."""
        with np.errstate(all="ignore"):
            return self.M2 * (1.0 / self.count) if self.count else np.full(self.mean.shape, np.nan)

    def var(self, ddof=0):
        """The variance M2 / (count - ddof), shape (C,), float64; NaN where count <= ddof."""
        if self.count <= ddof:
            return np.full(self.mean.shape, np.nan)
        return self.M2 / (self.count - ddof)

    def merge(self, other):
        """The moments of the entries of both, a new object. Raises TypeError, ValueError (another number of features)."""
        if not isinstance(other, Moments):
            raise TypeError(f"other is a {type(other).__name__}, expected Moments")
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"other has {other.mean.size} features, expected {self.mean.size}")
        if not self.count or not other.count:
            whole = self if self.count else other
            return Moments(whole.count, whole.mean, whole.M2)
        count = self.count + other.count
        with np.errstate(all="ignore"):
            delta = other.mean - self.mean
            mean = self.mean + delta * (other.count / count)
            M2 = self.M2 + other.M2 + delta * delta * (self.count * (other.count / count))
        return Moments(count, mean, M2)

    @staticmethod
    def merge_all(parts):
        """The moments of all the entries of several Moments with counts above 0: neighbours are merged, then theirs."""
        counts = np.array([float(part.count) for part in parts])[:, None]
        mean, M2 = np.stack([part.mean for part in parts]), np.stack([part.M2 for part in parts])
        while len(counts) > 1:
            a, b, rest = slice(0, len(counts) // 2 * 2, 2), slice(1, None, 2), slice(len(counts) // 2 * 2, None)
            n = counts[a] + counts[b]
            with np.errstate(all="ignore"):
                delta = mean[b] - mean[a]
                pairs = (n, mean[a] + delta * (counts[b] / n),
                         M2[a] + M2[b] + delta * delta * (counts[a] * (counts[b] / n)))
            counts, mean, M2 = (np.concatenate([pair, one[rest]]) for pair, one in zip(pairs, (counts, mean, M2)))
        return Moments.of_arrays(sum(part.count for part in parts), mean[0], M2[0])

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
        return (self.count == other.count and np.array_equal(self.mean, other.mean, equal_nan=True)
                and np.array_equal(self.M2, other.M2, equal_nan=True))

    __hash__ = None

    def __repr__(self):
        return f"Moments(count={self.count}, mean={self.mean!r}, M2={self.M2!r})"
