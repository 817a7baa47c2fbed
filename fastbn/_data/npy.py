"""Files of NumPy's .npy format, read block by block into two buffers: a thread fills one while the other is computed on.

Even from the system's cache a thread reads no faster than one computes, so one of each is enough; and neither waits for
the other by spinning, as OpenMP's threads do, for which a busy machine would pay at each of many blocks.
"""
import itertools
import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from . import atomic_write, npy_header
from .streaming import block_bytes, block_indices

_SIZES = (2, 4, 8)  # of the float types


class NpyFile:
    """An open .npy file of floats: shape, dtype (native), nbytes. A context manager.

    Raises OSError (missing, not to be read; IsADirectoryError), ValueError (no .npy file, truncated, more bytes than the
    header says, no dimension), TypeError (not of float16, float32 or float64; integers: also of whole numbers and bools).
    """

    def __init__(self, path, integers=False):
        self.path = os.fspath(path)
        self._file = atomic_write.opened(self.path)
        try:
            self.shape, self.fortran_order, self._stored = self._header()
            self.dtype = _checked(self._stored, self.path, integers).newbyteorder("=")
            self.nbytes = math.prod(self.shape) * self.dtype.itemsize
            self._start = self._file.tell()
            self._check_size()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self):
        self._file.close()

    def _header(self):
        """(shape, fortran_order, dtype as stored)"""
        try:
            return npy_header.read(self._file)
        except ValueError as error:
            raise ValueError(f"{self.path} is no .npy file, or its header is damaged ({error})") from None

    def _check_size(self):
        if not self.shape:
            raise ValueError(f"{self.path} holds a single number, without a dimension: expected a table or an array with a "
                             "feature axis")
        found, expected = os.fstat(self._file.fileno()).st_size - self._start, self.nbytes
        if found < expected:
            raise ValueError(f"{self.path} is truncated: by its header, {self.shape} of {self.dtype}, it has {expected} "
                             f"bytes of data, and {found} are there: was it copied or downloaded to the end?")
        if found > expected:
            raise ValueError(f"{self.path} has {found - expected} bytes after its data, which by the header, {self.shape} "
                             f"of {self.dtype}, take {expected}: was another array appended, or the header damaged?")

    def blocks(self, shape, axes):
        """Yields (index, block) in the order of the file, with the blocks in native byte order and writable.

        shape: the file's, or with axes of one entry after it; axes: its feature axes. A block is valid until the next
        one was asked for. Raises OSError, ValueError (the file has become shorter).
        """
        limit = block_bytes(math.prod(shape[i] for i in axes), self.dtype.itemsize)
        order = list(range(len(shape)))
        indices = block_indices(shape, order[::-1] if self.fortran_order else order, self.dtype.itemsize, limit)
        entries = min(limit, self.nbytes) // self.dtype.itemsize
        buffers = itertools.cycle([np.empty(entries, self.dtype) for _ in range(2)])
        self._file.seek(self._start)
        with ThreadPoolExecutor(1) as reader:
            coming = (reader.submit(self._read, index, buffer) for index, buffer in zip(indices, buffers))
            for ready, _ in itertools.pairwise(itertools.chain(coming, [None])):  # the next one is being read by then
                yield ready.result()

    def _read(self, index, buffer):
        """(index, block), the next one of the file."""
        sizes = [one.stop - one.start for one in index]
        flat = buffer[:math.prod(sizes)]
        if self._file.readinto(flat.view(np.uint8)) != flat.nbytes:
            raise ValueError(f"{self.path} has become shorter while it was read")
        if not self._stored.isnative:
            flat.byteswap(inplace=True)
        return index, flat.reshape(sizes, order="F" if self.fortran_order else "C")

    def mapped(self):
        """The array as a numpy.memmap to be read: of this very file, whatever has its name by now."""
        return np.memmap(self._file, self._stored, "r", self._start, self.shape, "F" if self.fortran_order else "C")

    def write_header(self, file):
        """That of an array like this one, in native byte order, to another file."""
        np.lib.format.write_array_header_1_0(file, {
            "descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": self.fortran_order, "shape": self.shape})


def _checked(dtype, path, integers):
    """Raises TypeError where the type is none of ours."""
    if (dtype.kind == "f" and dtype.itemsize in _SIZES) or (integers and dtype.kind in "iub"):
        return dtype
    advice = ": convert it first, np.save(..., np.load(...).astype(np.float32))"
    if dtype.hasobject:
        advice = ": such files hold pickled Python objects, which are not read; save an array of numbers"
    elif dtype.kind == "c":
        advice = ": save .real and .imag as arrays of their own"
    elif dtype.names is not None:
        advice = ": save its fields as arrays of their own"
    elif dtype.kind == "V":
        advice = ": of a type that NumPy does not know, such as bfloat16: save it as float32"
    elif dtype.kind in "iub":
        advice = f", which has no fractions to standardize to{advice}"
    raise TypeError(f"{path} has dtype {dtype}, expected float16, float32 or float64{advice}")
