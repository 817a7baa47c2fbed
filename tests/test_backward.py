"""Gradients, as functions: reference, central differences, frozen statistics, `needs`, `out=`, what `saved` keeps."""
import itertools

import numpy as np
import pytest

import fastbn
from oracle import FLOATS, central_differences, check_gradients, parameters, sample, statistics

pytestmark = pytest.mark.filterwarnings("error")

SHAPES = [
    ((7, 5), 1), ((64, 33), 1), ((1000, 1), 1), ((501, 3), 1), ((129, 30), 1), ((33, 257), 1),
    ((4, 6, 9), 1), ((3, 5, 7, 7), 1), ((2, 3, 40, 41), 1), ((5, 4, 2, 2), 1), ((2, 3, 4, 5, 6), 1),
    ((3, 7, 7, 5), -1), ((6, 8), 0), ((3, 4, 5, 6), 2),
]
EDGES = (1, 2, 15, 16, 17, 31)


def training_case(rng, shape, axis=1, dtype=np.float32, param_dtype=np.float32, ratio=3.0):
    x = sample(rng, shape, axis=axis, dtype=dtype, ratio=ratio)
    dy = sample(rng, shape, axis=axis, dtype=dtype, ratio=0.5)
    return x, dy, *parameters(rng, shape[axis], param_dtype)


def check_training_gradients(gradients, x, dy, gamma, **keywords):
    stats = statistics(x, keywords.get("axis", 1))
    check_gradients(gradients, x, dy, stats.mean, stats.var, gamma, **keywords)


