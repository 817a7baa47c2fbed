"""Standardizes a .npy file into another, in two passes, or in one where the statistics are given."""
import contextlib
import errno
import math
import os
import shutil
from typing import NamedTuple

import numpy as np

from fastbn._data.atomic_write import replacing
from fastbn._data.npy import NpyFile
from fastbn._data.progress import counted_bytes
from fastbn._data.standardizing import standardize_into
from fastbn._data.streaming import moments_of_blocks, refuse_infinite
from fastbn.standardize.statistics import Statistics, check_features, feature_axes, read_axis, read_statistics


class Outcome(NamedTuple):
    """What standardize_file did.

    Parameters
    ----------
    shape : tuple of int
        The array's shape.
    dtype : dtype
        Its type.
    nbytes : int
        The bytes of its data.
    statistics : Statistics
        count, mean, var, scale and axis.
    fitted : bool
        Whether these are of the file itself.
    """

    shape: tuple
    dtype: np.dtype
    nbytes: int
    statistics: Statistics
    fitted: bool


def standardize_file(source, target, *, axis=None, statistics=None, save_statistics=None, overwrite=False,
                     progress=False) -> Outcome:
    """Write (x - mean) / scale of each feature of a .npy file to another, in bounded memory.

    Parameters
    ----------
    source : str or path
        Path of a .npy file of float16, float32 or float64, in any version of the format, byte order and memory order.
        NaN entries are missing values: they count in no statistic, and stay.
    target : str or path
        Path of the result, of the same shape, dtype and memory order, in native byte order. It is written beside it
        under another name and renamed at the end, so that it is never there in part; it may be the source
        (overwrite).
    axis : int or tuple of int, optional
        The feature axis, or several; None: the last one, as in a table of shape (N, C). mean and var (biased) are
        taken over all others. A one-dimensional array is one feature, without an axis.
    statistics : str or path, optional
        Path of a file that save_statistics wrote: its mean and scale are used (and its axis where axis is None), for
        example those of training data for test data. None: those of the source.
    save_statistics : str or path, optional
        Path of an .npz file for count, mean, var, scale (float64, of shape (C,)) and axis.
    overwrite : bool, default False
        Whether files that exist may be replaced.
    progress : bool, default False
        True shows a bar while stderr is a terminal and the package rich is there.

    Returns
    -------
    Outcome
        What was done, with the statistics.

    Raises
    ------
    OSError
        If a file cannot be read or written, exists already (without overwrite), or does not fit the disk.
    TypeError, ValueError
        If axis or the statistics do not fit the array, the file is damaged or of another dtype, or an entry is
        infinite.

    Notes
    -----
    scale = sqrt(var), and 1 where that is 0, so that a constant feature becomes 0. The statistics are those of
    fastbn.moments; an entry is within 1e-6 of max(1, |y|) of the exact quotient (float32). Memory: two blocks of 4 MiB,
    or where that is more a few times that of the statistics.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from fastbn.standardize import standardize_file
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     source, target = os.path.join(folder, "in.npy"), os.path.join(folder, "out.npy")
    ...     np.save(source, np.array([[1.0, 10.0], [3.0, 30.0]]))
    ...     outcome = standardize_file(source, target)
    ...     np.load(target)
    array([[-1., -1.],
           [ 1.,  1.]])
    >>> outcome.statistics.mean
    array([ 2., 20.])
    """
    with NpyFile(source) as file:
        if statistics is not None and axis is None and len(file.shape) > 1:
            axis = read_axis(statistics)
        shape, axes = feature_axes(axis, file.shape, file.path)
        given = None if statistics is None else read_statistics(statistics, math.prod(shape[i] for i in axes))
        if given is not None:
            check_features(given, axes, shape, file.path, statistics)
        elif 0 in shape:
            raise ValueError(f"{file.path} has shape {file.shape}, without an entry to take statistics of: those of other "
                             "data can be given")
        if save_statistics is not None:
            _check_save_statistics(save_statistics, source, target)
        with contextlib.ExitStack() as stack:
            out = stack.enter_context(_new_file(target, file.nbytes, overwrite))
            saved = None if save_statistics is None else stack.enter_context(_new_file(save_statistics, 0, overwrite))
            found = _statistics_of(file, shape, axes, progress) if given is None else given
            _write(file, shape, axes, found, out, progress, given is not None)
            if saved is not None:
                found.write(saved)
                _make_durable(out)  # the disk may be full: before the first of the two files takes its name
            file.close()  # Windows replaces no file that is open
    return Outcome(file.shape, file.dtype, file.nbytes, found, given is None)


def _check_save_statistics(path, source, target):
    """Raises ValueError where that is a file of the data."""
    if os.path.realpath(path) == os.path.realpath(target):
        raise ValueError(f"{os.fspath(target)} is the file for the result and for the statistics, expected two")
    if os.path.exists(path) and os.path.samefile(path, source):
        raise ValueError(f"{os.fspath(path)} is the file with the data, and would be lost to the statistics, expected two")


def _make_durable(file):
    file.flush()
    os.fsync(file.fileno())


def _new_file(path, nbytes, overwrite):
    """replacing(path), once it is known that it may be there and that there is room."""
    path = os.fspath(path)
    if not path:
        raise FileNotFoundError(errno.ENOENT, "an empty name, expected that of a file", "''")
    if os.path.isdir(path) or not os.path.basename(path):
        raise IsADirectoryError(errno.EISDIR, "is a folder, expected the name of a file", path)
    if os.path.lexists(path) and not overwrite:
        raise FileExistsError(errno.EEXIST, "exists already, and is replaced only with --force (overwrite=True)", path)
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path} is not a regular file: the result is renamed to its name at the end")
    folder = os.path.dirname(os.path.realpath(path))
    if os.path.isdir(folder) and (free := shutil.disk_usage(folder).free) < nbytes:
        raise OSError(errno.ENOSPC, f"not enough space: the result takes {nbytes} bytes, and {free} are free", path)
    return replacing(path, durable=True)


def _statistics_of(file, shape, axes, progress):
    with counted_bytes("statistics", file.nbytes, progress) as advance:
        found = moments_of_blocks(file.blocks(shape, axes), shape, axes, name=file.path, advance=advance,
                                  num_threads=1)
    return Statistics.of_moments(found, axes)


def _write(file, shape, axes, statistics, out, progress, is_new):
    """is_new: whether nobody has looked for infinite entries yet."""
    sizes = [shape[i] for i in axes]
    mean, scale = statistics.mean.reshape(sizes), statistics.scale.reshape(sizes)
    file.write_header(out)
    with counted_bytes("standardizing", file.nbytes, progress) as advance:
        for index, block in file.blocks(shape, axes):
            at = tuple(index[i] for i in axes)
            if is_new:
                refuse_infinite(block, axes, index, shape, file.path)
            standardize_into(block, mean[at].ravel(), scale[at].ravel(), out=block, axis=axes, num_threads=1)
            out.write(block if block.flags.c_contiguous else block.T)
            advance(block.nbytes)
