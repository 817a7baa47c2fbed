"""mask=, weights=, lengths=: statistics over some of the entries, against float64, and that no other entry leaks."""
import itertools

import numpy as np
import pytest
from fused_oracle import Layer, assert_near

import fastbn

SHAPES = [((64, 64), 1), ((9, 3), 1), ((700, 3), 1), ((300, 63), 1), ((20, 600), 1), ((8, 16, 7, 7), 1),
          ((4, 5, 33, 31), 1), ((4, 33, 31, 5), -1), ((2, 3, 90, 90), 1), ((3, 4, 5), 0), ((50, 1), 1)]
FLOATS = (np.float32, np.float64)


def without(shape, axis):
    return tuple(size for i, size in enumerate(shape) if i != axis % len(shape))


def some_mask(rng, shape, axis):
    mask = rng.random(without(shape, axis)) < 0.6
    mask.flat[:3] = True
    return mask


def data(rng, shape, axis, dtype):
    c = shape[axis]
    return ((2 * rng.normal(size=shape) + 3).astype(dtype), rng.normal(size=c).astype(dtype),
            rng.normal(size=c).astype(dtype), rng.normal(size=shape).astype(dtype))


def assert_call(x, gamma, beta, dy, axis, oracle_weights, **arguments):
    dtype = x.dtype
    oracle = Layer(x, gamma, beta, axis=axis, weights=oracle_weights)
    y, saved = fastbn.batch_norm_training(x, gamma, beta, axis=axis, **arguments)
    expected = oracle.forward()
    np.testing.assert_allclose(saved.var, expected.var, rtol=1e-6 if dtype == np.float32 else 1e-12)
    np.testing.assert_allclose(saved.mean, expected.mean, rtol=1.2e-7 if dtype == np.float32 else 1e-13, atol=1e-7)
    assert_near(y, expected.y, dtype, 4 * (1 + oracle.rstd.max()))
    found, want = fastbn.batch_norm_backward(dy, saved), oracle.backward(dy)
    scale = np.abs(dy).sum() / gamma.size * 4
    assert_near(found[0], want.dx, dtype, 40 * (1 + oracle.rstd.max()**2))
    assert_near(found[1], want.dgamma, dtype, scale)
    assert_near(found[2], want.dbeta, dtype, scale)


@pytest.mark.parametrize("shape, axis", SHAPES)
def test_masks_and_weights_against_float64(rng, shape, axis):
    for dtype in FLOATS:
        x, gamma, beta, dy = data(rng, shape, axis, dtype)
        mask = some_mask(rng, shape, axis)
        weights = rng.random(mask.shape).astype(np.float32) * mask
        assert_call(x, gamma, beta, dy, axis, mask, mask=mask)
        assert_call(x, gamma, beta, dy, axis, weights, weights=weights)
        assert_call(x, gamma, beta, dy, axis, weights * mask, weights=weights, mask=mask)


@pytest.mark.parametrize("shape, axis, sequence", [((6, 11, 5), -1, (6, 11)), ((6, 5, 11), 1, (6, 11)),
                                                   ((3, 7, 2, 4), -1, (3, 7, 1))])
def test_lengths_are_a_mask(rng, shape, axis, sequence):
    x, gamma, beta, dy = data(rng, shape, axis, np.float64)
    lengths = rng.integers(0, sequence[1] + 1, size=sequence[0])
    mask = (np.arange(sequence[1]) < lengths[:, None]).reshape(sequence)
    assert_call(x, gamma, beta, dy, axis, mask, lengths=lengths)


def test_masks_broadcast(rng):
    x, gamma, beta, dy = data(rng, (6, 3, 4, 5), 1, np.float64)
    mask = np.array([True, False, True, True, False, True])
    assert_call(x, gamma, beta, dy, 1, mask[:, None, None], mask=mask)
    by_step = rng.random((6, 4)) < 0.7
    assert_call(x, gamma, beta, dy, 1, by_step[:, :, None], mask=by_step)
    assert_call(x, gamma, beta, dy, 1, mask[:4, None], mask=mask[None, :4])
    assert_call(x, gamma, beta, dy, 1, mask[:5], mask=mask[None, None, :5])


