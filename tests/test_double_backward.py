"""The gradient of the backward: reference, central differences, PyTorch, layouts, edge cases, errors."""
import itertools
from typing import NamedTuple

import numpy as np
import pytest

import fastbn
from oracle import (FLOATS, GRAD_UNIT, WIDE, as_rows, assert_within, parameters, read_only, sample, strided, unaligned,
                    wide_parameters)

pytestmark = pytest.mark.filterwarnings("error")

KINDS = pytest.mark.parametrize("frozen", [False, True], ids=["batch", "frozen"])
NAMES = ("ddy", "dx", "dgamma")
SHAPES = [
    ((7, 5), 1), ((64, 33), 1), ((1000, 1), 1), ((501, 3), 1), ((129, 30), 1), ((33, 257), 1), ((6, 1100), 1),
    ((4, 6, 9), 1), ((3, 5, 7, 7), 1), ((2, 3, 40, 41), 1), ((5, 4, 2, 2), 1), ((40, 9, 2, 2), 1), ((2, 3, 4, 5, 6), 1),
    ((2, 1, 129, 129), 1), ((3, 7, 7, 5), -1), ((2, 8, 8, 64), -1), ((6, 8), 0), ((3, 4, 5, 6), 2),
]


class Case(NamedTuple):
    x: np.ndarray
    dy: np.ndarray
    ddx: np.ndarray
    gamma: np.ndarray
    beta: np.ndarray
    ddgamma: np.ndarray
    ddbeta: np.ndarray
    axis: int

    @property
    def upstream(self):
        return self.ddx, self.ddgamma, self.ddbeta

    def saved(self, frozen, **keywords):
        if frozen:
            keywords["return_saved"] = True
            return fastbn.batch_norm_inference(self.x, self.beta + 1, self.gamma**2, self.gamma, self.beta,
                                               axis=self.axis, **keywords)[1]
        return fastbn.batch_norm_training(self.x, self.gamma, self.beta, axis=self.axis, **keywords)[1]


def make_case(rng, shape, axis=1, dtype=np.float32, param_dtype=np.float32, ratio=3.0, others=0.5):
    x = sample(rng, shape, axis=axis, dtype=dtype, ratio=ratio)
    dy, ddx = (sample(rng, shape, axis=axis, dtype=dtype, ratio=others) for _ in range(2))
    return Case(x, dy, ddx, *parameters(rng, shape[axis], param_dtype), *parameters(rng, shape[axis], param_dtype), axis)


# --- The reference: the formulas of fastbn.batch_norm_double_backward, term by term, wide ----------------------------


def terms(case, upstream, saved, magnitudes=False):
    """ddy, dx (as rows) and dgamma; with `magnitudes` the sum of the absolute values of what each adds up.

    With the statistics of `saved`, whose accuracy is tested elsewhere.
    """
    sign = np.abs if magnitudes else lambda a: a
    minus = 1 if magnitudes else -1
    rows, dy = as_rows(case.x, case.axis), as_rows(case.dy, case.axis)
    count, features = rows.shape
    ddx = np.zeros_like(rows) if upstream[0] is None else as_rows(upstream[0], case.axis)
    p, q = (np.zeros(features, WIDE) if a is None else sign(np.asarray(a, WIDE)) for a in upstream[1:])
    gamma, rstd = sign(wide_parameters(features, case.gamma, None)[0]), saved.rstd.astype(WIDE)
    h = sign((rows - saved.mean.astype(WIDE)) * rstd)
    if saved.frozen:
        ddx, dy = sign(ddx), sign(dy)
        return gamma * rstd * ddx + p * h + q, p * rstd * dy, rstd * (ddx * dy).sum(axis=0)
    product = sign(ddx * (dy - dy.mean(axis=0))).mean(axis=0)
    ddx, dy = sign(ddx), sign(dy)
    ddx_h, dy_h = (ddx * h).mean(axis=0), (dy * h).mean(axis=0)
    k = product + minus * ddx_h * dy_h
    b, c = p + minus * gamma * rstd * ddx_h, minus * gamma * rstd * dy_h
    ddx_centred, dy_centred = ddx + minus * ddx.mean(axis=0), dy + minus * dy.mean(axis=0)
    dx = rstd * (b * dy_centred + c * ddx_centred + minus * (b * dy_h + c * ddx_h + gamma * rstd * k) * h)
    return gamma * rstd * ddx_centred + b * h + q, dx, count * rstd * k


