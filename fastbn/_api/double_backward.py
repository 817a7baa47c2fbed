"""The gradient of the backward, for losses that contain gradients: gradient penalties, Hessian-vector products."""
import numpy as np

from .. import _core
from .._engine import checks, dlpack
from .._engine.layout import arrange
from .._engine.run import as_parameter, like_input, needed
from .._engine.saved import Saved

_RESULTS = ("ddy", "dx", "dgamma")
_LEAST = 1e-12


def batch_norm_double_backward(ddx, ddgamma, ddbeta, dy, saved, *, needs=_RESULTS, num_threads=None, like=None):
    """Compute the gradients of a loss that depends on what batch_norm_backward gives.

    Parameters
    ----------
    ddx : array of x's shape, or None
        The loss's gradient with respect to dx, converted to x's dtype. None stands for zeros.
    ddgamma, ddbeta : array of shape (C,), or None
        Those with respect to dgamma and dbeta. None stands for zeros.
    dy : array of x's shape
        As given to batch_norm_backward.
    saved : object
        As given to batch_norm_backward.
    needs : tuple of str, default ("ddy", "dx", "dgamma")
        Which of these to compute; the others are None.
    num_threads : int, optional
        The most threads; it can only lower the settings.
    like : array or module, optional
        What kind of arrays to return, as for batch_norm_inference.

    Returns
    -------
    ddy, dx : array of x's shape and dtype
        The gradients with respect to dy and x, new arrays.
    dgamma : array of shape (C,)
        The gradient with respect to gamma, in gamma's dtype, or x's where gamma was None.

    Raises
    ------
    TypeError, ValueError
        If a shape does not fit, needs has an unknown name, or the forward call had more to it (activation, residual,
        weights, ghost batches).
    RuntimeError
        If x is needed and was overwritten by the forward call: unlike batch_norm_backward, this cannot start from
        y.

    Notes
    -----
    With N entries of each feature, h = (x - mean) * rstd and, for each feature,

        S = N * (mean(ddx * dy) - mean(ddx) * mean(dy) - mean(ddx * h) * mean(dy * h))
        b = ddgamma - gamma * rstd * mean(ddx * h)
        c = -gamma * rstd * mean(dy * h)

    the loss is that of  gamma * rstd * S + sum(ddgamma * dgamma) + sum(ddbeta * dbeta)  and

        ddy    = gamma * rstd * (ddx - mean(ddx)) + b * h + ddbeta
        dx     = rstd * (b * (dy - mean(dy)) + c * (ddx - mean(ddx))
                         - (b * mean(dy * h) + c * mean(ddx * h) + gamma * rstd * S / N) * h)
        dgamma = rstd * S

    which follow from d rstd / dx = -rstd^2 * h / N and, for any a, d sum(a * h) / dx = rstd * (a - mean(a) - h *
    mean(a * h)). There is no division by gamma, which may be 0. Where the statistics were constants (saved by
    batch_norm_inference),

        ddy = gamma * rstd * ddx + ddgamma * h + ddbeta,   dx = ddgamma * rstd * dy,   dgamma = rstd * sum(ddx * dy)

    The gradient with respect to beta is 0: beta is in none of the formulas. Half types are copied to float32 and
    computed in it, and ddy and dx are rounded.

    The layer has no method for it. It lets go of x in backward, and to keep x until a double backward that hardly
    ever comes would cost each training step its memory: take the functions.

    References
    ----------
    The derivative of the formulas of Ioffe and Szegedy 2015 (arXiv:1502.03167), section 3.

    Examples
    --------
    >>> import numpy as np
    >>> import fastbn
    >>> x = np.random.default_rng(0).normal(size=(8, 3))
    >>> y, saved = fastbn.batch_norm_training(x)
    >>> dx, _, _ = fastbn.batch_norm_backward(np.cos(y), saved)
    >>> ddy, dx2, dgamma = fastbn.batch_norm_double_backward(2 * dx, None, None, np.cos(y), saved)
    >>> ddy.shape, dx2.shape, dgamma.shape
    ((8, 3), (8, 3), (3,))
    """
    if like is not None:
        given = {"ddx": ddx, "ddgamma": ddgamma, "ddbeta": ddbeta, "dy": dy, "saved": saved}
        return dlpack.calling(batch_norm_double_backward, given, like, needs=needs, num_threads=num_threads,
                               model=getattr(saved, "x", dy))
    names = needed(needs, _RESULTS)
    if not isinstance(saved, Saved):
        raise TypeError(f"saved is a {type(saved).__name__}, expected what batch_norm_training or "
                        "batch_norm_inference(..., return_saved=True) returned")
    if saved.extras is not None:
        raise ValueError("saved is of a call with an activation, a residual, weights or missing entries, expected plain batch "
                         "normalization: the gradient of such a backward is not offered")
    x, threads, c = saved.input(), checks.threads(num_threads), saved.mean.size
    dy, ddx = like_input(dy, "dy", x), None if ddx is None else like_input(ddx, "ddx", x)
    ddgamma, ddbeta = (checks.parameter(value, name, c, np.dtype(np.float64))
                       for value, name in ((ddgamma, "ddgamma"), (ddbeta, "ddbeta")))
    uses_x = ddgamma is not None or (ddx is not None and not saved.frozen)
    if uses_x and saved.holds_y:
        raise RuntimeError("x was overwritten by the forward call (out=x), and the gradient of the backward needs it: "
                           "pass another out= in the forward call")
    squares = saved.rstd * saved.rstd  # a factor of dx, whose products float32 may not hold
    wide = x.dtype == np.float64 or ((squares < _LEAST) | (squares > 1 / _LEAST)).any()
    arrangement, dtype = arrange(x, saved.axes), np.dtype(np.float64 if wide else np.float32)
    (ddy, ddy_view), (dx, dx_view) = (arrangement.empty(dtype) if name in names else (None, None)
                                      for name in ("ddy", "dx"))
    dgamma = np.zeros(c) if "dgamma" in names else None
    if x.size and names:
        x_view, dy_view, ddx_view = (None if a is None else arrangement.readable(a.astype(dtype, copy=False))
                                     for a in (x if uses_x else None, dy, ddx))
        _core.double_backward(x_view, dy_view, ddx_view, ddgamma, ddbeta, saved.gamma, saved.mean, saved.rstd,
                              saved.frozen, ddy_view, dx_view, dgamma, threads)
    ddy, dx = (None if a is None else a.astype(x.dtype, copy=False) for a in (ddy, dx))
    return ddy, dx, as_parameter(dgamma, saved.rounds_gradients)
