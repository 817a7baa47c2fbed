"""How far a result may be from the formula, entry by entry: roundings of the arithmetic counted along csrc/kernels.

u is half a unit in the last place of the arithmetic's type (float32, for half types too, or float64), `tiny` its least
number. What is computed once for a feature is computed in double and rounded once. The statistics in the formula are
those that the call returned, which are checked against the promises by themselves: so one unit in the last place of the
mean, which is much where mean / std is 1e6, does not loosen these bounds.
"""
from typing import NamedTuple

import numpy as np
from activations_reference import DERIVATIVES, NAMES
from oracle import EPS64, WIDE

from .draw import FLOAT16, FLOAT32, FLOAT64

# The promise for float32 means, in units in the last place of max(|mean|, std).
FEW_MEAN_ULPS, MEAN_ULPS = 1, 2.4
VAR_UNIT = {FLOAT32: WIDE(1e-6), FLOAT64: WIDE(1e-12)}

_GRID = np.linspace(-8, 8, 16001)


def _steepest(name):
    """The largest slope of an activation without parameter."""
    return float(np.abs(DERIVATIVES[name](_GRID, 0.0)).max()) * 1.001


def _bend(name):
    """The largest slope of its derivative, where this is continuous."""
    changes = np.abs(np.diff(DERIVATIVES[name](_GRID, 0.0))) / np.diff(_GRID)
    return float(changes[changes < 10].max()) * 1.01


_STEEPEST = {name: _steepest(name) for name in NAMES if name not in ("leaky_relu", "elu")}
_BEND = {name: _bend(name) for name in _STEEPEST}
# Where derivatives jump, and by how much; of leaky_relu and elu by 1 - parameter, at 0.
_JUMPS = {"relu": {0: 1}, "relu6": {0: 1, 6: 1}, "hardswish": {-3: 0.5, 3: 0.5}}


class Type(NamedTuple):
    u: np.longdouble
    tiny: np.longdouble
    largest: float

    def rounding(self, value):
        return np.abs(value) * self.u + self.tiny / 2


def type_of(dtype):
    if dtype == FLOAT64:
        return Type(WIDE(2.0**-53), WIDE(2.0**-1074), 1.79e308)
    if dtype == FLOAT32:
        return Type(WIDE(2.0**-24), WIDE(2.0**-149), 3.4e38)
    if dtype == FLOAT16:
        return Type(WIDE(2.0**-11), WIDE(2.0**-24), 65504)
    return Type(WIDE(2.0**-8), WIDE(2.0**-133), 3.38e38)


def arithmetic_of(dtype):
    return FLOAT64 if dtype == FLOAT64 else FLOAT32


def assert_near(got, want, allowed, dtype, what, through=0):
    """NaN where NaN is wanted, Inf where that is, or where the bound reaches beyond the type's largest number.

    through: what the result is a function of, which overflows as well, and then may give 0 * Inf.
    """
    assert got.shape == want.shape, f"{what} has shape {got.shape}, expected {want.shape}"
    got = got.astype(WIDE)
    allowed = np.broadcast_to(allowed, want.shape)
    fine = (np.abs(got - want) <= allowed) | (got == want) | (np.isnan(got) & np.isnan(want))
    fine |= (np.abs(through) >= type_of(arithmetic_of(dtype)).largest) & ~np.isfinite(got)
    for sign in (-1, 1):
        fine |= (sign * want + allowed >= type_of(dtype).largest) & (got == sign * np.inf)
    if not fine.all():
        where = tuple(int(i) for i in np.argwhere(~fine)[0])
        raise AssertionError(f"{what}: {(~fine).sum()} of {fine.size} are off; at {where} {got[where]!r}, expected "
                             f"{want[where]!r}, off by {np.abs(got - want)[where]:.4g}, allowed {allowed[where]:.4g}")


