"""float16 and bfloat16 data: computed as float32, rounded once to nearest even, in every layout and operation.

What float32 computes is tested elsewhere. Here a result has to be, bit for bit, the rounding of the float32 result for
the same values; and against the reference in longdouble it lies within half a unit in the last place of the half type.
"""
import subprocess
import sys

import numpy as np
import pytest

import fastbn
from fastbn import _core
from oracle import Y_UNIT, backward, check_gradients, check_statistics, forward, parameters, sample, statistics

ISAS = [name for name in _core.isa_names() if _core.isa_supported(name)]
HALVES = ["float16", "bfloat16"]
DIGITS = {"float16": 11, "bfloat16": 8}
SMALLEST = {"float16": 2.0**-24, "bfloat16": 2.0**-133}


def half_type(name):
    return np.dtype(np.float16) if name == "float16" else np.dtype(pytest.importorskip("ml_dtypes").bfloat16)


@pytest.fixture(params=HALVES)
def dtype(request):
    return half_type(request.param)


@pytest.fixture
def every_isa():
    yield ISAS
    _core.set_isa(None)


def bits(a):
    """Patterns, with one for every NaN."""
    patterns = np.ascontiguousarray(a).view(np.uint16)
    return np.where(np.isnan(a.astype(np.float32)), 0x7FFF, patterns)


def rounded(a, dtype):
    with np.errstate(over="ignore", invalid="ignore"):
        return a.astype(dtype)


def assert_rounding_of(actual, wide):
    """That a half array is the rounding of a float32 array."""
    assert wide.dtype == np.float32
    np.testing.assert_array_equal(bits(actual), bits(rounded(wide, actual.dtype)))


LAYOUTS = {
    "table": ((64, 48), 1, None),
    "table odd": ((257, 33), 1, None),
    "table of few features": ((1001, 3), 1, None),
    "one feature": ((77, 1), 1, None),
    "one row": ((1, 130), 1, None),
    "wide table": ((40, 1037), 1, None),
    "planes": ((3, 5, 30, 31), 1, None),
    "planes 7x7": ((9, 33, 7, 7), 1, None),
    "planes 2x2": ((33, 6, 2, 2), 1, None),
    "channels last": ((2, 9, 11, 32), -1, None),
    "channels last odd": ((2, 9, 11, 63), -1, None),
    "strided": ((60, 24), 1, lambda a: a[::2]),
    "strided planes": ((6, 4, 11, 13), 1, lambda a: a[::2]),
    "fortran": ((60, 25), 1, np.asfortranarray),
    "innermost strided": ((12, 5, 40), 1, lambda a: a[..., ::3]),
    "features first": ((7, 900), 0, None),
    "an entry off a line": ((40, 50), 1, lambda a: np.concatenate([a.ravel()[:1], a.ravel()])[1:].reshape(a.shape)),
    "large table": ((3000, 64), 1, None),
    "large planes": ((4, 3, 130, 131), 1, None),
}


class Case:
    """The same values as a half type and as float32."""

    def __init__(self, label, dtype, rng, param_dtype=np.float32):
        shape, axis, place = LAYOUTS[label]
        place = place or (lambda a: a)
        self.axis, self.dtype = axis, dtype
        self.x, self.dy = (place(sample(rng, shape, axis=axis, ratio=ratio).astype(dtype)) for ratio in (3.0, 0.0))
        self.c = self.x.shape[axis]
        self.gamma, self.beta = parameters(rng, self.c, param_dtype)
        self.mean = rng.standard_normal(self.c).astype(param_dtype)
        self.var = rng.uniform(0.1, 3.0, self.c).astype(param_dtype)

    def wide(self, name):
        return getattr(self, name).astype(np.float32)

    def inference(self, x, **more):
        return fastbn.batch_norm_inference(x, self.mean, self.var, self.gamma, self.beta, axis=self.axis, **more)

    def training(self, x, **more):
        return fastbn.batch_norm_training(x, self.gamma, self.beta, axis=self.axis, **more)


