"""The operations of csrc/adapters/xla.h as functions of NumPy arrays, for jax.pure_callback: the same arguments and results.

Where arrays have more dimensions than `rank`, their first ones are those of vmap: one call for each entry.
"""
import math

import numpy as np

from .. import _core, batch_norm_backward, batch_norm_double_backward, batch_norm_inference, batch_norm_training
from .._engine.saved import Saved


def training(x, gamma, beta, *, rank, axis, eps):
    def one(x, gamma, beta):
        y, saved = batch_norm_training(x, gamma, beta, axis=axis, eps=eps)
        rows = np.stack([saved.mean, saved.var, saved.rstd])
        return y, saved.mean.astype(gamma.dtype), saved.var.astype(gamma.dtype), rows.view(np.uint32).reshape(3, -1, 2)
    return _each(one, rank, x, gamma, beta)


def backward(x, dy, gamma, saved, *, rank, axis, eps):
    def one(x, dy, gamma, saved):
        return batch_norm_backward(dy, _restored(x, gamma, saved, axis))
    return _each(one, rank, x, dy, gamma, saved)


def double_backward(x, dy, ddx, ddgamma, ddbeta, gamma, saved, *, rank, axis, eps):
    def one(x, dy, ddx, ddgamma, ddbeta, gamma, saved):
        return batch_norm_double_backward(ddx, ddgamma, ddbeta, dy, _restored(x, gamma, saved, axis))
    return _each(one, rank, x, dy, ddx, ddgamma, ddbeta, gamma, saved)


def inference(x, gamma, beta, mean, var, *, rank, axis, eps):
    def one(x, gamma, beta, mean, var):
        return (batch_norm_inference(x, mean, var, gamma, beta, axis=axis, eps=eps),)
    return _each(one, rank, x, gamma, beta, mean, var)


def update_running(running_mean, running_var, saved, *, rank, axis, eps, momentum, var_scale):
    def one(running_mean, running_var, saved):
        mean, var, _ = _rows(saved)
        new = running_mean.copy(), running_var.copy()
        _core.update_running(mean, var, momentum, var_scale, *new)
        return new
    return _each(one, rank, running_mean, running_var, saved)


def _each(function, rank, *arrays):
    arrays = [np.asarray(a) for a in arrays]
    batch = arrays[0].shape[:arrays[0].ndim - rank]
    if not batch:
        return function(*arrays)
    entries = math.prod(batch)
    flat = [a.reshape(entries, *a.shape[len(batch):]) for a in arrays]
    results = zip(*(function(*entry) for entry in zip(*flat)))
    return tuple(np.stack(result).reshape(*batch, *result[0].shape) for result in results)


def _restored(x, gamma, words, axis):
    """What the forward call left, out of its words of 32 bits."""
    saved = Saved(x, (axis,), gamma.size, gamma, None, frozen=False, in_place=False)
    saved.mean[:], saved.var[:], saved.rstd[:] = _rows(words)
    return saved


def _rows(words):
    return np.ascontiguousarray(words).view(np.float64).reshape(3, -1)