@pytest.mark.parametrize("axis", [1, 2, 3, -1, (1, 2)])
@pytest.mark.parametrize("more", [{}, {"ghost_batch_size": 2}, {"renorm": (3.0, 5.0)}, {"nan_policy": "omit"}], ids=str)
def test_a_value_for_each_sample_whichever_axis_has_the_features(rng, axis, more):
    """Where sizes agree too: a mask of (4,) for (4, 4, 4, 4) used to mask columns."""
    x = rng.normal(size=(4, 4, 4, 4))
    features = 16 if isinstance(axis, tuple) else 4
    if "renorm" in more:
        more = {**more, "running_mean": np.zeros(features), "running_var": np.ones(features)}
    rest = without(x.shape, axis) if isinstance(axis, int) else (4, 4)
    for name, value in (("mask", np.array([True, False, True, True])), ("weights", np.array([0.5, 0, 2, 1]))):
        full = np.broadcast_to(value.reshape((4,) + (1,) * (len(rest) - 1)), rest)
        y, saved = fastbn.batch_norm_training(x, axis=axis, **{name: value}, **more)
        want, want_saved = fastbn.batch_norm_training(x, axis=axis, **{name: full}, **more)
        np.testing.assert_array_equal(y, want)
        assert saved.moments == want_saved.moments
        assert fastbn.moments(x, axis=axis, **{name: value}) == fastbn.moments(x, axis=axis, **{name: full})


def test_a_mask_by_the_last_axes_is_refused_with_its_shape(rng):
    x = rng.normal(size=(4, 3, 7, 9))
    for shape, hint in (((9,), r"write mask.reshape\(\(1, 1, 9\)\)"), ((7, 9), r"write mask.reshape\(\(1, 7, 9\)\)"),
                        ((5,), "with 1 for any size$"), ((4, 3, 7, 9), r"expected \(4, 7, 9\)")):
        with pytest.raises(ValueError, match=hint):
            fastbn.batch_norm_training(x, mask=np.ones(shape, bool))
    with pytest.raises(ValueError, match="all axes of x are feature axes"):
        fastbn.moments(x, axis=(0, 1, 2, 3), mask=np.ones(4, bool))


@pytest.mark.parametrize("name, value", [("mask", np.ones(5, bool)), ("weights", np.ones(5)), ("lengths", np.ones(5, int))])
def test_sizes_are_those_of_the_whole_batch_with_ghost_batches(rng, name, value):
    x = rng.normal(size=(6, 3, 4))
    with pytest.raises(ValueError, match=rf"{name} has shape \(5,\), expected \(6,"):
        fastbn.batch_norm_training(x, ghost_batch_size=2, **{name: value})


@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("shape, axis", SHAPES)
def test_what_is_masked_leaves_no_trace(rng, shape, axis, junk):
    """Not even in the last bit: the results for the entries that count are those with zeros in place of the junk."""
    x, gamma, beta, dy = data(rng, shape, axis, np.float32)
    mask = some_mask(rng, shape, axis)
    hidden = np.broadcast_to(np.expand_dims(~mask, axis), shape)
    dy[hidden] = 0
    results = []
    for value in (0, junk):
        x[hidden] = value
        y, saved = fastbn.batch_norm_training(x, gamma, beta, axis=axis, mask=mask)
        dx, dgamma, dbeta = fastbn.batch_norm_backward(dy, saved)
        assert not np.any(dx[hidden])
        results.append((y[~hidden], saved.var, dx[~hidden], dgamma, dbeta))
    for got, want in zip(*results):
        assert np.isfinite(got).all()
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


