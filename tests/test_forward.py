"""Training and inference, as functions, against the reference: shapes, types, switches, `out=`, degenerate sizes."""
import numpy as np
import pytest

import fastbn
from oracle import FLOATS, check_forward, check_statistics, parameters, sample, statistics

pytestmark = pytest.mark.filterwarnings("error")

EDGES = (1, 2, 15, 16, 17, 31, 37)  # around the 16 lanes of a vector, and primes
SHAPES = [
    ((7, 5), 1), ((64, 32), 1), ((1000, 1), 1), ((501, 3), 1), ((129, 30), 1), ((33, 257), 1),
    ((4, 6, 9), 1), ((3, 5, 7, 7), 1), ((2, 3, 40, 41), 1), ((5, 4, 2, 2), 1), ((2, 3, 4, 5, 6), 1),
    ((4, 6, 9), -1), ((3, 7, 7, 5), -1), ((2, 4, 5, 6, 3), 4), ((6, 8), 0), ((3, 4, 5, 6), 2), ((9, 4, 5), -3),
]


@pytest.mark.parametrize("param_dtype", FLOATS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape, axis", SHAPES)
def test_training_agrees_with_the_reference(rng, shape, axis, dtype, param_dtype):
    x = sample(rng, shape, axis=axis, dtype=dtype, ratio=3.0)
    before = x.copy()
    gamma, beta = parameters(rng, shape[axis], param_dtype)
    y, saved = fastbn.batch_norm_training(x, gamma, beta, axis=axis)
    expected = statistics(x, axis)
    assert y.dtype == dtype and y.shape == shape
    check_statistics(saved.mean, saved.var, x, axis)
    np.testing.assert_allclose(saved.rstd, 1 / np.sqrt(saved.var + 1e-5), rtol=1e-14)
    check_forward(y, x, expected.mean, expected.var, gamma, beta, axis=axis)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("param_dtype", FLOATS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape, axis", SHAPES)
def test_inference_agrees_with_the_reference(rng, shape, axis, dtype, param_dtype):
    x = sample(rng, shape, axis=axis, dtype=dtype, ratio=3.0)
    before = x.copy()
    gamma, beta = parameters(rng, shape[axis], param_dtype)
    mean = rng.standard_normal(shape[axis]).astype(param_dtype)
    var = rng.uniform(0.1, 3.0, shape[axis]).astype(param_dtype)
    y = fastbn.batch_norm_inference(x, mean, var, gamma, beta, axis=axis)
    assert y.dtype == dtype and y.shape == shape
    check_forward(y, x, mean, var, gamma, beta, axis=axis)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("count", EDGES)
@pytest.mark.parametrize("features", EDGES)
@pytest.mark.parametrize("spatial", [(), (1,), (15,), (4, 4), (17,)], ids=str)
def test_sizes_around_the_vector_length(rng, count, features, spatial):
    x = sample(rng, (count, features, *spatial))
    gamma, beta = parameters(rng, features)
    y, saved = fastbn.batch_norm_training(x, gamma, beta)
    expected = statistics(x)
    check_statistics(saved.mean, saved.var, x)
    check_forward(y, x, expected.mean, expected.var, gamma, beta)
    y = fastbn.batch_norm_inference(x, beta, gamma**2, gamma, beta)
    check_forward(y, x, beta, gamma**2, gamma, beta)


@pytest.mark.parametrize("with_gamma", [False, True])
@pytest.mark.parametrize("with_beta", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(40, 6), (6, 4, 5, 5)], ids=str)
def test_gamma_and_beta_are_optional(rng, shape, dtype, with_gamma, with_beta):
    x = sample(rng, shape, dtype=dtype)
    gamma, beta = parameters(rng, shape[1], dtype)
    gamma, beta = gamma if with_gamma else None, beta if with_beta else None
    expected = statistics(x)
    y, _ = fastbn.batch_norm_training(x, gamma, beta)
    check_forward(y, x, expected.mean, expected.var, gamma, beta)
    mean, var = expected.mean.astype(dtype), expected.var.astype(dtype)
    check_forward(fastbn.batch_norm_inference(x, mean, var, gamma, beta), x, mean, var, gamma, beta)


@pytest.mark.parametrize("eps", [1e-12, 1e-3, 1.0, 100.0])
def test_eps_is_added_to_the_variance(rng, eps):
    x = sample(rng, (50, 7))
    expected = statistics(x)
    y, saved = fastbn.batch_norm_training(x, eps=eps)
    check_forward(y, x, expected.mean, expected.var, eps=eps)
    np.testing.assert_allclose(saved.rstd, 1 / np.sqrt(saved.var + eps), rtol=1e-14)
    ones = np.ones(7, np.float32)
    check_forward(fastbn.batch_norm_inference(x, ones, ones, eps=eps), x, ones, ones, eps=eps)


def test_defaults_are_axis_1_and_eps_1e_5(rng):
    x = sample(rng, (5, 5, 5))
    y, _ = fastbn.batch_norm_training(x)
    np.testing.assert_array_equal(y, fastbn.batch_norm_training(x, axis=1, eps=1e-5)[0])
    assert not np.array_equal(y, fastbn.batch_norm_training(x, axis=2)[0])


@pytest.mark.parametrize("dtype", FLOATS)
def test_saved_statistics_are_float64_vectors(rng, dtype):
    _, saved = fastbn.batch_norm_training(sample(rng, (6, 3, 4), dtype=dtype))
    for values in (saved.mean, saved.var, saved.rstd):
        assert values.dtype == np.float64 and values.shape == (3,)


def test_inference_returns_saved_only_when_asked(rng):
    x = sample(rng, (6, 3))
    mean, var = np.zeros(3, np.float32), np.ones(3, np.float32)
    y = fastbn.batch_norm_inference(x, mean, var)
    assert isinstance(y, np.ndarray)
    again, saved = fastbn.batch_norm_inference(x, mean, var, return_saved=True)
    np.testing.assert_array_equal(y, again)
    np.testing.assert_array_equal(saved.mean, mean)


def test_parameters_of_different_float_types_mix(rng):
    x = sample(rng, (30, 4))
    gamma, beta = parameters(rng, 4, np.float64)
    mean, var = np.full(4, 0.25), np.full(4, 2.0, np.float32)
    check_forward(fastbn.batch_norm_inference(x, mean, var, gamma.astype(np.float32), beta), x, mean, var,
                  gamma.astype(np.float32), beta)


def test_a_zero_gamma_gives_exactly_beta(rng):
    x = sample(rng, (100, 3), ratio=1e3)
    beta = rng.standard_normal(3).astype(np.float32)
    y, _ = fastbn.batch_norm_training(x, np.zeros(3, np.float32), beta)
    np.testing.assert_array_equal(y, np.broadcast_to(beta, y.shape))


# --- out= -----------------------------------------------------------------------------------------------------------


def training(x, gamma, beta, out=None):
    return fastbn.batch_norm_training(x, gamma, beta, out=out)[0]


def inference(x, gamma, beta, out=None):
    return fastbn.batch_norm_inference(x, beta, gamma**2, gamma, beta, out=out)


BOTH = pytest.mark.parametrize("operation", [training, inference])
OUT_SHAPES = pytest.mark.parametrize("shape", [(40, 6), (40, 3), (6, 4, 5, 5), (6, 4, 2, 2), (300, 17)], ids=str)


@BOTH
@OUT_SHAPES
def test_out_is_returned_itself_and_holds_the_same_bits(rng, operation, shape):
    x = sample(rng, shape)
    gamma, beta = parameters(rng, shape[1])
    y = operation(x, gamma, beta)
    assert not np.shares_memory(x, y)
    out = np.full_like(x, np.nan)
    assert operation(x, gamma, beta, out) is out
    np.testing.assert_array_equal(out, y)


@BOTH
@OUT_SHAPES
@pytest.mark.parametrize("alias", [lambda x: x, lambda x: x[:], lambda x: x.view()], ids=["x", "slice", "view"])
def test_in_place_holds_the_same_bits(rng, operation, shape, alias):
    x = sample(rng, shape)
    gamma, beta = parameters(rng, shape[1])
    y = operation(x, gamma, beta)
    out = alias(x)
    assert operation(x, gamma, beta, out) is out
    np.testing.assert_array_equal(x, y)


@BOTH
@OUT_SHAPES
@pytest.mark.parametrize("place", [slice(2, -3), slice(None, None, 2)], ids=["batch_slice", "every_other_sample"])
def test_out_may_have_any_outer_stride(rng, operation, shape, place):
    x = sample(rng, shape)
    gamma, beta = parameters(rng, shape[1])
    outer = np.full((2 * shape[0] + 8, *shape[1:]), 7, np.float32)
    out = outer[place][:shape[0]]
    expected = operation(x, gamma, beta)
    untouched = np.ones(len(outer), bool)
    untouched[np.arange(len(outer))[place][:shape[0]]] = False
    assert operation(x, gamma, beta, out) is out
    np.testing.assert_allclose(out, expected, rtol=0, atol=5e-6)
    assert (outer[untouched] == 7).all()


@BOTH
def test_the_two_halves_of_one_buffer_do_not_overlap(rng, operation):
    both = np.concatenate([sample(rng, (50, 4)), np.zeros((50, 4), np.float32)], axis=1)
    gamma, beta = parameters(rng, 4)
    x, out = both[:, :4], both[:, 4:]
    expected = operation(x.copy(), gamma, beta)
    before = x.copy()
    assert operation(x, gamma, beta, out) is out
    np.testing.assert_allclose(out, expected, rtol=0, atol=5e-6)
    np.testing.assert_array_equal(x, before)


# --- Degenerate sizes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape, axis", [((0, 3), 1), ((0, 3, 4, 4), 1), ((5, 3, 0), 1), ((5, 0, 3), -1), ((3, 0), 0)])
def test_an_empty_batch(shape, axis, dtype):
    x = np.empty(shape, dtype)
    y, saved = fastbn.batch_norm_training(x, axis=axis)
    assert y.shape == shape and y.dtype == dtype
    assert (saved.mean == 0).all() and np.isnan(saved.var).all() and np.isnan(saved.rstd).all()
    y = fastbn.batch_norm_inference(x, np.zeros(3), np.ones(3), axis=axis)
    assert y.shape == shape and y.dtype == dtype


def test_no_features_at_all():
    x = np.empty((4, 0, 5), np.float32)
    y, saved = fastbn.batch_norm_training(x)
    assert y.shape == x.shape and saved.mean.shape == saved.var.shape == (0,)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(1, 5), (1, 5, 1, 1), (1, 40)], ids=str)
def test_one_value_per_feature_gives_beta(rng, shape, dtype):
    gamma, beta = parameters(rng, shape[1], dtype)
    x = sample(rng, shape, dtype=dtype, ratio=100.0)
    y, saved = fastbn.batch_norm_training(x, gamma, beta)
    np.testing.assert_array_equal(y.ravel(), beta)
    np.testing.assert_array_equal(saved.mean, x.ravel())
    np.testing.assert_array_equal(saved.var, 0)


@pytest.mark.parametrize("shape", [(1, 6), (1, 6, 3, 3), (1, 100)], ids=str)
def test_single_sample_inference_equals_its_row_of_the_batch(rng, shape):
    x = sample(rng, (9, *shape[1:]))
    gamma, beta = parameters(rng, shape[1])
    batch = inference(x, gamma, beta)
    single = np.concatenate([inference(row[None], gamma, beta) for row in x])
    np.testing.assert_array_equal(single, batch)
