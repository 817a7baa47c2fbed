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


def product_of(counting, shape):
    """mask, weights and lengths multiplied, doubles of shape (entries,), or None. `shape` is that of the batch axes."""
    if not counting:
        return None
    product = np.ones(shape)
    for name, factor in counting.items():
        if name == "lengths":
            factor = np.arange(shape[1]) < factor[:, None]
        product = product * factor.reshape(factor.shape + (1,) * (len(shape) - factor.ndim))
    return product.reshape(-1)


def weights_of(product, dtype):
    """(weights, their unit) of a part of the batch.

    Only ratios matter: they are divided by the power of two next to the part's largest and rounded to the arithmetic's
    type, in which what is less than 1e-45 of the largest is 0.
    """
    exponent = math.frexp(product.max(initial=0))[1] - 1
    return np.ldexp(product, -exponent).astype(arithmetic_of(dtype)).astype(WIDE), math.ldexp(1.0, exponent)
