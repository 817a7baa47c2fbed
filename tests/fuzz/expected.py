"""What the oracle makes of a case: a Layer and its bounds for each part of the batch that has its own statistics."""
from typing import NamedTuple

import numpy as np
from fused_oracle import Layer, statistics
from oracle import WIDE

from .bounds import Bounds, assert_near, mean_error, var_error
from .tables import weights_of


class Part(NamedTuple):
    rows: slice
    layer: Layer
    bounds: Bounds
    r: np.ndarray  # of renormalization; 1 and 0 without
    d: np.ndarray

    def reads(self, y, activation):
        """x was overwritten: backward gets the normalized x from y, as documented; what y was rounded by is in it.

        With renormalization beta is a sum in double, beta + gamma * d, which may cancel: it is off by the roundings of
        what is added, `bounds.shift`.
        """
        layer, bounds, slope = self.layer, self.bounds, bounds_slope(activation)
        layer.z = np.where(y < 0, y / slope, y)
        layer.h = np.where(layer.nothing, layer.h, (layer.z - layer.beta) / layer.gamma)
        bounds.of_data(layer.z - layer.beta, layer.beta, 1 / layer.gamma)
        lost = 10 * WIDE(2.0**-52) * (bounds.shift + np.abs(layer.z))
        bounds.lost = (lost + (slope != 1) * 2 * bounds.wide.u * np.abs(layer.z)) / np.abs(layer.gamma)


def bounds_slope(activation):
    if activation is None:
        return WIDE(1)
    return WIDE(activation[1] if isinstance(activation, tuple) else 0.01)


def wide_parameters(case):
    gamma = np.ones(case.c, WIDE) if case.gamma is None else case.gamma.astype(WIDE)
    return gamma, np.zeros(case.c, WIDE) if case.beta is None else case.beta.astype(WIDE)


def rows_of(case, ghost):
    """Slices of the tables' rows, by so many entries of the first batch axis, which is the outermost."""
    if ghost is None:
        return [slice(0, case.entries)]
    each = case.entries // max(case.batch_shape[0], 1)
    return [slice(i * each, min(i + ghost, case.batch_shape[0]) * each)
            for i in range(0, max(case.batch_shape[0], 1), ghost)]


def weights_and_missing(case, rows, omits):
    """(the weights of a part, or None; which of its entries are missing, or None)"""
    weights = None if case.product is None else weights_of(case.product[rows], case.dtype)[0]
    return weights, np.isnan(case.x_table[rows]) if omits else None


def part_of(case, rows, mean, var, *, frozen, omits=False, renorm=None):
    """By the statistics that were returned, or given."""
    gamma, beta = wide_parameters(case)
    r, d = np.ones(case.c, WIDE), np.zeros(case.c, WIDE)
    weights, missing = (None, None) if frozen else weights_and_missing(case, rows, omits)
    if renorm is not None:
        r, d = renorm(rows, mean.astype(WIDE), var.astype(WIDE))
    residual = None if case.residual is None else case.residual_table[rows]
    layer = Layer(case.x_table[rows], gamma * r, beta + gamma * d, axis=1, eps=case.eps, activation=case.activation,
                  residual=residual, weights=weights, given=(mean, var), frozen=frozen, missing=missing, wide=WIDE)
    weighted = weights is not None or (missing is not None and bool(missing.any()))
    bounds = Bounds(layer, case.dtype, case.activation, residual is not None, weighted)
    bounds.shift = layer.wide(np.abs(beta) + np.abs(gamma * d))
    return Part(rows, layer, bounds, r, d)


def true_statistics(case, rows, omits):
    """(count, mean, biased variance) of a part, each (C,)."""
    x = case.x_table[rows]
    weights, missing = weights_and_missing(case, rows, omits)
    weights = np.broadcast_to(WIDE(1) if weights is None else weights[:, None], x.shape)
    return [a[0] for a in statistics(x, weights if missing is None else np.where(missing, 0, weights), 0)]


def check_statistics(case, rows, mean, var, omits=False):
    """Against the entries. A feature with NaN or Inf has NaN for its variance, and no promise for its mean."""
    _, true_mean, true_var = true_statistics(case, rows, omits)
    with np.errstate(all="ignore"):
        unknown = np.isnan(true_var) & ~(true_mean == 0)
        size = np.where(np.isnan(true_var), 0, true_var)
        assert_near(np.where(unknown, 0, mean), np.where(unknown, 0, true_mean),
                    mean_error(true_mean, size, len(case.x_table[rows]), case.arithmetic), case.arithmetic, "mean")
        assert_near(var, true_var, var_error(true_mean, size, case.arithmetic), np.dtype(np.float64), "var")
