"""The numeric contract: accuracy at any mean, in every layout, and for data made to break a pivot or a short sum.

The bounds themselves are in `oracle.py`. beta is 0 except where said, so that nothing hides an error of y.
"""
import numpy as np
import pytest

import fastbn
from oracle import (FLOATS, WIDE, Statistics, assert_within, check_forward, check_gradients, check_statistics, forward,
                    parameters, sample, spacing, statistics)

pytestmark = pytest.mark.filterwarnings("error")

LAYOUTS = {
    "planes": ((8, 5, 28, 28), 1),
    "large_planes": ((2, 3, 160, 160), 1),
    "one_sample": ((1, 20, 56, 56), 1),
    "odd_planes": ((5, 7, 13, 17), 1),
    "sequence": ((64, 24, 15), 1),
    "spatial_7x7": ((64, 33, 7, 7), 1),
    "spatial_2x2": ((200, 30, 2, 2), 1),
    "spatial_1x3": ((301, 7, 1, 3), 1),
    "rows": ((4099, 37), 1),
    "wide_rows": ((300, 512), 1),
    "few_wide_rows": ((17, 1025), 1),
    "one_column": ((70001, 1), 1),
    "three_columns": ((50021, 3), 1),
    "thirty_columns": ((5003, 30), 1),
    "channels_last": ((16, 14, 14, 20), -1),
    "channels_last_rgb": ((4, 56, 56, 3), -1),
    "features_first": ((6, 9, 700), 0),
    "features_in_the_middle": ((6, 7, 20, 9), 2),
}
on_layouts = pytest.mark.parametrize("shape, axis", LAYOUTS.values(), ids=LAYOUTS)


def check_training(x, axis, gamma=None, beta=None, *, eps=1e-5, stats=None):
    """Moments, saved statistics and y against the reference."""
    stats = stats or statistics(x, axis)
    moments = fastbn.moments(x, axis=axis)
    check_statistics(moments.mean, moments.var(), x, axis)
    y, saved = fastbn.batch_norm_training(x, gamma, beta, eps=eps, axis=axis)
    check_statistics(saved.mean, saved.var, x, axis)
    check_forward(y, x, stats.mean, stats.var, gamma, beta, eps=eps, axis=axis)
    return saved


def check_training_and_backward(x, axis, rng, *, eps=1e-5):
    stats = statistics(x, axis)
    gamma, _ = parameters(rng, x.shape[axis], x.dtype)
    saved = check_training(x, axis, gamma, eps=eps, stats=stats)
    dy = sample(rng, x.shape, axis=axis, dtype=x.dtype, ratio=0.5)
    gradients = fastbn.batch_norm_backward(dy, saved)
    check_gradients(gradients, x, dy, stats.mean, stats.var, gamma, eps=eps, axis=axis)


# --- Any mean -------------------------------------------------------------------------------------------------------


@on_layouts
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("ratio", [0, 1e2, 1e4, 1e6])
def test_accuracy_does_not_depend_on_the_mean(rng, shape, axis, ratio, dtype):
    x = sample(rng, shape, axis=axis, dtype=dtype, ratio=ratio)
    gamma, _ = parameters(rng, shape[axis], dtype)
    check_training(x, axis, gamma)


@on_layouts
def test_beta_adds_no_more_than_its_own_rounding(rng, shape, axis):
    x = sample(rng, shape, axis=axis, ratio=1e4)
    gamma, beta = parameters(rng, shape[axis])
    check_training(x, axis, gamma, 100 * beta)


@on_layouts
@pytest.mark.parametrize("ratio", [0, 1e4, 1e6])
def test_inference_applies_a_float64_mean_in_full(rng, shape, axis, ratio):
    x = sample(rng, shape, axis=axis, ratio=ratio)
    gamma, _ = parameters(rng, shape[axis], np.float64)
    stats = statistics(x, axis)
    mean, var = stats.mean.astype(np.float64), stats.var.astype(np.float64)
    y = fastbn.batch_norm_inference(x, mean, var, gamma, axis=axis)
    check_forward(y, x, mean, var, gamma, axis=axis)


@pytest.mark.parametrize("ratio", [1e4, 1e6])
@pytest.mark.parametrize("shape", [(50021, 3), (2003, 40), (4, 6, 60, 60)], ids=str)
def test_a_float64_layer_is_accurate_in_inference(rng, shape, ratio):
    x = sample(rng, shape, ratio=ratio)
    layer = fastbn.BatchNorm(shape[1], ddof=0, momentum=None, dtype=np.float64)
    layer(x)
    stats = statistics(x)
    check_forward(layer.eval()(x), x, layer.running_mean, layer.running_var)
    assert_within(layer.running_mean, stats.mean, spacing(np.abs(stats.mean), np.float32), "running_mean")
    assert_within(layer.running_var, stats.var, 1e-6 * stats.var, "running_var")


