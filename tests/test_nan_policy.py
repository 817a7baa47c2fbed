"""What becomes of a batch with NaN or Inf: let through, refused, or kept out of the running statistics."""
import copy
import pickle

import numpy as np
import pytest
from oracle import FLOATS, parameters, sample, strided

import fastbn
from fastbn import _core
from fastbn._training import nan_policies

pytestmark = pytest.mark.filterwarnings("error")

SHAPES = [((12, 5), 1), ((4, 5, 6, 6), 1), ((4, 6, 6, 5), -1), ((5, 9), 0)]
on_shapes = pytest.mark.parametrize("shape, axis", SHAPES, ids=str)
OPTIONS = [{}, {"ghost_batch_size": 3}, {"renorm": (3, 5)}, {"ghost_batch_size": 3, "renorm": (3, 5)}]
on_options = pytest.mark.parametrize("options", OPTIONS, ids=str)


def spoiled(rng, shape, axis, dtype=np.float32):
    """Two NaN and an Inf in feature 1, an Inf of either sign in feature 3."""
    x = sample(rng, shape, axis=axis, dtype=dtype)
    moved = np.moveaxis(x, axis, -1).reshape(-1, 5).copy()
    moved[[0, 4], 1], moved[2, 1], moved[1, 3], moved[3, 3] = np.nan, np.inf, -np.inf, np.inf
    order = [size for i, size in enumerate(shape) if i != axis % len(shape)] + [5]
    return np.ascontiguousarray(np.moveaxis(moved.reshape(order), -1, axis))


MESSAGE = r"(?s)x has NaN or Inf in 2 of 5 features: feature 1 \(2 NaN, 1 Inf\), feature 3 \(2 Inf\);"


def with_running(options):
    if "renorm" not in options:
        return options
    return {**options, "running_mean": np.zeros(5), "running_var": np.ones(5)}


def state(layer):
    return {name: np.copy(value) for name, value in layer.state_dict().items()}


def assert_state(layer, expected):
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


# --- The functions --------------------------------------------------------------------------------------------------


@on_shapes
@on_options
@pytest.mark.parametrize("dtype", FLOATS)
def test_raise_names_features_and_counts(rng, shape, axis, options, dtype):
    if axis == 0 and "ghost_batch_size" in options:
        pytest.skip("no ghost batches along a feature axis")
    x = spoiled(rng, shape, axis, dtype)
    before = x.copy()
    with pytest.raises(ValueError, match=MESSAGE):
        fastbn.batch_norm_training(x, axis=axis, nan_policy="raise", **with_running(options))
    with pytest.raises(ValueError, match=MESSAGE):
        fastbn.batch_norm_training(x, axis=axis, nan_policy="raise", out=np.empty_like(x), **with_running(options))
    with pytest.raises(ValueError, match=MESSAGE):  # in place the input is still there
        fastbn.batch_norm_training(x, axis=axis, nan_policy="raise", out=x, **with_running(options))
    np.testing.assert_array_equal(x, before)
    y, _ = fastbn.batch_norm_training(x, axis=axis, **with_running(options))
    assert np.isnan(y).any()


@pytest.mark.parametrize("layout", [lambda x: np.asfortranarray(x), lambda x: strided(x, (0, 1), (2, 2)),
                                    lambda x: strided(x, (1, 0), (-1, -1)), lambda x: x.tolist()])
def test_raise_in_any_layout(rng, layout):
    with pytest.raises(ValueError, match=MESSAGE):
        fastbn.batch_norm_training(layout(spoiled(rng, (12, 5), 1)), nan_policy="raise")


def test_several_feature_axes_are_counted_flat(rng):
    x = sample(rng, (6, 2, 4, 3))
    x[3, 1, 2, 0] = np.nan
    with pytest.raises(ValueError, match=r"1 of 6 features: feature 3 \(1 NaN\)"):
        fastbn.batch_norm_training(x, axis=(1, 3), nan_policy="raise")


def test_a_long_list_is_cut(rng):
    x = sample(rng, (6, 40))
    x[0] = np.nan
    with pytest.raises(ValueError, match=r"40 of 40 features: feature 0 .*feature 7 \(1 NaN\), \.\.\.;") as caught:
        fastbn.batch_norm_training(x, nan_policy="raise")
    assert "feature 8" not in str(caught.value)


