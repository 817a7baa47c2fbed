"""The statistics that a file is standardized by, and their own .npz files."""
import math
from typing import NamedTuple

import numpy as np

from fastbn._data import npz
from fastbn._engine.layout import normalize_axes

_NAMES = ("count", "mean", "var", "scale", "axis")


class Statistics(NamedTuple):
    """The statistics that a file was standardized by.

    Parameters
    ----------
    count : array of int64, shape (C,)
        The entries of each feature that are not NaN.
    mean, var : array of float64, shape (C,)
        The mean, and the biased variance.
    scale : array of float64, shape (C,)
        The root of var, and 1 where that is 0 or there is no entry.
    axis : tuple of int
        The feature axes.
    """

    count: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    scale: np.ndarray
    axis: tuple

    @classmethod
    def of_moments(cls, moments, axes):
        count = np.array(np.broadcast_to(moments.count, moments.mean.shape), np.int64)
        var = moments.var()
        return cls(count, moments.mean, var, np.where(var > 0, np.sqrt(var), 1.0), axes)

    def write(self, file):
        np.savez(file, **dict(zip(_NAMES, (*self[:-1], np.array(self.axis, np.int64)))))


def read_axis(path):
    """The feature axes in a file that Statistics.write wrote. Raises OSError, ValueError."""
    return tuple(_read(path, 0, ("axis",))["axis"].tolist())


def read_statistics(path, features):
    """All of such a file, of so many features or a few others. Raises OSError, ValueError."""
    found = _read(path, features, _NAMES)
    arrays = [np.asarray(found[name], np.int64 if name == "count" else np.float64) for name in _NAMES[:-1]]
    if any(a.shape != arrays[0].shape for a in arrays):
        raise ValueError(f"{path} has arrays of shapes {', '.join(str(a.shape) for a in arrays)}, expected one shape (C,)")
    _, mean, _, scale = arrays
    if not np.isfinite(mean).all() or not np.isfinite(scale).all() or not (scale > 0).all():
        raise ValueError(f"{path} has a mean that is not finite, or a scale that is not a finite number above 0")
    return Statistics(*arrays, tuple(found["axis"].tolist()))


def _read(path, features, names):
    """{name: array of one dimension}"""
    found = npz.read(path, features, names)
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: expected a file that --stats or save_statistics wrote")
    for name, a in found.items():
        whole = name in ("count", "axis")
        if a.dtype.kind not in ("iu" if whole else "fiu"):
            raise ValueError(f"{path} has {name} of dtype {a.dtype}, expected {'integers' if whole else 'numbers'}")
        if a.ndim != 1:
            raise ValueError(f"{path} has {name} of shape {a.shape}, expected one dimension")
    return found


def feature_axes(axis, shape, name):
    """(shape with at least two axes, feature axes): a vector is a table of one feature.

    axis: an int, several, or None: the last one. Raises TypeError, ValueError.
    """
    if len(shape) == 1:
        if axis is not None:
            raise ValueError(f"axis is {axis}, but {name} is one-dimensional, of shape {shape}: it is taken as the entries "
                             "of a single feature, and axis has to be left out")
        return (*shape, 1), (1,)
    axes = normalize_axes(-1 if axis is None else axis, len(shape), name)
    if len(axes) == len(shape):
        raise ValueError(f"axis is {axis}, all axes of {name}, of shape {shape}: then each feature would have a single "
                         "entry")
    return shape, axes


def check_features(statistics, axes, shape, source, path):
    """Raises ValueError where the statistics are of another number of features."""
    c = math.prod(shape[i] for i in axes)
    if statistics.mean.size != c:
        raise ValueError(f"{path} has the statistics of {statistics.mean.size} features, and {source}, of shape {shape}, "
                         f"has {c} on axis {' '.join(map(str, axes))}: is it another data set, or another axis?")
