"""The gradients of training and inference.

Formulas: Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift", 2015
(arXiv:1502.03167), section 3. How they are computed: csrc/fastbn.h.
"""
from .. import _core
from .._engine import checks, dlpack
from .._engine.run import RESULTS, general_backward, like_input, needed
from .._engine.saved import Composite, Saved

_OF_STATISTICS = ("dmean", "dvar")


def batch_norm_backward(dy, saved, *, out=None, needs=RESULTS, num_threads=None, like=None):
    """Compute the gradients of a loss with respect to x, gamma and beta, from that with respect to y.

    Parameters
    ----------
    dy : array of x's shape
        The gradient with respect to y; it is converted to x's dtype.
    saved : object
        What the forward call returned. Until then keep unchanged what is read: x; the residual; for relu and
        leaky_relu with a residual not that, but y.
    out : array of x's shape and dtype, optional
        Where dx is written; it may be dy.
    needs : tuple of str, default ("dx", "dgamma", "dbeta")
        Which of "dx", "dgamma", "dbeta", "dmean", "dvar" to compute, and "dresidual" where there was a residual; the
        others are None. The default has "dresidual" too where there was a residual.
    num_threads : int, optional
        The most threads; it can only lower the settings.
    like : array or module, optional
        What kind of arrays to return, as for batch_norm_inference.

    Returns
    -------
    dx : array of x's shape and dtype
        It is `out` where that was given.
    dgamma, dbeta : array of shape (C,)
        They have gamma's dtype, or x's where gamma was None (float32 where that is a half type).
    dmean, dvar : array of shape (C,)
        Where needs names one of them alone: the gradients of given statistics.
    dresidual : array of x's shape and dtype
        The last one, where there was a residual.

    Raises
    ------
    TypeError, ValueError
        If dy has another shape, needs has an unknown name, or dmean or dvar of batch statistics, or `out` does not fit.
    RuntimeError
        If x was overwritten by the forward call and cannot be recovered.

    See Also
    --------
    batch_norm_double_backward : The gradient of this.

    Notes
    -----
    With N entries of each feature,

        dbeta  = sum(dy)
        dgamma = sum(dy * (x - mean)) * rstd
        dx     = gamma * rstd * (dy - dbeta / N - (x - mean) * rstd * dgamma / N)

    and where the statistics were constants (saved by batch_norm_inference) dx = gamma * rstd * dy. There mean and var
    have gradients of their own, as their places in y = (x - mean) * (var + eps)^(-1/2) * gamma + beta give them:

        dmean = -gamma * rstd * dbeta
        dvar  = -gamma * rstd^2 / 2 * dgamma

    With an activation dy * act'(z) takes the place of dy, z = bn(x) + residual being computed again; it is the
    residual's gradient too. With weights w of the sum W,

        dx = gamma * rstd * (dy - w / W * dbeta - w / W * (x - mean) * rstd * dgamma)

    where an entry whose w and dy are 0 leaves no trace in the sums.

    References
    ----------
    Ioffe and Szegedy 2015 (arXiv:1502.03167), section 3.

    Examples
    --------
    >>> import numpy as np
    >>> import fastbn
    >>> x = np.array([[1.0], [2.0], [3.0]])
    >>> y, saved = fastbn.batch_norm_training(x, np.array([2.0]), np.array([0.5]))
    >>> dx, dgamma, dbeta = fastbn.batch_norm_backward(np.ones_like(x), saved)
    >>> dbeta
    array([3.])
    >>> bool(abs(dx).max() < 1e-12)    # a shift of all entries changes nothing
    True
    """
    if needs is RESULTS and like is None:
        result = _core.plain_backward(dy, saved, out, num_threads)
        if result is not None:
            return result
    if like is not None or dlpack.concerns(dy, out):
        return dlpack.calling(batch_norm_backward, {"dy": dy, "saved": saved}, like, out, needs=needs,
                               num_threads=num_threads, model=getattr(saved, "x", None))
    if not isinstance(saved, (Saved, Composite)):
        raise TypeError(f"saved is a {type(saved).__name__}, expected what batch_norm_training or "
                        "batch_norm_inference(..., return_saved=True) returned")
    results = (*RESULTS, "dresidual") if saved.extras is not None and saved.extras.has_residual else RESULTS
    needs = results if needs is RESULTS else needed(needs, results + _OF_STATISTICS)
    threads, dy = checks.threads(num_threads), like_input(dy, "dy", saved.input())
    if out is not None and "dx" not in needs:
        raise ValueError(f"out is given, but needs is {tuple(needs)}: dx is not computed")
    _refuse_statistics(needs, saved)
    return general_backward(saved, dy, out, needs, threads or None)


def _refuse_statistics(needs, saved):
    """Where the statistics were those of the batch."""
    names = [name for name in _OF_STATISTICS if name in needs]
    if names and not saved.frozen:
        raise ValueError(f"needs contains {names[0]!r}, but the statistics were those of the batch, functions of x: "
                         f"{names[0]} is part of dx; only given statistics, of batch_norm_inference(..., "
                         "return_saved=True), have gradients")
