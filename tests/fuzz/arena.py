"""The arrays of one call: where they lie, and whether anything but the outputs has changed."""
from typing import NamedTuple

import numpy as np

from .guarded import guarded_bytes

_GAP = 0xFF  # NaN in every type: a gap that is read shows in the result, one that is written to below

LAYOUTS = ("C", "C", "C", "F", "permuted", "strided", "negative", "outer strided")


def strides_of(draw, layout, shape):
    """In elements, of axes that do not overlap."""
    axes = list(range(len(shape)))
    if layout == "F":
        axes.reverse()
    if layout not in ("C", "F"):
        draw.shuffle(axes, unless=layout == "outer strided")
    strides, reach, last = [0] * len(shape), 1, axes[-1]
    for i in reversed(axes):
        gaps = layout in ("strided", "negative") or (layout == "outer strided" and i != last)
        step = draw.choice((1, 1, 2, 3)) if gaps else 1
        sign = -1 if layout == "negative" and draw.chance(0.6) else 1
        strides[i] = sign * step * reach
        reach *= step * max(shape[i], 1)
    return strides


class Placed(NamedTuple):
    view: np.ndarray
    memory: np.ndarray  # all of it, gaps included
    before: np.ndarray  # a copy
    offset: int

    def twin(self):
        """The view's place in the copy."""
        return np.ndarray(self.view.shape, self.view.dtype, self.before, self.offset, self.view.strides)

    def has_changed(self):
        return self.memory.tobytes() != self.before.tobytes()


class Arena:
    def __init__(self, draw):
        self.draw, self.placed, self.right = draw, {}, draw.chance(0.5)

    def place(self, name, values, layout="C"):
        """An array with these values in memory of its own."""
        strides = strides_of(self.draw, layout, values.shape)
        size, low = values.itemsize, 0
        reach = 1 if values.size else 0
        for n, stride in zip(values.shape, strides):
            low += min(0, (n - 1) * stride) if values.size else 0
            reach += (n - 1) * abs(stride) if values.size else 0
        memory = guarded_bytes(reach * size, self.right)
        memory[:] = _GAP
        view = np.ndarray(values.shape, values.dtype, memory, -low * size, [s * size for s in strides])
        view[...] = values
        self.placed[name] = Placed(view, memory, memory.copy(), -low * size)
        return view

    def settle(self, out):
        """What a call wrote to `out` is right: from here on it must stay."""
        for placed in self.placed.values():
            if placed.view is out:
                placed.twin()[...] = out

    def assert_unchanged(self):
        changed = [name for name, placed in self.placed.items() if placed.has_changed()]
        assert not changed, f"{changed} changed, or the gaps between their elements"
