"""The page's section on moving averages: its numbers against float64 NumPy, and its pictures."""
import numpy as np
import pytest

for package in ("sklearn", "matplotlib", "threadpoolctl"):
    pytest.importorskip(package, reason="the demo's packages are not installed")

from threadpoolctl import threadpool_limits  # noqa: E402

import fastbn  # noqa: E402
from fastbn.demo import training  # noqa: E402
from fastbn.demo.data import load_data  # noqa: E402
from fastbn.demo.network import BEFORE  # noqa: E402
from fastbn.demo.settings import Settings as DemoSettings  # noqa: E402
from fastbn.explain import moving_averages as section  # noqa: E402
from fastbn.explain.section import Settings, run_code  # noqa: E402
from explain_checks import numbers_of, pictures_of, run_in_fresh_process, text_of  # noqa: E402
from section_reading import assert_complete, unmeasured  # noqa: E402

pytestmark = pytest.mark.full

QUICK = Settings(quick=True)


@pytest.fixture(scope="module")
def made():
    return section.make(QUICK)


@pytest.fixture(scope="module")
def record():
    return section.train(0, section.QUICK_STEPS)


@pytest.fixture(scope="module")
def replayed():
    """The training once more by the demo's own functions: (batches, all the data) as they enter the layer, in float64."""
    settings, data = DemoSettings(seed=0), load_data(0)
    network, optimizer = training.make_network(data, settings, BEFORE)
    rng, steps = training.batch_order(settings), []
    with threadpool_limits(limits=1, user_api="blas"):
        while len(steps) < 40:
            for images, labels in training.mini_batches(data, settings.batch_size, rng):
                linear = network.layers[0]
                steps.append([(x @ linear.weight + linear.bias).astype(float) for x in (images, data.train_images)])
                training.training_step(network, optimizer, images, labels)
    return steps[:40]


def test_the_section_is_complete(made):
    assert_complete(made, "moving_averages_")


def test_batches_and_data_have_their_moments_in_float64(record, replayed):
    for step, (batch, everything) in enumerate(replayed):
        for moments, x in ((record.batches[step], batch), (record.exact[step], everything)):
            assert moments.count == len(x)
            np.testing.assert_allclose(moments.mean, x.mean(axis=0), rtol=0, atol=1e-6)
            np.testing.assert_allclose(moments.var(), x.var(axis=0), rtol=1e-5)


@pytest.mark.parametrize("momentum", section.MOMENTA)
def test_tracks_are_the_recurrence_in_float64(record, momentum):
    track = section.follow(fastbn.BatchNorm(section.FEATURES, momentum=momentum), record)
    mean, var = np.zeros(section.FEATURES), np.ones(section.FEATURES)
    for step, moments in enumerate(record.batches):
        keep = step / (step + 1) if momentum is None else momentum
        mean = keep * mean + (1 - keep) * moments.mean
        var = keep * var + (1 - keep) * moments.M2 / (moments.count - 1)
        np.testing.assert_allclose(track.mean[step], mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(track.var[step], var, rtol=1e-5)


def test_the_layer_in_training_takes_the_same_steps(record):
    """The demo's own layer, with its momentum of 0.9, ends where the section's follower does."""
    settings, data = DemoSettings(seed=0), load_data(0)
    network, optimizer = training.make_network(data, settings, BEFORE)
    with threadpool_limits(limits=1, user_api="blas"):
        for batch in training.mini_batches(data, settings.batch_size, training.batch_order(settings)):
            training.training_step(network, optimizer, *batch)
    norm = network.norms()[0]
    track = section.follow(fastbn.BatchNorm(section.FEATURES, momentum=norm.momentum), record)
    np.testing.assert_array_equal(track.mean[norm.num_batches_tracked - 1], norm.running_mean)
    np.testing.assert_array_equal(track.var[norm.num_batches_tracked - 1], norm.running_var)


def test_lags_are_distances_from_the_exact_mean(made, record):
    found = numbers_of(made)
    for momentum in section.MOMENTA:
        track = section.follow(fastbn.BatchNorm(section.FEATURES, momentum=momentum), record)
        for step in (section.EARLY, section.QUICK_STEPS // 2, section.QUICK_STEPS):
            exact = record.exact[step - 1]
            std = np.sqrt(exact.M2 / (exact.count - 1))
            expected = np.sqrt(np.mean(((track.mean[step - 1] - exact.mean) / std) ** 2))
            name = f"moving_averages_lag_{momentum}_step_{step}".replace(".", "_").lower()
            assert found[name] == pytest.approx(expected, rel=1e-9)


def test_the_text_names_the_nearest_and_the_farthest(made):
    found = numbers_of(made)
    last = {momentum: found[f"moving_averages_lag_{momentum}_step_{section.QUICK_STEPS}".replace(".", "_").lower()]
            for momentum in section.MOMENTA}
    assert found["moving_averages_least_lag"] == found["moving_averages_best"] == min(last.values())
    assert found["moving_averages_most_lag"] == max(last.values())
    nearest, farthest = text_of(made).split("At the end of this run ")[1].split(" off, and ")[:2]
    for part, momentum in ((nearest, min(last, key=last.get)), (farthest, max(last, key=last.get))):
        assert ("`momentum=None`" if momentum is None else f"momentum {momentum:g},") in part


def test_calibration_leaves_rounding(made, record):
    error = numbers_of(made)["moving_averages_calibrated"]
    x = record.inputs.astype(float)
    layer = fastbn.BatchNorm(section.FEATURES).calibrate([record.inputs[:700], record.inputs[700:]])
    np.testing.assert_allclose(layer.running_var, x.var(axis=0, ddof=1), rtol=1e-6)
    assert error < 1e-6 < numbers_of(made)["moving_averages_best"]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_any_seed(seed):
    other = section.make(Settings(seed=seed, quick=True))
    assert_complete(other, "moving_averages_")
    assert unmeasured(other) != unmeasured(section.make(QUICK))


def test_the_same_seed_gives_the_same_numbers(made):
    section.train.cache_clear()
    assert unmeasured(section.make(QUICK)) == unmeasured(made)


def test_pasted_lines_give_what_the_page_has(made):
    section.train.cache_clear()
    averages, lags = (run_code(picture.code) for picture in pictures_of(made))
    shown = [picture.values for picture in pictures_of(made)]
    for momentum in section.MOMENTA:
        np.testing.assert_array_equal(averages["tracks"][momentum].var, shown[0]["tracks"][momentum].var)
        np.testing.assert_array_equal(lags["lags"][momentum], shown[1]["lags"][momentum])


def test_the_picture_draws_the_feature_that_moves_the_farthest(made, record):
    means, spread = record.exact_values()[0], np.sqrt(record.exact[-1].var())
    feature = record.feature()
    assert np.ptp(means[:, feature]) / spread[feature] == np.max(np.ptp(means, axis=0) / spread)
    drawn = [line.get_ydata() for line in pictures_of(made)[0].figure.axes[0].get_lines()]
    assert any(np.array_equal(line, means[:, feature]) for line in drawn)


def test_lines_work_in_a_fresh_interpreter(made):
    picture = pictures_of(made)[1]
    ends = run_in_fresh_process(picture.code, "[float(values[-1]) for values in lags.values()]")
    assert ends == [values[-1] for values in picture.values["lags"].values()]
