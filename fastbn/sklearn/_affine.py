"""What transform and inverse_transform compute: y = (x - mean) * gamma + beta of each feature, by linear."""
import functools

import numpy as np

from fastbn._data.standardizing import has_reciprocal, linear
from fastbn._engine.layout import arrange

from . import _inputs


def standardizing(scaler, c, dtype):
    """y = (x - mean_) / scale_, or None where that is not to be had by a factor."""
    mean, scale = _parameters(scaler)
    if not (_fits(mean, c, dtype) and _fits(scale, c, dtype) and (scale is None or has_reciprocal(scale, dtype))):
        return None
    return functools.partial(linear, mean=np.zeros(c) if mean is None else mean,
                             gamma=None if scale is None else 1.0 / scale)


def restoring(scaler, c, dtype):
    """y = x * scale_ + mean_, or None."""
    mean, scale = _parameters(scaler)
    if not (_fits(mean, c, dtype) and _fits(scale, c, dtype)):
        return None
    return functools.partial(linear, mean=np.zeros(c), gamma=scale, beta=mean)


def _parameters(scaler):
    """(mean, scale), in float64; None for what the scaler does without."""
    return (np.asarray(scaler.mean_, np.float64) if scaler.with_mean else None,
            np.asarray(scaler.scale_, np.float64) if scaler.with_std else None)


def _fits(values, c, dtype):
    """Whether these are c numbers that do not overflow in dtype."""
    if values is None:
        return True
    if values.shape != (c,):
        return False
    return dtype == np.float64 or not np.fmax.reduce(np.abs(values)) > np.finfo(dtype).max


def apply(line, x, in_place, checks):
    """y, in x or in a new array. None where x has an infinity, if `checks`; x is as it was then."""
    if checks and _inputs.has_infinity(x):
        return None
    return _in_place(line, x) if in_place else line(x)


def _in_place(line, x):
    if x.flags.aligned and arrange(x, (1,)).view(x) is not None:
        return line(x, out=x)
    for rows in _inputs.blocks_of(x):  # gaps between the entries of a row: a copy of some of them at a time
        x[rows] = line(x[rows])
    return x