def test_masked_statistics_do_not_depend_on_the_mean(rng):
    x = (rng.normal(size=(4000, 5)) + 1e6).astype(np.float32)
    mask = some_mask(rng, x.shape, 1)
    x[~mask] = np.nan
    moments = fastbn.moments(x, mask=mask)
    kept = x[mask].astype(np.longdouble)
    assert moments.count == mask.sum()
    np.testing.assert_allclose(moments.mean, kept.mean(axis=0).astype(float), rtol=1.2e-7)
    np.testing.assert_allclose(moments.var(), kept.var(axis=0).astype(float), rtol=1e-6)


def test_gradients_against_central_differences(rng):
    x, gamma, beta, dy = data(rng, (7, 3, 2), 1, np.float64)
    weights = rng.random((7, 2)) * (rng.random((7, 2)) < 0.7)

    def loss(x):
        return float((fastbn.batch_norm_training(x, gamma, beta, weights=weights)[0] * dy).sum())

    _, saved = fastbn.batch_norm_training(x, gamma, beta, weights=weights)
    dx = fastbn.batch_norm_backward(dy, saved)[0]
    for at in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[at] += 1e-6
        down[at] -= 1e-6
        assert abs((loss(up) - loss(down)) / 2e-6 - dx[at]) < 1e-6 * (1 + abs(dx[at]))


def test_equal_weights_are_no_weights(rng):
    x, gamma, beta, dy = data(rng, (40, 6), 1, np.float64)
    y, saved = fastbn.batch_norm_training(x, gamma, beta)
    weighted, saved_weighted = fastbn.batch_norm_training(x, gamma, beta, weights=np.full(40, 2.5))
    np.testing.assert_allclose(weighted, y, rtol=1e-12, atol=1e-13)
    for got, want in zip(fastbn.batch_norm_backward(dy, saved_weighted), fastbn.batch_norm_backward(dy, saved)):
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-13)


def test_nothing_counts(rng):
    x = rng.normal(size=(8, 3)).astype(np.float32)
    y, saved = fastbn.batch_norm_training(x, mask=np.zeros(8, bool))
    assert not saved.mean.any() and np.isnan(saved.var).all() and not y.any()
    moments = fastbn.moments(x, weights=np.zeros(8))
    assert moments.count == 0 and not moments.mean.any() and np.isnan(moments.var()).all()


def test_weighted_moments_merge(rng):
    x, weights = rng.normal(size=(90, 4)), rng.random(90)
    parts = [fastbn.moments(x[i:i + 30], weights=weights[i:i + 30]) for i in (0, 30, 60)]
    whole, merged = fastbn.moments(x, weights=weights), sum(parts)
    assert abs(merged.count - weights.sum()) < 1e-12
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(merged.var(), whole.var(), rtol=1e-12)


@pytest.mark.parametrize("arguments, error, text", [
    ({"mask": np.ones(8)}, TypeError, "mask has dtype float64, expected bool"),
    ({"mask": np.ma.array(np.ones(8, bool), mask=True)}, TypeError, r"mask is a masked array.*mask.filled\(False\)"),
    ({"lengths": np.ma.array(np.full(8, 2), mask=True)}, TypeError, r"lengths is a masked array.*lengths.filled\(0\)"),
    ({"mask": np.ones((8, 3), bool)}, ValueError, r"mask has shape \(8, 3\), expected \(8, 5\)"),
    ({"weights": -np.ones((8, 5))}, ValueError, "negative"), ({"weights": np.full((8, 5), np.nan)}, ValueError, "finite"),
    ({"weights": np.ones((8, 5), bool)}, TypeError, "weights has dtype bool"),
    ({"lengths": np.ones(8)}, TypeError, "lengths has dtype float64"),
    ({"lengths": np.ones(7, int)}, ValueError, r"lengths has shape \(7,\), expected \(8,\)"),
    ({"lengths": np.full(8, 6)}, ValueError, "lengths goes from 6 to 6, expected 0 to 5"),
])
def test_wrong_arguments(rng, arguments, error, text):
    x = rng.normal(size=(8, 3, 5)).astype(np.float32)
    for call in (fastbn.batch_norm_training, fastbn.moments):
        with pytest.raises(error, match=text):
            call(x, **arguments)


