"""Ghost batches: consecutive slices of the batch axis, each normalized by statistics of its own.

Slices are views, of x as of y, dy and dx: nothing is copied. The gradients are those of the slices; gamma and beta
belong to all of them, so dgamma and dbeta are sums over the slices, taken in double.
Source: Hoffer, Hubara and Soudry, "Train longer, generalize better: closing the generalization gap in large batch
training of neural networks", 2017 (arXiv:1705.08741), algorithm 1. There the running statistics take a step for each
slice, here one for the batch, from the slices' merged moments.
"""
import numpy as np

from .._engine import checks
from .._engine.layout import arrange
from .._engine.moments import Moments, by_feature
from .._engine.run import as_parameter, backward_of, is_in_place, refuse_unclear_input, target_for
from .._engine.saved import Composite


def check(size):
    """None, or a positive int."""
    if size is None:
        return None
    if not checks.is_whole(size):
        raise TypeError(f"ghost_batch_size is {size!r}, expected a positive int or None")
    if size < 1:
        raise ValueError(f"ghost_batch_size is {size}, expected at least 1, or None for the whole batch")
    return int(size)


def slices_of(x, axes, size):
    """Slices of axis 0 that cover it, the last perhaps smaller; one for an empty batch, and where size is None."""
    if size is None:
        return [slice(None)]
    if 0 in axes:
        raise ValueError("ghost_batch_size slices axis 0, the batch axis, and axis 0 is a feature axis here: pass an x "
                         "whose first axis is the batch")
    return [slice(first, first + size) for first in range(0, max(len(x), 1), size)]


def part_of(a, s):
    """The slice s of an array; where that is all, the array itself, whose changes a view would not see."""
    return a if s == slice(None) else a[s]


def into(compute, x, out, axes):
    """compute(x, out), whose results begin with what was written to out, a slice; gives the other results.

    Where the core cannot write to the slice's memory as it lies (a single row of a Fortran-ordered table, say), through
    a new array; an x in that same memory is copied, since the gradient will need it.
    """
    if arrange(out, axes).view(out) is not None:
        return compute(x, out)[1:]
    written, *others = compute(x.copy() if is_in_place(out, x) else x, None)
    out[...] = written
    return others


class GhostSaved(Composite):
    """What a training call with ghost batches leaves for batch_norm_backward.

    mean, var, rstd: float64 arrays of shape (G, C), a row for each of the G ghost batches; moments: those of the whole
    batch, merged. parts: what each slice's call left, with gradients in float64. narrow: whether dgamma and dbeta are
    to be float32. omits: whether NaN entries are missing.
    """

    __slots__ = ("x", "axes", "slices", "parts", "narrow", "omits")

    def __init__(self, x, axes, slices, parts, narrow, omits):
        self.x, self.axes, self.slices, self.parts, self.narrow, self.omits = x, axes, slices, parts, narrow, omits

    def input(self):
        """x. Raises RuntimeError where it has not the shape and dtype of the forward call."""
        for part, s in zip(self.parts, self.slices):
            x = part.input()
            if self.x.dtype != x.dtype or self.x[s].shape != x.shape:
                raise RuntimeError(f"saved.x has shape {self.x.shape} and dtype {self.x.dtype}, of which {x.shape} and {x.dtype} "
                                   "was no slice in the forward call: was it changed in place?")
        return self.x

    extras = property(lambda self: self.parts[0].extras)
    mean = property(lambda self: np.stack([part.mean for part in self.parts]), doc="Means, shape (G, C).")
    var = property(lambda self: np.stack([part.var for part in self.parts]), doc="Biased variances, shape (G, C).")
    rstd = property(lambda self: np.stack([part.rstd for part in self.parts]), doc="1 / sqrt(var + eps), shape (G, C).")

    @property
    def moments(self):
        """The Moments of the whole batch."""
        found = [part.moments for part in self.parts]
        whole = Moments.merge_all([part for part in found if np.any(part.count)] or found[:1])
        return by_feature(whole) if self.omits else whole

    def backward(self, dy, out, needs, num_threads):
        for part in self.parts:  # before the first slice is written
            refuse_unclear_input(part)
        dx = target_for(out, self.x, self.axes, {"dy": dy, "x": self.x})[1] if "dx" in needs else None
        dresidual = np.empty_like(self.x) if "dresidual" in needs else None
        sums = {name: 0.0 for name in ("dgamma", "dbeta") if name in needs}
        for part, s in zip(self.parts, self.slices):
            def gradients(dy, dx):
                return backward_of(part, dy, dx, needs, num_threads)
            found = gradients(dy[s], None)[1:] if dx is None else into(gradients, dy[s], dx[s], self.axes)
            if dresidual is not None:
                dresidual[s] = found[2]
            for name, gradient in zip(("dgamma", "dbeta"), found):
                if gradient is not None:
                    with np.errstate(all="ignore"):
                        sums[name] = sums[name] + gradient
        of_features = (as_parameter(sums.get(name), self.narrow) for name in ("dgamma", "dbeta"))
        return dx, *of_features, *([dresidual] if self.has_residual else [])
