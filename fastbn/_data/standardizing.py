"""(x - mean) / scale with given statistics, as one call of the core."""
import numpy as np

from .._engine import checks
from .._engine.fusion import NONE
from .._engine.layout import arrange, normalize_axes
from .._engine.run import normalize_by_given, prepare

# The least scale, by the type of the arithmetic: below it 1 / scale overflows, or scale has lost bits. Beyond its reciprocal
# 1 / scale has.
_LEAST = {np.dtype(np.float32): 2.0**-126, np.dtype(np.float64): 2.0**-1022}


def linear(x, mean, gamma, beta=None, *, axis=1, out=None, num_threads=None):
    """y = (x - mean) * gamma + beta of each feature, by the kernels of inference; None stands for ones and for zeros.

    These have gamma / sqrt(var + eps) for a factor. With var 0 and eps 1 that is gamma to the last bit, at any magnitude; a
    variance would be squared and rooted, and overflow. mean, gamma, beta: vectors of float64, of which the core takes the
    mean in two parts: float32 data is centred by the whole mean, not by its rounding.
    """
    given = {"mean": mean, "var": np.zeros_like(mean), "gamma": gamma, "beta": beta}
    x, axes, _, given = prepare(x, axis, given)
    return normalize_by_given(x, axes, given, 1.0, out, checks.threads(num_threads), NONE, False)[0]


def has_reciprocal(scale, dtype):
    """Whether scale and 1 / scale are normal numbers of the type that data of dtype are computed in; NaN is as good."""
    least = _LEAST[np.dtype(np.float64 if dtype == np.float64 else np.float32)]
    magnitude = np.abs(scale)
    return not np.fmin.reduce(magnitude) < least and not np.fmax.reduce(magnitude) > 1 / least


def standardize_into(x, mean, scale, out=None, axis=-1, num_threads=None):
    """y = (x - mean) / scale of each feature, computed as (x - mean) * (1 / scale).

    x: array with a feature axis, at least 2 dimensions, float32, float64, float16 or bfloat16; half types are computed as
        float32.
    mean, scale: arrays of shape (C,), best of float64; scale not 0. None stands for zeros and for ones.
    out: array of x's shape and dtype; it may be x. None: a new one.
    axis: the feature axis, or a tuple of them. num_threads: at most so many threads.

    Returns y, of x's dtype. An entry that is its feature's mean gives exactly 0 where the mean is a number of the
    arithmetic's type, so a constant feature becomes 0; NaN and Inf stay in their entries. y is within 1e-6 (float32) or
    1e-14 (float64) of max(1, |y|) of the exact quotient.
    Raises TypeError, ValueError as fastbn.batch_norm_inference does.
    """
    c = np.size(mean) if mean is not None else np.size(scale)
    mean = np.zeros(c) if mean is None else np.asarray(mean, np.float64)
    factor = None
    if scale is not None:
        scale = np.asarray(scale, np.float64)
        if not has_reciprocal(scale, x.dtype):
            return _by_numpy(x, mean, scale, out, axis)
        factor = 1.0 / scale
    target = None if out is None or _has_gaps(out, axis) else out
    y = linear(x, mean, factor, axis=axis, out=target, num_threads=num_threads)
    return y if target is out else _stored(y, out)


def _has_gaps(out, axis):
    """Whether there is another axis between several feature axes: the core writes to no such array."""
    if not isinstance(axis, tuple) or len(axis) == 1:
        return False
    return arrange(out, normalize_axes(axis, out.ndim)).view(out) is None


def _stored(y, out):
    out[...] = y
    return out


def _by_numpy(x, mean, scale, out, axis):
    """The same in float64, with a division; slower, for scales that are next to the ends of the type's range."""
    axes = normalize_axes(axis, x.ndim)
    shape = [x.shape[i] if i in axes else 1 for i in range(x.ndim)]
    with np.errstate(all="ignore"):
        y = ((x.astype(np.float64) - mean.reshape(shape)) / scale.reshape(shape)).astype(x.dtype)
    return y if out is None else _stored(y, out)
