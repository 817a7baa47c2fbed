"""Which inputs fastbn computes, and scikit-learn's checks of them without what these cost.

fastbn takes tables of float32 and float64, and NumPy arrays and data frames that scikit-learn makes such tables of.
Everything else is left to scikit-learn's own methods, and so is whatever looks wrong: their errors are raised by them.

One of scikit-learn's checks is left out, that for infinities, which reads the data with one thread. Here moments tell: a
feature's are finite where all of its entries are. (Taking them of blocks of rows, which the cache still holds when they
are read again, is up to a tenth faster with one thread, and slower with two, for all the beginnings and ends of blocks.)
"""
import math

import numpy as np
from sklearn.utils.validation import FLOAT_DTYPES

import fastbn

_DTYPES = np.dtype(np.float32), np.dtype(np.float64)
_SMALL = 1 << 14  # entries, of which one thread takes the sum
BLOCK = 1 << 22   # bytes, of which a copy may be made

# For check_array and validate_data.
CHECKS = {"accept_sparse": "csr", "dtype": FLOAT_DTYPES, "ensure_all_finite": False}


def is_table(X):
    """Whether X is a NumPy array that can be computed as it is."""
    return type(X) is np.ndarray and X.ndim == 2 and X.dtype in _DTYPES and X.size > 0


def is_dense(X):
    """Whether scikit-learn makes a table of X, as far as can be seen without looking at what is in it."""
    if type(X) is np.ndarray:
        return X.dtype.kind in "fiub"
    return type(X).__name__ == "DataFrame" and type(X).__module__.partition(".")[0] in ("pandas", "polars")


def blocks_of(x):
    """Slices of the table's rows."""
    step = max(1, BLOCK // (x.shape[1] * x.itemsize))
    return [slice(first, first + step) for first in range(0, len(x), step)]


def has_infinity(x):
    """Whether an entry of the table x is infinite. Entries are looked at one by one only where some are NaN."""
    if x.size <= _SMALL:
        with np.errstate(over="ignore", invalid="ignore"):
            finite = math.isfinite(np.add.reduce(x, axis=None))
    else:
        finite = bool(np.isfinite(fastbn.moments(x).M2).all())
    return not finite and any(np.isinf(x[rows]).any() for rows in blocks_of(x))