@pytest.mark.parametrize("spread", [1e-3, 1e3])
@pytest.mark.parametrize("shape, axis", [((3001, 3), 1), ((4, 6, 30, 30), 1), ((301, 40), 1)], ids=str)
def test_features_of_very_different_scale(rng, shape, axis, spread):
    """Neighbours in a vector: one feature must not lend another its pivot or its tolerance."""
    scale = spread ** np.arange(shape[1] % 7 + 1, dtype=np.float64)
    scale = np.resize(scale, shape[1]).reshape(-1, *[1] * (len(shape) - 2))
    x = (sample(rng, shape, dtype=np.float64, ratio=1e3) * scale).astype(np.float32)
    check_training(x, axis, eps=1e-30)


# --- 2^25 rows ------------------------------------------------------------------------------------------------------


def chunked_statistics(x, chunk=1 << 21):
    """As the reference, for one long column: float32 minus a float64 pivot is exact enough in double."""
    pivot = np.float64(x[:1000].mean(dtype=np.float64))
    parts = [x[i:i + chunk].astype(np.float64) - pivot for i in range(0, len(x), chunk)]
    shift = np.sum([p.sum() for p in parts], dtype=WIDE) / len(x)
    squares = np.sum([np.square(p - np.float64(shift)).sum() for p in parts], dtype=WIDE)
    return Statistics(len(x), np.array([pivot + shift], WIDE), np.array([squares / len(x)], WIDE))


@pytest.mark.full
@pytest.mark.parametrize("shape", [(1 << 25, 1), (1, 1, 1 << 25)], ids=["rows", "plane"])
def test_two_to_the_25_entries(rng, shape):
    x = rng.standard_normal(1 << 25, dtype=np.float32)
    x += np.float32(1e6)
    stats = chunked_statistics(x)
    y, saved = fastbn.batch_norm_training(x.reshape(shape))
    y = y.ravel()
    assert_within(saved.mean, stats.mean, spacing(stats.mean, np.float32), "mean")
    assert_within(saved.var, stats.var, 1e-6 * stats.var, "var")
    for start in (0, len(x) // 2, len(x) - 100_000):
        part = slice(start, start + 100_000)
        check_forward(y[part, None], x[part, None], stats.mean, stats.var)


# --- Constant features ----------------------------------------------------------------------------------------------


@on_layouts
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [14.62, 1e7, 3.3e10, -0.1, 1 / 3, 0.0])
def test_a_constant_channel_gives_exactly_beta(rng, shape, axis, value, dtype):
    """Next to channels that are not constant, and of another size."""
    x = sample(rng, shape, axis=axis, dtype=dtype, ratio=10.0)
    features = np.moveaxis(x, axis, -1)
    constant = np.arange(shape[axis]) % 3 == 0
    features[..., constant] = value
    gamma, beta = parameters(rng, shape[axis], dtype)
    y, _ = fastbn.batch_norm_training(x, 1000 * gamma, beta, axis=axis)
    y = np.moveaxis(y, axis, -1)[..., constant]
    np.testing.assert_array_equal(y, np.broadcast_to(beta[constant], y.shape))


@pytest.mark.parametrize("count", [2, 3, 5, 7, 11, 13, 17, 49, 127, 1000, 2049, 4099])
@pytest.mark.parametrize("features", [1, 3, 16, 40])
@pytest.mark.parametrize("spatial", [(), (3,), (37,)], ids=str)
def test_a_constant_channel_at_awkward_counts(rng, count, features, spatial):
    """A sum divided by its count need not give the constant back: 3 times 14.62 in float32 does not."""
    values = rng.uniform(10, 4e10, features).astype(np.float32)
    shape = (count, features, *spatial)
    x = np.broadcast_to(values.reshape(-1, *[1] * len(spatial)), shape).copy()
    gamma, beta = parameters(rng, features)
    y, saved = fastbn.batch_norm_training(x, gamma, beta, eps=1e-12)
    np.testing.assert_array_equal(y, np.broadcast_to(beta.reshape(-1, *[1] * len(spatial)), shape))
    np.testing.assert_array_equal(saved.mean, values)


