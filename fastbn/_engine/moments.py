"""Count, mean and sum of squared deviations of each feature, mergeable, and the step of the moving averages with them."""
import numbers

import numpy as np

from .. import _core
from . import checks

_MARGIN = 1e-6  # by which an effective count has to exceed ddof, since sums of weights are rounded


class Moments:
    """Statistics of some entries of C features, which can be merged with those of others by + and sum.

    Parameters
    ----------
    count : int, float or array of shape (C,)
        The entries of each feature; of weighted ones the sum of their weights. An array of int64 or float64 where
        features have counts of their own (nan_policy="omit"); so has what they are merged to.
    mean : array of float64, shape (C,)
        The mean.
    M2 : array of float64, shape (C,)
        The sum of w * (x - mean)^2, where an entry without weights has the weight w = 1.
    squares : int, float or array of shape (C,), optional
        The sum of the squared weights, like count; None: count, as for weights of 0 and 1. Weights count by their
        ratios: count^2 / squares is the number of equal weights that tell as much (Kish's effective sample size), and
        takes the place of the number of entries in unbiased variances.

    Raises
    ------
    TypeError, ValueError
        If count or squares is no finite number of at least 0, or array of such, or the arrays are not of one shape
        (C,).

    See Also
    --------
    moments : Compute them from an array.

    Notes
    -----
    The moments of two sets of entries give those of their union, as if all had been seen at once:

        delta = mean_b - mean_a
        mean  = mean_a + delta * n_b / n
        M2    = M2_a + M2_b + delta^2 * n_a * n_b / n

    sum() adds up any number of them, and begins with 0; so type checkers take its result for Moments or 0, and that of
    merge_all for Moments.

    References
    ----------
    Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979; Kish,
    "Survey Sampling", 1965, section 11.7.

    Examples
    --------
    >>> import numpy as np
    >>> import fastbn
    >>> a, b = fastbn.moments(np.array([[1.0], [2.0]])), fastbn.moments(np.array([[6.0]]))
    >>> (a + b).mean, (a + b).var()
    (array([3.]), array([4.66666667]))
    """

    __slots__ = {
        "count": "The entries of each feature, or the sum of their weights: a number, or an array of shape (C,).",
        "squares": "The sum of the squared weights, like count; the same as count without weights.",
        "mean": "The mean of each feature, an array of float64 of shape (C,).",
        "_M2": None, "_batch": None}

    def __init__(self, count, mean, M2, squares=None):
        self.count = _count(count, "count")
        self.squares = self.count if squares is None else _count(squares, "squares")
        self.mean, self.M2 = np.array(mean, np.float64), np.array(M2, np.float64)
        self.check()

    @classmethod
    def of_arrays(cls, count, mean, M2, squares=None):
        """Make Moments without checks, and without copies of the arrays.

        Parameters
        ----------
        count : int, float or array of shape (C,)
            As for the class.
        mean, M2 : array of float64, shape (C,)
            As for the class.
        squares : int, float or array of shape (C,), optional
            As for the class.

        Returns
        -------
        Moments
            A new object.

        Examples
        --------
        >>> import numpy as np
        >>> import fastbn
        >>> fastbn.Moments.of_arrays(2, np.array([2.0]), np.array([2.0]))
        Moments(count=2, mean=array([2.]), M2=array([2.]))
        """
        self = cls.__new__(cls)
        self.count, self.mean, self._M2, self.squares = count, mean, M2, count if squares is None else squares
        self._batch = None
        return self

    @classmethod
    def of_variance(cls, count, mean, var, squares=None):
        """Make Moments from a batch's biased variance.

        Parameters
        ----------
        count : int, float or array of shape (C,)
            As for the class.
        mean : array of float64, shape (C,)
            As for the class.
        var : array of float64, shape (C,)
            As the core gives it, M2 * (1 / count): biased_var gives it back, every bit.
        squares : int, float or array of shape (C,), optional
            As for the class.

        Returns
        -------
        Moments
            A new object.

        Examples
        --------
        >>> import numpy as np
        >>> import fastbn
        >>> fastbn.Moments.of_variance(2, np.array([2.0]), np.array([1.0]))
        Moments(count=2, mean=array([2.]), M2=array([2.]))
        """
        self = cls.of_arrays(count, mean.copy(), None, squares)
        self._batch = var.copy(), count
        return self

    @property
    def M2(self):
        """The sum of the squared deviations from the mean, an array of float64 of shape (C,)."""
        if self._M2 is None:
            self._M2 = _undone(*self._batch)
        return self._M2

    @M2.setter
    def M2(self, value):
        self._M2, self._batch = value, None

    def __setstate__(self, state):
        """Those that were pickled by a version without squares have count for them."""
        values = {name.removeprefix("_"): value for name, value in state[1].items()}
        self.count, self.mean, self.squares = values["count"], values["mean"], values.get("squares", values["count"])
        self._M2, self._batch = values["M2"], values.get("batch")

    def check(self, num_features=None):
        """Check that the attributes, which anyone may have set, go together.

        Parameters
        ----------
        num_features : int, optional
            How many features are expected.

        Raises
        ------
        ValueError
            If they do not, or are of another number of features.

        Examples
        --------
        >>> import numpy as np
        >>> import fastbn
        >>> found = fastbn.moments(np.ones((4, 2)))
        >>> found.check(2)
        >>> found.check(3)
        Traceback (most recent call last):
        ValueError: moments has 2 features, expected 3
        """
        shape, M2 = np.shape(self.mean), self._batch[0] if self._M2 is None else self._M2  # the variance has shape and sign
        if len(shape) != 1 or np.shape(M2) != shape:
            raise ValueError(f"mean has shape {shape} and M2 {np.shape(M2)}, expected one shape (C,)")
        if np.any(np.less(M2, 0)):
            raise ValueError(f"M2 is negative for feature {np.flatnonzero(np.less(M2, 0))[0]}, expected sums of squares")
        for name, value in (("count", self.count), ("squares", self.squares)):
            if np.shape(value) not in ((), shape):
                raise ValueError(f"{name} has shape {np.shape(value)}, expected {shape}, or a number")
        if num_features is not None and shape[0] != num_features:
            raise ValueError(f"moments has {shape[0]} features, expected {num_features}")

    def biased_var(self):
        """Compute the biased variance, with the bits that a training forward call normalizes by.

        Returns
        -------
        array of float64, shape (C,)
            The variance.

        Examples
        --------
        >>> import numpy as np
        >>> import fastbn
        >>> fastbn.moments(np.array([[1.0], [3.0]])).biased_var()
        array([1.])
        """
        return self._biased_var().copy()

    def _biased_var(self):
        if self._batch is not None and self._batch[1] is self.count:
            return self._batch[0]
        with np.errstate(all="ignore"):
            return np.where(np.greater(self.count, 0), self.M2 * np.divide(1.0, self.count), np.nan)

    def var(self, ddof=0):
        """Compute the variance.

        Parameters
        ----------
        ddof : {0, 1}, default 0
            0: the biased variance, 1: the unbiased one.

        Returns
        -------
        array of float64, shape (C,)
            M2 / (count - ddof * squares / count): without weights M2 / (count - ddof). NaN where the effective count,
            count^2 / squares, is not above ddof, or nothing counts.

        Examples
        --------
        >>> import numpy as np
        >>> import fastbn
        >>> found = fastbn.moments(np.array([[1.0], [3.0]]))
        >>> found.var(), found.var(ddof=1)
        (array([1.]), array([2.]))
        """
        with np.errstate(all="ignore"):
            return np.broadcast_to(np.divide(self.M2, self.freedom(ddof)), self.mean.shape).copy()

    def freedom(self, ddof):
        """Tell what M2 is divided by in var(ddof).

        Parameters
        ----------
        ddof : {0, 1}
            As for var.

        Returns
        -------
        float or array of shape (C,)
            Like count; NaN where nothing is known of that.

        Examples
        --------
        >>> import numpy as np
        >>> import fastbn
        >>> fastbn.moments(np.array([[1.0], [3.0], [5.0]])).freedom(1)
        2.0
        """
        count, margin = self.count, ddof + _MARGIN if ddof else 0.0
        if not isinstance(count, np.ndarray) and not isinstance(self.squares, np.ndarray):  # np.ndim takes too long
            share = self.squares / count if count > 0 else np.inf
            return count - ddof * share if count > margin * share else np.nan
        with np.errstate(all="ignore"):
            share = self.squares / count
            return np.where(count > margin * share, count - ddof * share, np.nan)

    def step(self, running_mean, running_var, *, momentum=0.9, ddof=1):
        """Take one step of moving averages, in place, as a layer does, bit for bit.

        Parameters
        ----------
        running_mean, running_var : array of float32 or float64, shape (C,)
            The moving averages; half types are stepped in float32.
        momentum : float, default 0.9
            The weight that the OLD average keeps.
        ddof : {0, 1}, default 1
            1, the unbiased variance, or 0, the biased one.

        Returns
        -------
        bool
            Whether there was a feature whose var(ddof) is known; others stay as they are.

        Raises
        ------
        ValueError
            If an array has another shape, or cannot be written to; then nothing has changed.
        TypeError
            If one is no NumPy array of floats; then nothing has changed.

        Notes
        -----

            running_mean = momentum * running_mean + (1 - momentum) * mean
            running_var  = momentum * running_var  + (1 - momentum) * var(ddof)

        Examples
        --------
        >>> import numpy as np
        >>> import fastbn
        >>> running_mean, running_var = np.zeros(1), np.ones(1)
        >>> fastbn.moments(np.array([[1.0], [3.0]])).step(running_mean, running_var, momentum=0.5)
        True
        >>> running_mean, running_var
        (array([1.]), array([1.5]))
        """
        momentum, ddof = checks.momentum(momentum), checks.ddof(ddof)
        self._check_target(running_mean, "running_mean")
        self._check_target(running_var, "running_var")
        mean, var, scale, known = self.mean, self._biased_var(), self.count / self.freedom(ddof), ...
        if isinstance(scale, np.ndarray):
            if scale.shape != self.mean.shape:
                self.check()
            known = scale == scale
            mean, var, scale = mean[known], var[known] * scale[known], 1.0 if known.any() else np.nan
        if scale != scale:
            return False
        if known is ... and _is_plain(running_mean) and _is_plain(running_var) and running_mean.dtype is running_var.dtype:
            _core.update_running(mean, var, momentum, scale, running_mean, running_var)
            return True
        wide = np.result_type(np.float32, running_mean, running_var)
        new_mean, new_var = running_mean[known].astype(wide), running_var[known].astype(wide)
        _core.update_running(mean, var, momentum, scale, new_mean, new_var)
        running_mean[known], running_var[known] = new_mean, new_var
        return True

    def _check_target(self, a, name):
        if not isinstance(a, np.ndarray):
            raise TypeError(f"{name} is a {type(a).__name__}, expected a NumPy array, which takes the step in place")
        if a.dtype.kind not in "fV" or a.dtype.itemsize > 8:
            raise TypeError(f"{name} has dtype {a.dtype}, expected float32 or float64, or a half type")
        if a.shape != self.mean.shape or not a.flags.writeable:
            seen = "is read-only" if a.shape == self.mean.shape else f"has shape {a.shape}"
            raise ValueError(f"{name} {seen}, expected an array of shape {self.mean.shape} that can be written to")

    def merge(self, other):
        """Merge with the moments of other entries; + is the same.

        Parameters
        ----------
        other : Moments
            Of as many features.

        Returns
        -------
        Moments
            A new object: the moments of the entries of both.

        Raises
        ------
        TypeError, ValueError
            If other is no Moments, or has another number of features.

        Examples
        --------
        >>> import numpy as np
        >>> import fastbn
        >>> a, b = fastbn.moments(np.array([[1.0], [3.0]])), fastbn.moments(np.array([[5.0]]))
        >>> a.merge(b)
        Moments(count=3, mean=array([3.]), M2=array([8.]))
        """
        if not isinstance(other, Moments):
            raise TypeError(f"other is a {type(other).__name__}, expected Moments")
        self.check()
        other.check(self.mean.size)
        return Moments.of_arrays(
            self.count + other.count, *merged(self.count, self.mean, self.M2, other.count, other.mean, other.M2),
            self.squares + other.squares)

    @staticmethod
    def merge_all(parts):
        """Merge several at once.

        Parameters
        ----------
        parts : sequence of Moments
            One or more, of as many features each.

        Returns
        -------
        Moments
            The moments of all their entries: neighbours are merged, then theirs.

        Raises
        ------
        ValueError
            If they have different numbers of features.

        Examples
        --------
        >>> import numpy as np
        >>> import fastbn
        >>> parts = [fastbn.moments(np.array([[value]])) for value in (1.0, 3.0, 5.0)]
        >>> fastbn.Moments.merge_all(parts)
        Moments(count=3, mean=array([3.]), M2=array([8.]))
        """
        for part in parts:
            part.check(parts[0].mean.size)
        counts = np.stack([np.broadcast_to(np.asarray(part.count, float), part.mean.shape) for part in parts])
        mean, M2 = np.stack([part.mean for part in parts]), np.stack([part.M2 for part in parts])
        return Moments.of_arrays(sum(part.count for part in parts), *merge_rows(counts, mean, M2)[1:],
                                 sum(part.squares for part in parts))

    def __add__(self, other):
        return self.merge(other) if isinstance(other, Moments) else NotImplemented

    def __radd__(self, other):
        """So that sum() over moments works: it starts from 0."""
        if isinstance(other, numbers.Integral) and other == 0:
            return Moments(self.count, self.mean, self.M2, self.squares)
        return NotImplemented

    def __eq__(self, other):
        if not isinstance(other, Moments):
            return NotImplemented
        return (self.mean.shape == other.mean.shape and bool(np.all(np.equal(self.count, other.count)))
                and bool(np.all(np.equal(self.squares, other.squares)))
                and np.array_equal(self.mean, other.mean, equal_nan=True)
                and np.array_equal(self.M2, other.M2, equal_nan=True))

    __hash__ = None

    def __repr__(self):
        weighted = "" if np.array_equal(self.squares, self.count) else f", squares={short(self.squares)}"
        return f"Moments(count={short(self.count)}, mean={short(self.mean)}, M2={short(self.M2)}{weighted})"


