"""A layer's running statistics apart from training: calibration, drift, and the update as a step of its own."""
import copy
import pickle
import sys

import numpy as np
import pytest

import fastbn
from oracle import FLOATS, WIDE, check_forward, sample, statistics, strided, unbiased

pytestmark = pytest.mark.filterwarnings("error")

RTOL = {np.float32: 2e-6, np.float64: 1e-12}
SHAPES = [((31, 4), 1), ((6, 4, 5, 3), 1), ((6, 5, 3, 4), -1), ((4, 6, 5), 0)]
on_shapes = pytest.mark.parametrize("shape, axis", SHAPES, ids=str)


def state(layer):
    return {name: np.copy(value) for name, value in layer.state_dict().items()}


def assert_same_state(layer, expected):
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def unequal_batches(rng, axis=1, dtype=np.float32):
    """Batches of different sizes and means, and all their entries in one array."""
    batches = [sample(rng, (size, 4, 3), dtype=dtype) + dtype(shift) for size, shift in ((40, 0), (3, 9), (17, -4))]
    return [np.moveaxis(x, 1, axis) for x in batches], np.concatenate(batches)


# --- calibrate ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("param_dtype", FLOATS)
def test_calibrate_gives_the_statistics_of_all_entries(rng, axis, ddof, dtype, param_dtype):
    batches, everything = unequal_batches(rng, axis, dtype)
    layer = fastbn.BatchNorm(4, axis=axis, ddof=ddof, dtype=param_dtype)
    assert layer.calibrate(iter(batches)) is layer
    stats = statistics(everything)
    rtol = max(RTOL[dtype], RTOL[param_dtype])
    np.testing.assert_allclose(layer.running_mean, stats.mean.astype(float), rtol=rtol, atol=rtol)
    np.testing.assert_allclose(layer.running_var, unbiased(stats, ddof).astype(float), rtol=rtol)
    assert layer.num_batches_tracked == 3 and layer.training
    x = batches[0]
    check_forward(layer.eval()(x), x, layer.running_mean, layer.running_var, axis=axis)


def test_calibrate_is_no_mean_of_estimates(rng):
    batches, everything = unequal_batches(rng, dtype=np.float64)
    exact = fastbn.BatchNorm(4, momentum=None, dtype=np.float64).calibrate(batches)
    mean = fastbn.BatchNorm(4, momentum=None, dtype=np.float64)
    for x in batches:
        mean(x)
    assert (mean.running_var < 0.4 * exact.running_var).all()  # what the batches' means differ by is missing
    assert (np.abs(mean.running_mean - exact.running_mean) > 1).all()  # the batch of 3 weighs as much as that of 40
    np.testing.assert_allclose(exact.running_mean, statistics(everything).mean.astype(float), rtol=1e-12)


def test_calibrate_takes_moments(rng):
    batches, _ = unequal_batches(rng)
    one, other = fastbn.BatchNorm(4).calibrate(batches), fastbn.BatchNorm(4)
    other.calibrate(sum(fastbn.moments(x) for x in batches))
    np.testing.assert_array_equal(one.running_mean, other.running_mean)
    np.testing.assert_array_equal(one.running_var, other.running_var)
    assert other.num_batches_tracked == 1


def test_a_cumulative_average_goes_on_from_a_calibration(rng):
    batches, _ = unequal_batches(rng)
    layer = fastbn.BatchNorm(4, momentum=None, dtype=np.float64).calibrate(batches)
    before = layer.running_mean.copy()
    layer(batches[1])
    expected = (3 * before + statistics(batches[1]).mean.astype(float)) / 4
    np.testing.assert_allclose(layer.running_mean, expected, rtol=1e-6)


def test_calibrate_holds_no_batch(rng):
    import weakref
    seen = []

    def batches():
        for _ in range(4):
            assert sum(reference() is not None for reference in seen) <= 1
            x = sample(rng, (9, 4))
            seen.append(weakref.ref(x))
            yield x
            del x

    fastbn.BatchNorm(4).calibrate(batches())
    assert len(seen) == 4 and all(reference() is None for reference in seen)


