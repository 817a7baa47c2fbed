"""The page's section 3: what reaches the last sigmoid in training, with and without batch norm."""
import numpy as np
import pytest

for package in ("sklearn", "matplotlib", "rich", "threadpoolctl"):
    pytest.importorskip(package, reason="the demo's packages are not installed")

import fastbn  # noqa: E402
from explain_checks import numbers_of, pictures_of, run_in_fresh_process, text_of  # noqa: E402
from fastbn.demo.network import softmax_cross_entropy  # noqa: E402
from fastbn.explain import activations, digits  # noqa: E402
from fastbn.explain.section import Settings  # noqa: E402

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def section():
    return activations.make(Settings(seed=0, quick=True))


@pytest.fixture(scope="module")
def recordings():
    return {"plain": activations.record(seed=0), "normed": activations.record(fastbn.BatchNorm, seed=0)}


def test_the_first_recorded_values_are_what_the_last_sigmoid_gets(recordings):
    for name, make_norm in (("plain", None), ("normed", fastbn.BatchNorm)):
        network = digits.build("before" if make_norm else None, make_norm, seed=0)
        seen = []
        digits.train(network, seed=0, steps=1, after_step=seen.append)
        sigmoid = network.layers[-2]
        assert seen == [1] and type(sigmoid).__name__ == "Sigmoid"
        np.testing.assert_array_equal(sigmoid._y, 0.5 * (np.tanh(0.5 * recordings[name].values[0]) + 1))


def test_listening_changes_nothing(recordings):
    network = digits.build("before", fastbn.BatchNorm, seed=0)
    digits.train(network, seed=0, steps=5)
    sigmoid = network.layers[-2]
    assert recordings["normed"].steps[1] == 5
    np.testing.assert_array_equal(sigmoid._y, 0.5 * (np.tanh(0.5 * recordings["normed"].values[1]) + 1))


def test_both_networks_start_from_the_same_weights_and_batches():
    plain, normed = digits.build(None, None, seed=3), digits.build("before", fastbn.BatchNorm, seed=3)
    weights = [[layer.weight for layer in network.layers if hasattr(layer, "weight")] for network in (plain, normed)]
    for one, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_steps_are_the_first_and_each_fourth_after_it(recordings):
    for recording in recordings.values():
        assert list(recording.steps) == list(range(1, activations.STEPS + 1, activations.EVERY))
        assert recording.values.shape == (len(recording.steps), 60, 100) and not recording.values.flags.writeable


def test_shares_and_spreads_against_plain_formulas(recordings):
    for recording in recordings.values():
        wide = recording.values.astype(np.float64)
        np.testing.assert_allclose(activations.spreads(recording), wide.std(axis=1), rtol=1e-6)
        counts = ((wide < -3) | (wide > 3)).sum(axis=(1, 2))
        np.testing.assert_array_equal(activations.flat_shares(recording), counts / wide[0].size)


def test_with_batch_norm_the_spread_starts_at_one(recordings):
    var = recordings["normed"].values[0].astype(np.float64).var(axis=0)
    np.testing.assert_allclose(var, 1, atol=0.1)  # eps matters where a feature hardly varies
    np.testing.assert_allclose(recordings["normed"].values[0].mean(axis=0), 0, atol=1e-5)


def test_the_page_has_the_recordings_numbers(section, recordings):
    numbers = numbers_of(section)
    for name, recording in recordings.items():
        wide = recording.values.astype(np.float64)
        assert numbers[f"activations_flat_{name}"] == (np.abs(wide) > 3).mean(axis=(1, 2)).max()
        assert numbers[f"activations_spread_{name}"] == pytest.approx(np.median(wide[0].std(axis=0)), rel=1e-6)
        last = recording.steps[-1]
        assert numbers[f"activations_median_{name}_at_{last}"] == pytest.approx(np.median(wide[-1]), rel=1e-6)
        assert numbers[f"activations_spread_{name}_at_{last}"] == pytest.approx(np.median(wide[-1].std(axis=0)), rel=1e-6)


def test_the_bands_are_the_percentiles(section, recordings):
    panels = pictures_of(section)[0].figure.axes
    for axes, recording in zip(panels, recordings.values(), strict=True):
        line = axes.lines[0]
        np.testing.assert_array_equal(line.get_xdata(), recording.steps)
        np.testing.assert_allclose(line.get_ydata(), np.median(recording.values, axis=(1, 2)), rtol=1e-6)


def test_the_lines_work_alone(section):
    for picture in pictures_of(section):
        found = run_in_fresh_process(picture.code, "[plain.values[-1].tolist(), normed.values[-1].tolist()]")
        wanted = [picture.values[name].values[-1].tolist() for name in ("plain", "normed")]
        assert found == wanted


@pytest.mark.parametrize("seed", [1, 2**32 - 1])
def test_any_seed(seed):
    first = activations.make(Settings(seed=seed, quick=True))
    activations.record.cache_clear()
    again = activations.make(Settings(seed=seed, quick=True))
    assert text_of(first) == text_of(again) and numbers_of(first) == numbers_of(again)
    assert all(np.isfinite(value) for value in numbers_of(first).values())


def test_training_learns():
    network, data = digits.build("before", fastbn.BatchNorm, seed=0), digits.load(0)
    start, _ = softmax_cross_entropy(network.forward(data.train_images), data.train_labels)
    digits.train(network, seed=0, steps=44)
    end, _ = softmax_cross_entropy(network.forward(data.train_images), data.train_labels)
    assert end < start / 2