def test_lengths_need_a_sequence(rng):
    with pytest.raises(ValueError, match="only a batch axis"):
        fastbn.batch_norm_training(rng.normal(size=(8, 3)), lengths=np.ones(8, int))


def test_weights_belong_to_entries_whatever_the_order_of_memory(rng):
    """x, y, dy and dx may each lie in another order."""
    x, gamma, beta, dy = data(rng, (4, 5, 6, 7), 1, np.float64)
    mask = some_mask(rng, x.shape, 1)
    y, saved = fastbn.batch_norm_training(x, gamma, beta, mask=mask)
    expected = y, *fastbn.batch_norm_backward(dy, saved)
    orders = [lambda a: a.copy(), lambda a: a.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2), np.asfortranarray]
    for of_x, of_y, of_dy, of_dx in itertools.product(orders, repeat=4):
        y, saved = fastbn.batch_norm_training(of_x(x), gamma, beta, mask=mask, out=of_y(np.empty_like(x)))
        found = y, *fastbn.batch_norm_backward(of_dy(dy), saved, out=of_dx(np.empty_like(x)))
        for got, want in zip(found, expected):
            np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


# --- Only ratios count ----------------------------------------------------------------------------------------------


def results(x, dy, weights, **settings):
    """Everything that a training step of a layer leaves."""
    layer = fastbn.BatchNorm(x.shape[1], dtype=x.dtype, **settings)
    y = layer(x, weights=weights)
    dx = layer.backward(dy)
    return y, dx, layer.dgamma, layer.dbeta, layer.running_mean, layer.running_var, np.array(layer.num_batches_tracked)


SETTINGS = [{}, {"ddof": 0}, {"momentum": None}, {"ghost_batch_size": 7}, {"renorm": (3.0, 5.0)}, {"nan_policy": "omit"},
            {"activation": "silu"}]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
def test_doubling_weights_changes_no_bit(rng, dtype, settings):
    x, _, _, dy = data(rng, (20, 5, 3), 1, dtype)
    if "nan_policy" in settings:
        x[rng.random(x.shape) < 0.1] = np.nan
    weights = rng.random((20, 3))
    expected = results(x, dy, weights, **settings)
    for factor in (2.0, 2.0 ** -130, 2.0 ** 130):
        for found, want in zip(results(x, dy, factor * weights, **settings), expected):
            np.testing.assert_array_equal(found, want)
    for factor in (1 / weights.sum(), 0.3, 1e-40, 1e40):
        for found, want in zip(results(x, dy, factor * weights, **settings), expected):
            np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


def test_weights_of_bfloat16(rng):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    x, weights = rng.normal(size=(8, 3)), rng.random(8).astype(bfloat16)
    assert fastbn.moments(x, weights=weights) == fastbn.moments(x, weights=weights.astype(np.float64))


@pytest.mark.parametrize("ddof", [0, 1])
def test_weights_that_add_up_to_one(rng, ddof):
    """The sum of weights is no number of entries: these made a running variance of 1e15, or no step at all."""
    x, weights = rng.normal(5, 2, (50, 3)), rng.random(50)
    for scale in (weights.sum(), 2 * weights.sum()):
        bn = fastbn.BatchNorm(3, ddof=ddof, momentum=None, dtype=np.float64)
        bn(x, weights=weights / scale)
        effective = weights.sum() ** 2 / (weights ** 2).sum()
        var = np.average((x - np.average(x, axis=0, weights=weights)) ** 2, axis=0, weights=weights)
        np.testing.assert_allclose(bn.running_mean, np.average(x, axis=0, weights=weights), rtol=1e-12)
        np.testing.assert_allclose(bn.running_var, var * (effective / (effective - ddof)), rtol=1e-12)
        assert bn.num_batches_tracked == 1


