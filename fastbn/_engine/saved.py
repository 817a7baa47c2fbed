"""What a forward call leaves for the backward call: Saved, and how the gradient's formulas are fed from it."""
import numpy as np

from .._core import Saved, offer_moments
from .moments import Moments

__all__ = ["Composite", "OfCore", "Saved", "about_input"]


def _moments_of(saved):
    """The Moments of a plain training call's batch."""
    count, squares = (saved.entries, None) if saved.extras is None else saved.extras.counted(saved.entries)
    return Moments.of_variance(count, saved.mean, saved.var, squares)


offer_moments(_moments_of)


class Composite:
    """The base of what forward calls leave whose gradients are made of those of plain ones.

    x: the input, and input() the same, checked as by Saved; extras: as Saved has them, of one of the plain calls;
    moments: the Moments of the whole batch;
    backward(dy, out, needs, num_threads): the gradients, where dy and needs are checked.
    """

    __slots__ = ()
    frozen = False

    @property
    def has_residual(self):
        return self.extras is not None and self.extras.has_residual


class OfCore(Composite):
    """One that is made of one plain call's Saved, `core`, and has its statistics."""

    __slots__ = ("core",)

    x = property(lambda self: self.core.x)
    extras = property(lambda self: self.core.extras)

    def input(self):
        return self.core.input()

    mean = property(lambda self: self.core.mean, doc="The mean, an array of float64 of shape (C,).")
    var = property(lambda self: self.core.var, doc="The biased variance, an array of float64 of shape (C,).")
    rstd = property(lambda self: self.core.rstd, doc="1 / sqrt(var + eps), an array of float64 of shape (C,).")


def about_input(saved):
    """(gamma, mean, rstd) of the gradient's formulas with the array in `saved.x`.

    With y = h * gamma + beta in it, h = (y - beta) / gamma plays the part of (x - mean) * rstd: mean = beta,
    rstd = 1 / gamma, and the factor gamma * rstd of dx stays what it was where gamma is replaced by gamma^2 * rstd.
    """
    if not saved.holds_y:
        return saved.gamma, saved.mean, saved.rstd
    gamma = np.ones_like(saved.mean) if saved.gamma is None else saved.gamma
    if not gamma.all():
        zero = int(np.flatnonzero(gamma == 0)[0])
        raise RuntimeError(f"x was overwritten by the forward call (out=x) and cannot be recovered from y, since gamma "
                           f"is 0 for feature {zero}: pass another out= in the forward call")
    beta = np.zeros_like(saved.mean) if saved.beta is None else saved.beta
    with np.errstate(all="ignore"):
        return gamma * gamma * saved.rstd, beta, 1.0 / gamma