def failing(rng):
    yield sample(rng, (9, 4))
    raise OSError("disk")


BAD_BATCHES = {
    "empty": (lambda rng: [], ValueError, "batches was empty"),
    "no entries": (lambda rng: [np.empty((0, 4), np.float32)], ValueError, "0 entries"),
    "one entry": (lambda rng: [np.ones((1, 4), np.float32)], ValueError, "1 entries.*more than ddof=1"),
    "wrong features": (lambda rng: [sample(rng, (9, 4)), sample(rng, (9, 5))], ValueError,
                       "batch 1 .*5 entries.*4 features"),
    "integers": (lambda rng: [sample(rng, (9, 4)), np.ones((9, 4), int)], TypeError, "batch 1 .*int64"),
    "one axis": (lambda rng: [np.ones(4, np.float32)], ValueError, "batch 0 .*at least 2 dim"),
    "an array": (lambda rng: sample(rng, (3, 9, 4)), TypeError, r"\[x\]"),
    "no iterable": (lambda rng: 7, TypeError, "int"),
    "other moments": (lambda rng: fastbn.moments(sample(rng, (9, 5))), ValueError, "5 features.*4"),
    "moments of nothing": (lambda rng: fastbn.moments(np.empty((0, 4))), ValueError, "0 entries"),
    "its own failure": (failing, OSError, "disk"),
}


@pytest.mark.parametrize("make, error, message", BAD_BATCHES.values(), ids=BAD_BATCHES)
def test_a_calibration_that_fails_changes_nothing(rng, make, error, message):
    layer = fastbn.BatchNorm(4)
    layer(sample(rng, (9, 4)))
    before = state(layer)
    with pytest.raises(error, match=f"(?s){message}"):
        layer.calibrate(make(rng))
    assert_same_state(layer, before)


@pytest.mark.parametrize("name", ["running_mean", "running_var"])
def test_calibrating_read_only_averages_changes_nothing(rng, name):
    layer = fastbn.BatchNorm(4)
    getattr(layer, name).flags.writeable = False
    before = state(layer)
    with pytest.raises(ValueError, match=f"{name} is read-only"):
        layer.calibrate([sample(rng, (9, 4))])
    assert_same_state(layer, before)


def test_statistics_need_running_ones(rng):
    layer = fastbn.BatchNorm(4, track_running_stats=False)
    x = sample(rng, (9, 4))
    for call in (lambda: layer.calibrate([x]), lambda: layer.drift(x), lambda: layer.update(fastbn.moments(x))):
        with pytest.raises(RuntimeError, match="track_running_stats"):
            call()


def test_a_progress_bar_on_stderr(rng, capfd):
    pytest.importorskip("rich")
    batches, _ = unequal_batches(rng)
    plain = fastbn.BatchNorm(4).calibrate(batches)
    for iterable in (batches, iter(batches)):  # with a length and without
        layer = fastbn.BatchNorm(4).calibrate(iterable, progress=True)
        assert_same_state(layer, state(plain))
        out, err = capfd.readouterr()
        assert out == "" and "calibrating" in err


def test_a_failing_calibration_ends_its_progress_bar(rng, capfd):
    progress = pytest.importorskip("rich.progress")
    with pytest.raises(ValueError) as caught:
        fastbn.BatchNorm(4).calibrate([sample(rng, (9, 5))], progress=True)
    with progress.Progress() as bar:  # two at once are an error of rich, and the first is still in the traceback
        bar.add_task("next")
    assert caught.traceback


def test_progress_without_rich_names_the_extra(rng, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)
    layer = fastbn.BatchNorm(4)
    before, batches = state(layer), iter([sample(rng, (9, 4))])
    with pytest.raises(ImportError, match=r"rich.*fastbn\[demo\]"):
        layer.calibrate(batches, progress=True)
    assert_same_state(layer, before)
    assert len(list(batches)) == 1


# --- drift ----------------------------------------------------------------------------------------------------------