@pytest.mark.filterwarnings("error", "ignore:one value per feature counts")
@pytest.mark.parametrize("weights, steps", [([1e-3, 0, 0], 0), ([5.0, 0, 0], 0), ([1.0, 1e-9, 0], 0), ([1.0, 1e-3, 0], 1),
                                            ([0.0, 0, 0], 0)])
def test_steps_need_more_than_one_effective_entry(rng, weights, steps):
    x = rng.normal(size=(3, 2))
    for ddof, expected in ((1, steps), (0, int(max(weights) > 0))):
        bn = fastbn.BatchNorm(2, ddof=ddof)
        bn(x, weights=np.array(weights))
        assert bn.num_batches_tracked == expected
        assert np.isfinite(bn.running_var).all() and (bn.running_var < 100).all()


def test_moments_carry_the_squares(rng):
    x, weights = rng.normal(3, 2, (60, 4)), rng.random(60) * 1e-3
    whole = fastbn.moments(x, weights=weights)
    assert np.isclose(whole.count, weights.sum()) and np.isclose(whole.squares, (weights ** 2).sum())
    effective = weights.sum() ** 2 / (weights ** 2).sum()
    np.testing.assert_allclose(whole.var(1), whole.var() * effective / (effective - 1), rtol=1e-12)
    parts = [fastbn.moments(x[s], weights=weights[s]) for s in (slice(0, 7), slice(7, 40), slice(40, 60))]
    for merged in (sum(parts), fastbn.Moments.merge_all(parts)):
        np.testing.assert_allclose(merged.var(1), whole.var(1), rtol=1e-10)
    assert whole != fastbn.Moments(whole.count, whole.mean, whole.M2) and "squares=" in repr(whole)
    bn = fastbn.BatchNorm(4, dtype=np.float64).calibrate(whole)
    np.testing.assert_allclose(bn.running_var, whole.var(1))
    np.testing.assert_allclose(bn.drift(whole).divergence, 0, atol=1e-12)
    masked = fastbn.moments(x, mask=weights > 5e-4)
    assert masked.squares == masked.count and type(masked.count) is int and "squares" not in repr(masked)


def test_repeated_rows_agree_with_the_biased_variance(rng):
    x, times = rng.normal(size=(9, 3)), rng.integers(1, 4, 9)
    weighted, repeated = fastbn.moments(x, weights=times), fastbn.moments(np.repeat(x, times, axis=0))
    np.testing.assert_allclose(weighted.var(), repeated.var(), rtol=1e-12)
    assert weighted.count == repeated.count and weighted.squares > repeated.squares


def test_moments_of_before_are_unpickled():
    """A pickle of before `squares` has count, mean and M2."""
    old = fastbn.Moments.__new__(fastbn.Moments)
    old.__setstate__((None, {"count": 5, "mean": np.zeros(2), "M2": np.ones(2)}))
    assert old == fastbn.Moments(5, np.zeros(2), np.ones(2))


def test_squares_by_feature_where_entries_are_missing(rng):
    x, weights = rng.normal(size=(40, 3)), rng.random(40) * 1e-5
    x[:20, 1] = np.nan
    found = fastbn.moments(x, weights=weights, nan_policy="omit")
    np.testing.assert_allclose(found.squares, [(weights ** 2).sum(), (weights[20:] ** 2).sum(), (weights ** 2).sum()])
    alone = fastbn.moments(x[20:, 1:2], weights=weights[20:])
    np.testing.assert_allclose(found.var(1)[1], alone.var(1)[0], rtol=1e-12)


# --- Nothing counts -------------------------------------------------------------------------------------------------


def nothing(shape, kind):
    rest = without(shape, 1)
    return {"mask": {"mask": np.zeros(rest, bool)}, "weights": {"weights": np.zeros(rest)},
            "lengths": {"lengths": np.zeros(shape[0], int)}}[kind]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("settings", [*SETTINGS, {"nan_policy": "raise"}, {"nan_policy": "skip"},
                                      {"activation": "relu", "ghost_batch_size": 7}], ids=str)