@pytest.mark.parametrize("param_dtype", [np.float32, np.float64])
@pytest.mark.parametrize("label", LAYOUTS)
def test_every_operation_is_that_of_float32_rounded(rng, label, dtype, param_dtype):
    case = Case(label, dtype, rng, param_dtype)
    y, wide_y = case.inference(case.x), case.inference(case.wide("x"))
    assert y.dtype == dtype and y.shape == case.x.shape
    assert_rounding_of(y, wide_y)
    (y, saved), (wide_y, wide_saved) = case.training(case.x), case.training(case.wide("x"))
    assert y.dtype == dtype
    assert_rounding_of(y, wide_y)
    for name in ("mean", "var", "rstd"):
        assert getattr(saved, name).dtype == np.float64
        np.testing.assert_array_equal(getattr(saved, name), getattr(wide_saved, name))
    dx, dgamma, dbeta = fastbn.batch_norm_backward(case.dy, saved)
    wide_dx, *wide_gradients = fastbn.batch_norm_backward(case.wide("dy"), wide_saved)
    assert dx.dtype == dtype and dgamma.dtype == dbeta.dtype == param_dtype
    assert_rounding_of(dx, wide_dx)
    np.testing.assert_array_equal([dgamma, dbeta], wide_gradients)
    assert fastbn.moments(case.x, axis=case.axis) == fastbn.moments(case.wide("x"), axis=case.axis)


@pytest.mark.parametrize("label", LAYOUTS)
def test_against_the_reference(rng, label, dtype):
    case = Case(label, dtype, rng)
    y, saved = case.training(case.x)
    stats = statistics(case.x, case.axis)
    check_statistics(saved.mean, saved.var, case.x.astype(np.float32), case.axis)
    expected = forward(case.x, stats.mean, stats.var, case.gamma, case.beta, axis=case.axis)
    assert_near_rounding(y, expected, 20 * Y_UNIT[np.dtype(np.float32)] * np.maximum(1, np.abs(expected)))
    dx, dgamma, dbeta = fastbn.batch_norm_backward(case.dy, saved)
    gradients = backward(case.x, case.dy, stats.mean, stats.var, case.gamma, axis=case.axis)
    largest = np.abs(gradients.dx).max() + 1
    assert_near_rounding(dx, gradients.dx, 20 * Y_UNIT[np.dtype(np.float32)] * largest)
    exact = fastbn.batch_norm_backward(case.wide("dy"), case.training(case.wide("x"))[1])[0]
    check_gradients((exact, dgamma, dbeta), case.wide("x"), case.wide("dy"), stats.mean, stats.var, case.gamma,
                    axis=case.axis)


def assert_near_rounding(actual, expected, slack):
    """Within half a unit in the last place of the half type, and what float32 arithmetic may lose."""
    name = actual.dtype.name
    allowed = np.maximum(np.abs(expected) * 2.0**-DIGITS[name], SMALLEST[name] / 2) + slack
    error = np.abs(actual.astype(np.longdouble) - expected)
    assert (error <= allowed).all(), f"{(error / allowed).max()} times what is allowed"


# ---- conversions ----

def identity(x, **more):
    """Mean 0, a factor of exactly 1, and -0 as shift, the zero that changes no sign."""
    c = x.shape[1]
    return fastbn.batch_norm_inference(x, np.zeros(c), np.full(c, 0.75), beta=np.full(c, -0.0), eps=0.25, **more)


