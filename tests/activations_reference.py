"""The activations and their derivatives by their formulas: in float64 for arrays, in mpmath for one number.

As a command, `python activations_reference.py gelu 0.01 15`: every float32 there is, or between two magnitudes, against
the float64 formula. Prints the largest error in ulp and where.
"""

import argparse
import math

import numpy as np

TWO_ROOT = 2 * math.sqrt(2 / math.pi)

_erfc = np.frompyfunc(math.erfc, 1, 1)


def sigmoid(z):
    e = np.exp(-np.abs(z))
    return np.where(z < 0, e, 1) / (1 + e)


def normal_distribution(z):
    return _erfc(z * -math.sqrt(0.5)).astype(np.float64) / 2


# act(z), act'(z) of finite float64 arrays and a slope.
VALUES = {
    "identity": lambda z, slope: z,
    "relu": lambda z, slope: np.maximum(z, 0),
    "leaky_relu": lambda z, slope: np.where(z < 0, slope * z, z),
    "relu6": lambda z, slope: np.clip(z, 0, 6),
    "sigmoid": lambda z, slope: sigmoid(z),
    "tanh": lambda z, slope: np.tanh(z),
    "silu": lambda z, slope: z * sigmoid(z),
    "gelu": lambda z, slope: z * normal_distribution(z),
    "gelu_tanh": lambda z, slope: z * sigmoid(TWO_ROOT * (z + 0.044715 * z**3)),
    "hardswish": lambda z, slope: z * (np.clip(z + 3, 0, 6) / 6),
    "elu": lambda z, slope: np.where(z > 0, z, slope * np.expm1(np.minimum(z, 0))),
}
DERIVATIVES = {
    "identity": lambda z, slope: np.ones_like(z),
    "relu": lambda z, slope: np.where(z > 0, 1.0, 0.0),
    "leaky_relu": lambda z, slope: np.where(z > 0, 1.0, slope),
    "relu6": lambda z, slope: np.where((z > 0) & (z < 6), 1.0, 0.0),
    "sigmoid": lambda z, slope: sigmoid(z) * sigmoid(-z),
    "tanh": lambda z, slope: 4 * sigmoid(2 * z) * sigmoid(-2 * z),
    "silu": lambda z, slope: sigmoid(z) * (1 + z * sigmoid(-z)),
    "gelu": lambda z, slope: normal_distribution(z) + z * np.exp(z * z / -2) / math.sqrt(2 * math.pi),
    "gelu_tanh": lambda z, slope: gelu_tanh_derivative(z),
    "hardswish": lambda z, slope: np.where(z <= -3, 0.0, np.where(z < 3, z / 3 + 0.5, 1.0)),
    "elu": lambda z, slope: np.where(z > 0, 1.0, slope * np.exp(np.minimum(z, 0))),
}


NAMES = tuple(VALUES)


def gelu_tanh_derivative(z):
    u, slope = TWO_ROOT * (z + 0.044715 * z**3), TWO_ROOT * (1 + 3 * 0.044715 * z * z)
    return sigmoid(u) * (1 + z * slope * sigmoid(-u))


def exact(name, z, slope, mp):
    """act(z), act'(z) of one mpf; mp: the module mpmath."""
    one, half = mp.mpf(1), mp.mpf(1) / 2
    if name == "sigmoid":
        s = one / (1 + mp.exp(-z))
        return s, s / (1 + mp.exp(z))
    if name == "tanh":
        return mp.tanh(z), mp.sech(z) ** 2
    if name == "silu":
        s = one / (1 + mp.exp(-z))
        return z * s, s * (1 + z / (1 + mp.exp(z)))
    if name == "gelu":
        phi = mp.erfc(-z / mp.sqrt(2)) / 2 if abs(z) < 10**6 else mp.mpf(z > 0)
        return z * phi, phi + z * mp.npdf(z)
    if name == "gelu_tanh":
        root, cubic = mp.sqrt(2 / mp.pi), mp.mpf("0.044715")
        u = 2 * root * (z + cubic * z**3)
        s = one / (1 + mp.exp(-u))
        return z * s, s * (1 + z * 2 * root * (1 + 3 * cubic * z * z) / (1 + mp.exp(u)))
    if name == "elu":
        return (z, one) if z > 0 else (slope * mp.expm1(z), slope * mp.exp(z))
    if name == "hardswish":
        return z * min(max(z + 3, mp.mpf(0)), mp.mpf(6)) / 6, 0 * z if z <= -3 else z / 3 + half if z < 3 else one
    if name == "relu6":
        return min(max(z, mp.mpf(0)), mp.mpf(6)), one if 0 < z < 6 else 0 * z
    weight = {"identity": one, "relu": 0 * z, "leaky_relu": mp.mpf(slope)}[name]
    return (z, one) if z > 0 else (weight * z, weight)


def ulps(got, expected, dtype=np.float32):
    """The errors in ulp of the expected values, which have more precision than got; an infinity has to be met."""
    with np.errstate(over="ignore", under="ignore"):
        rounded = np.abs(expected).astype(dtype)
        spacing = np.spacing(np.minimum(rounded, np.finfo(dtype).max)).astype(np.float64)
    with np.errstate(invalid="ignore"):
        errors = np.abs(got.astype(np.float64) - expected) / spacing
    return np.where(np.isinf(got) & np.isinf(rounded), 0, errors)


def largest_error(name, slope, least, most):
    from fastbn import _core

    worst, where = 0.0, None
    first, last = (int(np.float32(value).view(np.uint32)) for value in (least, most))
    for start in range(first, last + 1, 1 << 22):
        bits = np.arange(start, min(start + (1 << 22), last + 1), dtype=np.uint32)
        for z in (bits.view(np.float32), (bits | np.uint32(1 << 31)).view(np.float32)):
            errors = ulps(_core.activate(z, name, slope), VALUES[name](z.astype(np.float64), slope))
            assert not np.isnan(errors).any()
            if errors.max() > worst:
                worst, where = errors.max(), z[errors.argmax()]
    return worst, where


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The largest error of an activation over every float32.")
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("least", type=float, nargs="?", default=0.0, help="the smallest magnitude")
    parser.add_argument("most", type=float, nargs="?", default=float(np.finfo(np.float32).max), help="the largest")
    parser.add_argument("--slope", type=float, default=1.0)
    chosen = parser.parse_args()
    error, at = largest_error(chosen.name, float(np.float32(chosen.slope)), chosen.least, chosen.most)
    print(f"{chosen.name}: {error:.4f} ulp at {at!r}")
