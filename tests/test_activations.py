"""The kernels of the activations, called one by one: accuracy over the whole range of a type, NaN and infinities, places.

float32 results are compared with float64 ones over all exponents, float64 results with mpmath. An error is counted in
ulp, the distance of the neighbours of the exact result in its type.
"""

import math

import numpy as np
import pytest

from fastbn import _core

ISAS = [name for name in _core.isa_names() if _core.isa_supported(name)]
NAMES = ("identity", "relu", "leaky_relu", "relu6", "hardswish")
SLOPES = {"leaky_relu": 0.1, "elu": 1.3}
TYPES = (np.float32, np.float64)
# The most ulp by which a value may be off; the same for its gradient, or 2 ulp of dy where that is more.
VALUE_ULP = {np.float32: 2, np.float64: 4}
GRADIENT_ULP = {np.float32: 4, np.float64: 4}


def slope_of(name, dtype):
    """The slope as the kernels use it: rounded to the type of the data."""
    return float(dtype(SLOPES.get(name, 0.0)))


# ---- float32: the formulas in float64 ----

def values(name, z, slope):
    if name == "identity":
        return z
    if name == "relu":
        return np.maximum(z, 0)
    if name == "leaky_relu":
        return np.where(z < 0, slope * z, z)
    if name == "relu6":
        return np.clip(z, 0, 6)
    if name == "hardswish":
        return z * (np.clip(z + 3, 0, 6) / 6)
    raise ValueError(name)


def derivatives(name, z, slope):
    if name == "identity":
        return np.ones_like(z)
    if name == "relu":
        return np.where(z > 0, 1.0, 0.0)
    if name == "leaky_relu":
        return np.where(z > 0, 1.0, slope)
    if name == "relu6":
        return np.where((z > 0) & (z < 6), 1.0, 0.0)
    if name == "hardswish":
        return np.where(z <= -3, 0.0, np.where(z < 3, z / 3 + 0.5, 1.0))
    raise ValueError(name)


def float32_grid(seed=0, of_each_exponent=1000):
    """Of every exponent and sign the first and last values and random ones between; the middle more densely."""
    rng = np.random.default_rng(seed)
    exponents = np.arange(255, dtype=np.uint32)[:, None] << np.uint32(23)
    mantissas = rng.integers(0, 1 << 23, (255, of_each_exponent), dtype=np.uint32)
    mantissas[:, :4] = 0, 1, (1 << 23) - 1, 1 << 22
    positive = (exponents | mantissas).ravel().view(np.float32)
    middle = rng.uniform(-110, 110, 200000), rng.uniform(-8, 8, 300000), np.arange(-1100, 1101) / 8
    return np.concatenate([positive, -positive, *(part.astype(np.float32) for part in middle)])


def ulps(got, expected, dtype=np.float32):
    """The errors in ulp of the expected values; expected in more precision than got."""
    with np.errstate(over="ignore", under="ignore"):
        spacing = np.spacing(np.abs(expected).astype(dtype)).astype(np.float64)
    wrong_infinity = np.isinf(got) & (np.abs(expected) < np.finfo(dtype).max)
    return np.where(wrong_infinity, np.inf, np.abs(got.astype(np.float64) - expected) / spacing)


@pytest.mark.parametrize("name", NAMES)
def test_float32_values(name):
    z, slope = float32_grid(), slope_of(name, np.float32)
    errors = ulps(_core.activate(z, name, slope), values(name, z.astype(np.float64), slope))
    assert len(z) > 10**6 and errors.max() <= VALUE_ULP[np.float32], (errors.max(), z[errors.argmax()])


@pytest.mark.parametrize("name", NAMES)
def test_float32_gradients(name):
    z, slope = float32_grid(seed=1), slope_of(name, np.float32)
    dy = np.random.default_rng(2).standard_normal(len(z)).astype(np.float32)
    wide_dy = dy.astype(np.float64)
    expected = wide_dy * derivatives(name, z.astype(np.float64), slope)
    got = _core.activate_gradient(z, dy, name, slope)
    errors = np.minimum(ulps(got, expected), np.abs(got - expected) / (np.abs(wide_dy) * 2.0**-22) * 4)
    assert errors.max() <= GRADIENT_ULP[np.float32], (errors.max(), z[errors.argmax()])


# ---- both types ----

