"""How much each entry of a batch counts in its statistics: masks, weights, lengths of padded sequences, missing entries."""
import math
from typing import NamedTuple

import numpy as np

from . import dlpack

_EXACT = 2 ** 53  # up to which doubles are all the integers
_LARGEST = 1e140


class Weights(NamedTuple):
    """Only ratios of weights matter, and so the numbers here are the weights divided by `unit`, a power of two, which
    brings the largest near 1: in the type of the arithmetic no weight overflows then, and none that counts vanishes.
    """

    whole: np.ndarray  # of x's shape without the feature axes, of the type of the arithmetic
    axes: tuple        # those of x
    total: float
    squares: float | np.ndarray  # the sum of their squares; by feature where `counts` is there
    unit: float = 1.0
    # Where NaN entries are missing, by feature: the weight of those that are there, and whether none is.
    counts: np.ndarray | None = None
    absent: np.ndarray | None = None

    def data(self, arrangement):
        """(n * s,), in the order of x's (n, c, s) view."""
        remaining = [i for i in range(len(arrangement.shape)) if i not in self.axes]
        order = [remaining.index(i) for i in arrangement.order if i not in self.axes]
        return np.ascontiguousarray(self.whole.transpose(order)).reshape(-1)

    def counted(self):
        """(count, squares) as Moments have them: integers where they are whole."""
        count = self.total if self.counts is None else self.counts
        return whole_sums(count * self.unit), whole_sums(self.squares * self.unit * self.unit)


def whole_sums(sums):
    """Integers where they are whole, and exact as doubles."""
    if np.ndim(sums):
        return sums if (sums % 1).any() or sums.max(initial=0) > _EXACT else sums.astype(np.int64)
    return int(sums) if float(sums).is_integer() and sums <= _EXACT else float(sums)


def factors_of(x, axes, mask, weights, lengths):
    """The arguments that are there, whose product is the weights, as arrays of x's shape without its feature axes `axes`.

    Raises TypeError, ValueError.
    """
    shape = _counted_shape(x, axes)
    factors = _mask(mask, shape), _weights(weights, shape), _lengths(lengths, shape)
    return [factor for factor in factors if factor is not None]


def weights_of(factors, x, axes):
    """The Weights of x, of one factor or more."""
    booleans = all(factor.dtype == np.bool_ for factor in factors)
    whole = np.ones(_counted_shape(x, axes), _dtype_for(x) if booleans else np.float64)
    for factor in factors:
        whole *= factor
    if booleans:
        total = float(whole.sum(dtype=np.float64))
        return Weights(whole, axes, total, total)
    exponent = math.frexp(whole.max(initial=0))[1] - 1
    whole = np.ldexp(whole, -exponent).astype(_dtype_for(x), copy=False)
    squares = np.square(whole, dtype=np.float64).sum()
    return Weights(whole, axes, float(whole.sum(dtype=np.float64)), float(squares), math.ldexp(1.0, exponent))


def equal_weights(x, axes):
    whole = np.ones(_counted_shape(x, axes), _dtype_for(x))
    return Weights(whole, axes, float(whole.size), float(whole.size))


def _counted_shape(x, axes):
    return tuple(size for i, size in enumerate(x.shape) if i not in axes)


def _dtype_for(x):
    return np.float64 if x.dtype == np.float64 else np.float32


def _fits(a, shape, name):
    """Broadcast, aligned from the left: a value for each sample, or for each step of each sample, whatever comes after."""
    def fits(candidate):
        return len(candidate) == len(shape) and all(one in (1, size) for one, size in zip(candidate, shape))
    missing = (1,) * (len(shape) - a.ndim)
    if fits(a.shape + missing):
        return np.broadcast_to(a.reshape(a.shape + missing), shape)
    if not shape:
        raise ValueError(f"{name} is given, and all axes of x are feature axes, each feature having one entry: leave it out")
    hint = f": for the last axes write {name}.reshape({missing + a.shape})" if missing and fits(missing + a.shape) else ""
    raise ValueError(f"{name} has shape {a.shape}, expected {shape}, x's shape without its feature axes, or the first of these "
                     f"axes, with 1 for any size{hint}")


def _refuse_masked(a, name, nothing):
    if isinstance(a, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask would be lost: pass {name}.filled({nothing})")


def _mask(mask, shape):
    if mask is None:
        return None
    _refuse_masked(mask, "mask", "False")
    mask = dlpack.asarray(mask, "mask")
    if mask.dtype != np.bool_:
        raise TypeError(f"mask has dtype {mask.dtype}, expected bool: True where an entry counts; for weights pass weights=")
    return _fits(mask, shape, "mask")


def _weights(weights, shape):
    if weights is None:
        return None
    _refuse_masked(weights, "weights", 0)
    weights = dlpack.asarray(weights, "weights")
    if weights.dtype.name == "bfloat16":
        weights = weights.astype(np.float32)
    if weights.dtype.kind not in "fiu":
        raise TypeError(f"weights has dtype {weights.dtype}, expected numbers of at least 0")
    if not np.all(np.isfinite(weights)) or np.any(weights < 0):
        raise ValueError("weights has an entry that is negative or not finite, expected numbers of at least 0")
    largest, least = float(np.max(weights, initial=0)), float(np.min(weights, where=weights > 0, initial=1))
    if largest > _LARGEST or least < 1 / _LARGEST:
        raise ValueError(f"weights has entries from {least:g} to {largest:g}, expected 0 and numbers from {1 / _LARGEST:g} to "
                         f"{_LARGEST:g}, whose squares are doubles: only ratios matter, so divide them by the largest")
    return _fits(weights, shape, "weights")


def _lengths(lengths, shape):
    """True for the first lengths[i] steps of sequence i, whose steps are the first axis after the batch axis."""
    if lengths is None:
        return None
    _refuse_masked(lengths, "lengths", 0)
    lengths = dlpack.asarray(lengths, "lengths")
    if len(shape) < 2:
        raise ValueError("lengths is given, but x has only a batch axis beside the feature axis: expected a sequence axis")
    if lengths.dtype.kind not in "iu":
        raise TypeError(f"lengths has dtype {lengths.dtype}, expected integers")
    if lengths.shape != shape[:1]:
        raise ValueError(f"lengths has shape {lengths.shape}, expected {shape[:1]}: one for each sequence of the batch")
    if lengths.size and (lengths.min() < 0 or lengths.max() > shape[1]):
        raise ValueError(f"lengths goes from {lengths.min()} to {lengths.max()}, expected 0 to {shape[1]}, the steps of x")
    steps = np.arange(shape[1]) < lengths[:, None]
    return steps.reshape(steps.shape + (1,) * (len(shape) - 2))
