"""JAX on the CPU: batch normalization under jit, grad and vmap, computed by fastbn inside of XLA's programs.

XLA calls the handlers of csrc/adapters/xla.c, which are part of fastbn's core. Where jaxlib does not take them (another version
of its interface), or FASTBN_JAX_CALLBACK=1 is in the environment at import (for arrays on other devices than the CPU),
jax.pure_callback calls Python instead: the same bits, more slowly.
"""
import os
import warnings
from functools import lru_cache, partial
from typing import Any

import numpy as np

from .. import _core
from .._engine import checks
from .._engine.layout import normalize_axes

try:
    import jax
    import jax.numpy as jnp
    from jax.custom_derivatives import SymbolicZero
except ImportError as error:
    raise ImportError(f"JAX cannot be imported ({error}): pip install 'fastbn[jax]'") from error

from . import _jax_callbacks

__all__ = ["batch_norm", "batch_norm_inference", "batch_norm_training"]

_DTYPES = ("float32", "float64", "float16", "bfloat16")


def batch_norm(x, gamma, beta, running_mean, running_var, *, training, axis=1, eps=1e-5, momentum=0.9,
               ddof=1) -> tuple[Any, Any, Any]:
    """Normalize x and give the running statistics after it, for functional training loops.

    Parameters
    ----------
    x : array
        As for batch_norm_training.
    gamma, beta : array of shape (C,), or None
        As for batch_norm_training.
    running_mean, running_var : array of float32 or float64, shape (C,)
        The running statistics.
    training : bool
        A Python bool. True: by the statistics of x, and the running statistics take a step; they carry no gradient
        and have the arguments' dtype (with N of 0 or 1 they stay as they are). False: by the running statistics,
        which come back as they are.
    axis : int, default 1
        As for batch_norm_training.
    eps : float, default 1e-5
        As for batch_norm_training.
    momentum : float, default 0.9
        The weight that the old average keeps, from 0 to 1.
    ddof : {0, 1}, default 1
        1, the unbiased running variance, or 0, the biased one.

    Returns
    -------
    y : array of x's shape and dtype
        The normalized x.
    running_mean, running_var : array of shape (C,)
        The new running statistics.

    Raises
    ------
    TypeError, ValueError
        As batch_norm_training and batch_norm_inference do.

    Notes
    -----
    With the batch's mean and biased variance, and N entries of each feature,

        running_mean = momentum * running_mean + (1 - momentum) * mean
        running_var  = momentum * running_var  + (1 - momentum) * var * N / (N - ddof)

    References
    ----------
    Ioffe and Szegedy 2015 (arXiv:1502.03167).

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from fastbn.interop.jax import batch_norm
    >>> x, ones, zeros = jnp.array([[1.0], [3.0]]), jnp.ones(1), jnp.zeros(1)
    >>> y, mean, var = batch_norm(x, ones, zeros, zeros, ones, training=True, momentum=0.5)
    >>> mean
    Array([1.], dtype=float32)
    """
    momentum, ddof = checks.momentum(momentum), checks.ddof(ddof)
    if not training:
        y = batch_norm_inference(x, running_mean, running_var, gamma, beta, axis=axis, eps=eps)
        return y, running_mean, running_var
    x, axis, eps, gamma, beta = _prepared(x, axis, eps, {"gamma": gamma, "beta": beta})
    count = x.size // gamma.size if gamma.size else 0
    if count <= ddof:
        return x if not count else _training(x, gamma, beta, axis, eps)[0], running_mean, running_var
    y, _, _, saved = _training(x, gamma, beta, axis, eps)
    old = [_vector(a, f"running_{name}", gamma.size) for name, a in (("mean", running_mean), ("var", running_var))]
    wide = jnp.result_type(*old)
    new = _stepped(*(a.astype(wide) for a in old), saved, momentum, count / (count - ddof))
    return y, *(a.astype(like.dtype) for a, like in zip(new, old))


def batch_norm_training(x, gamma=None, beta=None, *, axis=1, eps=1e-5):
    """Normalize x by its own statistics, as y = (x - mean) / sqrt(var + eps) * gamma + beta.

    Parameters
    ----------
    x : array of float32, float64, float16 or bfloat16
        It has C entries on `axis`, and at least 2 dimensions.
    gamma, beta : array of float32 or float64, shape (C,), or None
        Scale and shift; None stands for ones and zeros.
    axis : int, default 1
        The feature axis.
    eps : float, default 1e-5
        A Python number above 0.

    Returns
    -------
    y : array of x's shape and dtype
        The normalized x.
    mean, var : array of shape (C,)
        Those of the batch, var biased; float64 where an argument is, else float32.

    Raises
    ------
    TypeError, ValueError
        If a shape, a dtype, eps or axis does not fit, when traced too.

    Notes
    -----
    All results have gradients, and these have gradients (reverse mode over reverse mode, twice at most; no jvp),
    taken from mean and rstd in double, with or without JAX's 64-bit types. vmap: each entry has statistics of its
    own.

    References
    ----------
    Ioffe and Szegedy 2015 (arXiv:1502.03167); gradients: fastbn.batch_norm_backward and _double_backward.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from fastbn.interop.jax import batch_norm_training
    >>> y, mean, var = batch_norm_training(jnp.array([[1.0], [3.0]]))
    >>> mean, var
    (Array([2.], dtype=float32), Array([1.], dtype=float32))
    """
    x, axis, eps, gamma, beta = _prepared(x, axis, eps, {"gamma": gamma, "beta": beta})
    if not x.size:
        empty = jnp.zeros(x.shape[axis], gamma.dtype)
        return x, empty, empty + jnp.nan
    return _training(x, gamma, beta, axis, eps)[:3]