def short(value):
    """The repr of a number; that of an array in a line, without its middle where it is long."""
    if not isinstance(value, np.ndarray):
        return repr(value)
    return f"array({np.array2string(value, separator=', ', threshold=6, edgeitems=2)})"


def _is_plain(a):
    return a.itemsize > 2 and a.flags.carray


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
    count, squares = (np.array(np.broadcast_to(a, moments.mean.shape)) for a in (moments.count, moments.squares))
    return Moments.of_arrays(count, moments.mean, moments.M2, squares)


def _count(value, name):
    if isinstance(value, np.ndarray) and value.ndim:
        if value.dtype.kind not in "fiu" or not np.isfinite(value).all():
            raise ValueError(f"{name} is {value!r}, expected finite numbers of at least 0")
        value = value.astype(np.float64 if value.dtype.kind == "f" else np.int64)
    else:
        value = int(value) if checks.is_whole(value) else checks.finite(value, name)
    if np.any(np.less(value, 0)):
        raise ValueError(f"{name} is {value}, expected 0 or more")
    return value


def _undone(var, count):
    """An M2 for which M2 * (1 / count) is `var`, every bit; 0 where nothing counts.

    Multiplying by the count misses the core's M2 by up to three steps, since 1 / count is rounded.
    """
    with np.errstate(all="ignore"):
        M2 = up = down = var * count
        share = np.divide(1.0, count)
        for _ in range(3):
            up, down = np.nextafter(up, np.inf), np.nextafter(down, -np.inf)
            for near in (up, down):
                M2 = np.where((M2 * share != var) & (near * share == var), near, M2)
    return np.where(np.equal(count, 0), 0.0, M2)


def merged(count_a, mean_a, M2_a, count_b, mean_b, M2_b):
    """(mean, M2) of the union, by the formulas above; where one side has no entries, what the other has."""
    with np.errstate(all="ignore"):
        share = np.divide(count_b, np.add(count_a, count_b))
        delta = mean_b - mean_a
        mean, M2 = mean_a + delta * share, M2_a + M2_b + delta * delta * (count_a * share)
    only_a, only_b = np.equal(count_b, 0), np.equal(count_a, 0)
    return (np.where(only_b, mean_b, np.where(only_a, mean_a, mean)),
            np.where(only_b, M2_b, np.where(only_a, M2_a, M2)))
