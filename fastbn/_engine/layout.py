"""From any array with a feature axis to the shape (n, c, s) that the C core computes on, without a copy where its memory allows.

The axes are put in the order in which they lie in memory. Those outside the feature axis become n, those inside it s. A view of that
shape exists where the axes of each group follow each other without gaps and the innermost one is contiguous; any other
array is copied once. A Fortran-ordered table, for example, is (1, C, N).
"""
import functools
import math
from typing import NamedTuple

import numpy as np

from .. import _core
from . import checks


class Arrangement(NamedTuple):
    """How the axes of an array of a given shape become (n, c, s)."""

    shape: tuple     # of the array itself
    order: tuple     # its axes: outer ones, feature axes, inner ones
    packed: tuple    # (n, c, s)
    first: int       # place of the first feature axis in `order`
    last: int        # one after the last
    in_order: bool   # `order` is 0, 1, 2, ...

    def view(self, a):
        """a as (n, c, s), or None where that takes a copy."""
        if a.flags.c_contiguous and self.in_order:
            return a.reshape(self.packed)
        a = a.transpose(self.order)
        if not _is_viewable(a, self.first, self.last):
            return None
        view = a.reshape(self.packed)
        _, c, s = self.packed
        features_adjoin = s > 1 or c == 1 or view.strides[1] == view.itemsize or view.size == 0
        return view if features_adjoin else None

    def contiguous(self, a):
        """A packed copy of a as (n, c, s)."""
        return np.ascontiguousarray(a.transpose(self.order)).reshape(self.packed)

    def readable(self, a):
        """a as (n, c, s): a view, or else a copy. Packed where the core needs that for its full speed."""
        if self.in_order and a.flags.c_contiguous:
            return a.reshape(self.packed)
        view = self.view(a)
        if view is None or (not view.flags.c_contiguous and _core.wants_packed(*self.packed)):
            return self.contiguous(a)
        return view

    def empty(self, dtype):
        """A new array of `shape` whose memory lies in `order`, and its view as (n, c, s)."""
        canonical = _core.empty(self.packed, dtype.num)
        if self.in_order:
            return canonical.reshape(self.shape), canonical
        a = canonical.reshape([self.shape[i] for i in self.order])
        return a.transpose(np.argsort(self.order)), canonical


def _joins(shape, strides):
    """Whether axes with these sizes and strides can be walked as one."""
    kept = [(size, stride) for size, stride in zip(shape, strides) if size != 1]
    return all(outer == inner * size for (_, outer), (size, inner) in zip(kept, kept[1:]))


def _is_viewable(a, first, last):
    if a.size == 0 or a.flags.c_contiguous:
        return True
    groups = (slice(0, first), slice(first, last), slice(last, None))
    if not all(_joins(a.shape[g], a.strides[g]) for g in groups):
        return False
    inner = [stride for size, stride in zip(a.shape[last:], a.strides[last:]) if size != 1]
    return not inner or inner[-1] == a.itemsize


def normalize_axes(axis, ndim, name="x"):
    """`axis` as a tuple of different, ascending, non-negative numbers. Raises TypeError, ValueError."""
    if type(axis) is int and -ndim <= axis < ndim:
        return (axis % ndim,)
    axes = axis if isinstance(axis, (tuple, list)) else (axis,)
    if not axes:
        raise ValueError("axis is empty: name the feature axis, for example axis=1")
    result = []
    for one in axes:
        if not checks.is_whole(one):
            raise TypeError(f"axis must be an int or a tuple of ints, not {one!r}")
        if not -ndim <= one < ndim:
            raise ValueError(f"axis {one} is out of range for {name} with {ndim} dimension{'s' * (ndim != 1)}")
        result.append(int(one) % ndim)
    if len(set(result)) != len(result):
        raise ValueError(f"axis {axis!r} names the same axis of {name} twice")
    return tuple(sorted(result))


def memory_order(a):
    """Axes from the outermost in memory to the innermost. Repeated axes (stride 0) are outermost: they can only be walked."""
    def distance(i):
        return -abs(a.strides[i]) if a.strides[i] else -math.inf
    return sorted(range(a.ndim), key=distance)


def arrange(like, axes):
    """The arrangement that suits the memory of the array `like`; axes as from normalize_axes."""
    if like.flags.c_contiguous:
        return _arrange(like.shape, None, axes)
    return _arrange(like.shape, tuple(memory_order(like)), axes)


@functools.lru_cache(maxsize=256)
def _arrange(shape, order, axes):
    """order: the axes as they lie in memory; None for C order."""
    order = tuple(range(len(shape))) if order is None else order
    last = max(order.index(i) for i in axes)
    outer, inner = tuple(i for i in order[:last] if i not in axes), order[last + 1:]
    sizes = tuple(math.prod(shape[i] for i in group) for group in (outer, axes, inner))
    order = (*outer, *axes, *inner)
    return Arrangement(shape, order, sizes, len(outer), len(outer) + len(axes), order == tuple(range(len(shape))))
