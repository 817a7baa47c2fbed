"""The page's section on inference: its numbers against float64 NumPy, and its pictures."""
import numpy as np
import pytest

for package in ("sklearn", "matplotlib", "threadpoolctl"):
    pytest.importorskip(package, reason="the demo's packages are not installed")

from fastbn.explain import inference as section  # noqa: E402
from fastbn.explain.section import Settings, run_code  # noqa: E402
from explain_checks import numbers_of, pictures_of, run_in_fresh_process  # noqa: E402
from section_reading import assert_complete, unmeasured  # noqa: E402

pytestmark = pytest.mark.full

QUICK = Settings(quick=True)


@pytest.fixture(scope="module")
def made():
    return section.make(QUICK)


@pytest.fixture(scope="module")
def trained():
    return section.train(0, section.QUICK_EPOCHS)


def forward64(network, x, statistics):
    """The whole network in float64; statistics(norm, x) gives the mean and variance that a batch norm takes."""
    x = x.astype(float)
    for layer in network.layers:
        if hasattr(layer, "running_mean"):
            mean, var = statistics(layer, x)
            x = (x - mean) / np.sqrt(var + layer.eps) * layer.gamma + layer.beta
        elif hasattr(layer, "weight"):
            x = x @ layer.weight.astype(float) + layer.bias
        else:
            x = 1 / (1 + np.exp(-x))
    return x


def test_the_section_is_complete(made):
    assert_complete(made, "inference_")


def test_no_bit_differs_alone_and_in_a_batch(made, trained):
    found = numbers_of(made)
    x = trained.before_norm(trained.data.test_images)
    assert found["inference_different"] == 0
    assert found["inference_compared"] == x.size == 450 * 100
    together = trained.norm(x)
    assert all(trained.norm(x[i : i + 1]).tobytes() == together[i].tobytes() for i in range(len(x)))
    assert 0 <= found["inference_logits"] < 1e-5


def test_different_bits_are_counted():
    a = np.array([1.0, -0.0, 2.0], np.float32)
    b = np.array([1.0, 0.0, np.nextafter(np.float32(2), np.float32(3))], np.float32)
    assert section.differing(a, a.copy()) == 0
    assert section.differing(a, b) == 2


def test_the_layer_s_output_in_float64(trained):
    x, norm = trained.before_norm(trained.data.test_images), trained.norm
    expected = (x.astype(float) - norm.running_mean) / np.sqrt(norm.running_var + norm.eps) * norm.gamma + norm.beta
    np.testing.assert_allclose(norm(x), expected, rtol=1e-5, atol=1e-5)


def test_a_batch_of_one_gives_beta_and_leaves_the_layer_alone(made, trained):
    x, norm = trained.before_norm(trained.data.test_images)[:5], trained.norm
    before = norm.state_dict()
    y = section.alone_in_training(norm, x)
    np.testing.assert_array_equal(y, np.broadcast_to(norm.beta, y.shape))
    assert not norm.training
    assert all(np.array_equal(value, before[name]) for name, value in norm.state_dict().items())
    assert numbers_of(made)["inference_off_beta"] == 0


def test_accuracy_by_the_moving_averages(made, trained):
    logits = forward64(trained.network, trained.data.test_images, lambda norm, x: (norm.running_mean, norm.running_var))
    expected = np.mean(logits.argmax(axis=1) == trained.data.test_labels)
    assert numbers_of(made)["inference_accuracy"] == pytest.approx(expected, abs=1 / 450 + 1e-9)


