"""Data that is larger than memory, or elsewhere: what StandardScaler takes beside scikit-learn's own kinds of input.

    source = recognize(X)                 # None: scikit-learn's own
    moments = source.moments(weights)     # one pass
    y = source.map(function)              # in the source's own manner

Tables of shape (N, C). float16, float32 and float64 stay what they are, integers and bools become float64, chunk by chunk.
NaN entries are missing values; infinite ones are a ValueError.
"""
import os
import sys

import numpy as np

from fastbn._data.mapped import Pages, mapped_blocks, mapping_of, read_only, refuse_cut
from fastbn._data.npy import NpyFile
from fastbn._data.progress import counted_bytes
from fastbn._data.streaming import BLOCK_BYTES, moments_of_block, moments_of_blocks

from ._tables import float_type, names_of, refuse_empty, refuse_shape, weights_for

MAPPED_BYTES = 32 << 20  # a mapped array of fewer is read as any other


def recognize(X):
    """A source for X: a Dask array or data frame, an iterator of chunks, the path of a .npy file, or a large
    numpy.memmap; None for anything else.

    Raises TypeError, ValueError, OSError where X is one of these, but no table of numbers.
    """
    if "dask" in sys.modules:  # else X is none of Dask's
        from . import _dask
        source = _dask.recognize(X)
        if source is not None:
            return source
    if isinstance(X, (str, os.PathLike)):
        return MappedSource(_mapped_file(X), f"X ({os.fspath(X)})")
    if isinstance(X, np.memmap):
        refuse_cut(X, "X")
        is_large = X.nbytes > MAPPED_BYTES and mapping_of(X)[0] is not None
        return MappedSource(X) if is_large and X.ndim == 2 and X.dtype.kind in "fiub" else None
    return IteratorSource(X) if hasattr(X, "__next__") else None


class MappedSource:
    """A numpy.memmap, or an .npy file as one. map gives an array in memory."""

    feature_names = None

    def __init__(self, array, name="X"):
        self.array, self.name = array, name
        self.n_features, self.dtype = array.shape[1], float_type(array.dtype)

    def moments(self, sample_weight=None):
        """fastbn.Moments in one pass, of each feature: see fastbn._data.streaming."""
        refuse_empty(*self.array.shape)
        weights = weights_for(sample_weight, len(self.array))
        blocks = ((index, self._of_float(block)) for index, block in mapped_blocks(self.array, self.n_features))
        stored, computed = self.array.itemsize, self.dtype.itemsize  # the bar counts the bytes that are stored
        with counted_bytes("statistics", self.array.nbytes) as advance:
            return moments_of_blocks(blocks, self.array.shape, (1,), weights=weights, name=self.name, num_threads=1,
                                     advance=lambda nbytes: advance(nbytes * stored // computed))

    def map(self, function):
        """A new array of function(chunk) for chunks of rows, which function cannot write to."""
        if not len(self.array):
            return function(self._of_float(read_only(self.array)))
        pages, result = Pages(self.array), None
        rows = max(1, BLOCK_BYTES // max(1, self.n_features * self.array.itemsize))
        with counted_bytes("standardizing", self.array.nbytes) as advance:
            for first in range(0, len(self.array), rows):
                chunk = read_only(self.array[first:first + rows])
                done = function(self._of_float(chunk))
                if result is None:
                    result = np.empty(self.array.shape, done.dtype)
                result[first:first + rows] = done
                pages.release(chunk)
                advance(chunk.nbytes)
        return result

    def _of_float(self, chunk):
        return chunk.astype(self.dtype, copy=False)


def _mapped_file(path):
    """A .npy file as a numpy.memmap; its errors are NpyFile's."""
    try:
        with NpyFile(path, integers=True) as file:
            refuse_shape(file.shape)
            return file.mapped()
    except FileNotFoundError as error:
        raise FileNotFoundError(error.errno, "X is a str or path, expected that of a .npy file, and there is no file "
                                "of this name", error.filename) from None


class IteratorSource:
    """An iterator of tables of C features each, arrays or data frames, of any numbers of rows. map gives a generator.

    It can be gone through once, by moments or by map; no chunk is kept. n_features, dtype and feature_names are those of
    the first chunk, which they ask for.
    """

    def __init__(self, iterator):
        self._iterator, self._first, self._about = iterator, None, None

    @property
    def n_features(self):
        return self._peek()[0]

    @property
    def dtype(self):
        return self._peek()[1]

    @property
    def feature_names(self):
        return self._peek()[2]

    def moments(self, sample_weight=None):
        """fastbn.Moments of all chunks. sample_weight: of shape (N,), of all rows one after the other, or a number."""
        weights = None if sample_weight is None else np.asarray(sample_weight, np.float64)
        if weights is not None and weights.ndim > 1:
            raise ValueError(f"sample_weight has shape {weights.shape}, expected one dimension: one for each sample")
        total, rows = None, 0
        with counted_bytes("statistics") as advance:
            for chunk in self._chunks():
                found = self._moments_of(chunk, rows, weights)
                rows += len(chunk)
                total = found if total is None else total + found
                advance(chunk.nbytes)
        refuse_empty(rows, self.n_features)
        if weights is not None:
            weights_for(weights, rows)
        return total

    def map(self, function):
        """Yields function(chunk), and what has no rows as it is: function may refuse that."""
        for chunk in self._chunks():
            yield function(chunk) if len(chunk) else chunk.copy()

    def _moments_of(self, chunk, rows, weights):
        if weights is not None and weights.ndim:
            weights = weights[rows:rows + len(chunk)]
            if len(weights) < len(chunk):
                raise ValueError(f"sample_weight has {rows + len(weights)} entries, and the chunks have more rows: expected "
                                 "one for each sample")
        weights = weights_for(weights, len(chunk))
        c = chunk.shape[1]
        place = slice(rows, rows + len(chunk)), slice(0, c)
        return moments_of_block(chunk, (1,), place, (rows + len(chunk), c), weights=weights, name="X")

    def _peek(self):
        """(n_features, dtype, feature_names)"""
        if self._about is None:
            try:
                chunk = next(self._iterator)
            except StopIteration:
                raise ValueError("X is an iterator that gave no chunk: was it gone through before, by fit perhaps? Pass a "
                                 "new one to each method") from None
            self._first = _table(chunk, 0)
            self._about = self._first.shape[1], self._first.dtype, names_of(chunk)
        return self._about

    def _chunks(self):
        self._peek()
        first, self._first = [self._first], None
        yield first.pop()  # without a name, which would keep it
        for number, chunk in enumerate(self._iterator, 1):
            table = _table(chunk, number)
            if table.shape[1] != self.n_features:
                raise ValueError(f"chunk {number} of X (counted from 0) has {table.shape[1]} features, expected "
                                 f"{self.n_features}, as the first one has")
            self._check_names(names_of(chunk), number)
            yield table

    def _check_names(self, names, number):
        if names is not None and self.feature_names is not None and list(names) != list(self.feature_names):
            raise ValueError(f"chunk {number} of X (counted from 0) has the features {list(names)}, expected "
                             f"{list(self.feature_names)}, as the first one has")


def _table(chunk, number):
    """As an array of shape (rows, C) of floats."""
    try:
        a = np.asarray(chunk)
        refuse_shape(a.shape)
        return a.astype(float_type(a.dtype), copy=False)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"chunk {number} of X (counted from 0): {error}") from error
