"""What a call may have beyond normalization, y = act(bn(x) + residual) with weighted statistics: its arguments, and what of
them backward needs.
"""
from typing import NamedTuple

import numpy as np

from .. import _core
from . import activations, checks
from .weights import Weights, factors_of, weights_of


class Extras(NamedTuple):
    activation: activations.Activation = activations.IDENTITY
    residual: np.ndarray | None = None
    weights: Weights | None = None
    # For backward.
    written: np.ndarray | None = None  # y, where its sign is all that is needed
    has_residual: bool = False

    def for_core(self, arrangement, **more):
        """The core's form; arrays as (n, c, s). None where there is nothing."""
        if self is NONE and not more:
            return None
        weights = {}
        if self.weights is not None:
            squares = self.weights.squares if self.weights.counts is None else 0.0
            weights = {"weights": self.weights.data(arrangement), "total": self.weights.total,
                       "counts": self.weights.counts, "squares": squares}
        residual = None if self.residual is None else arrangement.readable(self.residual)
        return _core.Extra(self.activation.code, self.activation.slope, residual=residual, **weights, **more)

    def kept(self, y):
        """What backward needs, once y is written."""
        if self.residual is None:
            return self
        act = self.activation
        z = {"written": y} if act.keeps_sign else {} if act.name is None else {"residual": self.residual}
        return Extras(act, weights=self.weights, has_residual=True, **z)

    def for_backward(self, arrangement, saved, dresidual):
        """dresidual: where its gradient goes, as (n, c, s), or None."""
        written = None if self.written is None else arrangement.readable(self.written)
        return self.for_core(arrangement, written=written, dresidual=dresidual, inverts=saved.holds_y)

    def counted(self, entries):
        """(count, squares) as Moments have them, of a feature's so many entries."""
        return (entries, None) if self.weights is None else self.weights.counted()

    def refuse_changed(self, x):
        """Where an array that backward reads is not like x any more."""
        for name, a in (("residual", self.residual), ("y", self.written)):
            if a is not None and (a.shape != x.shape or a.dtype != x.dtype):
                raise RuntimeError(f"the {name} of the forward call has shape {a.shape} and dtype {a.dtype}, expected {x.shape} "
                                   f"and {x.dtype}, those of x: it was changed in place")

    def refuse_in_place(self, saved):
        """Where x was overwritten and y does not tell it."""
        if saved.holds_y and (self.has_residual or not self.activation.inverts):
            cause = "with a residual" if self.has_residual else f"through {self.activation.name}"
            raise RuntimeError(f"x was overwritten by the forward call (out=x) and cannot be recovered from y {cause}: pass "
                               "another out= in the forward call")
        if saved.holds_y and self.weights is not None and self.weights.absent is not None:
            self._refuse_unclear(saved)

    def _refuse_unclear(self, saved):
        """Where NaN in y may be a missing entry or not."""
        with np.errstate(all="ignore"):
            factor = saved.rstd * (1.0 if saved.gamma is None else saved.gamma)
            finite = np.isfinite(factor + (0.0 if saved.beta is None else saved.beta))
        unclear = np.flatnonzero(~finite & ~self.weights.absent)
        if unclear.size:
            raise RuntimeError("x was overwritten by the forward call (out=x), and y does not tell which entries of "
                               f"feature {unclear[0]} were missing, since it has others without a finite result (Inf, "
                               "or none that counts): pass another out= in the forward call")

    def refuse_overwriting(self, out):
        """Where backward will need the residual, `out` must not be it."""
        if out is None or self.residual is None or self.activation.keeps_sign or self.activation.name is None:
            return
        if np.may_share_memory(out, self.residual) and checks.share_memory(out, self.residual):
            raise ValueError(f"out and residual overlap, and the gradient of {self.activation.name} needs the residual: pass "
                             "memory of its own (relu and leaky_relu can do without)")


NONE = Extras()


# Made once: a small call feels it.
_ALONE = {None: None, **{name: Extras(act) for name, act in activations.WITHOUT_PARAMETER.items()}}


def alone(activation):
    """The Extras of an Activation alone; None for the identity."""
    return _ALONE[activation.name] if activation.name in _ALONE else Extras(activation)


def extras_of(x, activation, residual):
    """Checks the arguments; NONE where there is nothing. Raises TypeError, ValueError. activation: parsed or not."""
    act = activation if isinstance(activation, activations.Activation) else activations.parse(activation)
    if residual is not None:
        residual = checks.as_data(residual, "residual")
        if residual.shape != x.shape:
            raise ValueError(f"residual has shape {residual.shape}, expected {x.shape}, the shape of x")
        residual = residual.astype(x.dtype, copy=False)
    return NONE if act.name is None and residual is None else Extras(act, residual)


def with_weights(extras, x, axes, mask=None, weights=None, lengths=None):
    if mask is None and weights is None and lengths is None:
        return extras
    return extras._replace(weights=weights_of(factors_of(x, axes, mask, weights, lengths), x, axes))