def wide_drift(layer, x, axis):
    """By the formulas of the two normal distributions, with logarithms."""
    stats = statistics(x, axis)
    p_mean, p_var = stats.mean, unbiased(stats, layer.ddof) + WIDE(layer.eps)
    q_mean, q_var = layer.running_mean.astype(WIDE), layer.running_var.astype(WIDE) + WIDE(layer.eps)

    def divergence(mean, var, other_mean, other_var):
        return (np.log(other_var / var) + (var + (mean - other_mean) ** 2) / other_var - 1) / 2

    both = divergence(p_mean, p_var, q_mean, q_var) + divergence(q_mean, q_var, p_mean, p_var)
    return (p_mean - q_mean) / np.sqrt(q_var), np.sqrt(p_var / q_var), both


@on_shapes
@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("dtype", FLOATS)
def test_drift(rng, shape, axis, ddof, dtype):
    layer = fastbn.BatchNorm(4, axis=axis, ddof=ddof, dtype=dtype)
    layer.running_mean[:], layer.running_var[:] = rng.standard_normal(4), rng.uniform(0.5, 2, 4)
    x = sample(rng, shape, axis=axis, dtype=dtype, ratio=1.0)
    before = state(layer)
    found = layer.drift(x)
    for actual, expected in zip(found, wide_drift(layer, x, axis), strict=True):
        assert actual.dtype == np.float64 and actual.shape == (4,)
        np.testing.assert_allclose(actual, expected.astype(float), rtol=10 * RTOL[dtype], atol=RTOL[dtype])
    assert found._fields == ("mean_shift", "std_ratio", "divergence")
    assert_same_state(layer, before)
    other = layer.drift(fastbn.moments(x, axis=axis))
    np.testing.assert_array_equal(found, other)


def test_drift_knows_no_difference(rng):
    x = sample(rng, (50, 4), dtype=np.float64)
    found = fastbn.BatchNorm(4, dtype=np.float64).calibrate([x]).drift(x)
    np.testing.assert_array_equal(found.mean_shift, 0)
    np.testing.assert_array_equal(found.std_ratio, 1)
    np.testing.assert_array_equal(found.divergence, 0)


def test_drift_of_one_standard_deviation_is_one(rng):
    x = sample(rng, (50, 4), dtype=np.float64)
    layer = fastbn.BatchNorm(4, dtype=np.float64, eps=1e-12).calibrate([x])
    np.testing.assert_allclose(layer.drift(x + np.sqrt(layer.running_var)).divergence, 1, rtol=1e-9)


def test_drift_keeps_nan_in_its_feature(rng):
    x = sample(rng, (9, 4))
    x[3, 2] = np.nan
    for values in fastbn.BatchNorm(4).drift(x):
        np.testing.assert_array_equal(np.isnan(values), [False, False, True, False])


def test_drift_of_what_does_not_fit(rng):
    layer = fastbn.BatchNorm(4)
    for bad, error in ((sample(rng, (9, 5)), ValueError), (np.ones((9, 4), int), TypeError),
                       (np.ones((1, 4)), ValueError), (fastbn.moments(sample(rng, (9, 5))), ValueError),
                       (np.empty((0, 4)), ValueError)):
        with pytest.raises(error):
            layer.drift(bad)


# --- update, one step -----------------------------------------------------------------------------------------------


def two_layers(**settings):
    return fastbn.BatchNorm(4, **settings), fastbn.BatchNorm(4, **settings)