@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", NAMES)
def test_nan_and_infinities(name, dtype):
    """Of a value and its gradient: NaN where z is, the limit where z is infinite."""
    z, slope = np.array([np.nan, -np.nan, np.inf, -np.inf], dtype), slope_of(name, dtype)
    y = _core.activate(z, name, slope)
    dz = _core.activate_gradient(z, np.full(4, 2, dtype), name, slope)
    assert np.isnan(y[:2]).all() and y[2] == (6 if name == "relu6" else math.inf)
    assert y[3] == (-math.inf if name in ("identity", "leaky_relu") else 0)
    assert np.isnan(dz[:2]).all() == (name != "identity")
    assert dz[2] == (0 if name == "relu6" else 2)
    assert dz[3] == {"identity": 2, "leaky_relu": dtype(2 * slope)}.get(name, 0)


def every_isa(compute):
    """What compute() returns on every instruction set of this machine."""
    try:
        results = {}
        for isa in ISAS:
            _core.set_isa(isa)
            assert _core.isa_active() == isa
            results[isa] = compute()
        return results
    finally:
        _core.set_isa(None)


def hexed(a):
    """The bytes; every NaN counts as the same."""
    return np.where(np.isnan(a), np.nan, a).tobytes()


def points(dtype, seed=3):
    """Some 20000 of all kinds: the middle, all magnitudes, what is special."""
    rng = np.random.default_rng(seed)
    limits = np.finfo(dtype)
    magnitudes = 2.0 ** rng.uniform(math.log2(limits.tiny) - limits.nmant, limits.maxexp, 3000)
    special = np.array([0, -0.0, np.inf, -np.inf, np.nan, limits.smallest_subnormal, limits.tiny, limits.max, 3, -3, 6])
    middle = rng.uniform(-10, 10, 9000), rng.uniform(-120, 120, 3000), rng.uniform(-800, 800, 2000)
    return np.concatenate([*middle, magnitudes, -magnitudes, special]).astype(dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", NAMES)
def test_every_isa_gives_the_same_bits(name, dtype):
    z, dy = points(dtype), np.random.default_rng(4).standard_normal(20011).astype(dtype)
    slope = slope_of(name, dtype)
    for compute in (lambda: _core.activate(z, name, slope), lambda: _core.activate_gradient(z, dy, name, slope)):
        digests = {isa: hexed(result) for isa, result in every_isa(compute).items()}
        assert len(digests) >= 1 and set(digests.values()) == {digests["generic"]}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", NAMES)
def test_bits_do_not_depend_on_the_place(name, dtype):
    z, dy = points(dtype)[::5].copy(), points(dtype, seed=5)[::5].copy()
    slope = slope_of(name, dtype)
    y, dz = _core.activate(z, name, slope), _core.activate_gradient(z, dy, name, slope)
    for n in range(41):
        for offset in (0, 1, 7, 3 * n):
            part = slice(offset, offset + n)
            assert hexed(_core.activate(z[part], name, slope)) == hexed(y[part])
            assert hexed(_core.activate_gradient(z[part], dy[part], name, slope)) == hexed(dz[part])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", NAMES)
def test_in_place_and_nothing_beside_the_output(name, dtype):
    z, dy, slope = points(dtype)[:77].copy(), points(dtype, seed=6)[:77].copy(), slope_of(name, dtype)
    y, dz = _core.activate(z, name, slope), _core.activate_gradient(z, dy, name, slope)
    for part, compute, expected in (
        (z, lambda a: _core.activate(a, name, slope, a), y),
        (z, lambda a: _core.activate_gradient(a, dy[:len(a)].copy(), name, slope, a), dz),
        (dy, lambda a: _core.activate_gradient(z[:len(a)].copy(), a, name, slope, a), dz),
    ):
        for n in (0, 1, 15, 16, 33, 70):
            work = part.copy()
            compute(work[:n])
            assert hexed(work[:n]) == hexed(expected[:n]) and hexed(work[n:]) == hexed(part[n:])


def test_a_mask_of_zero_silences_an_infinite_dy():
    z, dy = np.array([-4.0, -1.0], np.float32), np.full(2, np.inf, np.float32)
    assert (_core.activate_gradient(z, dy, "relu") == 0).all()
    assert (_core.activate_gradient(z - 3, dy, "hardswish") == 0).all()