def batch_norm_inference(x, mean, var, gamma=None, beta=None, *, axis=1, eps=1e-5):
    """Normalize x by given statistics, as y = (x - mean) / sqrt(var + eps) * gamma + beta.

    Parameters
    ----------
    x : array
        As for batch_norm_training.
    mean, var : array of float32 or float64, shape (C,)
        The statistics.
    gamma, beta : array of shape (C,), or None
        As for batch_norm_training.
    axis : int, default 1
        As for batch_norm_training.
    eps : float, default 1e-5
        As for batch_norm_training.

    Returns
    -------
    array of x's shape and dtype
        The result, y.

    Raises
    ------
    TypeError, ValueError
        If a shape, a dtype, eps or axis does not fit, when traced too.

    Notes
    -----
    The gradients of y, with respect to every argument and of any order, are those of this formula, composed of JAX's
    operations.

    References
    ----------
    Ioffe and Szegedy 2015 (arXiv:1502.03167).

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from fastbn.interop.jax import batch_norm_inference
    >>> batch_norm_inference(jnp.array([[1.0], [5.0]]), jnp.ones(1), jnp.full(1, 4.0), eps=1e-12)
    Array([[0.],
           [2.]], dtype=float32)
    """
    if mean is None or var is None:
        raise ValueError("mean or var is None, expected an array of one entry for each feature")
    x, axis, eps, *parameters = _prepared(x, axis, eps, {"gamma": gamma, "beta": beta, "mean": mean, "var": var})
    return _inference(x, *parameters, axis, eps) if x.size else x


# ---- arguments ----

def _prepared(x, axis, eps, parameters):
    """Checked and converted: parameters of one dtype, gamma and beta always there."""
    x = jnp.asarray(x)
    if x.dtype.name not in _DTYPES:
        raise TypeError(f"x has dtype {x.dtype}, expected {', '.join(_DTYPES)}: convert with x.astype(jnp.float32)")
    if x.ndim < 2:
        raise ValueError(f"x has shape {x.shape}, expected at least 2 dimensions, a batch axis and a feature axis")
    axes = normalize_axes(axis, x.ndim)
    if len(axes) != 1:
        raise ValueError(f"axis is {axis}, expected an int: join several feature axes with jnp.reshape")
    c = x.shape[axes[0]]
    parameters = {name: None if value is None else _vector(value, name, c) for name, value in parameters.items()}
    wide = any(a.dtype == np.float64 for a in (x, *parameters.values()) if a is not None)
    dtype = jnp.float64 if wide else jnp.float32
    neutral = {"gamma": jnp.ones, "beta": jnp.zeros}
    arrays = (neutral[name](c, dtype) if a is None else a.astype(dtype) for name, a in parameters.items())
    return x, axes[0], checks.epsilon(eps), *arrays


def _vector(value, name, c):
    value = jnp.asarray(value)
    if value.dtype.name not in ("float32", "float64"):
        raise TypeError(f"{name} has dtype {value.dtype}, expected float32 or float64")
    if value.shape != (c,):
        raise ValueError(f"{name} has shape {value.shape}, expected ({c},): one entry for each feature of axis")
    return value


# ---- training: each function's gradient is the next one ----

@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _training(x, gamma, beta, axis, eps):
    """y, mean, var, saved."""
    c = gamma.size
    results = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in (
        (x.shape, x.dtype), ((c,), gamma.dtype), ((c,), gamma.dtype), ((3, c, 2), np.uint32))]
    return tuple(_call("training", results, x, gamma, beta, axis=axis, eps=eps))


def _training_forward(x, gamma, beta, axis, eps):
    x, gamma, beta = (argument.value for argument in (x, gamma, beta))
    results = _training(x, gamma, beta, axis, eps)
    return results, (x, gamma, results[1], results[3])