def check(results, case, upstream, saved):
    """Those that are not None, within some roundings of what was added up."""
    expected, magnitudes = terms(case, upstream, saved), terms(case, upstream, saved, magnitudes=True)
    for name, actual, wanted, magnitude in zip(NAMES, results, expected, magnitudes, strict=True):
        if actual is None:
            continue
        rounding = np.abs(wanted) * np.finfo(actual.dtype).eps
        rows = actual if name == "dgamma" else as_rows(actual, case.axis)
        assert_within(rows, wanted, GRAD_UNIT[case.x.dtype.newbyteorder("=")] * magnitude + rounding, name)


def computed(case, saved, upstream=None, **keywords):
    """Checked results."""
    upstream = case.upstream if upstream is None else upstream
    results = fastbn.batch_norm_double_backward(*upstream, case.dy, saved, **keywords)
    check(results, case, upstream, saved)
    return results


@pytest.mark.parametrize("param_dtype", FLOATS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape, axis", SHAPES)
@KINDS
def test_reference(rng, shape, axis, dtype, param_dtype, frozen):
    case = make_case(rng, shape, axis, dtype, param_dtype)
    before = [a.copy() for a in case[:-1]]
    results = computed(case, case.saved(frozen))
    assert [r.dtype for r in results] == [dtype, dtype, param_dtype]
    assert [r.shape for r in results] == [shape, shape, (shape[axis],)]
    for a, b in zip(case[:-1], before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 31])
@pytest.mark.parametrize("features", [1, 2, 15, 16, 17, 31])
@pytest.mark.parametrize("spatial", [(), (15,), (4, 4)], ids=str)
def test_sizes_around_the_vector_length(rng, count, features, spatial):
    case = make_case(rng, (count, features, *spatial))
    computed(case, case.saved(False))


