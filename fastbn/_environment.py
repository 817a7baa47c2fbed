"""The settings that a process starts with: environment variables, read once when fastbn is imported.

What cannot be read is not ignored in silence: a RuntimeWarning says what was seen, what was expected and what is used
in its place.
"""
import os
import re
import sys
import warnings

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
MOST_THREADS = 2**20 - 1


def read_threads(text):
    """A number of threads; 0 or nothing: no limit. None where it cannot be read."""
    text = text.strip()
    if not text:
        return 0
    number = int(text) if re.fullmatch(r"[0-9]{1,9}", text) else -1
    return number if 0 <= number <= MOST_THREADS else None


def read_bytes(text):
    """A number of bytes, also as 64K, 64M, 64MB, 64MiB or 2G, where K is 1024. None where it cannot be read."""
    found = re.fullmatch(r"\s*([0-9]{1,15})\s*([KMG]?)(?:I?B)?\s*", text.upper())
    nbytes = int(found[1]) * _UNITS[found[2]] if found else None
    return nbytes if nbytes is None or nbytes <= sys.maxsize else None


def read_switch(text):
    """0 or 1. None where it cannot be read."""
    return {"0": False, "1": True}.get(text.strip())


def setting(name, read, expected, otherwise):
    """The value of the variable; None where it is not set, or cannot be read, and then a warning says so.

    expected: in words; otherwise: what is used in its place, in words.
    """
    text = os.environ.get(name)
    value = None if text is None else read(text)
    if text is not None and value is None:
        warnings.warn(f"{name}={text!r} cannot be read, expected {expected}; {otherwise}", RuntimeWarning, stacklevel=2)
    return value