@pytest.mark.parametrize("param_dtype", FLOATS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape, axis", SHAPES)
def test_batch_statistics(rng, shape, axis, dtype, param_dtype):
    x, dy, gamma, beta = training_case(rng, shape, axis, dtype, param_dtype)
    x_before, dy_before = x.copy(), dy.copy()
    _, saved = fastbn.batch_norm_training(x, gamma, beta, axis=axis)
    dx, dgamma, dbeta = fastbn.batch_norm_backward(dy, saved)
    assert dx.dtype == dtype and dgamma.dtype == dbeta.dtype == param_dtype
    check_training_gradients((dx, dgamma, dbeta), x, dy, gamma, axis=axis)
    np.testing.assert_array_equal(x, x_before)
    np.testing.assert_array_equal(dy, dy_before)


@pytest.mark.parametrize("param_dtype", FLOATS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape, axis", SHAPES)
def test_frozen_statistics(rng, shape, axis, dtype, param_dtype):
    x, dy, gamma, beta = training_case(rng, shape, axis, dtype, param_dtype)
    mean, var = beta + 1, gamma**2
    _, saved = fastbn.batch_norm_inference(x, mean, var, gamma, beta, axis=axis, return_saved=True)
    dx, dgamma, dbeta = fastbn.batch_norm_backward(dy, saved)
    assert dx.dtype == dtype and dgamma.dtype == dbeta.dtype == param_dtype
    check_gradients((dx, dgamma, dbeta), x, dy, mean, var, gamma, axis=axis, frozen=True)


@pytest.mark.parametrize("count", EDGES)
@pytest.mark.parametrize("features", EDGES)
@pytest.mark.parametrize("spatial", [(), (15,), (4, 4)], ids=str)
def test_sizes_around_the_vector_length(rng, count, features, spatial):
    x, dy, gamma, beta = training_case(rng, (count, features, *spatial))
    _, saved = fastbn.batch_norm_training(x, gamma, beta)
    check_training_gradients(fastbn.batch_norm_backward(dy, saved), x, dy, gamma)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("ratio", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("shape", [(3001, 3), (501, 40), (4, 6, 23, 23), (40, 9, 2, 2)], ids=str)
def test_a_large_mean_costs_no_accuracy(rng, shape, ratio, dtype):
    x, dy, gamma, beta = training_case(rng, shape, dtype=dtype, ratio=ratio)
    _, saved = fastbn.batch_norm_training(x, gamma, beta)
    check_training_gradients(fastbn.batch_norm_backward(dy, saved), x, dy, gamma)


@pytest.mark.parametrize("eps", [1e-12, 1e-3, 10.0])
def test_eps_of_the_forward_call_is_used(rng, eps):
    x, dy, gamma, beta = training_case(rng, (30, 4))
    _, saved = fastbn.batch_norm_training(x, gamma, beta, eps=eps)
    check_training_gradients(fastbn.batch_norm_backward(dy, saved), x, dy, gamma, eps=eps)


@pytest.mark.parametrize("dtype", FLOATS)
def test_without_gamma_and_beta_all_three_gradients_come(rng, dtype):
    x, dy, _, _ = training_case(rng, (5, 4, 6), dtype=dtype)
    _, saved = fastbn.batch_norm_training(x)
    gradients = fastbn.batch_norm_backward(dy, saved)
    assert all(g.dtype == dtype for g in gradients)
    check_training_gradients(gradients, x, dy, None)


# --- Central differences --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [False, True], ids=["batch", "frozen"])
@pytest.mark.parametrize("shape, axis", [((7, 3), 1), ((3, 2, 2, 3), 1), ((2, 3, 2, 3), -1), ((3, 5), 0)])
def test_central_differences(rng, shape, axis, frozen):
    x, dy, gamma, beta = training_case(rng, shape, axis, np.float64, np.float64)
    mean, var = beta + 1, gamma**2

    def forward(x, gamma, beta):
        if frozen:
            return fastbn.batch_norm_inference(x, mean, var, gamma, beta, axis=axis, return_saved=True)
        return fastbn.batch_norm_training(x, gamma, beta, axis=axis)

    def loss():
        return float((forward(x, gamma, beta)[0] * dy).sum())

    gradients = fastbn.batch_norm_backward(dy, forward(x, gamma, beta)[1])
    for values, gradient in zip((x, gamma, beta), gradients, strict=True):
        np.testing.assert_allclose(gradient, central_differences(loss, values), rtol=1e-6, atol=1e-8)


# --- needs, out=, what saved keeps ----------------------------------------------------------------------------------

NAMES = ("dx", "dgamma", "dbeta")
SUBSETS = [s for k in range(4) for s in itertools.combinations(NAMES, k)]


@pytest.mark.parametrize("frozen", [False, True], ids=["batch", "frozen"])
@pytest.mark.parametrize("needs", SUBSETS, ids="+".join)
@pytest.mark.parametrize("shape", [(60, 5), (4, 5, 6, 6)], ids=str)
def test_only_what_is_needed_is_returned(rng, shape, needs, frozen):
    x, dy, gamma, beta = training_case(rng, shape)
    stats = statistics(x)
    mean, var = stats.mean.astype(np.float64), stats.var.astype(np.float64)
    if frozen:
        _, saved = fastbn.batch_norm_inference(x, mean, var, gamma, beta, return_saved=True)
    else:
        _, saved = fastbn.batch_norm_training(x, gamma, beta)
    gradients = fastbn.batch_norm_backward(dy, saved, needs=needs)
    assert tuple(name for name, g in zip(NAMES, gradients, strict=True) if g is not None) == needs
    check_gradients(gradients, x, dy, mean, var, gamma, frozen=frozen)


@pytest.mark.parametrize("frozen", [False, True], ids=["batch", "frozen"])
@pytest.mark.parametrize("shape", [(60, 5), (60, 3), (4, 5, 6, 6), (9, 4, 2, 2)], ids=str)
@pytest.mark.parametrize("place", ["fresh", "dy", "view of dy"])
def test_out_holds_the_same_bits(rng, shape, place, frozen):
    x, dy, gamma, beta = training_case(rng, shape)
    if frozen:
        _, saved = fastbn.batch_norm_inference(x, beta, gamma**2, gamma, beta, return_saved=True)
    else:
        _, saved = fastbn.batch_norm_training(x, gamma, beta)
    expected = fastbn.batch_norm_backward(dy, saved)
    assert not np.shares_memory(expected[0], dy) and not np.shares_memory(expected[0], x)
    out = {"fresh": np.full_like(dy, np.nan), "dy": dy, "view of dy": dy[:]}[place]
    dx, dgamma, dbeta = fastbn.batch_norm_backward(dy, saved, out=out)
    assert dx is out
    for actual, wanted in zip((dx, dgamma, dbeta), expected, strict=True):
        np.testing.assert_array_equal(actual, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_a_single_name_may_be_asked_for(rng, name):
    x, dy, gamma, beta = training_case(rng, (60, 5))
    _, saved = fastbn.batch_norm_training(x, gamma, beta)
    gradients = fastbn.batch_norm_backward(dy, saved, needs=name)
    assert [g is not None for g in gradients] == [n == name for n in NAMES]


def test_dy_is_converted_to_the_type_of_x(rng):
    x, dy, gamma, beta = training_case(rng, (60, 5))
    _, saved = fastbn.batch_norm_training(x, gamma, beta)
    gradients = fastbn.batch_norm_backward(dy.astype(np.float64), saved)
    for actual, wanted in zip(gradients, fastbn.batch_norm_backward(dy, saved), strict=True):
        assert actual.dtype == np.float32
        np.testing.assert_array_equal(actual, wanted)


def test_saved_serves_more_than_one_backward(rng):
    x, dy, gamma, beta = training_case(rng, (40, 4))
    _, saved = fastbn.batch_norm_training(x, gamma, beta)
    first = fastbn.batch_norm_backward(dy, saved)
    for a, b in zip(first, fastbn.batch_norm_backward(dy, saved), strict=True):
        np.testing.assert_array_equal(a, b)


def test_saved_keeps_its_own_gamma(rng):
    x, dy, gamma, beta = training_case(rng, (40, 4))
    original = gamma.copy()
    _, saved = fastbn.batch_norm_training(x, gamma, beta)
    gamma[:] = 100
    check_training_gradients(fastbn.batch_norm_backward(dy, saved), x, dy, original)


def test_saved_keeps_the_frozen_statistics(rng):
    x, dy, gamma, beta = training_case(rng, (40, 4))
    mean, var = beta + 1, gamma**2
    _, saved = fastbn.batch_norm_inference(x, mean, var, gamma, beta, return_saved=True)
    kept = mean.copy(), var.copy()
    mean[:], var[:] = 50, 50
    check_gradients(fastbn.batch_norm_backward(dy, saved), x, dy, *kept, gamma, frozen=True)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("with_gamma", [False, True])
@pytest.mark.parametrize("shape", [(60, 5), (4, 5, 6, 6)], ids=str)
def test_after_training_in_place_x_is_recovered_from_y(rng, shape, with_gamma, dtype):
    x, dy, gamma, beta = training_case(rng, shape, dtype=dtype, param_dtype=dtype)
    if not with_gamma:
        gamma = beta = None
    original = x.copy()
    _, saved = fastbn.batch_norm_training(x, gamma, beta, out=x)
    check_training_gradients(fastbn.batch_norm_backward(dy, saved), original, dy, gamma, slack=4)


def test_after_training_in_place_with_a_zero_gamma_backward_says_why_it_cannot(rng):
    x, dy, gamma, beta = training_case(rng, (60, 5))
    gamma[2] = 0
    _, saved = fastbn.batch_norm_training(x, gamma, beta, out=x)
    with pytest.raises(RuntimeError, match="(?i)gamma"):
        fastbn.batch_norm_backward(dy, saved)


def test_after_inference_in_place_the_gradient_of_x_needs_no_x(rng):
    x, dy, gamma, beta = training_case(rng, (60, 5))
    original, mean, var = x.copy(), beta + 1, gamma**2
    _, saved = fastbn.batch_norm_inference(x, mean, var, gamma, beta, out=x, return_saved=True)
    gradients = fastbn.batch_norm_backward(dy, saved, needs=("dx", "dbeta"))
    check_gradients(gradients, original, dy, mean, var, gamma, frozen=True)


def test_a_constant_gradient_vanishes(rng):
    """y is unchanged by adding a constant to x, so sum(dy) alone moves nothing."""
    x = sample(rng, (4, 3, 8, 8), dtype=np.float64)
    _, saved = fastbn.batch_norm_training(x)
    dx, dgamma, dbeta = fastbn.batch_norm_backward(np.ones_like(x), saved)
    np.testing.assert_allclose(dx, 0, atol=1e-13)
    np.testing.assert_allclose(dgamma, 0, atol=1e-11)
    np.testing.assert_allclose(dbeta, 256, rtol=1e-15)


@pytest.mark.parametrize("shape", [(0, 3), (4, 3, 0)], ids=str)
def test_an_empty_batch(shape):
    x = np.empty(shape, np.float32)
    _, saved = fastbn.batch_norm_training(x)
    dx, dgamma, dbeta = fastbn.batch_norm_backward(x, saved)
    assert dx.shape == shape
    np.testing.assert_array_equal(dgamma, np.zeros(3))
    np.testing.assert_array_equal(dbeta, np.zeros(3))


@pytest.mark.parametrize("shape", [(1, 5), (1, 5, 1, 1)], ids=str)
def test_one_value_per_feature(rng, shape):
    x, dy, gamma, beta = training_case(rng, shape)
    _, saved = fastbn.batch_norm_training(x, gamma, beta)
    dx, dgamma, dbeta = fastbn.batch_norm_backward(dy, saved)
    np.testing.assert_array_equal(dx, 0)
    np.testing.assert_array_equal(dgamma, 0)
    np.testing.assert_array_equal(dbeta, dy.ravel())
