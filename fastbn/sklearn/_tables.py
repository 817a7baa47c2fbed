"""What a table from any source has to be: its type, its shape, the weights of its samples."""
import numpy as np


def float_type(dtype):
    """The type that data of this one is computed and returned in: its own, or float64. Raises TypeError, ValueError."""
    if dtype.kind == "f" and dtype.itemsize <= 8:
        return dtype.newbyteorder("=")
    if dtype.kind == "c":
        raise ValueError(f"Complex data not supported: X has dtype {dtype}")
    if dtype.kind not in "fiub":
        raise TypeError(f"X has dtype {dtype}, expected numbers")
    return np.dtype(np.float64)


def refuse_empty(rows, columns):
    """With scikit-learn's words."""
    for number, what in ((rows, "sample"), (columns, "feature")):
        if not number:
            raise ValueError(f"Found array with 0 {what}(s) (shape=({rows}, {columns})) while a minimum of 1 is "
                             "required")


def refuse_shape(shape):
    if len(shape) != 2:
        raise ValueError(f"Expected 2D array, got {len(shape)}D array instead: X has shape {shape}, expected (samples, "
                         "features)")


def names_of(table):
    """The column names of a data frame where all are strings, or None."""
    names = getattr(table, "columns", None)
    if names is None or not all(isinstance(name, str) for name in names):
        return None
    return np.asarray(list(names), dtype=object)


def weights_for(sample_weight, rows):
    """As a float64 array of shape (rows,); None stays None. Raises ValueError."""
    if sample_weight is None:
        return None
    weights = np.asarray(sample_weight, np.float64)
    if weights.ndim == 0:
        weights = np.full(rows, weights)
    if weights.shape != (rows,):
        raise ValueError(f"sample_weight has shape {weights.shape}, expected ({rows},): one for each sample")
    return weights