@pytest.mark.parametrize("given", list(itertools.product([False, True], repeat=3)), ids=str)
@pytest.mark.parametrize("shape", [(60, 5), (4, 5, 6, 6), (3, 5, 9, 8)], ids=str)
@KINDS
def test_none_stands_for_zeros(rng, shape, given, frozen):
    case = make_case(rng, shape)
    upstream = [a if use else None for a, use in zip(case.upstream, given, strict=True)]
    spelled_out = [a if use else np.zeros_like(a) for a, use in zip(case.upstream, given, strict=True)]
    saved = case.saved(frozen)
    results = computed(case, saved, upstream)
    for a, b in zip(results, fastbn.batch_norm_double_backward(*spelled_out, case.dy, saved), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("needs", [s for k in range(4) for s in itertools.combinations(NAMES, k)], ids="+".join)
@pytest.mark.parametrize("given", list(itertools.product([False, True], repeat=2)), ids=str)
@pytest.mark.parametrize("shape", [(60, 5), (4, 5, 6, 6)], ids=str)
@KINDS
def test_only_what_is_needed_is_returned(rng, shape, given, needs, frozen):
    case = make_case(rng, shape)
    upstream = *(a if use else None for a, use in zip(case.upstream, given)), case.ddbeta
    saved = case.saved(frozen)
    results = fastbn.batch_norm_double_backward(*upstream, case.dy, saved, needs=needs)
    assert tuple(name for name, r in zip(NAMES, results, strict=True) if r is not None) == needs
    for a, b in zip(results, fastbn.batch_norm_double_backward(*upstream, case.dy, saved), strict=True):
        assert a is None or np.array_equal(a, b)


def test_a_single_name_may_be_asked_for(rng):
    case = make_case(rng, (60, 5))
    results = fastbn.batch_norm_double_backward(*case.upstream, case.dy, case.saved(False), needs="dx")
    assert [r is not None for r in results] == [False, True, False]


@pytest.mark.parametrize("dtype", FLOATS)
@KINDS
def test_without_gamma(rng, dtype, frozen):
    case = make_case(rng, (50, 4, 6), dtype=dtype)
    mean, var, ones = np.full(4, 2.0), np.full(4, 3.0), np.ones(4)

    def saved(gamma):
        if frozen:
            return fastbn.batch_norm_inference(case.x, mean, var, gamma, return_saved=True)[1]
        return fastbn.batch_norm_training(case.x, gamma)[1]

    results = computed(case._replace(gamma=None), saved(None))
    assert results[2].dtype == dtype
    for a, b in zip(results, fastbn.batch_norm_double_backward(*case.upstream, case.dy, saved(ones)), strict=True):
        np.testing.assert_array_equal(a, b.astype(dtype))


# --- Where accuracy is lost easily ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("ratio", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("shape", [(3001, 3), (501, 40), (4, 6, 23, 23), (40, 9, 2, 2)], ids=str)
def test_a_large_mean_costs_no_accuracy(rng, shape, ratio, dtype):
    case = make_case(rng, shape, dtype=dtype, ratio=ratio)
    computed(case, case.saved(False))


@pytest.mark.parametrize("dtype", FLOATS)
@KINDS
def test_gamma_may_be_zero(rng, dtype, frozen):
    case = make_case(rng, (40, 6, 5), dtype=dtype, param_dtype=dtype)
    case.gamma[[1, 4]] = 0, -0.0
    results = computed(case, case.saved(frozen))
    assert all(np.isfinite(r).all() for r in results) and (results[2][[1, 4]] != 0).all()


@pytest.mark.parametrize("shape", [(1, 5), (1, 5, 1, 1), (1, 40)], ids=str)
def test_one_value_per_feature(rng, shape):
    """dx, dgamma and their gradients are 0 whatever x is; dbeta is dy."""
    case = make_case(rng, shape)
    ddy, dx, dgamma = fastbn.batch_norm_double_backward(*case.upstream, case.dy, case.saved(False))
    np.testing.assert_array_equal(ddy.ravel(), case.ddbeta)
    np.testing.assert_array_equal(dx, 0)
    np.testing.assert_array_equal(dgamma, 0)


@pytest.mark.parametrize("shape", [(0, 3), (4, 3, 0), (0, 3, 2, 2)], ids=str)
@KINDS
def test_an_empty_batch(shape, frozen):
    x, ones = np.empty(shape, np.float32), np.ones(3)
    saved = (fastbn.batch_norm_inference(x, ones, ones, return_saved=True) if frozen
             else fastbn.batch_norm_training(x))[1]
    ddy, dx, dgamma = fastbn.batch_norm_double_backward(x, ones, ones, x, saved)
    assert ddy.shape == dx.shape == shape
    np.testing.assert_array_equal(dgamma, np.zeros(3))


@pytest.mark.parametrize("shape", [(301, 3), (9, 4, 20, 20)], ids=str)
@pytest.mark.parametrize("value", [0.1, 1e7, -3.3e10])
def test_a_constant_feature(rng, shape, value):
    """h is exactly 0 there: what is left is gamma * rstd times a centred array, and ddbeta."""
    case = make_case(rng, shape)
    case.x[:, 1] = value
    results = computed(case, case.saved(False))
    expected = case.ddgamma[1] / np.sqrt(1e-5) * (case.dy[:, 1] - case.dy[:, 1].astype(np.float64).mean())
    np.testing.assert_allclose(results[1][:, 1], expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("place", ["x", "dy", "ddx"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("shape", [(301, 3), (50, 20), (9, 4, 20, 20), (33, 4, 2, 2)], ids=str)
def test_nan_and_inf_stay_in_their_feature(rng, shape, place, value):
    case = make_case(rng, shape)
    clean = fastbn.batch_norm_double_backward(*case.upstream, case.dy, case.saved(False))
    getattr(case, place)[(shape[0] // 2, 1, *(0,) * (len(shape) - 2))] = value
    with np.errstate(invalid="ignore"):
        results = fastbn.batch_norm_double_backward(*case.upstream, case.dy, case.saved(False))
    assert not np.isfinite(results[1][:, 1]).any() and not np.isfinite(results[2][1])
    for a, b in zip(results, clean, strict=True):
        feature = 0 if a.ndim == 1 else 1
        np.testing.assert_array_equal(np.delete(a, 1, feature), np.delete(b, 1, feature))


def test_squares_that_overflow_float32_are_summed_in_double(rng):
    case = make_case(rng, (50, 4))
    case.dy[:, 1] *= np.float32(1e30)
    case.ddx[:, 1] *= np.float32(1e20)
    ddy, _, dgamma = fastbn.batch_norm_double_backward(*case.upstream, case.dy, case.saved(False), needs=("ddy", "dgamma"))
    assert np.isinf(dgamma[1]) and np.isfinite(ddy).all()
    wide = case._replace(gamma=case.gamma.astype(np.float64))
    computed(wide, wide.saved(False), needs=("ddy", "dgamma"))


# --- Against batch_norm_backward and PyTorch -------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("shape, axis", [((7, 3), 1), ((3, 2, 2, 3), 1), ((2, 3, 2, 3), -1), ((3, 5), 0)])
def test_central_differences(rng, shape, axis, frozen):
    case = make_case(rng, shape, axis, np.float64, np.float64)
    mean, var = case.beta + 1, case.gamma**2

    def loss(dy, x, gamma):
        saved = (fastbn.batch_norm_inference(x, mean, var, gamma, axis=axis, return_saved=True) if frozen
                 else fastbn.batch_norm_training(x, gamma, axis=axis))[1]
        return sum(float((a * b).sum()) for a, b in zip(fastbn.batch_norm_backward(dy, saved), case.upstream))

    point, step = [case.dy, case.x, case.gamma], 1e-5
    results = fastbn.batch_norm_double_backward(*case.upstream, case.dy, case.saved(frozen))
    for k, result in enumerate(results):
        for i in np.ndindex(result.shape):
            ends = []
            for sign in (1, -1):
                moved = point[k].copy()
                moved[i] += sign * step
                ends.append(loss(*point[:k], moved, *point[k + 1:]))
            np.testing.assert_allclose(result[i], (ends[0] - ends[1]) / (2 * step), rtol=1e-6, atol=1e-7)


@KINDS
@pytest.mark.parametrize("given", [(1, 1, 1), (1, 0, 0), (0, 1, 0), (1, 0, 1)], ids=str)
@pytest.mark.parametrize("shape", [(64, 5), (4, 6, 9, 7), (300, 33)], ids=str)
def test_autograd_of_pytorch(rng, shape, given, frozen):
    torch = pytest.importorskip("torch")
    case = make_case(rng, shape, dtype=np.float64, param_dtype=np.float64)
    case.gamma[0] = 0
    upstream = [a if use else None for a, use in zip(case.upstream, given)]
    mean, var = case.beta + 1, case.gamma**2
    x, dy, gamma, beta = (torch.tensor(a, requires_grad=True) for a in (case.x, case.dy, case.gamma, case.beta))
    y = torch.nn.functional.batch_norm(x, torch.tensor(mean), torch.tensor(var), gamma, beta, training=not frozen)
    gradients = torch.autograd.grad(y, (x, gamma, beta), dy, create_graph=True)
    loss = sum((g * torch.tensor(a)).sum() for g, a in zip(gradients, upstream) if a is not None)
    expected = torch.autograd.grad(loss, (dy, x, gamma), allow_unused=True)
    results = fastbn.batch_norm_double_backward(*upstream, case.dy, case.saved(frozen))
    for actual, wanted in zip(results, expected, strict=True):
        wanted = np.zeros_like(actual) if wanted is None else wanted.numpy()
        np.testing.assert_allclose(actual, wanted, rtol=1e-9, atol=1e-10 * np.abs(wanted).max())


# --- Layouts ---------------------------------------------------------------------------------------------------------

PLACES = {
    "unaligned": unaligned,
    "read only": read_only,
    "fortran": np.asfortranarray,
    "outer strided": lambda a: strided(a, range(a.ndim), (2,) + (1,) * (a.ndim - 1)),
    "inner strided": lambda a: strided(a, range(a.ndim), (1,) * (a.ndim - 1) + (2,)),
    "reversed": lambda a: strided(a, range(a.ndim), (-1,) + (1,) * (a.ndim - 1)),
    "features outermost": lambda a: strided(a, (1, 0, *range(2, a.ndim)), (1,) * a.ndim),
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
}


@pytest.mark.parametrize("which", ["all", "x", "dy", "ddx"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("shape", [(60, 5), (33, 40), (7, 4, 6, 6), (20, 5, 2, 2), (60, 1)], ids=str)
@KINDS
def test_layouts(rng, shape, place, which, frozen):
    case = make_case(rng, shape)
    moved = {name: PLACES[place](getattr(case, name)) for name in ("x", "dy", "ddx") if which in ("all", name)}
    there = case._replace(**moved)
    computed(there, there.saved(frozen))


@pytest.mark.parametrize("axis", [(1, 2), (0, 2), (-1, 0)], ids=str)
@pytest.mark.parametrize("shape", [(6, 3, 4), (5, 3, 4, 7)], ids=str)
@KINDS
def test_several_feature_axes(rng, shape, axis, frozen):
    axes = sorted(i % len(shape) for i in axis)
    c = int(np.prod([shape[i] for i in axes]))
    x, dy, ddx = (sample(rng, shape) for _ in range(3))
    rest = shape[:axes[0]] + tuple(n for i, n in enumerate(shape) if i not in axes and i > axes[0])

    def merged(a):
        return np.moveaxis(a, axes, range(-len(axes), 0)).reshape(*rest, c)

    case = Case(merged(x), merged(dy), merged(ddx), *parameters(rng, c), *parameters(rng, c), len(rest))
    saved = case._replace(x=x, axis=axis).saved(frozen)
    ddy, dx, dgamma = fastbn.batch_norm_double_backward(ddx, case.ddgamma, case.ddbeta, dy, saved)
    assert ddy.shape == dx.shape == shape
    check((merged(ddy), merged(dx), dgamma), case, case.upstream, saved)


def test_inputs_are_converted(rng):
    case = make_case(rng, (60, 5))
    saved = case.saved(False)
    converted = fastbn.batch_norm_double_backward(case.ddx.astype(np.float64), list(map(float, case.ddgamma)),
                                                  case.ddbeta.astype(np.float64), case.dy.tolist(), saved)
    for a, b in zip(converted, fastbn.batch_norm_double_backward(*case.upstream, case.dy, saved), strict=True):
        assert a.dtype == np.float32
        np.testing.assert_array_equal(a, b)


# --- Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen, upstream", [(False, "ddx"), (False, "ddgamma"), (True, "ddgamma")])
def test_x_overwritten_by_the_forward_call(rng, frozen, upstream):
    case = make_case(rng, (60, 5))
    saved = case.saved(frozen, out=case.x)
    given = {"ddx": None, "ddgamma": None, "ddbeta": None, upstream: getattr(case, upstream)}
    with pytest.raises(RuntimeError, match="out=x.*out= in the forward call"):
        fastbn.batch_norm_double_backward(dy=case.dy, saved=saved, **given)


def test_constant_statistics_need_x_for_ddgamma_only(rng):
    case = make_case(rng, (60, 5))
    apart = case._replace(x=case.x.copy())
    computed(apart, case.saved(True, out=case.x), (case.ddx, None, case.ddbeta))


def test_errors(rng):
    case = make_case(rng, (60, 5))
    saved, good = case.saved(False), dict(zip(("ddx", "ddgamma", "ddbeta"), case.upstream), dy=case.dy)

    def refused(error, match, **bad):
        with pytest.raises(error, match=match):
            fastbn.batch_norm_double_backward(**{"saved": saved, **good, **bad})

    refused(ValueError, r"ddx has shape \(5, 60\), expected \(60, 5\)", ddx=case.ddx.T)
    refused(ValueError, r"dy has shape \(60,\), expected \(60, 5\)", dy=case.dy[:, 0])
    refused(ValueError, r"ddgamma has shape \(4,\), expected \(5,\)", ddgamma=case.ddgamma[:4])
    refused(ValueError, r"ddbeta has shape \(1, 5\), expected \(5,\)", ddbeta=case.ddbeta[None])
    refused(TypeError, "ddx has dtype int64", ddx=case.ddx.astype(np.int64))
    refused(TypeError, "dy is a MaskedArray", dy=np.ma.array(case.dy))
    refused(TypeError, "ddgamma has dtype complex64", ddgamma=case.ddgamma * 1j)
    refused(TypeError, "dy has dtype object", dy=None)
    refused(TypeError, "saved is a tuple", saved=(1, 2))
    refused(ValueError, "needs contains 'dbeta', expected some of ddy, dx, dgamma", needs=("dx", "dbeta"))
    refused(ValueError, "num_threads is 0", num_threads=0)


def test_results_are_in_the_memory_order_of_x(rng):
    case = make_case(rng, (6, 4, 5, 5))
    moved = case._replace(x=np.moveaxis(np.ascontiguousarray(np.moveaxis(case.x, 1, -1)), -1, 1))
    ddy, dx, _ = computed(moved, moved.saved(False))
    assert ddy.strides == dx.strides == moved.x.strides


def test_a_gradient_penalty_goes_down(rng):
    """What it is for: descending along the gradient of |dx|^2 with respect to gamma and x makes |dx|^2 smaller."""
    case = make_case(rng, (32, 4), dtype=np.float64, param_dtype=np.float64)

    def penalty(x, gamma):
        saved = fastbn.batch_norm_training(x, gamma)[1]
        dx = fastbn.batch_norm_backward(case.dy, saved, needs="dx")[0]
        return float((dx**2).sum()), 2 * dx, saved

    value, ddx, saved = penalty(case.x, case.gamma)
    _, dx, dgamma = fastbn.batch_norm_double_backward(ddx, None, None, case.dy, saved)
    squared = float((dx**2).sum() + (dgamma**2).sum())
    step = 1e-6
    assert penalty(case.x - step * dx, case.gamma - step * dgamma)[0] - value == pytest.approx(-step * squared, rel=1e-3)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_types_are_float32_rounded(rng, name):
    dtype = np.dtype(np.float16) if name == "float16" else np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    x, dy, ddx = (rng.normal(size=(6, 5, 3, 4)).astype(dtype) for _ in range(3))
    gamma, ddgamma = (rng.normal(size=5).astype(np.float32) for _ in range(2))
    results = []
    for convert in (lambda a: a, lambda a: a.astype(np.float32)):
        _, saved = fastbn.batch_norm_training(convert(x), gamma)
        results.append(fastbn.batch_norm_double_backward(convert(ddx), ddgamma, None, convert(dy), saved))
    (ddy, dx, dgamma), (wide_ddy, wide_dx, wide_dgamma) = results
    assert ddy.dtype == dx.dtype == dtype and dgamma.dtype == np.float32
    assert ddy.tobytes() == wide_ddy.astype(dtype).tobytes() and dx.tobytes() == wide_dx.astype(dtype).tobytes()
    assert dgamma.tobytes() == wide_dgamma.tobytes()


@pytest.mark.parametrize("scale", [1e-18, 1e20, 1e25])
def test_standard_deviations_whose_squares_float32_cannot_hold(rng, scale):
    """rstd^2 is a factor of dx."""
    x = (rng.normal(size=(8, 3)) * scale).astype(np.float32)
    dy, ddx = rng.normal(size=(2, 8, 3)).astype(np.float32)
    ddgamma = rng.normal(size=3)
    found, want = [], []
    for data, results in ((x, found), (x.astype(np.float64), want)):
        _, saved = fastbn.batch_norm_training(data, eps=1e-70)
        results += fastbn.batch_norm_double_backward(ddx, ddgamma, None, dy, saved)
    for one, other in zip(found, want):
        with np.errstate(all="ignore"):
            np.testing.assert_allclose(one, other.astype(np.float32), rtol=1e-4, atol=1e-4 * np.abs(other).max())