def test_overflow_is_told_from_nan(rng):
    x = sample(rng, (6, 3), dtype=np.float64)
    x[:, 1] = [1e308, -1e308] * 3
    with pytest.raises(ValueError, match=r"1 of 3 features: feature 1 \(a variance that is too large\)"):
        fastbn.batch_norm_training(x, nan_policy="raise")


@pytest.mark.parametrize("options", [{}, {"ghost_batch_size": 10}, {"renorm": (3.0, 5.0)}, {"axis": (1,)}], ids=str)
def test_statistics_that_the_layer_cannot_hold_count_as_inf(rng, options):
    x = (rng.normal(3, 1, (40, 3)) * [1, 1e30, 1]).astype(np.float32)
    layers = {policy: fastbn.BatchNorm(3, nan_policy=policy, **options) for policy in ("propagate", "raise", "skip")}
    y = layers["propagate"](x)
    assert np.isfinite(y).all() and np.isinf(layers["propagate"].running_var).tolist() == [False, True, False]
    before = state(layers["raise"])
    for call in (lambda layer: layer(x), lambda layer: layer.update(fastbn.moments(x)), lambda layer: layer.calibrate([x]),
                 lambda layer: layer.calibrate(fastbn.moments(x))):
        with pytest.raises(ValueError, match="1 of 3 features|feature 1"):
            call(layers["raise"])
        assert_state(layers["raise"], before)
    layers["skip"](x)
    assert (layers["skip"].running_var == 1).all() and layers["skip"].num_batches_tracked == 0
    wide = fastbn.BatchNorm(3, nan_policy="raise", dtype=np.float64, **options)
    assert np.isfinite(wide(x.astype(np.float64))).all() and np.isfinite(wide.running_var).all()


@on_shapes
@on_options
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("place", ["fresh", "out", "in place"])
def test_a_clean_batch_gives_the_same_bits(rng, shape, axis, options, dtype, place):
    if axis == 0 and "ghost_batch_size" in options:
        pytest.skip("no ghost batches along a feature axis")
    x, dy = (sample(rng, shape, axis=axis, dtype=dtype) for _ in range(2))
    gamma, beta = parameters(rng, 5, dtype)
    found = []
    for policy in ("propagate", "raise"):
        own = x.copy()
        out = {"fresh": None, "out": np.empty_like(x), "in place": own}[place]
        y, saved = fastbn.batch_norm_training(own, gamma, beta, axis=axis, nan_policy=policy, out=out,
                                              **with_running(options))
        assert out is None or y is out
        found.append([y, saved.mean, saved.var, saved.rstd, *fastbn.batch_norm_backward(dy, saved)])
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_a_clean_batch_is_not_looked_at_again(rng, monkeypatch):
    """Neither its entries, nor for its moments."""
    monkeypatch.setattr(nan_policies, "_found", None)
    x = sample(rng, (12, 5))
    layer = fastbn.BatchNorm(5, nan_policy="raise")
    with monkeypatch.context() as patch:
        patch.setattr(_core, "plain_moments", None)
        patch.setattr(_core, "moments", None)
        fastbn.batch_norm_training(x, nan_policy="raise")
        fastbn.batch_norm_training(x, nan_policy="raise", out=np.empty_like(x))
        fastbn.batch_norm_training(x, nan_policy="raise", ghost_batch_size=5)
        layer(x)
    assert layer.num_batches_tracked == 1


@pytest.mark.parametrize("shape", [(0, 5), (4, 5, 0)], ids=str)
@on_options
def test_an_empty_batch_has_no_nan(shape, options):
    """Although its variance is NaN."""
    x = np.empty(shape, np.float32)
    for out in (None, x):
        fastbn.batch_norm_training(x, nan_policy="raise", out=out, **with_running(options))
    fastbn.BatchNorm(5, nan_policy="raise", **options)(x)


