"""(x - mean) / scale with given statistics, as one call of the core."""
import numpy as np

from ._canonical import arrange, normalize_axes
from ._functional import batch_norm_inference

# With a variance of 1 that leaves 1 / sqrt(var + eps) exactly 1, so that gamma = 1 / scale is the whole factor.
_NO_EPS = 5e-324
# Of scale, by the type of the arithmetic: beyond it 1 / scale overflows, or loses bits.
_SAFE = {np.dtype(np.float32): (2.0**-126, 2.0**126), np.dtype(np.float64): (2.0**-1022, 2.0**1022)}


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
        if not _is_safe(scale, x.dtype):
            return _by_numpy(x, mean, scale, out, axis)
        factor = 1.0 / scale
    target = None if out is None or _has_gaps(out, axis) else out
    y = batch_norm_inference(x, mean, np.ones(c), factor, eps=_NO_EPS, axis=axis, out=target, num_threads=num_threads)
    return y if target is out else _stored(y, out)


def _has_gaps(out, axis):
    """Whether there is another axis between several feature axes: the core writes to no such array."""
    if not isinstance(axis, tuple) or len(axis) == 1:
        return False
    return arrange(out, normalize_axes(axis, out.ndim)).view(out) is None


def _stored(y, out):
    out[...] = y
    return out


def _is_safe(scale, dtype):
    least, most = _SAFE[np.dtype(np.float64 if dtype == np.float64 else np.float32)]
    magnitude = np.abs(scale)
    return bool(np.all((magnitude >= least) & (magnitude <= most)))


def _by_numpy(x, mean, scale, out, axis):
    """The same in float64, with a division; slower, for scales that are next to the ends of the type's range."""
    axes = normalize_axes(axis, x.ndim)
    shape = [x.shape[i] if i in axes else 1 for i in range(x.ndim)]
    with np.errstate(all="ignore"):
        y = ((x.astype(np.float64) - mean.reshape(shape)) / scale.reshape(shape)).astype(x.dtype)
    return y if out is None else _stored(y, out)