def _training_backward(axis, eps, kept, cotangents):
    x, gamma, mean, saved = kept
    dy, dmean, dvar, _ = cotangents
    dx, dgamma, dbeta = jnp.zeros_like(x), jnp.zeros_like(gamma), jnp.zeros_like(gamma)
    if not isinstance(dy, SymbolicZero):
        dx, dgamma, dbeta = _backward(x, dy, gamma, saved, axis, eps)
    n = x.size // gamma.size
    if not isinstance(dmean, SymbolicZero):
        dx += (_along(dmean, x, axis) / n).astype(x.dtype)
    if not isinstance(dvar, SymbolicZero):
        dx += (_along(dvar, x, axis) * (2 / n) * (x.astype(mean.dtype) - _along(mean, x, axis))).astype(x.dtype)
    return dx, dgamma, dbeta


_training.defvjp(_training_forward, _training_backward, symbolic_zeros=True)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _backward(x, dy, gamma, saved, axis, eps):
    """dx, dgamma, dbeta. What is saved is seen as a function of x, whose part in the gradient is x's."""
    results = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (x, gamma, gamma)]
    return tuple(_call("backward", results, x, dy, gamma, saved, axis=axis, eps=eps))


def _backward_forward(x, dy, gamma, saved, axis, eps):
    return _backward(x, dy, gamma, saved, axis, eps), (x, dy, gamma, saved)


def _backward_backward(axis, eps, kept, cotangents):
    """Half types are computed in float32."""
    x, dy, gamma, saved = kept
    ddx, ddgamma, ddbeta = cotangents
    dtype = jnp.float64 if x.dtype == np.float64 else jnp.float32
    wide = [a.astype(dtype) for a in (x, dy, ddx)]
    results = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (wide[0], wide[0], gamma)]
    ddy, dx, dgamma = _call("double_backward", results, *wide, ddgamma, ddbeta, gamma, saved, axis=axis, eps=eps)
    return dx.astype(x.dtype), ddy.astype(dy.dtype), dgamma, None


_backward.defvjp(_backward_forward, _backward_backward)


# ---- the step of the running statistics, which has no gradient ----

@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _stepped(mean, var, saved, momentum, var_scale):
    results = [jax.ShapeDtypeStruct(mean.shape, mean.dtype)] * 2
    return tuple(_call("update_running", results, mean, var, saved, axis=0, eps=0.0, momentum=momentum,
                       var_scale=var_scale))


def _stepped_forward(*arguments):
    return _stepped(*arguments), arguments[:2]


def _stepped_backward(momentum, var_scale, kept, cotangents):
    return *map(jnp.zeros_like, kept), None


_stepped.defvjp(_stepped_forward, _stepped_backward)


# ---- inference ----

@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _inference(x, gamma, beta, mean, var, axis, eps):
    results = [jax.ShapeDtypeStruct(x.shape, x.dtype)]
    return _call("inference", results, x, gamma, beta, mean, var, axis=axis, eps=eps)[0]


def _inference_forward(*arguments):
    return _inference(*arguments), arguments[:5]


def _inference_backward(axis, eps, kept, dy):
    return jax.vjp(partial(_composed, axis=axis, eps=eps), *kept)[1](dy)


def _composed(x, gamma, beta, mean, var, *, axis, eps):
    gamma, beta, mean, var = (_along(a, x, axis) for a in (gamma, beta, mean, var))
    return ((x.astype(mean.dtype) - mean) * (gamma / jnp.sqrt(var + eps)) + beta).astype(x.dtype)


_inference.defvjp(_inference_forward, _inference_backward)


def _along(a, x, axis):
    """A vector of the features, to broadcast with x."""
    return a.reshape([-1 if i == axis else 1 for i in range(x.ndim)])


# ---- calls ----

def _call(name, results, *arguments, axis, **numbers):
    """The results of an operation of csrc/adapters/xla.h. vmap adds leading dimensions to all arguments and results."""
    if _uses_callbacks:
        function = _callback(name, rank=arguments[0].ndim, axis=axis, **numbers)
        return jax.pure_callback(function, results, *arguments, vmap_method="broadcast_all")
    call = jax.ffi.ffi_call(f"fastbn_{name}", results, vmap_method="broadcast_all")
    numbers = {key: np.float64(value) for key, value in numbers.items()}
    return call(*arguments, rank=np.int64(arguments[0].ndim), axis=np.int64(axis), **numbers)


@lru_cache(maxsize=1024)
def _callback(name, **attributes):
    """The same object for the same call: by it JAX knows what it has compiled."""
    return partial(getattr(_jax_callbacks, name), **attributes)


def _register():
    """Whether XLA calls the handlers."""
    if os.environ.get("FASTBN_JAX_CALLBACK") == "1":
        return False
    try:
        for name, handler in _core.xla_handlers().items():
            jax.ffi.register_ffi_target(name, handler, platform="cpu")
    except Exception as error:  # jaxlib's own kinds, which differ by version
        warnings.warn(f"JAX {jax.__version__} does not take fastbn's handlers ({error}): calls go through Python, more "
                      "slowly; pip install 'fastbn[jax]' for a version that does", RuntimeWarning, stacklevel=3)
        return False
    return True


_uses_callbacks = not _register()