@pytest.mark.parametrize("options", OPTIONS[:2], ids=str)
@pytest.mark.parametrize("place", ["fresh", "in place"])
def test_only_what_counts_is_looked_at(rng, options, place):
    """Behind a mask NaN leaves no trace; and where no entry counts a variance is NaN without any."""
    x = sample(rng, (12, 5))
    x[3] = np.nan
    mask = np.ones(12, bool)
    mask[3] = False

    def train(mask, **more):
        own = x.copy()
        return fastbn.batch_norm_training(own, mask=mask, nan_policy="raise", out=own if place == "in place" else None,
                                          activation="relu", **options, **more)[0]

    y = train(mask)
    assert np.isfinite(y[mask]).all() and np.isnan(y[3]).all()
    np.testing.assert_array_equal(np.isnan(train(np.zeros(12, bool))), np.isnan(x))
    mask[3] = True
    with pytest.raises(ValueError, match=r"5 of 5 features: feature 0 \(1 NaN\)"):
        train(mask)


def test_policies_that_are_none(rng):
    x = sample(rng, (9, 5))
    for value in ("Omit", "Raise", None, 1):
        with pytest.raises(ValueError, match=f"nan_policy is {value!r}, expected 'propagate', 'raise' or 'omit'"):
            fastbn.batch_norm_training(x, nan_policy=value)
        with pytest.raises(ValueError, match=f"nan_policy is {value!r}, expected 'propagate', 'raise', 'omit' or 'skip'"):
            fastbn.BatchNorm(5, nan_policy=value)
        layer = fastbn.BatchNorm(5, nan_policy="skip")
        with pytest.raises(ValueError, match="nan_policy"):
            layer.nan_policy = value
        assert layer.nan_policy == "skip"
    with pytest.raises(ValueError, match="'skip'.*for the layer"):
        fastbn.batch_norm_training(x, nan_policy="skip")


# --- The layer ------------------------------------------------------------------------------------------------------


@on_options
@pytest.mark.parametrize("tracks", [True, False])
def test_layer_raise_changes_nothing(rng, options, tracks):
    if not tracks and "renorm" in options:
        pytest.skip("renorm needs running statistics")
    layer = fastbn.BatchNorm(5, nan_policy="raise", track_running_stats=tracks, **options)
    x, dy = sample(rng, (12, 5)), sample(rng, (12, 5))
    layer(x)
    before, batch = state(layer), layer.batch_moments
    bad = spoiled(rng, (12, 5), 1)
    for out in (None, np.empty_like(bad), bad):
        with pytest.raises(ValueError, match=MESSAGE):
            layer(bad, out=out)
    assert_state(layer, before)
    assert layer.batch_moments == batch
    twin = fastbn.BatchNorm(5, track_running_stats=tracks, **options)
    twin(x)
    np.testing.assert_array_equal(layer.backward(dy), twin.backward(dy))  # the waiting one, of x


@on_options
def test_layer_skip_keeps_the_running_statistics(rng, options):
    layer, plain = fastbn.BatchNorm(5, nan_policy="skip", **options), fastbn.BatchNorm(5, **options)
    for step in range(4):
        x, bad = sample(rng, (12, 5)), spoiled(rng, (12, 5), 1)
        np.testing.assert_array_equal(layer(x), plain(x))
        before = state(layer)
        y = layer(bad)
        np.testing.assert_array_equal(np.isnan(y).any(axis=0), [False, True, False, True, False])
        assert_state(layer, before)
        assert np.isnan(layer.batch_moments.M2).tolist() == [False, True, False, True, False]
        layer.update(layer.batch_moments)
        assert_state(layer, before)
        dx = layer.backward(x)
        assert np.isnan(dx).any(axis=0).tolist() == [False, True, False, True, False]
    assert layer.num_batches_tracked == 4
    assert_state(layer, state(plain))


def test_layer_propagate_lets_nan_in(rng):
    layer = fastbn.BatchNorm(5)
    layer(spoiled(rng, (12, 5), 1))
    assert np.isnan(layer.running_var).tolist() == [False, True, False, True, False]
    assert layer.num_batches_tracked == 1


