"""Dask arrays and data frames: the moments of their chunks, merged in a tree; transformed chunk by chunk, lazily.

The tree is made of the chunks in their order, eight by eight, so that the result has the same bits for any scheduler and
any number of workers. (Other chunks are another order of sums: then the last bits may differ.)

Each chunk is computed with one thread, since Dask computes as many at a time as it has workers: fastbn's own threads would
only wait for each other. A limit set by OpenMP holds for the thread that sets it, so other users of fastbn are not
slowed down.
"""
import functools
import math
import sys

import dask
import dask.array
import numpy as np
from threadpoolctl import ThreadpoolController

from fastbn._data.mapped import read_only
from fastbn._data.streaming import moments_of_block
from fastbn._engine.moments import Moments, by_feature
from fastbn.sklearn._tables import float_type, names_of, refuse_empty, refuse_shape, weights_for

_FAN_IN = 8


def recognize(X):
    """A DaskSource for a Dask array or data frame, or None."""
    frames = sys.modules.get("dask.dataframe")
    if isinstance(X, dask.array.Array):
        return DaskSource(X)
    if frames is not None and isinstance(X, frames.DataFrame):
        return DaskSource(X.to_dask_array(), names_of(X))
    return None


class DaskSource:
    """A table of shape (N, C) in chunks, of which N and the chunks' rows may be unknown (NaN).

    Chunks may cut the columns too: moments are then taken by blocks of columns; map puts the columns together, and cuts
    the rows so that no chunk becomes larger than the largest one was (where the chunks' rows are unknown it cannot).
    """

    def __init__(self, array, feature_names=None):
        refuse_shape(array.shape)
        if math.isnan(array.shape[1]):
            raise ValueError("X is a Dask array of an unknown number of features: call X.compute_chunk_sizes() first")
        refuse_empty(array.shape[0], array.shape[1])
        self.array, self.feature_names = array, feature_names
        self.n_features, self.dtype = array.shape[1], float_type(array.dtype)

    def moments(self, sample_weight=None):
        """fastbn.Moments, by one call of compute()."""
        found = self.lazy_moments(sample_weight).compute()
        if not np.ndim(found.count):
            refuse_empty(found.count, self.n_features)
        return found

    def lazy_moments(self, sample_weight=None):
        """A dask.delayed object of the Moments. sample_weight: None, or an array of shape (N,), NumPy's or Dask's."""
        weights = self._weights(sample_weight)
        grid = self.array.to_delayed()
        rows, columns = (_starts(sizes) for sizes in self.array.chunks)
        parts = []
        for j, column in enumerate(columns):
            found = [_moments(chunk, weight, row, column, self.n_features)
                     for chunk, weight, row in zip(grid[:, j], weights, rows)]
            parts.append(_tree(found))
        return parts[0] if len(parts) == 1 else _side_by_side(parts)

    def map(self, function):
        """A Dask array of function(chunk), with the chunks of X where these have all columns. function cannot write to a
        chunk: it may be the memory of someone's array, and is computed on again by the next compute().
        """
        whole = self.array
        if whole.numblocks[1] > 1:
            whole = _with_whole_rows(whole)
        return whole.map_blocks(functools.partial(_transformed, function, self.dtype), dtype=self.dtype,
                                meta=np.empty((0, 0), self.dtype))

    def _weights(self, sample_weight):
        """One delayed array, or None, for each row of chunks."""
        rows = self.array.chunks[0]
        are_unknown = any(map(math.isnan, rows))
        if sample_weight is None:
            return [None] * len(rows)
        if hasattr(sample_weight, "to_dask_array"):  # a column of a data frame
            sample_weight = sample_weight.to_dask_array()
        if not dask.is_dask_collection(sample_weight):
            if are_unknown:
                raise ValueError("sample_weight is in memory, and the rows of X's chunks are unknown: call "
                                 "X.compute_chunk_sizes() first (of a data frame, X.to_dask_array(lengths=True)), or pass a "
                                 "Dask array with the same chunks")
            sample_weight = dask.array.from_array(weights_for(sample_weight, sum(rows)), chunks=(rows,))
        fits = len(sample_weight.chunks[0]) == len(rows) if are_unknown else sample_weight.shape == self.array.shape[:1]
        if sample_weight.ndim != 1 or not fits:
            raise ValueError(f"sample_weight has shape {sample_weight.shape}, expected ({self.array.shape[0]},): one for "
                             "each sample")
        return list((sample_weight if are_unknown else sample_weight.rechunk((rows,))).to_delayed())


def _starts(sizes):
    """The first row or column of each chunk; NaN from where sizes are unknown."""
    return [0, *np.cumsum(sizes)[:-1].tolist()]


def _tree(parts):
    while len(parts) > 1:
        parts = [_merged(parts[first:first + _FAN_IN]) for first in range(0, len(parts), _FAN_IN)]
    return parts[0]


def _with_whole_rows(array):
    """The same with chunks of all columns."""
    if any(map(math.isnan, array.chunks[0])):
        return array.rechunk({1: -1})
    largest = max(array.chunks[0]) * max(array.chunks[1])
    rows = max(1, largest // array.shape[1])
    return array.rechunk((_cut(array.chunks[0], rows), -1))


def _cut(sizes, most):
    """Chunks of rows cut into parts of at most so many, each of one old chunk."""
    cut = []
    for size in sizes:
        parts = max(1, math.ceil(size / most))
        cut += [size // parts + (part < size % parts) for part in range(parts)]
    return tuple(cut)


# --- what the workers do ---------------------------------------------------------------------------------------------


@functools.cache
def _threads():
    """Looking for the libraries of a process takes a millisecond; fastbn's is loaded by now."""
    return ThreadpoolController()


def _transformed(function, dtype, chunk):
    chunk = np.asarray(chunk)
    if not len(chunk):  # what a filter left, perhaps; function may refuse that
        return chunk.astype(dtype)
    with _threads().limit(limits=1, user_api="openmp"):
        return function(read_only(chunk).astype(dtype, copy=False))


@dask.delayed
def _moments(chunk, weights, row, column, features):
    """row, column: of the chunk's first entry."""
    chunk = np.asarray(chunk)
    chunk = chunk.astype(float_type(chunk.dtype), copy=False)
    weights = None if weights is None else weights_for(weights, len(chunk))
    row = 0 if math.isnan(row) else row
    place = slice(row, row + len(chunk)), slice(column, column + chunk.shape[1])
    return moments_of_block(chunk, (1,), place, (row + len(chunk), features), weights=weights, name="X", num_threads=1)


@dask.delayed
def _merged(parts):
    return Moments.merge_all(parts)


@dask.delayed
def _side_by_side(parts):
    """The moments of several groups of features as one."""
    count, squares = parts[0].count, parts[0].squares
    if any(np.ndim(part.count) for part in parts):
        parts = [by_feature(part) for part in parts]
        count, squares = (np.concatenate([getattr(part, name) for part in parts]) for name in ("count", "squares"))
    mean, M2 = (np.concatenate([getattr(part, name) for part in parts]) for name in ("mean", "M2"))
    return Moments.of_arrays(count, mean, M2, squares)
