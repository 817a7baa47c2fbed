"""Batch renormalization: y as the running statistics would give it, up to a limit, and gradients as in training.

    r = clip(std / running_std, 1 / rmax, rmax)    d = clip((mean - running_mean) / running_std, -dmax, dmax)
    y = ((x - mean) * rstd * r + d) * gamma + beta
with std = sqrt(var + eps). That is training with gamma * r in place of gamma and gamma * d + beta in place of beta; in
the gradient r and d are constants:
    dx is that of training with gamma * r      dbeta = sum(dy)
    dgamma = sum(dy * ((x - mean) * rstd * r + d)) = r * (training's dgamma) + d * dbeta
Source: Ioffe, "Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized Models", 2017
(arXiv:1702.03275), algorithm 1.
"""
import numpy as np

from .._engine import checks
from .._engine.run import as_parameter, backward_of
from .._engine.saved import OfCore


def check(renorm):
    """None, or (rmax, dmax) as floats."""
    if renorm is None:
        return None
    if not isinstance(renorm, (tuple, list)) or len(renorm) != 2:
        raise TypeError(f"renorm is {renorm!r}, expected (rmax, dmax), (3.0, 5.0) for example, or None")
    rmax, dmax = checks.real(renorm[0], "rmax"), checks.real(renorm[1], "dmax")
    if not rmax >= 1:
        raise ValueError(f"renorm has rmax {rmax}, expected at least 1: r is kept from 1 / rmax to rmax")
    if not dmax >= 0:
        raise ValueError(f"renorm has dmax {dmax}, expected at least 0: d is kept from -dmax to dmax")
    return rmax, dmax


def correction(batch, running_mean, running_var, eps, limits):
    """(r, d), float64 arrays of shape (C,), 1 and 0 where a feature has no entries. batch: Moments; limits: (rmax, dmax)."""
    rmax, dmax = limits
    with np.errstate(all="ignore"):
        running_std = np.sqrt(running_var.astype(np.float64) + eps)
        r = np.sqrt(batch.biased_var() + eps) / running_std
        d = (batch.mean - running_mean) / running_std
        nothing = np.equal(batch.count, 0)
        return np.where(nothing, 1.0, np.clip(r, 1 / rmax, rmax)), np.where(nothing, 0.0, np.clip(d, -dmax, dmax))


class RenormSaved(OfCore):
    """What a training call with renorm leaves for batch_norm_backward: mean, var, rstd of the batch, and r and d.

    core: the Saved of training with gamma * r and gamma * d + beta, whose gradients are float64.
    narrow: whether dgamma and dbeta are to be float32.
    """

    __slots__ = ("moments", "r", "d", "narrow")

    def __init__(self, core, moments, r, d, narrow):
        self.core, self.moments, self.r, self.d, self.narrow = core, moments, r, d, narrow

    def backward(self, dy, out, needs, num_threads):
        both = (*needs, "dbeta") if "dgamma" in needs and "dbeta" not in needs else needs
        dx, dgamma, dbeta, *rest = backward_of(self.core, dy, out, both, num_threads)
        if dgamma is not None:
            with np.errstate(all="ignore"):
                dgamma = self.r * dgamma + self.d * dbeta
        dbeta = dbeta if "dbeta" in needs else None
        return dx, as_parameter(dgamma, self.narrow), as_parameter(dbeta, self.narrow), *rest
