"""Arrays and weights as tables (entries, features), on which the oracle computes."""
import math

import numpy as np
from oracle import WIDE

from .bounds import arithmetic_of


def batch_axes(ndim, axes):
    return tuple(i for i in range(ndim) if i not in axes)


def as_table(a, axes, wide=True):
    """The batch axes in C order, then the feature axes in ascending order."""
    others = batch_axes(a.ndim, axes)
    sizes = math.prod(a.shape[i] for i in others), math.prod(a.shape[i] for i in axes)
    table = a.transpose(*others, *axes).reshape(sizes)
    return table.astype(WIDE) if wide else table


def weights_of(counting, shape, dtype):
    """(mask, weights and lengths multiplied, of shape (entries,); their unit). `shape` is that of the batch axes.

    None where all count. Only ratios matter: they are divided by the power of two next to the largest and rounded to the arithmetic's type, in
    which what is less than 1e-45 of the largest is 0.
    """
    if not counting:
        return None, 1.0
    product = np.ones(shape)
    for name, factor in counting.items():
        if name == "lengths":
            factor = np.arange(shape[1]) < factor[:, None]
        product = product * factor.reshape(factor.shape + (1,) * (len(shape) - factor.ndim))
    exponent = math.frexp(product.max(initial=0))[1] - 1 if "weights" in counting else 0
    scaled = np.ldexp(product, -exponent).astype(arithmetic_of(dtype))
    return scaled.astype(WIDE).reshape(-1), math.ldexp(1.0, exponent)