def test_moments_with_nan_are_refused_too(rng):
    layer = fastbn.BatchNorm(5, nan_policy="raise")
    before = state(layer)
    with pytest.raises(ValueError, match="moments is NaN, Inf or too large for float32 in 2 of 5 features: 1, 3"):
        layer.update(fastbn.moments(spoiled(rng, (12, 5), 1)))
    assert_state(layer, before)


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_updates_through_running_statistics(rng, policy):
    layer = fastbn.BatchNorm(5, nan_policy=policy)
    layer.use_batch_stats, layer.update_running_stats = False, True
    layer(sample(rng, (12, 5)))
    before, bad = state(layer), spoiled(rng, (12, 5), 1)
    kept = bad.copy()
    if policy == "raise":
        with pytest.raises(ValueError, match=MESSAGE):
            layer(bad, out=bad)
        np.testing.assert_array_equal(bad, kept)
    else:
        layer(bad)
    assert_state(layer, before)


def test_inference_lets_nan_through_whatever_the_policy(rng):
    x = spoiled(rng, (12, 5), 1)
    for policy in ("propagate", "raise", "skip"):
        y = fastbn.BatchNorm(5, nan_policy=policy).eval()(x)
        np.testing.assert_array_equal(np.isfinite(y), np.isfinite(x))
    with pytest.raises(ValueError, match=MESSAGE):
        fastbn.BatchNorm(5, track_running_stats=False, nan_policy="raise").eval()(x)


def test_calibrating_with_nan(rng):
    good, bad = [sample(rng, (12, 5)) for _ in range(2)], spoiled(rng, (12, 5), 1)
    expected = fastbn.BatchNorm(5).calibrate(good)
    layer = fastbn.BatchNorm(5, nan_policy="skip").calibrate([good[0], bad, good[1]])
    assert_state(layer, state(expected))
    with pytest.raises(ValueError, match="all were skipped"):
        layer.calibrate([bad])
    layer.nan_policy = "raise"
    with pytest.raises(ValueError, match=f"batch 1 .*{MESSAGE[4:]}"):
        layer.calibrate([good[0], bad])
    for policy in ("raise", "skip"):
        layer.nan_policy = policy
        with pytest.raises(ValueError, match="moments is NaN"):
            layer.calibrate(fastbn.moments(bad))
    assert_state(layer, state(expected))
    layer.nan_policy = "propagate"
    assert np.isnan(layer.calibrate([bad]).running_var).tolist() == [False, True, False, True, False]


def test_the_setting_is_copied_and_may_change(rng, monkeypatch):
    layer = fastbn.BatchNorm(5, nan_policy="raise")
    assert "nan_policy='raise'" in repr(layer) and "nan_policy" not in repr(fastbn.BatchNorm(5))
    for twin in (copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        with pytest.raises(ValueError, match="NaN"):
            twin(spoiled(rng, (12, 5), 1))
    layer.nan_policy = "propagate"
    monkeypatch.setattr(fastbn.BatchNorm, "_normalize_by_batch", None)
    layer(sample(rng, (12, 5)))


@pytest.mark.parametrize("options", [{}, {"ghost_batch_size": 2}, {"axis": (1,)}], ids=str)
def test_a_refusal_for_the_unbiased_or_merged_variance_leaves_x_alone(options):
    """The biased variance, or those of the slices, would fit float32."""
    x = np.array([[1.73e19], [-1.73e19]], np.float32) if "ghost_batch_size" not in options else np.array(
        [[3e19], [3.001e19], [-3e19], [-3e19]], np.float32)
    layer, own = fastbn.BatchNorm(1, nan_policy="raise", **options), x.copy()
    with pytest.raises(ValueError, match="a variance that is too large"):
        layer(own, out=own)
    np.testing.assert_array_equal(own, x)
    assert layer.batch_moments is None and layer.num_batches_tracked == 0


@pytest.mark.parametrize("policy", ["raise", "skip"])
@pytest.mark.parametrize("mean, spread", [(1e39, 1.0), (-1e39, 1.0), (0.0, 1e20)])
def test_statistics_that_the_layer_cannot_hold(rng, policy, mean, spread):
    """float64 data of a float32 layer: the mean or the variance alone is too large."""
    x = mean + spread * rng.normal(size=(50, 3))
    bn = fastbn.BatchNorm(3, nan_policy=policy)
    if policy == "raise":
        with pytest.raises(ValueError, match="3 features|3 of 3"):
            bn(x)
    else:
        bn(x)
    assert bn.num_batches_tracked == 0 and not bn.running_mean.any() and (bn.running_var == 1).all()
