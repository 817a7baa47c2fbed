"""Blocks of arrays that are mapped from files (numpy.memmap), with the pages let go of after use.

A page that was looked at counts as the process's memory until the system takes it back. It is given back at once, so that
memory stays bounded; what the array holds is in the file, or in the system's cache of it. One thread computes on a block:
it is faster than any disk, and between so many blocks OpenMP's threads would spin.
"""
import mmap

import numpy as np

from .streaming import blocks_of


def mapping_of(a):
    """(the mmap.mmap that an array's memory is of, its mode) or (None, None)."""
    mode = getattr(a, "mode", None)
    while isinstance(a, np.ndarray):
        a = a.base
    return (a, mode) if isinstance(a, mmap.mmap) else (None, None)


def refuse_cut(a, name):
    """Where the file of a mapped array has become shorter: to read what is missing would end the process (SIGBUS)."""
    mapping, _ = mapping_of(a)
    if mapping is None or not a.size:
        return
    start = (getattr(a, "offset", 0) or 0) // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    if mapping.size() < start + len(mapping):
        raise ValueError(f"{name} is mapped from a file that has become shorter: of {start + len(mapping)} bytes "
                         f"{mapping.size()} are left; was it written anew?")


def mapped_blocks(a, features):
    """As blocks_of. A block is not to be looked at after the next was asked for."""
    pages = Pages(a)
    for index, block in blocks_of(np.asarray(a), features):
        yield index, block
        pages.release(block)


def read_only(a):
    """A view that nobody writes to: of what is the file, or belongs to others."""
    view = a.view(np.ndarray)
    view.flags.writeable = False
    return view


class Pages:
    """The pages of a mapped array."""

    def __init__(self, a):
        mapping, mode = mapping_of(a)
        # The pages of a private mapping (mode "c") are the only place of what was written to the array.
        if mapping is None or mode not in ("r", "r+", "w+") or not hasattr(mmap, "MADV_DONTNEED"):
            mapping = None
        self._mapping = mapping
        self._start = None if mapping is None else np.frombuffer(mapping, np.uint8).__array_interface__["data"][0]

    def release(self, view):
        """Lets go of those that a part of the array lies in."""
        if self._mapping is None or not view.size:
            return
        reach = [(size - 1) * stride for size, stride in zip(view.shape, view.strides)]
        first = view.__array_interface__["data"][0] - self._start
        last = first + sum(max(0, one) for one in reach) + view.itemsize
        first += sum(min(0, one) for one in reach)
        first -= first % mmap.PAGESIZE
        self._mapping.madvise(mmap.MADV_DONTNEED, first, last - first)
