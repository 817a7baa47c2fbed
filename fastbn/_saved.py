"""What a forward call leaves for the backward call: Saved, and how the gradient's formulas are fed from it."""
import numpy as np

from ._core import Saved

__all__ = ["Saved", "about_input"]


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
