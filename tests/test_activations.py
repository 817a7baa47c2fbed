"""The kernels of the activations, one by one: accuracy over the whole range of a type, NaN and infinities, places.

float32 results are compared with float64 ones over all exponents, float64 results with mpmath. An error is counted in
ulp, the distance of the neighbours of the exact result in its type.
"""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from activations_reference import DERIVATIVES, NAMES, VALUES, exact, ulps
import fastbn
from fastbn import _core

SLOPES = {"leaky_relu": 0.1, "elu": 1.3}
TYPES = (np.float32, np.float64)
# The most ulp by which a value may be off; the same for its gradient, or 2 ulp of dy where that is more.
VALUE_ULP = {np.float32: 2, np.float64: 4}
GRADIENT_ULP = {np.float32: 4, np.float64: 4}


def slope_of(name, dtype):
    """The slope as the kernels use it: rounded to the type of the data."""
    return float(dtype(SLOPES.get(name, 0.0)))


def test_every_activation_of_the_core_has_a_reference():
    """Tests take the names from the references, so one without them would go untested."""
    assert _core.activation_names() == NAMES == tuple(DERIVATIVES)


def test_the_stubs_name_every_activation():
    text = Path(fastbn.__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    assert re.findall(r'"(\w+)"', re.search(r"_ActivationName = Literal\[(.*?)\]", text, re.DOTALL)[1]) == list(NAMES[1:])


# ---- accuracy ----

def float32_grid(seed=0, of_each_exponent=1000):
    """The first and last values of every exponent and sign, and random ones between; the middle more densely."""
    rng = np.random.default_rng(seed)
    exponents = np.arange(255, dtype=np.uint32)[:, None] << np.uint32(23)
    mantissas = rng.integers(0, 1 << 23, (255, of_each_exponent), dtype=np.uint32)
    mantissas[:, :4] = 0, 1, (1 << 23) - 1, 1 << 22
    positive = (exponents | mantissas).ravel().view(np.float32)
    middle = rng.uniform(-110, 110, 200000), rng.uniform(-8, 8, 300000), np.arange(-1100, 1101) / 8
    return np.concatenate([positive, -positive, *(part.astype(np.float32) for part in middle)])


@pytest.fixture(autouse=True)
def no_warnings_of_the_references():
    with np.errstate(over="ignore", under="ignore"):
        yield


@pytest.mark.parametrize("name", NAMES)
def test_float32_values(name):
    z, slope = float32_grid(), slope_of(name, np.float32)
    errors = ulps(_core.activate(z, name, slope), VALUES[name](z.astype(np.float64), slope))
    assert len(z) > 10**6 and errors.max() <= VALUE_ULP[np.float32], (errors.max(), z[errors.argmax()])


# Where the largest errors of all float32 were found, now and of earlier formulas.
WORST_FLOAT32 = {
    "sigmoid": [-1.09993458, 7.85921097, -45.7514763],
    "tanh": [0.103820153, 0.230794474, 0.351174444, 3.81238604, 3.86385894],
    "silu": [-5.20349455, 8.00055599, -90.4603882],
    "gelu": [-2.20161867, 0.519984245],
    "gelu_tanh": [-5.19422913, 3.98163772, 7.99993181],
    "elu": [-0.280392259],
}


@pytest.mark.parametrize("name", WORST_FLOAT32)
def test_float32_values_where_errors_are_largest(name):
    """And their 2000 neighbours, of either sign."""
    bits = np.array(WORST_FLOAT32[name], np.float32).view(np.int32)[:, None] + np.arange(-1000, 1001, dtype=np.int32)
    z = np.concatenate([bits.ravel().view(np.float32), -bits.ravel().view(np.float32)])
    errors = ulps(_core.activate(z, name, 1.0), VALUES[name](z.astype(np.float64), 1.0))
    assert errors.max() <= VALUE_ULP[np.float32], (errors.max(), z[errors.argmax()])


@pytest.mark.parametrize("name", NAMES)
def test_float32_gradients(name):
    z, slope = float32_grid(seed=1), slope_of(name, np.float32)
    dy = np.random.default_rng(2).standard_normal(len(z)).astype(np.float32)
    wide_dy = dy.astype(np.float64)
    expected = wide_dy * DERIVATIVES[name](z.astype(np.float64), slope)
    got = _core.activate_gradient(z, dy, name, slope)
    of_dy = np.abs(got - expected) / (np.abs(wide_dy) * 2.0**-22)
    wrong = (ulps(got, expected) > GRADIENT_ULP[np.float32]) & (of_dy > 1)
    assert not wrong.any() and not np.isnan(of_dy).any(), (z[wrong][:5], got[wrong][:5], expected[wrong][:5])


def float64_points(seed=7):
    rng = np.random.default_rng(seed)
    small = np.exp(rng.uniform(-740, 0, 200))
    ranges = rng.uniform(-3, 3, 600), rng.uniform(-40, 40, 500), rng.uniform(-760, 1, 200)
    return np.concatenate([*ranges, small, -small, [0.0, 5e-324, -5e-324, 1e300, -1e300, 6.0, 3.0, -3.0]])


@pytest.mark.parametrize("name", NAMES)
def test_float64_values_and_gradients(name):
    mpmath = pytest.importorskip("mpmath")
    z, slope = float64_points(), slope_of(name, np.float64)
    dy = np.random.default_rng(8).standard_normal(len(z))
    y, dz = _core.activate(z, name, slope), _core.activate_gradient(z, dy, name, slope)
    with mpmath.workdps(40):
        for i, point in enumerate(z.tolist()):
            value, derivative = exact(name, mpmath.mpf(point), mpmath.mpf(slope), mpmath.mp)
            ulp, error = np.spacing(abs(float(value))), abs(mpmath.mpf(float(y[i])) - value)
            assert error <= VALUE_ULP[np.float64] * ulp, (point, y[i], float(error / ulp))
            gradient = derivative * float(dy[i])
            ulp, error = np.spacing(abs(float(gradient))), abs(mpmath.mpf(float(dz[i])) - gradient)
            assert error <= max(GRADIENT_ULP[np.float64] * ulp, 2.0**-51 * abs(dy[i])), (point, dz[i], float(error))


@pytest.mark.parametrize("name", ["sigmoid", "silu", "gelu", "gelu_tanh"])
def test_float64_tails_end_in_subnormals(name):
    """To the last ulp that there is, then 0 of the right sign."""
    mpmath = pytest.importorskip("mpmath")
    z = -np.linspace(*{"gelu": (37.2, 38.9)}.get(name, (20.8, 21.9) if name == "gelu_tanh" else (700, 760)), 400)
    y = _core.activate(z, name)
    assert (np.abs(y) < np.finfo(np.float64).tiny).sum() > 50 and y[-1] == 0
    with mpmath.workdps(40):
        for point, got in zip(z.tolist(), y.tolist()):
            value = exact(name, mpmath.mpf(point), 0, mpmath.mp)[0]
            assert abs(mpmath.mpf(got) - value) <= 4 * np.spacing(abs(float(value))), point


# ---- both types ----

@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", NAMES)
def test_nan_and_infinities(name, dtype):
    """The limits of a value and its gradient: NaN where z is, the limit where z is infinite."""
    z, slope = np.array([np.nan, -np.nan, np.inf, -np.inf], dtype), slope_of(name, dtype)
    y = _core.activate(z, name, slope)
    dz = _core.activate_gradient(z, np.full(4, 2, dtype), name, slope)
    lowest = {"identity": -math.inf, "leaky_relu": -math.inf, "tanh": -1, "elu": -slope}
    assert np.isnan(y[:2]).all() and y[2] == {"relu6": 6, "sigmoid": 1, "tanh": 1}.get(name, math.inf)
    assert y[3] == lowest.get(name, 0)
    assert np.isnan(dz[:2]).all() == (name != "identity")
    assert dz[2] == (0 if name in ("relu6", "sigmoid", "tanh") else 2)
    assert dz[3] == {"identity": 2, "leaky_relu": dtype(2 * slope)}.get(name, 0)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", NAMES)
def test_zeros_and_dy_that_is_not_finite(name, dtype):
    zeros, slope = np.array([0.0, -0.0], dtype), slope_of(name, dtype)
    y = _core.activate(zeros, name, slope)
    assert (y == (0.5 if name == "sigmoid" else 0)).all() and not np.signbit(y[0])
    if name in ("tanh", "gelu"):
        assert np.signbit(y[1])
    z, dy = np.array([1, 1, 1, 7], dtype), np.array([np.nan, np.inf, -np.inf, 1], dtype)
    dz = _core.activate_gradient(z, dy, name, slope)
    assert np.isnan(dz[0]) and dz[1] == np.inf and dz[2] == -np.inf and np.isfinite(dz[3])


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