# --- Magnitudes near the ends of float32 ----------------------------------------------------------------------------


@on_layouts
@pytest.mark.parametrize("magnitude", [1e25, 1e28, 1e30])
@pytest.mark.parametrize("ratio", [0, 1e3])
def test_huge_data(rng, shape, axis, magnitude, ratio):
    """Squares leave the range of float32, rstd squared too."""
    x = sample(rng, shape, axis=axis, ratio=ratio) * np.float32(magnitude)
    check_training_and_backward(x, axis, rng)


@on_layouts
@pytest.mark.parametrize("ratio", [0, 1e3])
def test_tiny_data(rng, shape, axis, ratio):
    """Squares vanish in float32; with an eps below the variance the result is as normal as any other."""
    x = sample(rng, shape, axis=axis, ratio=ratio) * np.float32(1e-25)
    check_training_and_backward(x, axis, rng)
    check_training_and_backward(x, axis, rng, eps=1e-60)


@pytest.mark.parametrize("name", [name for name, (shape, axis) in LAYOUTS.items() if shape[axis] >= 3])
def test_one_huge_and_one_tiny_feature_among_others(rng, name):
    shape, axis = LAYOUTS[name]
    x = sample(rng, shape, axis=axis, ratio=2.0)
    features = np.moveaxis(x, axis, 0)
    features[0] *= np.float32(1e30)
    features[1] *= np.float32(1e-25)
    check_training_and_backward(x, axis, rng, eps=1e-60)


# --- Data made to break an algorithm --------------------------------------------------------------------------------
# Each pattern gives `count` values of one feature, in the order of memory; the caller scales each feature differently.