@pytest.mark.parametrize("kind", ["mask", "weights", "lengths"])
@pytest.mark.parametrize("dtype", [*FLOATS, np.float16])
def test_where_nothing_counts_it_is_as_for_an_empty_batch(rng, dtype, kind, settings):
    x, dy = (rng.normal(3, 2, (20, 5, 6)).astype(dtype) for _ in range(2))
    layer = fastbn.BatchNorm(5, **settings)
    layer.beta[:] = rng.normal(size=5)
    plain = fastbn.batch_norm_inference(np.zeros_like(x), np.zeros(5), np.ones(5), None, layer.beta,
                                        activation=settings.get("activation"))
    before = layer.state_dict()
    y = layer(x, **nothing(x.shape, kind))
    np.testing.assert_allclose(y.astype(float), plain.astype(float), rtol=2e-3 if dtype == np.float16 else 1e-6)
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    assert not layer.backward(dy).any() and not layer.dgamma.any() and np.isfinite(layer.dbeta).all()
    assert layer.batch_moments.count is not None and not np.any(layer.batch_moments.count)
    if "activation" not in settings:
        np.testing.assert_allclose(layer.dbeta, dy.sum(axis=(0, 2), dtype=float), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_padded_ghost_batch_leaves_the_others_alone(rng, dtype):
    x, dy = (rng.normal(3, 2, (12, 5)).astype(dtype) for _ in range(2))
    mask = np.arange(12) < 8
    dy[8:] = 0
    y, saved = fastbn.batch_norm_training(x, ghost_batch_size=4, mask=mask)
    found = fastbn.batch_norm_backward(dy, saved)
    few, few_saved = fastbn.batch_norm_training(x[:8], ghost_batch_size=4, mask=mask[:8])
    want = fastbn.batch_norm_backward(dy[:8], few_saved)
    np.testing.assert_array_equal(y[:8], few)
    np.testing.assert_array_equal(y[8:], 0)
    np.testing.assert_array_equal(found[0][:8], want[0])
    assert not found[0][8:].any()
    for one, other in zip(found[1:], want[1:]):
        np.testing.assert_array_equal(one, other)
    assert saved.moments == few_saved.moments


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_feature_without_entries_leaves_the_others_alone(rng, weighted, in_place):
    x, dy = rng.normal(3, 2, (12, 5)), rng.normal(size=(12, 5))
    x[:, 2] = np.nan
    x[3, 1] = np.nan
    weights = rng.random(12) + 0.1 if weighted else None
    settings = {"nan_policy": "omit", "weights": weights}
    few, few_saved = fastbn.batch_norm_training(x[:, [0, 1, 3, 4]], **settings)
    want = fastbn.batch_norm_backward(dy[:, [0, 1, 3, 4]], few_saved)
    y, saved = fastbn.batch_norm_training(x, out=x if in_place else None, **settings)
    dx, dgamma, dbeta = fastbn.batch_norm_backward(dy, saved)
    np.testing.assert_allclose(y[:, [0, 1, 3, 4]], few, rtol=1e-12)
    np.testing.assert_allclose(dx[:, [0, 1, 3, 4]], want[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(dgamma[[0, 1, 3, 4]], want[1], rtol=1e-9, atol=1e-12)
    assert np.isnan(y[:, 2]).all() and not dx[:, 2].any() and dgamma[2] == 0 and dbeta[2] == 0


@pytest.mark.parametrize("weights", [np.full(6, 1e160), np.arange(6) * 1e-170, np.ma.masked_less(np.arange(6.0), 2)], ids=["huge", "tiny", "masked"])
def test_weights_whose_squares_are_no_doubles(weights):
    with pytest.raises((ValueError, TypeError), match="weights (has entries from|is a masked array)"):
        fastbn.moments(np.arange(18.0).reshape(6, 3), weights=weights)