def mean_error(mean, var, entries, arithmetic):
    """Promised of float32: one ulp of max(|mean|, std) of fewer than 64 entries, and 2.4 of more, whose roundings may be alike.
    float64 has the bound of tests/oracle.py, for some thousand terms.
    """
    std = np.sqrt(var)
    ulp = np.spacing(np.maximum(np.abs(mean), std).astype(arithmetic)).astype(WIDE)
    ulps = FEW_MEAN_ULPS if entries < 64 else MEAN_ULPS
    return ulps * ulp if arithmetic == FLOAT32 else 4 * ulp + 1e-12 * std


def var_error(mean, var, arithmetic):
    """Promised for mean / std up to 1e6; beyond, the mean about which squares are taken may be off by an ulp.

    The second part: means are doubles, whose rounding adds to squares.
    """
    std, rounding = np.sqrt(var), 4 * EPS64 * np.abs(mean)
    beyond = np.where(np.abs(mean) > 1e6 * std, np.spacing(np.abs(mean).astype(arithmetic)).astype(WIDE) ** 2, 0)
    return VAR_UNIT[arithmetic] * var + rounding * (std + rounding) + beyond


class Bounds:
    """The bounds of a fused_oracle.Layer by the statistics that were returned.

    dtype: of the data. lost: how wrong the normalized x is in backward, beyond roundings (recovered from y).
    """

    def __init__(self, layer, dtype, activation, has_residual, weighted):
        self.layer, self.dtype, self.has_residual, self.weighted = layer, dtype, has_residual, weighted
        self.name, self.parameter = activation if isinstance(activation, tuple) else (activation, None)
        if self.parameter is None:
            self.parameter = {"leaky_relu": 0.01, "elu": 1.0}.get(self.name)
        self.arithmetic = arithmetic_of(dtype)
        self.wide, self.data = type_of(self.arithmetic), type_of(dtype)
        self.of_data(layer.centred, layer.mean, layer.rstd)
        self.lost = self.slope = WIDE(0)
        self.shift = np.abs(layer.beta)  # of what it is the sum

    def of_data(self, centred, center, scale):
        """The array that is read is centred by `center`, in two parts, and scaled."""
        self.low = np.abs(center - center.astype(self.arithmetic))
        self.low = np.where(self.layer.nothing, 0, self.low)
        self.unscaled = np.where(self.layer.nothing, 0, np.abs(centred)) + self.low
        self.scale = np.where(self.layer.nothing, 0, np.abs(scale))

    # ---- y ----

    def z(self):
        """The difference, the factor and the product are rounded, the shift, the sums; the factor may be subnormal.

        In float64 the root, the quotient and the factor's product are too; renormalization has some more in double.
        """
        layer, u, tiny = self.layer, self.wide.u, self.wide.tiny
        factor = np.where(layer.nothing, 0, np.abs(layer.gamma * layer.rstd))
        scaled, plain = factor * self.unscaled, np.abs(layer.h * layer.gamma + layer.beta)
        error = (4 if self.arithmetic == FLOAT32 else 8) * u * scaled + 10 * EPS64 * (scaled + self.shift)
        error = error + 2 * u * (np.abs(layer.beta) + factor * self.low) + u * plain + tiny * (self.unscaled + 2)
        return error + 1.01 * u * np.abs(layer.z) if self.has_residual else error

    def through(self):
        """The largest in magnitude of what z is made of: where that overflows, the computed z is Inf or NaN, whatever z is.

        (x - hi) * a may be out of range and beta - lo * a or the residual bring z back into it, see 3. in csrc/fastbn.h.
        """
        layer = self.layer
        scaled = np.where(layer.nothing, 0, np.abs(layer.gamma * layer.rstd)) * self.unscaled
        return np.fmax(np.fmax(scaled, np.abs(layer.h * layer.gamma + layer.beta)), np.abs(layer.z))

    def y(self, y):
        """2 ulp of the activation in float32, 4 in float64; the oracle's own erfc is a double."""
        steepest = max(1.0, abs(self.parameter)) if self.parameter is not None else _STEEPEST.get(self.name, 1.0)
        error = self.z() * steepest
        if self.name not in (None, "relu"):
            error = error + (4 if self.arithmetic == FLOAT32 else 8) * (self.wide.u * np.abs(y) + self.wide.tiny)
            error = error + 4 * EPS64 * (1 + np.abs(y))
        return error if self.dtype == self.arithmetic else error + self.data.rounding(np.abs(y) + error)

    # ---- gradients ----

    def dz(self, dy, dz):
        """What the derivative at a rounded z, and its own rounding, do to dy * act'(z); Inf where z's parts overflow."""
        if self.name is None:
            return np.zeros_like(dz)
        size, error = np.abs(dy), self.z() + self.data.tiny
        jumps = _JUMPS.get(self.name, {0: abs(1 - (self.parameter or 0))} if self.parameter is not None else {})
        bend = abs(self.parameter) if self.name == "elu" else _BEND.get(self.name, 0.0)
        found = size * error * bend + 8 * self.wide.u * np.abs(dz) + 8 * self.wide.tiny
        if self.name not in ("relu", "relu6", "leaky_relu"):
            found = found + size * (4 * self.wide.u + 8 * EPS64)
        for place, jump in jumps.items():
            found = found + np.where(np.abs(self.layer.z - place) <= error, size * jump, 0)
        found = np.where(self.through() >= type_of(self.arithmetic).largest, np.inf, found)  # the computed z may be NaN
        return found if self.layer.missing is None else np.where(self.layer.missing, 0, found)

    def sums(self, dz, error):
        """(of dbeta, of dgamma): trees of 16, after a difference and a product, then chains of doubles."""
        chain = EPS64 * (len(dz) / 8 + 20)
        u, size = self.wide.u, np.abs(dz) + error
        size = np.where(np.isnan(size), 0, size)
        terms = size * self.unscaled * self.scale
        self.of_dbeta = (5 * u + chain) * size.sum(axis=0) + error.sum(axis=0)
        projected = (error * (self.unscaled * self.scale) + size * self.lost).sum(axis=0)
        underflow = len(dz) * self.wide.tiny * self.scale[0]
        moved = (self.low * self.scale)[0] * self.of_dbeta
        self.of_dgamma = (8 * u + chain) * terms.sum(axis=0) + projected + underflow + moved
        return self.of_dbeta, self.of_dgamma

    def dx(self, dz, error, dgamma, dbeta):
        """After `sums`: (dz - mean - difference * slope) * scale, and one product more where there are weights.

        Both factors of h * dgamma are wrong, h by `lost`, which is more than h itself where beta is large beside gamma:
        so the product of both errors counts. With weights it is mean + difference * slope that is multiplied by w, and
        that may overflow where its product does not.
        """
        layer, u, tiny, more = self.layer, self.wide.u, self.wide.tiny, 4 * self.weighted
        factor = np.where(layer.nothing, 0, np.abs(layer.gamma * layer.rstd))
        inner, size, h = error + 5 * u * np.abs(dz), np.abs(dz), self.unscaled * self.scale
        shared = WIDE(0)
        if not layer.frozen:
            share = np.where(layer.w != 0, layer.w / layer.total, 0)
            slope = np.abs(dgamma) * self.scale
            inner = inner + share * (self.of_dbeta + (h + self.lost) * self.of_dgamma + self.lost * np.abs(dgamma))
            inner = inner + share * ((6 + more) * u * np.abs(dbeta) + (8 + more) * u * slope * self.unscaled)
            inner = inner + tiny * (self.unscaled * layer.w + 2)
            through = np.abs(dbeta) + slope * self.unscaled
            size = size + share * through
            shared = np.where(share != 0, through / layer.total, 0)
            steepest = slope + self.of_dgamma * self.scale  # where h is lost, dgamma may be anything up to its bound
            self.slope = steepest * np.maximum(self.unscaled, 1)
        self.size_of_dx = np.maximum(factor, 1) * np.maximum(np.maximum(size, self.unscaled), self.slope)
        self.size_of_dx = np.maximum(self.size_of_dx, shared)
        allowed = factor * inner + tiny * (size + 1)
        if self.dtype == self.arithmetic:
            return allowed
        return allowed + self.data.rounding(factor * size + allowed)