@pytest.mark.parametrize("size", [4, 64])
def test_accuracy_by_batch_statistics(made, trained, size):
    images, labels = trained.data.test_images, trained.data.test_labels
    rng = np.random.default_rng([0, 7])
    predicted = []
    for _ in range(section.QUICK_SHUFFLES):
        order, row = rng.permutation(len(images)), np.empty(len(images), int)
        for start in range(0, len(images), size):
            rows = order[start : start + size]
            row[rows] = forward64(trained.network, images[rows], lambda _, x: (x.mean(0), x.var(0))).argmax(axis=1)
        predicted.append(row)
    found = numbers_of(made)
    if size == 4:
        expected = np.mean(np.array(predicted) == labels)
        assert found["inference_accuracy_batch_4"] == pytest.approx(expected, abs=3 / 450)
    changed = np.mean(predicted[0] != predicted[1])
    assert found[f"inference_changed_batch_{size}"] == pytest.approx(changed, abs=3 / 450)


def test_a_batch_of_one_gives_all_images_the_same_answer(made):
    company = pictures_of(made)[1].values["company"]
    assert company.sizes[0] == 1 and company.changed[0] == 0
    labels = section.train(0, section.QUICK_EPOCHS).data.test_labels
    shares = np.bincount(labels) / len(labels)
    assert any(company.accuracy[0] == pytest.approx(share) for share in shares)


def test_small_batches_do_worse_than_large_ones(made):
    company = pictures_of(made)[1].values["company"]
    assert company.accuracy[0] < company.accuracy[1] < company.accuracy[-1]
    assert company.changed[1] > company.changed[-1]


def test_in_company_leaves_the_network_alone(trained):
    before = [norm.state_dict() for norm in trained.network.norms()]
    section.in_company(trained, 1, 0, sizes=(2, 50))
    for norm, state in zip(trained.network.norms(), before):
        assert not norm.training
        assert all(np.array_equal(value, state[name]) for name, value in norm.state_dict().items())


def test_drift_in_float64(made, trained):
    found, norm = numbers_of(made), trained.norm
    std = np.sqrt(norm.running_var.astype(float) + norm.eps)
    images = trained.data.test_images
    for name, shown in (("usual", images), ("shifted", np.minimum(images * section.BRIGHTER, 1).astype(np.float32))):
        x = trained.before_norm(shown).astype(float)
        d = (x.mean(0) - norm.running_mean) / std
        r = np.sqrt(x.var(0, ddof=1) + norm.eps) / std
        divergence = ((r - 1 / r) ** 2 + d**2 * (1 + 1 / r**2)) / 2
        assert found[f"inference_drift_{name}"] == pytest.approx(divergence.max(), rel=1e-4)
        assert abs(found[f"inference_drifting_{name}"] - np.count_nonzero(divergence > section.FAR)) <= 1
    assert images.max() == 1 == section.brighter(images).max()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_any_seed(seed):
    other = section.make(Settings(seed=seed, quick=True))
    assert_complete(other, "inference_")
    found = numbers_of(other)
    assert found["inference_different"] == found["inference_off_beta"] == 0
    assert found["inference_drift_shifted"] > found["inference_drift_usual"]


def test_the_same_seed_gives_the_same_numbers(made):
    section.train.cache_clear()
    assert unmeasured(section.make(QUICK)) == unmeasured(made)


def test_pasted_lines_give_what_the_page_has(made):
    section.train.cache_clear()
    alone, company, drift = (run_code(picture.code) for picture in pictures_of(made))
    shown = [picture.values for picture in pictures_of(made)]
    assert alone["different"] == 0
    np.testing.assert_array_equal(alone["alone"], shown[0]["alone"])
    np.testing.assert_array_equal(company["company"].changed, shown[1]["company"].changed)
    np.testing.assert_array_equal(drift["shifted"].divergence, shown[2]["shifted"].divergence)


def test_the_bars_are_the_drift(made):
    heights = [bar.get_height() for bar in pictures_of(made)[2].figure.axes[0].patches]
    expected = np.sort(pictures_of(made)[2].values["shifted"].divergence)[::-1]
    np.testing.assert_array_equal(heights, expected)


def test_lines_work_in_a_fresh_interpreter(made):
    picture = pictures_of(made)[2]
    divergence = run_in_fresh_process(picture.code, "shifted.divergence.tolist()")
    assert divergence == picture.values["shifted"].divergence.tolist()
