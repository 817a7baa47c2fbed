"""The gradients of training and inference.

Formulas: Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift", 2015
(arXiv:1502.03167), section 3. How they are computed: csrc/fastbn.h.
"""
from .. import _core
from .._engine import checks, foreign
from .._engine.run import RESULTS, general_backward, like_input, needed
from .._engine.saved import Composite, Saved

_OF_STATISTICS = ("dmean", "dvar")


def batch_norm_backward(dy, saved, *, out=None, needs=RESULTS, num_threads=None, like=None):
    """Gradients of a loss with respect to x, gamma and beta, from its gradient dy with respect to y.

    With N entries of each feature:
        dbeta  = sum(dy)
        dgamma = sum(dy * (x - mean)) * rstd
        dx     = gamma * rstd * (dy - dbeta / N - (x - mean) * rstd * dgamma / N)
    and where the statistics were constants (saved by batch_norm_inference) dx = gamma * rstd * dy. There mean and var have
    gradients of their own, as their places in y = (x - mean) * (var + eps)^(-1/2) * gamma + beta give them:
        dmean = -gamma * rstd * dbeta
        dvar  = -gamma * rstd^2 / 2 * dgamma
    With an activation dy * act'(z) takes the place of dy, z = bn(x) + residual being computed again; it is the residual's
    gradient too. With weights w of the sum W:
        dx     = gamma * rstd * (dy - w / W * dbeta - w / W * (x - mean) * rstd * dgamma)
    where an entry whose w and dy are 0 leaves no trace in the sums.

    dy: array of x's shape; converted to x's dtype.
    saved: what the forward call returned.
    out: array for dx, of x's shape and dtype; it may be dy. It is returned as dx.
    needs: which of "dx", "dgamma", "dbeta", "dmean", "dvar" to compute, and "dresidual" where there was a residual; the others are
    None. Without it the first three, and the last.
    num_threads: at most so many threads. like: of what kind the gradients are, as for batch_norm_inference.

    Returns (dx, dgamma, dbeta), or where needs names dmean or dvar (dx, dgamma, dbeta, dmean, dvar), and after these dresidual
    where there was a residual: dx and dresidual have x's dtype; the others, of shape (C,), that of gamma, or x's where gamma
    was None (float32 where that is a half type). Until then keep unchanged what is read: x; the residual; for relu and
    leaky_relu with a residual not that, but y.
    Raises TypeError, ValueError (a dy of another shape, unknown names in needs, dmean or dvar of batch statistics,
    out), RuntimeError (x was overwritten by the forward call and cannot be recovered).
    Source: Ioffe and Szegedy 2015, section 3.
    """
    if needs is RESULTS and like is None:
        result = _core.plain_backward(dy, saved, out, num_threads)
        if result is not None:
            return result
    if like is not None or foreign.concerns(dy, out):
        return foreign.calling(batch_norm_backward, {"dy": dy, "saved": saved}, like, out, needs=needs,
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
