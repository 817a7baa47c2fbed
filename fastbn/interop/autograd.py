"""autograd (HIPS): batch normalization as one primitive with one fused backward, for networks in autograd.numpy.

    y = batch_norm_training(x, gamma, beta)  # statistics of the batch, differentiated through
    y = batch_norm(x, gamma, beta, bn)       # and moving averages, which a fastbn.BatchNorm keeps outside of the graph

The derivatives are fastbn.batch_norm_backward and fastbn.batch_norm_double_backward, each a primitive of its own, so
that gradients of gradients are theirs too. What a forward call leaves for them is in a _Call, an argument of all three:
autograd hands arguments on to derivatives, however many traces are one inside the other.
"""
import fastbn
from fastbn._engine import checks
from fastbn._engine.layout import normalize_axes

try:
    from autograd.extend import defjvp_argnums, defvjp_argnums, primitive, vspace
    from autograd.tracer import getval, isbox
except ImportError as error:
    raise ImportError("fastbn.interop.autograd needs the package autograd: pip install 'fastbn[autograd]'") from error

__all__ = ["batch_norm", "batch_norm_inference", "batch_norm_training"]

_COMPOSE = "; compose batch norm of autograd.numpy's functions instead"
_ALL = ("dx", "dgamma", "dbeta")
_NAMES = (*_ALL, "dmean", "dvar")  # of the gradients, by the arrays of _normalize
_SECOND = {1: "ddy", 3: "dx", 4: "dgamma"}  # of theirs, by the arguments of _backward


def batch_norm_training(x, gamma=None, beta=None, **options):
    """Normalize x by its own statistics, through which gradients flow.

    Parameters
    ----------
    x : array or box of autograd
        As for fastbn.batch_norm_training. Leave it unchanged until backward.
    gamma, beta : array or box of shape (C,), or None
        Scale and shift.
    **options : dict
        eps, axis and the other keyword arguments of fastbn.batch_norm_training, which are constants, but for out and
        residual.

    Returns
    -------
    array of x's shape and dtype
        The result, y = act((x - mean) * rstd * gamma + beta).

    Raises
    ------
    TypeError, ValueError
        As fastbn.batch_norm_training does. Gradients of gradients are those of fastbn.batch_norm_double_backward: a
        ValueError with an activation, mask, weights or lengths, a TypeError with ghost batches.
    NotImplementedError
        If reverse mode is taken three times, or forward mode.

    Notes
    -----
    With the mean and the biased variance of the batch, rstd = 1 / sqrt(var + eps). The gradients with respect to x,
    gamma and beta have the dtypes of these; those that come with respect to y are converted to x's.

    References
    ----------
    Ioffe and Szegedy 2015 (arXiv:1502.03167).

    Examples
    --------
    >>> import autograd
    >>> import numpy as np
    >>> from fastbn.interop.autograd import batch_norm_training
    >>> x, beta = np.array([[1.0], [2.0], [6.0]]), np.zeros(1)
    >>> autograd.grad(lambda beta: batch_norm_training(x, None, beta).sum())(beta)
    array([3.])
    """
    if options:
        _check_options(options)
    return _normalize(_Call(options), x, gamma, beta)


