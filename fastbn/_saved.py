"""What a forward call leaves for the backward call."""
import numpy as np


class Saved:
    """What a forward call leaves for the backward call.

    mean, var, rstd: float64 arrays of shape (C,); var is the biased variance, rstd = 1 / sqrt(var + eps). It refers to x
    (without copying it: keep x unchanged until backward) and holds copies of gamma and beta. After a forward call in place it
    refers to y instead, from which the normalized x comes back as (y - beta) / gamma.
    """

    __slots__ = ("mean", "var", "rstd", "x", "axes", "gamma", "beta", "param_dtype", "frozen", "holds_y")

    def __init__(self, x, axes, gamma, beta, param_dtype, *, mean, var, rstd, frozen, in_place):
        """gamma, beta: float64 copies, or None."""
        self.x, self.axes, self.frozen, self.holds_y = x, axes, frozen, in_place
        self.mean, self.var, self.rstd = mean, var, rstd
        self.gamma, self.beta, self.param_dtype = gamma, beta, param_dtype

    def about_input(self):
        """(gamma, mean, rstd) of the gradient's formulas with the array in `x`.

        With y = h * gamma + beta in it, h = (y - beta) / gamma plays the part of (x - mean) * rstd: mean = beta, rstd = 1 / gamma,
        and the factor gamma * rstd of dx stays what it was where gamma is replaced by gamma^2 * rstd.
        """
        if not self.holds_y:
            return self.gamma, self.mean, self.rstd
        gamma = np.ones_like(self.mean) if self.gamma is None else self.gamma
        if not gamma.all():
            zero = int(np.flatnonzero(gamma == 0)[0])
            raise RuntimeError(f"x was overwritten by the forward call (out=x) and cannot be recovered from y, since gamma "
                               f"is 0 for feature {zero}: pass another out= in the forward call")
        beta = np.zeros_like(self.mean) if self.beta is None else self.beta
        with np.errstate(all="ignore"):
            return gamma * gamma * self.rstd, beta, 1.0 / gamma

    def __repr__(self):
        kind = "frozen" if self.frozen else "batch"
        return f"Saved({kind} statistics of {self.mean.size} features)"
