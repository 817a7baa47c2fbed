"""Statistics of arrays that are larger than memory, block by block.

A block is a run of memory, or of a file, of a few MiB: what is read is computed on while it lies in the cache, and
nothing else is held. Where not even one slice across the outermost axis is that small, blocks cut the next axis too, and
so on; then they may have some of the features alone, whose statistics are kept and merged feature by feature.

NaN entries are missing values, of each feature by itself; infinite ones are refused, with their place.
"""
import math

import numpy as np

from .._engine import checks
from .._engine.fusion import NONE, with_weights
from .._engine.layout import memory_order
from .._engine.moments import Moments, by_feature, merged
from .._training.omit import moments_by, moments_of_present

BLOCK_BYTES = 1 << 22
_ROWS = 8  # that a block has at least, so that merging costs little beside summing; the statistics take as much memory


def block_bytes(features, itemsize):
    """How large blocks of an array with so many features should be."""
    return max(BLOCK_BYTES, _ROWS * features * itemsize)


def block_indices(shape, order, itemsize, limit):
    """Yields the index of each block, a tuple of slices, one for each axis, in the order of memory.

    order: the axes from the outermost in memory to the innermost. A block has at most `limit` bytes, or one entry.
    """
    if 0 in shape:
        return
    sizes = [shape[i] for i in order]
    cut = 0
    while cut < len(sizes) - 1 and itemsize * math.prod(sizes[cut + 1:]) > limit:
        cut += 1
    most = max(1, limit // (itemsize * math.prod(sizes[cut + 1:])))
    step = math.ceil(sizes[cut] / math.ceil(sizes[cut] / most))  # blocks of like sizes
    places = [order.index(axis) for axis in range(len(shape))]
    for outer in np.ndindex(*sizes[:cut]):
        for first in range(0, sizes[cut], step):
            slices = [*(slice(i, i + 1) for i in outer), slice(first, min(first + step, sizes[cut])),
                      *(slice(0, size) for size in sizes[cut + 1:])]
            yield tuple(slices[place] for place in places)


def blocks_of(a, features):
    """Yields (index, view) of the blocks of an array in memory, or mapped to it."""
    for index in block_indices(a.shape, memory_order(a), a.itemsize, block_bytes(features, a.itemsize)):
        yield index, a[index]


def moments_of_blocks(blocks, shape, axes, *, weights=None, name="x", advance=lambda nbytes: None, num_threads=None):
    """The Moments of an array of this shape, of which `blocks` yields (index, block), each entry once.

    axes: its feature axes, ascending. weights: None, or for a table with its features on axis 1 an array of shape
    (N,), numbers of at least 0. name: of the array, for errors. advance: is given the bytes of each block when it is done.
    num_threads: at most so many threads for each block.

    count is an int, or where NaN entries were left out an int64, with weights a float64 array of shape (C,).
    Raises ValueError (Inf, squares that overflow float64, weights).
    """
    total = _Total(shape, axes, np.int64 if weights is None else np.float64)
    for index, block in blocks:
        some = None if weights is None else weights[index[0]]
        total.add(index, moments_of_block(block, axes, index, shape, weights=some, name=name, num_threads=num_threads))
        advance(block.nbytes)
    found = total.moments(whole=weights is None)
    _refuse_overflow(found, name)
    return found


class _Total:
    """Moments of blocks, merged; arrays of the feature axes' shape."""

    def __init__(self, shape, axes, counts):
        sizes = [shape[i] for i in axes]
        self.axes, self.entries = axes, math.prod(shape) // math.prod(sizes) if math.prod(sizes) else 0
        (self.count, self.squares), (self.mean, self.M2) = np.zeros((2, *sizes), counts), np.zeros((2, *sizes))

    def add(self, index, found):
        at = tuple(index[i] for i in self.axes)
        shape = self.mean[at].shape
        count = np.broadcast_to(found.count, found.mean.shape).reshape(shape)
        self.mean[at], self.M2[at] = merged(self.count[at], self.mean[at], self.M2[at],
                                            count, found.mean.reshape(shape), found.M2.reshape(shape))
        self.count[at] += count.astype(self.count.dtype)
        self.squares[at] += np.broadcast_to(found.squares, found.mean.shape).reshape(shape).astype(self.count.dtype)

    def moments(self, whole):
        """whole: whether the count is a single one where every entry was counted."""
        count, squares = self.count.ravel(), self.squares.ravel()
        if whole and (count == self.entries).all():
            count = squares = self.entries
        return Moments.of_arrays(count, self.mean.ravel(), self.M2.ravel(), squares)


def moments_of_block(block, axes, index, shape, *, weights=None, name="x", num_threads=None):
    """The Moments of one block of an array, see moments_of_blocks; index: its place there."""
    block, threads = checks.batch(block), checks.threads(num_threads)
    found = moments_by(block, axes, NONE, threads)[0]
    finite = np.isfinite(found.M2).all()
    if finite and (weights is None or not block.size):
        return found
    if not finite:
        refuse_infinite(block, axes, index, shape, name)
    if weights is None:
        found = by_feature(moments_of_present(block, axes, NONE, threads)[0])
    else:
        extras = with_weights(NONE, block, axes, weights=weights)
        found = by_feature((moments_by if finite else moments_of_present)(block, axes, extras, threads)[0])
        found.count = found.count.astype(np.float64)
        found.M2[found.count == 0] = 0
    _refuse_overflow(found, name)
    return found


def _refuse_overflow(found, name):
    bad = np.flatnonzero(~np.isfinite(found.M2))
    if bad.size:
        raise ValueError(f"{name} has entries in feature {bad[0]} whose squares overflow float64: divide it by a power of "
                         "ten first")


def refuse_infinite(block, axes, index, shape, name):
    """Raises ValueError where the block has an infinite entry, with the place in the whole array."""
    infinite = np.isinf(block)
    if not infinite.any():
        return
    place = np.unravel_index(np.argmax(infinite), block.shape)
    place = tuple(int(i + one.start) for i, one in zip(place, index))
    feature = np.ravel_multi_index([place[i] for i in axes], [shape[i] for i in axes])
    raise ValueError(f"{name} has an infinite entry in feature {feature}, the first in row {place[0]} (index {place}): NaN "
                     "is taken for a missing value, infinity is not")