def batch_norm_inference(x, mean, var, gamma=None, beta=None, **options):
    """Normalize x by given statistics.

    Parameters
    ----------
    x : array or box of autograd
        As for fastbn.batch_norm_inference.
    mean, var : array or box of shape (C,)
        The statistics.
    gamma, beta : array or box of shape (C,), or None
        Scale and shift.
    **options : dict
        eps, axis, activation, num_threads of fastbn.batch_norm_inference, which are constants.

    Returns
    -------
    array of x's shape and dtype
        The result, y.

    Raises
    ------
    TypeError, ValueError
        As batch_norm_training does.
    NotImplementedError
        As batch_norm_training does, and for gradients of gradients where mean or var is a variable.

    Notes
    -----
    y = act((x - mean) / sqrt(var + eps) * gamma + beta), of which all five arrays have gradients.

    References
    ----------
    Ioffe and Szegedy 2015 (arXiv:1502.03167), algorithm 2.

    Examples
    --------
    >>> import autograd
    >>> import numpy as np
    >>> from fastbn.interop.autograd import batch_norm_inference
    >>> x, mean, var = np.array([[1.0], [2.0]]), np.zeros(1), np.ones(1)
    >>> autograd.grad(lambda x: batch_norm_inference(x, mean, var, eps=1e-12).sum())(x)
    array([[1.],
           [1.]])
    """
    if options:
        _check_options(options)
    if not any(map(isbox, (x, gamma, beta, mean, var))):
        return fastbn.batch_norm_inference(x, mean, var, gamma, beta, **options)
    return _normalize(_Call(options), x, gamma, beta, mean, var)


def batch_norm(x, gamma, beta, bn, *, update=True):
    """Normalize with moving averages: batch_norm_training or, in inference mode, by the averages.

    Parameters
    ----------
    x : array or box of autograd
        As for fastbn.batch_norm_training.
    gamma, beta : array or box of shape (C,), or None
        Scale and shift.
    bn : BatchNorm
        It has axis, eps, activation, mode (bn.train(), bn.eval(), bn.use_batch_stats) and the running statistics. In
        training mode each call takes a step of these, by bn's momentum, ddof and switches, of which autograd knows
        nothing. The layer's own gamma and beta are not looked at: make it with center=False, scale=False.
    update : bool, default True
        False: no step, where a batch is computed more than once (autograd's checkpoint, gradient checks, line
        searches); bn.update(bn.batch_moments) is then the step left out.

    Returns
    -------
    array of x's shape and dtype
        The result, y.

    Raises
    ------
    TypeError, ValueError
        As the two functions do, and if x has not bn.num_features, or bn has ghost batches, renormalization or
        nan_policy="omit". Then the running statistics are as they were.

    Examples
    --------
    >>> import autograd
    >>> import numpy as np
    >>> import fastbn
    >>> from fastbn.interop.autograd import batch_norm
    >>> bn = fastbn.BatchNorm(1, center=False, scale=False, momentum=0.5)
    >>> x, gamma, beta = np.array([[1.0], [3.0]]), np.ones(1), np.zeros(1)
    >>> autograd.grad(lambda beta: batch_norm(x, gamma, beta, bn).sum())(beta)
    array([2.])
    >>> bn.running_mean
    array([1.], dtype=float32)
    """
    _check_layer(bn, getval(x))
    options, updates = {"eps": bn.eps, "axis": bn.axis, "activation": bn.activation}, bn._updates(update)
    if not bn._normalizes_by_batch():
        y = batch_norm_inference(x, bn.running_mean, bn.running_var, gamma, beta, **options)
        if updates:
            bn.update(fastbn.moments(getval(x), axis=bn.axis))
        return y
    if bn.nan_policy == "raise":
        options["nan_policy"] = "raise"
    call = _Call(options)
    y = _normalize(call, x, gamma, beta)
    _take_step(bn, call.saved, updates)
    return y


def _check_layer(bn, x):
    if not isinstance(bn, fastbn.BatchNorm):
        raise TypeError(f"bn is a {type(bn).__name__}, expected a fastbn.BatchNorm, which keeps the moving averages")
    if bn.ghost_batch_size is not None or bn.renorm is not None or bn.nan_policy == "omit":
        raise ValueError(f"bn is {bn!r}: ghost_batch_size, renorm and nan_policy='omit' are not offered here")
    if getattr(bn, "comm", None) is not None:
        raise ValueError(f"bn is {bn!r}: statistics over ranks are not offered here; call bn.forward and bn.backward")
    x = checks.batch(x)
    checks.features(x, normalize_axes(bn.axis, x.ndim), bn.num_features, "bn")