@pytest.mark.parametrize("shape", [(512, 128), (65536 // 512, 512), (4, 4, 4096), (64, 16, 8, 8)], ids=str)
def test_every_pattern_passes_an_identity(every_isa, dtype, shape):
    x = np.arange(65536, dtype=np.uint16).view(dtype).reshape(shape)
    for isa in every_isa:
        _core.set_isa(isa)
        y = identity(x)
        nan = np.isnan(x.astype(np.float32))
        assert np.isnan(y.astype(np.float32))[nan].all()
        np.testing.assert_array_equal(y.view(np.uint16)[~nan], x.view(np.uint16)[~nan], err_msg=isa)


def every_float_near(dtype):
    """float32 values around each finite value of a half type and each point halfway to the next."""
    values = np.arange(65536, dtype=np.uint16).view(dtype).astype(np.float32)
    values = np.sort(values[np.isfinite(values)])
    halfway = values[:-1] + (values[1:] - values[:-1]) / 2
    points = np.concatenate([values, halfway])
    return np.concatenate([points, np.nextafter(points, np.float32(np.inf)), np.nextafter(points, np.float32(-np.inf))])


def test_rounding_to_nearest_even_around_every_value(every_isa, dtype):
    """Each feature has its own value to round: y = beta where x is the mean."""
    beta = every_float_near(dtype)
    zeros, ones = np.zeros_like(beta), np.ones_like(beta)
    x = np.zeros((2, beta.size), dtype)
    expected = bits(rounded(beta + np.float32(0), dtype))
    for isa in every_isa:
        _core.set_isa(isa)
        y = fastbn.batch_norm_inference(x, zeros, ones, ones, beta)
        np.testing.assert_array_equal(bits(y[0]), expected, err_msg=isa)
        np.testing.assert_array_equal(bits(y[1]), expected, err_msg=isa)


def test_too_large_becomes_inf_and_nan_stays_nan(dtype):
    largest = np.float32(65504) if dtype == np.float16 else np.uint32(0x7F7F0000).view(np.float32)
    nans = np.array([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800001, 0x7FC00000], np.uint32).view(np.float32)
    beta = np.concatenate([np.array([largest, -largest, 3.4e38, -3.4e38, np.inf, -np.inf], np.float32), nans])
    y = fastbn.batch_norm_inference(np.zeros((3, beta.size), dtype), np.zeros(beta.size, np.float32),
                                    np.ones(beta.size, np.float32), None, beta)
    y = y.astype(np.float32)
    assert (y[:, 0] == largest).all() and (y[:, 1] == -largest).all()
    assert np.isposinf(y[:, [2, 4]]).all() and np.isneginf(y[:, [3, 5]]).all()
    assert np.isnan(y[:, 6:]).all()


def test_nan_and_inf_stay_in_their_feature(rng, dtype):
    x = sample(rng, (300, 20)).astype(dtype)
    whole = fastbn.batch_norm_training(x)[0]
    x[7, 3], x[9, 11] = np.nan, np.inf
    spoilt = fastbn.batch_norm_training(x)[0]
    others = [i for i in range(20) if i not in (3, 11)]
    np.testing.assert_array_equal(bits(spoilt[:, others]), bits(whole[:, others]))
    assert np.isnan(spoilt[:, [3, 11]].astype(np.float32)).all()


@pytest.mark.parametrize("shape, axis", [((400, 32), 1), ((5000, 3), 1), ((3, 4, 5000), 1)])
def test_features_that_are_summed_again_in_double(shape, axis, dtype):
    """The entries that pivots are taken from lie far from the others; a constant feature gives exactly beta."""
    x = np.linspace(0, 1, int(np.prod(shape))).reshape(shape).astype(dtype)
    np.moveaxis(x, axis, -1)[..., 0] = 14.625
    far = np.moveaxis(x, axis, -1)
    far[0], far[-1, ..., 1] = 1000, 60000
    y, saved = fastbn.batch_norm_training(x, axis=axis)
    check_statistics(saved.mean, saved.var, x.astype(np.float32), axis)
    constant = np.full(shape, 14.625, dtype)
    assert (fastbn.batch_norm_training(constant, axis=axis)[0] == 0).all()


# ---- arrays ----

def test_out_and_in_place(rng, dtype):
    case = Case("planes", dtype, rng)
    expected, (trained, saved) = case.inference(case.x), case.training(case.x)
    out = np.empty_like(case.x)
    assert case.inference(case.x, out=out) is out
    np.testing.assert_array_equal(bits(out), bits(expected))
    x = case.x.copy()
    assert case.inference(x, out=x) is x
    np.testing.assert_array_equal(bits(x), bits(expected))
    x = case.x.copy()
    case.training(x, out=x)
    np.testing.assert_array_equal(bits(x), bits(trained))
    dx = fastbn.batch_norm_backward(case.dy, saved)[0]
    dy = case.dy.copy()
    assert fastbn.batch_norm_backward(dy, saved, out=dy)[0] is dy
    np.testing.assert_array_equal(bits(dy), bits(dx))


def test_backward_after_training_in_place(rng, dtype):
    x = sample(rng, (50, 6, 5)).astype(dtype)
    dy = sample(rng, (50, 6, 5)).astype(dtype)
    expected = fastbn.batch_norm_backward(dy, fastbn.batch_norm_training(x)[1])[0].astype(np.float32)
    y, saved = fastbn.batch_norm_training(x, out=x)
    found = fastbn.batch_norm_backward(dy, saved)[0].astype(np.float32)
    assert y is x and np.abs(found - expected).max() < 20 * 2.0**-DIGITS[dtype.name]


def test_out_of_another_type_is_refused(dtype):
    x = np.ones((4, 3), dtype)
    for other in (np.float32, np.uint16, np.float16 if dtype != np.float16 else np.float64):
        with pytest.raises(TypeError, match=f"out has dtype .*expected {dtype.name}"):
            fastbn.batch_norm_training(x, out=np.empty((4, 3), other))


def test_dy_of_another_type_is_converted(rng, dtype):
    case = Case("table", dtype, rng)
    saved = case.training(case.x)[1]
    expected = fastbn.batch_norm_backward(case.dy, saved)
    found = fastbn.batch_norm_backward(case.dy.astype(np.float64), saved)
    assert found[0].dtype == dtype
    for a, b in zip(found, expected):
        assert a.tobytes() == b.tobytes()
    wide = fastbn.batch_norm_training(case.wide("x"), case.gamma)[1]
    assert fastbn.batch_norm_backward(case.dy, wide)[0].dtype == np.float32


def test_gradients_of_absent_parameters_are_float32(rng, dtype):
    x = sample(rng, (20, 5)).astype(dtype)
    for saved in (fastbn.batch_norm_training(x)[1],
                  fastbn.batch_norm_inference(x[:, ::-1], np.zeros(5), np.ones(5), return_saved=True)[1]):
        dx, dgamma, dbeta = fastbn.batch_norm_backward(x, saved)
        assert dx.dtype == dtype and dgamma.dtype == dbeta.dtype == np.float32


def test_byte_swapped_float16(rng):
    x = sample(rng, (30, 7)).astype(np.float16)
    swapped = x.astype(x.dtype.newbyteorder())
    y = fastbn.batch_norm_training(swapped)[0]
    assert y.dtype == np.float16 and y.dtype.isnative
    np.testing.assert_array_equal(bits(y), bits(fastbn.batch_norm_training(x)[0]))


def test_byte_swapped_bfloat16(rng):
    dtype = half_type("bfloat16")
    x = sample(rng, (30, 7)).astype(dtype)
    swapped = x.view(np.uint16).byteswap().view(dtype.newbyteorder())
    y = fastbn.batch_norm_training(swapped)[0]
    np.testing.assert_array_equal(bits(y.astype(dtype)), bits(fastbn.batch_norm_training(x)[0]))


def test_unaligned_data(rng, dtype):
    x = sample(rng, (30, 7)).astype(dtype)
    room = np.zeros(x.nbytes + 1, np.uint8)
    odd = room[1:].view(dtype).reshape(x.shape)
    odd[...] = x
    assert not odd.flags.aligned
    np.testing.assert_array_equal(bits(fastbn.batch_norm_training(odd)[0]), bits(fastbn.batch_norm_training(x)[0]))


@pytest.mark.parametrize("shape, axis", [((0, 5), 1), ((4, 0), 1), ((0, 3, 7), 1), ((4, 3, 0), 1)])
def test_empty(shape, axis, dtype):
    y, saved = fastbn.batch_norm_training(np.empty(shape, dtype), axis=axis)
    assert y.dtype == dtype and y.shape == shape
    dx, dgamma, dbeta = fastbn.batch_norm_backward(np.empty(shape, dtype), saved)
    assert dx.dtype == dtype and dgamma.dtype == np.float32 and not dgamma.any() and not dbeta.any()
    assert fastbn.moments(np.empty(shape, dtype), axis=axis).count in (0, shape[0])


# ---- errors ----

@pytest.mark.parametrize("name", ["mean", "var", "gamma", "beta"])
def test_half_parameters_are_refused(dtype, name):
    arguments = {"mean": np.zeros(3), "var": np.ones(3), name: np.ones(3, dtype)}
    with pytest.raises(TypeError, match=rf"{name} has dtype {dtype.name}, expected float32 or float64.*astype"):
        fastbn.batch_norm_inference(np.ones((4, 3), dtype), **arguments)


def test_a_layer_of_a_half_type_is_refused(dtype):
    with pytest.raises(TypeError, match=f"dtype is {dtype.name}, expected float32 or float64"):
        fastbn.BatchNorm(3, dtype=dtype)


def test_errors_name_the_supported_types():
    with pytest.raises(TypeError, match="x has dtype int64, expected float32, float64, float16 or bfloat16"):
        fastbn.moments(np.ones((4, 3), np.int64))
    with pytest.raises(TypeError, match="x has dtype uint16, expected float32, float64, float16 or bfloat16"):
        fastbn.moments(np.ones((4, 3), np.uint16))


def test_other_types_of_two_bytes_are_refused():
    with pytest.raises(TypeError, match="expected float32"):
        fastbn.moments(np.zeros((4, 3), "V2"))
    with pytest.raises(TypeError, match="expected float32"):
        fastbn.moments(np.zeros((4, 3), [("bfloat16", "u2")]))
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for other in (ml_dtypes.float8_e4m3fn, ml_dtypes.int4):
        with pytest.raises(TypeError, match="expected float32"):
            fastbn.batch_norm_training(np.zeros((4, 3), other))


# ---- the layer ----

@pytest.mark.parametrize("layer_dtype", [np.float32, np.float64])
@pytest.mark.parametrize("switches", [{}, {"scale": False, "center": False}], ids=["affine", "plain"])
def test_layer(rng, dtype, layer_dtype, switches):
    """State and gradients in the layer's type; the steps are those of float32 data, rounded."""
    bn, wide = (fastbn.BatchNorm(6, dtype=layer_dtype, **switches) for _ in range(2))
    for _ in range(3):
        x, dy = (sample(rng, (16, 6, 5, 5), ratio=2.0).astype(dtype) for _ in range(2))
        assert_rounding_of(bn(x), wide(x.astype(np.float32)))
        dx = bn.backward(dy)
        assert dx.dtype == dtype
        assert_rounding_of(dx, wide.backward(dy.astype(np.float32)))
    for name, value in bn.state_dict().items():
        np.testing.assert_array_equal(value, wide.state_dict()[name])
        assert name == "num_batches_tracked" or value.dtype == layer_dtype
    for (_, _, found), (_, _, expected) in zip(bn.parameters(), wide.parameters()):
        assert found.dtype == layer_dtype
        np.testing.assert_array_equal(found, expected)
    y = bn.eval()(x)
    assert y.dtype == dtype
    assert_rounding_of(y, wide.eval()(x.astype(np.float32)))
    out = np.empty_like(x)
    assert bn(x, out=out) is out
    np.testing.assert_array_equal(bits(out), bits(y))


def test_running_estimates_never_stall(dtype):
    """Steps much smaller than a half type's last place add up: averages kept in it would stay where they are."""
    bn = fastbn.BatchNorm(2, momentum=0.9999)
    x = np.array([[1.0, 99.0], [1.0, 101.0]] * 8, dtype)
    for _ in range(2000):
        bn(x)
    assert bn.running_mean.dtype == np.float32
    np.testing.assert_allclose(bn.running_mean, (1 - 0.9999**2000) * np.array([1.0, 100.0]), rtol=1e-3)


def test_the_short_way_takes_half_arrays(rng, dtype):
    x = sample(rng, (8, 4)).astype(dtype)
    mean, var = np.zeros(4, np.float32), np.ones(4, np.float32)
    assert _core.plain_inference(x, mean, var, None, None, 1e-5, 1, None, None, None, None) is not None
    y, saved = _core.plain_training(x, None, None, 1e-5, 1, None, None, None, None)
    assert y.dtype == dtype and _core.plain_backward(x, saved, None, None)[0].dtype == dtype
    assert _core.plain_moments(x, 1, None) is not None


# ---- other libraries ----

@pytest.mark.parametrize("shape", [(64, 20), (6, 8, 9, 11)])
def test_against_torch(rng, dtype, shape):
    torch = pytest.importorskip("torch")
    kind = {"float16": torch.float16, "bfloat16": torch.bfloat16}[dtype.name]
    x, dy = (sample(rng, shape, ratio=1.0).astype(dtype) for _ in range(2))
    gamma, beta = parameters(rng, shape[1])
    tensor = torch.tensor(x.astype(np.float32)).to(kind).requires_grad_()
    weight, bias = (torch.tensor(a).requires_grad_() for a in (gamma, beta))
    try:
        y = torch.nn.functional.batch_norm(tensor, None, None, weight, bias, training=True)
        y.backward(torch.tensor(dy.astype(np.float32)).to(kind))
    except RuntimeError as error:
        pytest.skip(f"this PyTorch has no batch norm of {kind} on the CPU: {error}")
    found, saved = fastbn.batch_norm_training(x, gamma, beta)
    dx, dgamma, dbeta = fastbn.batch_norm_backward(dy, saved)
    unit = 2.0**-DIGITS[dtype.name]
    for ours, theirs in ((found, y), (dx, tensor.grad), (dgamma, weight.grad), (dbeta, bias.grad)):
        theirs = theirs.detach().float().numpy()
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours.astype(np.float32), theirs, rtol=4 * unit, atol=4 * unit * scale)


def test_float16_works_without_ml_dtypes():
    """And nothing imports it."""
    code = ("import sys; sys.modules['ml_dtypes'] = None\n"
            "import numpy as np, fastbn\n"
            "x = np.random.default_rng(0).normal(3, 2, (64, 8)).astype(np.float16)\n"
            "bn = fastbn.BatchNorm(8)\n"
            "y = bn(x)\n"
            "assert y.dtype == bn.backward(y).dtype == np.float16 and abs(y.astype(np.float64).mean()) < 1e-3\n"
            "assert sys.modules['ml_dtypes'] is None\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_fastbn_imports_no_ml_dtypes():
    code = "import sys, fastbn; sys.exit('ml_dtypes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
