"""The header of an array in NumPy's .npy format: its shape and dtype, in bounded memory, whatever the bytes are.

Format: numpy.lib.format, versions 1.0 to 3.0.
"""
import io
import math
import sys

import numpy as np

_MOST_BYTES = 10_000  # NumPy's own limit, which it looks at when it has read them all
_LENGTH_BYTES = {(1, 0): 2, (2, 0): 4, (3, 0): 4}


def read(file):
    """(shape, fortran_order, dtype as stored); the file is at the data then. Raises OSError, ValueError."""
    version = np.lib.format.read_magic(io.BytesIO(file.read(8)))
    if version not in _LENGTH_BYTES:
        raise ValueError(f"version {version[0]}.{version[1]} of the format, expected 1.0, 2.0 or 3.0")
    length = file.read(_LENGTH_BYTES[version])
    size = int.from_bytes(length, "little")
    if size > _MOST_BYTES:
        raise ValueError(f"{size} bytes of header, expected at most {_MOST_BYTES}")
    return _parsed(version, io.BytesIO(length + file.read(size)))


def _parsed(version, file):
    # 3.0 is 2.0 in UTF-8, which only names of fields need.
    parse = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, fortran_order, dtype = parse(file)
        np.broadcast_to(np.int8(0), shape)  # raises where NumPy has no such shape
    except Exception as error:  # a header is read as Python's own source, whose errors are of a dozen types
        raise ValueError(summary(error)) from None
    if math.prod(max(1, size) for size in shape) * dtype.itemsize > sys.maxsize:
        raise ValueError(f"shape {shape} of {dtype}, more than any memory has")
    return shape, fortran_order, dtype


def summary(error):
    """An error in a few words: some quote whole headers, others say nothing."""
    text = str(error) or type(error).__name__
    return text if len(text) < 300 else f"{text[:300]}..."