def _take_step(bn, saved, updates):
    """As the layer does after a forward call of its own."""
    if bn.training or updates:
        bn._take_batch(saved.moments, updates)


def _check_options(options):
    for name in ("out", "residual", "return_saved"):
        if name in options:
            raise ValueError(f"{name} is given, expected eps, axis and other constants of fastbn's function: autograd "
                             "makes arrays of its own, and a residual is added to y")


class _Call:
    """A forward call: its options, then what fastbn saved of it."""

    __slots__ = ("options", "saved")
    __array_ufunc__ = None  # autograd asks each argument for it, and looks long where there is none

    def __init__(self, options):
        self.options = options


@primitive
def _normalize(call, x, gamma, beta, *statistics):
    """statistics: mean and var where they are given."""
    if statistics:
        y, call.saved = fastbn.batch_norm_inference(x, *statistics, gamma, beta, return_saved=True, **call.options)
    else:
        y, call.saved = fastbn.batch_norm_training(x, gamma, beta, **call.options)
    return y


def _normalize_vjp(argnums, y, args, kwargs):
    needs = _ALL if argnums == (1, 2, 3) else tuple([_NAMES[argnum - 1] for argnum in argnums])
    nested = isbox(y)  # then some of args are boxes too
    return lambda dy: (_backward if nested or isbox(dy) else _gradients)(needs, dy, *args)


def _gradients(needs, dy, call, *arrays):
    """A tuple of the gradients that `needs` names; arrays: those of _normalize."""
    if needs is _ALL:  # without the argument a call is short
        dx, dgamma, dbeta = fastbn.batch_norm_backward(dy, call.saved)
        return dx, dgamma, _typed(dbeta, arrays[2])
    gradients = dict(zip(_NAMES, fastbn.batch_norm_backward(dy, call.saved, needs=needs)))
    return tuple([_typed(gradients[name], array) for name, array in zip(_NAMES, arrays) if name in needs])


_backward = primitive(_gradients)


def _typed(gradient, array):
    return gradient if gradient.dtype is array.dtype else gradient.astype(array.dtype, copy=False)


def _backward_vjp(argnums, results, args, kwargs):
    """As far as the gradients are those of plain normalization, beta is in none of them."""
    needs, dy, call, x, gamma, beta, *_ = args
    def vjp(cotangents):
        if max(argnums) > 5 or "dmean" in needs or "dvar" in needs:
            raise NotImplementedError("the gradient of a gradient is asked for where mean or var of "
                                      "batch_norm_inference is a variable: it is offered with respect to x, gamma and "
                                      "beta alone; pass mean and var as constants")
        given = dict(zip(needs, cotangents))
        of_second = tuple([_SECOND[argnum] for argnum in argnums if argnum in _SECOND])
        found = iter(_double_backward(of_second, dy, call, x, gamma, *(given.get(name) for name in _ALL)))
        return tuple([next(found) if argnum in _SECOND else vspace(beta).zeros() for argnum in argnums])
    return vjp


@primitive
def _double_backward(needs, dy, call, x, gamma, ddx, ddgamma, ddbeta):
    results = fastbn.batch_norm_double_backward(ddx, ddgamma, ddbeta, dy, call.saved, needs=needs)
    return tuple([result for result in results if result is not None])


def _double_backward_vjp(argnums, results, args, kwargs):
    def vjp(cotangents):
        raise NotImplementedError("a third derivative through batch normalization is asked for: fastbn has the "
                                  "gradient and the gradient of that" + _COMPOSE)
    return vjp


def _no_jvp(*args):
    raise NotImplementedError("forward mode is asked for: fastbn has the gradient, for reverse mode, and the gradient "
                              "of that" + _COMPOSE)


defvjp_argnums(_normalize, _normalize_vjp)
defvjp_argnums(_backward, _backward_vjp)
defvjp_argnums(_double_backward, _double_backward_vjp)
for _primitive in (_normalize, _backward, _double_backward):
    defjvp_argnums(_primitive, _no_jvp)