SETTINGS = [{}, {"ddof": 0}, {"momentum": None}, {"momentum": 0.7, "dtype": np.float64}]
LAYOUTS = {"packed": lambda x: x, "strided": lambda x: strided(x, range(x.ndim), [2] + [1] * (x.ndim - 1)),
           "list": lambda x: x.tolist()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@on_shapes
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_step_apart_is_that_of_the_forward_call(rng, shape, axis, settings, layout, dtype):
    """With the moments that the call leaves, and with those of a pass of their own."""
    at_once, apart = two_layers(axis=axis, **settings)
    third = copy.deepcopy(apart)
    for _ in range(5):
        x = LAYOUTS[layout](sample(rng, shape, axis=axis, dtype=dtype, ratio=3.0))
        y = at_once(x)
        before = state(apart)
        np.testing.assert_array_equal(apart(x, update=False), y)
        assert_same_state(apart, before)
        assert apart.update(apart.batch_moments) is None
        third.update(fastbn.moments(x, axis=axis))
        for layer in (apart, third):
            assert_same_state(layer, state(at_once))
    assert at_once.num_batches_tracked == 5


@pytest.mark.parametrize("count", [*range(2, 40), 1021, 4093])
def test_batch_moments_give_every_bit_of_the_variance(rng, count):
    """M2 is no number that the forward call gives: it is found again from the variance."""
    x = rng.standard_normal((count, 4)) * np.exp(rng.uniform(-20, 20, 4))
    layer = fastbn.BatchNorm(4, dtype=np.float64, momentum=0.0 if count < 0 else 0.9)
    layer(x)
    _, saved = fastbn.batch_norm_training(x)
    found = layer.batch_moments
    assert found.count == count and type(found.count) is int
    np.testing.assert_array_equal(found.mean, saved.mean)
    np.testing.assert_array_equal(found.biased_var(), saved.var)
    np.testing.assert_allclose(found.M2, fastbn.moments(x).M2, rtol=1e-15)


def test_recomputation_counts_a_batch_once(rng):
    """As checkpointing does it: the forward call runs again before its backward."""
    plain, layer = two_layers()
    for _ in range(3):
        x, dy = sample(rng, (9, 4)), sample(rng, (9, 4))
        plain(x)
        expected = plain.backward(dy)
        layer.forward(x, update=False)
        layer.forward(x, update=False)
        np.testing.assert_array_equal(layer.backward(dy), expected)
        layer.update(layer.batch_moments)
    assert_same_state(layer, state(plain))


def test_batch_moments_are_the_last_training_batch_s(rng):
    layer = fastbn.BatchNorm(4)
    assert layer.batch_moments is None
    layer(sample(rng, (9, 4)))
    x = sample(rng, (7, 4))
    layer(x)
    layer.backward(x)
    found = layer.batch_moments
    layer.eval()(sample(rng, (5, 4)))
    assert layer.batch_moments == found and found.count == 7
    np.testing.assert_array_equal(found.mean, fastbn.moments(x).mean)
    layer.train()(np.empty((0, 4), np.float32))
    assert layer.batch_moments.count == 0
    layer.update(layer.batch_moments)
    assert layer.num_batches_tracked == 2
    for twin in (copy.copy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.batch_moments is None


def test_moments_belong_to_the_batch_although_the_layer_goes_on(rng):
    layer = fastbn.BatchNorm(4)
    layer(sample(rng, (9, 4)))
    first = layer.batch_moments
    kept = first.mean.copy(), first.M2.copy()
    layer(sample(rng, (9, 4)))
    np.testing.assert_array_equal(first.mean, kept[0])
    np.testing.assert_array_equal(first.M2, kept[1])


@pytest.mark.parametrize("shape", [(0, 4), (1, 4)], ids=str)
def test_a_step_with_no_variance_changes_nothing(rng, shape):
    layer = fastbn.BatchNorm(4, momentum=None)
    layer(sample(rng, (9, 4)))
    before = state(layer)
    layer.update(fastbn.moments(np.ones(shape, np.float32)))
    assert_same_state(layer, before)


def test_a_layer_without_running_statistics_has_batch_moments(rng):
    layer = fastbn.BatchNorm(4, track_running_stats=False)
    x = sample(rng, (9, 4))
    layer(x, update=False)
    np.testing.assert_array_equal(layer.batch_moments.mean, fastbn.moments(x).mean)
    layer.eval()(sample(rng, (9, 4)))
    np.testing.assert_array_equal(layer.batch_moments.mean, fastbn.moments(x).mean)


def test_a_subclass_need_not_know_update(rng):
    class Doubled(fastbn.BatchNorm):
        def forward(self, x, *, out=None):
            return 2 * super().forward(x, out=out)

    x = sample(rng, (9, 4))
    np.testing.assert_array_equal(Doubled(4)(x), 2 * fastbn.BatchNorm(4)(x))
    with pytest.raises(TypeError, match="update"):
        Doubled(4)(x, update=False)