def outliers_first(rng, count, size=1e4):
    values = rng.standard_normal(count)
    values[:min(40, count // 4)] = size
    return values


def one_outlier(at):
    def pattern(rng, count):
        values = rng.standard_normal(count)
        values[int(at * (count - 1))] = 1e6
        return values
    return pattern


def few_nonzeros(rng, count):
    values = np.zeros(count)
    values[rng.choice(count, 5, replace=False)] = rng.standard_normal(5) + 3
    return values


def blocks(rng, count, length=128):
    """Level after level, each nearly constant: the pivot of one block is far from all others."""
    levels = np.repeat(rng.uniform(-100, 100, count // length + 1), length)[:count]
    return levels + 1e-3 * rng.standard_normal(count)


def two_values(low, high, share=0.5):
    def pattern(rng, count):
        values = np.where(rng.uniform(size=count) < share, high, low)
        values[0], values[-1] = low, high
        return values
    return pattern


def zero_border(rng, count):
    """A quarter of zeros at either end, as padding leaves them around an image."""
    values = 100 + rng.standard_normal(count)
    values[:count // 4] = values[-(count // 4):] = 0
    return values


PATTERNS = {
    "outliers_first": outliers_first,
    "data_far_from_its_first_entries": lambda rng, n: np.where(np.arange(n) < 64, 0, 1e5 + rng.standard_normal(n)),
    "outlier_first": one_outlier(0),
    "outlier_in_the_middle": one_outlier(0.5),
    "outlier_last": one_outlier(1),
    "ramp_up": lambda rng, n: np.linspace(-1, 1, n),
    "ramp_down_far_from_0": lambda rng, n: np.linspace(2e4, 1e4, n),
    "geometric_ramp": lambda rng, n: np.geomspace(1e-6, 1e6, n),
    "few_nonzeros": few_nonzeros,
    "zero_border": zero_border,
    "blocks": blocks,
    "step_at_the_half": lambda rng, n: np.where(np.arange(n) < n // 2, -1e3, 1e3) + rng.standard_normal(n),
    "zeros_and_ones": two_values(0, 1),
    "rarely_one": two_values(0, 1, 0.001),
    "rarely_zero": two_values(0, 1, 0.999),
    "two_close_values": two_values(1, 1 + 4e-6),
    "alternating_signs": lambda rng, n: np.where(np.arange(n) % 2, 1.0, -1.0),
    "alternating_far_apart": lambda rng, n: np.where(np.arange(n) % 2, 1e6, 1.0),
    "all_equal_but_the_last": lambda rng, n: np.where(np.arange(n) < n - 1, 1.0, 2.0),
    "all_equal_but_the_first": lambda rng, n: np.where(np.arange(n) > 0, 1.0, 2.0),
    "heavy_tails": lambda rng, n: np.exp(3 * rng.standard_normal(n)),
    "uniform": lambda rng, n: rng.uniform(0, 1, n),
    "huge_then_tiny": lambda rng, n: np.where(np.arange(n) < n // 2, 1e20, 1e-20) * rng.standard_normal(n),
}
PATTERN_LAYOUTS = {
    "planes": ((3, 5, 60, 60), 1), "one_sample": ((1, 3, 100, 100), 1), "spatial_7x7": ((100, 9, 7, 7), 1),
    "spatial_2x2": ((1500, 5, 2, 2), 1), "rows": ((6000, 20), 1), "wide_rows": ((800, 130), 1),
    "three_columns": ((20000, 3), 1), "one_column": ((40000, 1), 1), "features_first": ((7, 5000), 0),
}


def lay_out(pattern, rng, shape, axis, dtype=np.float32):
    """The pattern for every feature, in the order of memory, each feature with a scale of its own."""
    moved = [size for i, size in enumerate(shape) if i != axis % len(shape)]
    columns = [pattern(rng, int(np.prod(moved))) * rng.uniform(0.3, 3.0) for _ in range(shape[axis])]
    return np.ascontiguousarray(np.moveaxis(np.reshape(columns, (shape[axis], *moved)), 0, axis).astype(dtype))


@pytest.mark.parametrize("shape, axis", PATTERN_LAYOUTS.values(), ids=PATTERN_LAYOUTS)
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_adversarial_data(rng, pattern, shape, axis):
    check_training(lay_out(pattern, rng, shape, axis), axis, eps=1e-30)


@pytest.mark.parametrize("shape, axis", PATTERN_LAYOUTS.values(), ids=PATTERN_LAYOUTS)
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_adversarial_data_in_float64(rng, pattern, shape, axis):
    x = lay_out(pattern, rng, shape, axis, np.float64)
    stats = statistics(x, axis)
    y, saved = fastbn.batch_norm_training(x, axis=axis)
    check_statistics(saved.mean, saved.var, x, axis)
    check_forward(y, x, stats.mean, stats.var, axis=axis)


# --- NaN, infinity, subnormal numbers -------------------------------------------------------------------------------

SPECIAL_LAYOUTS = {k: LAYOUTS[k] for k in ("planes", "spatial_7x7", "spatial_2x2", "rows", "three_columns",
                                           "thirty_columns", "channels_last_rgb", "features_first")}
on_special_layouts = pytest.mark.parametrize("shape, axis", SPECIAL_LAYOUTS.values(), ids=SPECIAL_LAYOUTS)
on_special_values = pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])


def poison(array, axis, feature, value):
    """A copy with one entry of one feature replaced, in the middle."""
    array = array.copy()
    column = np.moveaxis(array, axis, 0)[feature]
    column[tuple(size // 2 for size in column.shape)] = value
    return array


def assert_others_are_bit_equal(actual, expected, feature, axis=0):
    others = np.arange(expected.shape[axis]) != feature
    np.testing.assert_array_equal(np.compress(others, actual, axis), np.compress(others, expected, axis))


@on_special_values
@on_special_layouts
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("feature", [0, 1])
def test_in_training_a_special_value_stays_in_its_feature(rng, shape, axis, value, feature, dtype):
    x = sample(rng, shape, axis=axis, dtype=dtype, ratio=1.0)
    dy = sample(rng, shape, axis=axis, dtype=dtype)
    results = []
    for data in (x, poison(x, axis, feature, value)):
        y, saved = fastbn.batch_norm_training(data, axis=axis)
        dx, dgamma, dbeta = fastbn.batch_norm_backward(dy, saved)
        results.append(((y, axis), (dx, axis), (dgamma, 0), (dbeta, 0), (saved.mean, 0), (saved.var, 0)))
    for (clean, along), (poisoned, _) in zip(*results, strict=True):
        assert_others_are_bit_equal(poisoned, clean, feature, along)
    y, mean, var = results[1][0][0], results[1][4][0], results[1][5][0]
    assert np.isnan(np.moveaxis(y, axis, 0)[feature]).all()
    assert not np.isfinite(mean[feature]) and not np.isfinite(var[feature])


@on_special_values
@on_special_layouts
def test_in_backward_a_special_gradient_stays_in_its_feature(rng, shape, axis, value):
    x, dy = sample(rng, shape, axis=axis), sample(rng, shape, axis=axis)
    _, saved = fastbn.batch_norm_training(x, axis=axis)
    clean = fastbn.batch_norm_backward(dy, saved)
    poisoned = fastbn.batch_norm_backward(poison(dy, axis, 1, value), saved)
    for before, after, along in zip(clean, poisoned, (axis, 0, 0), strict=True):
        assert_others_are_bit_equal(after, before, 1, along)
    assert not np.isfinite(poisoned[1][1]) and not np.isfinite(poisoned[2][1])


@on_special_values
@on_special_layouts
def test_in_inference_a_special_value_stays_in_its_entry(rng, shape, axis, value):
    x = sample(rng, shape, axis=axis)
    gamma, beta = parameters(rng, shape[axis])
    poisoned = poison(x, axis, 1, value)
    clean = fastbn.batch_norm_inference(x, beta, gamma**2, gamma, beta, axis=axis)
    y = fastbn.batch_norm_inference(poisoned, beta, gamma**2, gamma, beta, axis=axis)
    special = ~np.isfinite(poisoned)
    np.testing.assert_array_equal(y[~special], clean[~special])
    np.testing.assert_array_equal(y[special], value * np.sign(gamma[1]))


@pytest.mark.parametrize("dtype, largest", [(np.float32, 1e-38), (np.float64, 1e-308)])
@on_special_layouts
def test_subnormal_input_survives_inference(rng, shape, axis, dtype, largest):
    x = (largest * rng.uniform(-1, 1, shape)).astype(dtype)
    x[np.abs(x) < largest / 1e4] = largest / 100
    zeros, ones = np.zeros(shape[axis], dtype), np.ones(shape[axis], dtype)
    y = fastbn.batch_norm_inference(x, zeros, ones, ones, zeros, axis=axis)
    assert (np.abs(x) < np.finfo(dtype).tiny).all() and (y != 0).all()
    step = WIDE(np.finfo(dtype).smallest_subnormal)
    allowed = 2 * step + 4 * np.finfo(dtype).eps * np.abs(x).astype(WIDE)
    assert_within(y, forward(x, zeros, ones, axis=axis), allowed, "y")


# --- Few entries, which no rounding evens out --------------------------------------------------------------------------


def few_entries(rng, n, c):
    """Tables of float32 whose means were off by 1.1 to 3.8 ulp."""
    clusters = np.where(rng.random((n, c)) < rng.random(c), *rng.normal(size=(2, c)))
    tables = rng.normal(size=(n, c)), np.sort(rng.normal(size=(n, c)), axis=0), clusters, rng.normal(3, 1, (n, c))
    return [table.astype(np.float32) for table in tables]


@pytest.mark.parametrize("n", [2, 3, 8, 12, 16, 24, 31, 48, 63])
def test_the_mean_of_few_entries(rng, n):
    for x in few_entries(rng, n, 4000):
        check_training(x, 1)
        planes = np.ascontiguousarray(x.T[None, :, :])
        np.testing.assert_allclose(fastbn.moments(planes).mean, fastbn.moments(x).mean, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("half", [np.float16, "bfloat16"])
def test_the_mean_of_few_entries_of_half_types(rng, half):
    half = pytest.importorskip("ml_dtypes").bfloat16 if half == "bfloat16" else half
    for x in few_entries(rng, 24, 500):
        x = x.astype(half)
        found, wide = fastbn.moments(x), fastbn.moments(x.astype(np.float64))
        np.testing.assert_allclose(found.mean, wide.mean, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("shape, axis", [((n, 2000), 1) for n in (2, 3, 8, 16, 40, 63)] + [((5, 300, 7), 1), ((5, 7, 300), 2)])
@pytest.mark.parametrize("power", [1, 6])
def test_the_mean_of_few_weighted_entries(rng, shape, axis, power):
    x = rng.normal(size=shape).astype(np.float32)
    rest = tuple(size for i, size in enumerate(shape) if i != axis)
    weights = (rng.random(rest) ** power).astype(np.float32)
    x[(0,) * (x.ndim - 1) + (0,)] = np.nan
    for policy in ("propagate", "omit"):
        if policy == "propagate":
            x = np.nan_to_num(x)
        found = fastbn.moments(x, axis=axis, weights=weights, nan_policy=policy)
        w = np.broadcast_to(np.expand_dims(weights, axis), shape).astype(WIDE) * ~np.isnan(x)
        others = tuple(i for i in range(x.ndim) if i != axis)
        wide = np.nan_to_num(x).astype(WIDE)
        mean = (w * wide).sum(axis=others) / w.sum(axis=others)
        var = (w * (wide - np.expand_dims(mean, others)) ** 2).sum(axis=others) / w.sum(axis=others)
        assert_within(found.mean, mean, spacing(np.maximum(np.abs(mean), np.sqrt(var)), np.float32), "mean")
        np.testing.assert_allclose(found.var(), var.astype(float), rtol=1e-6)


@pytest.mark.parametrize("n", [64, 300, 1000])
@pytest.mark.parametrize("kind", ["decades", "mask"])
def test_the_mean_where_few_of_many_entries_count(rng, n, kind):
    """By weights of all magnitudes, or a mask of a few."""
    x = rng.normal(size=(n, 3000)).astype(np.float32)
    weights = 10 ** rng.uniform(-40, 40, n) if kind == "decades" else np.where(np.arange(n) % 5 == 0, 1.0, 0.0)
    w = weights.astype(WIDE)[:, None]
    mean = (w * x).sum(axis=0) / w.sum()
    std = np.sqrt((w * (x - mean) ** 2).sum(axis=0) / w.sum())
    for found in (fastbn.moments(x, weights=weights).mean, fastbn.batch_norm_training(x, weights=weights)[1].mean):
        assert_within(found, mean, spacing(np.maximum(np.abs(mean), std), np.float32), "mean")


# --- The ends of the range -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("eps", [1e-80, 1e-300])
def test_a_constant_feature_is_beta_for_any_eps(rng, dtype, eps):
    x, beta = np.full((50, 3), 7.25, dtype), rng.normal(size=3).astype(dtype)
    np.testing.assert_array_equal(fastbn.batch_norm_training(x, None, beta, eps=eps)[0], np.broadcast_to(beta, x.shape))
    y = fastbn.batch_norm_inference(x, x[0], np.zeros(3, dtype), np.full(3, -2, dtype), beta, eps=eps)
    np.testing.assert_array_equal(y, np.broadcast_to(beta, x.shape))


@pytest.mark.parametrize("power", [512, 700, 990])
@pytest.mark.parametrize("shape", [(20, 3), (500, 3), (4, 3, 40)], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_variance_that_overflows_double_has_a_root(rng, shape, weighted, power):
    small = rng.normal(3, 1, shape)
    weights = rng.random((shape[0], *shape[2:])) if weighted else None
    expected, small_saved = fastbn.batch_norm_training(small, weights=weights, eps=1e-300)
    y, saved = fastbn.batch_norm_training(small * 2.0 ** power, weights=weights)
    assert np.isinf(saved.var).all()
    np.testing.assert_allclose(saved.rstd * 2.0 ** power, small_saved.rstd, rtol=1e-12)
    np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(20, 3), (4, 3, 40)], ids=str)
@pytest.mark.parametrize("how", ["omit", "omit in place", "renorm", "ghost", "layer"])
def test_a_variance_that_overflows_double_in_other_ways_of_training(rng, shape, how):
    small = rng.normal(3, 1, shape)
    settings = {"renorm": {"renorm": (1, 0), "running_mean": np.zeros(3), "running_var": np.ones(3)},
                "ghost": {"ghost_batch_size": 2}}.get(how, {"nan_policy": "omit"})
    if "omit" in how:
        small[1, 1] = np.nan
    x, dy = small * 2.0 ** 700, rng.normal(size=shape)
    expected, small_saved = fastbn.batch_norm_training(small, eps=1e-300, **settings)
    if how == "layer":
        np.testing.assert_allclose(fastbn.BatchNorm(3, dtype=np.float64, nan_policy="omit")(x), expected, rtol=1e-9, atol=1e-12)
        return
    y, saved = fastbn.batch_norm_training(x, out=x if how == "omit in place" else None, **settings)
    np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-12)
    dx, dgamma, dbeta = fastbn.batch_norm_backward(dy, saved)
    small_dx, small_dgamma, small_dbeta = fastbn.batch_norm_backward(dy, small_saved)
    np.testing.assert_allclose(dx * 2.0 ** 700, small_dx, rtol=1e-8, atol=1e-11)
    np.testing.assert_allclose(dgamma, small_dgamma, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(dbeta, small_dbeta)


@pytest.mark.parametrize("shape", [(20, 3), (4, 3, 40)], ids=str)
def test_moments_that_overflow_double_are_infinite(rng, shape):
    x = rng.normal(3, 1, shape) * 2.0 ** 700
    missing = x.copy()
    missing[1, 1] = np.nan
    for given, nan_policy in ((x, "propagate"), (x, "omit"), (missing, "omit")):
        moments = fastbn.moments(given, nan_policy=nan_policy)
        assert np.isinf(moments.M2).all() and np.isfinite(moments.mean).all()
