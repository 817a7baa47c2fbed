"""Small .npz files. Each array's header is looked at before its data are read, so that a file takes little memory,
whatever it would unpack to.
"""
import math
import zipfile

import numpy as np

from . import atomic_write, npy_header

_FEW = 64  # entries that any array may have, and arrays in a file
_ENTRY_BYTES = 16  # that an entry has at most: those of the largest number, or a short word


def read(path, features, names=None):
    """{name: array} of a file that np.savez wrote: of `names` those that are there; None: all, at most 64.

    features: an array may have so many entries, and 64 in any case.
    Raises OSError (it cannot be opened), ValueError (no such file, damaged, larger arrays).
    """
    with atomic_write.opened(path) as file:
        try:
            archive = zipfile.ZipFile(file)
            return {name: _array(archive, member, max(features, _FEW)) for name, member in _members(archive).items()
                    if names is None or name in names}
        except Exception as error:  # zipfile raises nearly anything over damaged bytes
            raise ValueError(f"{path} is no .npz file that fastbn wrote, or it is damaged "
                             f"({npy_header.summary(error)})") from error


def _members(archive):
    """{name of an array: its ZipInfo}"""
    found = {}
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        if name == member.filename:
            raise ValueError(f"it has {name!r}, which is no array")
        if name in found:
            raise ValueError(f"it has {name} twice")
        if member.flag_bits & 1:
            raise ValueError(f"{name} is encrypted")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others are not bounded
            raise ValueError(f"{name} is compressed by method {member.compress_type}, which np.savez does not use")
        found[name] = member
    if len(found) > _FEW:
        raise ValueError(f"it has {len(found)} arrays, expected at most {_FEW}")
    return found


def _array(archive, member, entries):
    with archive.open(member) as file:
        shape, fortran_order, dtype = npy_header.read(file)
        if dtype.kind not in "biufcSU":
            raise ValueError(f"{member.filename} has dtype {dtype}, expected numbers or text")
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes > entries * _ENTRY_BYTES:
            raise ValueError(f"{member.filename} has shape {shape} of {dtype}, expected at most {entries} entries: is "
                             "it of another layer, or of other data?")
        content = file.read(nbytes)
        if len(content) < nbytes or file.read(1):
            raise ValueError(f"{member.filename} has other data than the {nbytes} bytes of {shape} of {dtype}")
    return np.ndarray(shape, dtype, bytearray(content), order="F" if fortran_order else "C")
