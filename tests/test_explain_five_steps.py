"""The page's section 5: one mini-batch forward and backward, against the formulas in float64."""
import numpy as np
import pytest

for package in ("sklearn", "matplotlib", "rich", "threadpoolctl"):
    pytest.importorskip(package, reason="the demo's packages are not installed")

import fastbn  # noqa: E402
from explain_checks import numbers_of, pictures_of, run_in_fresh_process, text_of  # noqa: E402
from fastbn.demo.network import softmax_cross_entropy  # noqa: E402
from fastbn.explain import digits, five_steps  # noqa: E402
from fastbn.explain.section import Settings  # noqa: E402

pytestmark = pytest.mark.full


class Double:
    """The layer's step by the formulas of Ioffe and Szegedy 2015, in float64."""

    def __init__(self, batch):
        bn, x, dy, _ = batch
        x, dy = x.astype(np.float64), dy.astype(np.float64)
        gamma, beta = bn.gamma.astype(np.float64), bn.beta.astype(np.float64)
        n = len(x)
        self.mean, self.var, self.unbiased = x.mean(axis=0), x.var(axis=0), x.var(axis=0, ddof=1)
        rstd = 1 / np.sqrt(self.var + 1e-5)
        self.normalized = (x - self.mean) * rstd
        self.y = self.normalized * gamma + beta
        self.running_mean = 0.9 * bn.running_mean.astype(np.float64) + 0.1 * self.mean
        self.running_var = 0.9 * bn.running_var.astype(np.float64) + 0.1 * self.unbiased
        self.dbeta, self.dgamma = dy.sum(axis=0), (dy * self.normalized).sum(axis=0)
        self.dx = gamma * rstd * (dy - (self.dbeta + self.normalized * self.dgamma) / n)


@pytest.fixture(scope="module")
def section():
    return five_steps.make(Settings(seed=0))


@pytest.fixture(scope="module")
def double():
    return Double(five_steps.mini_batch(0))


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())


def test_the_five_steps(section, double):
    values = pictures_of(section)[0].values
    close(values["moments"].mean, double.mean)
    close(values["moments"].var(), double.var)
    close(values["normalized"], double.normalized)
    close(values["y"], double.y)
    close(values["bn"].running_mean, double.running_mean)
    close(values["bn"].running_var, double.running_var)


def test_the_way_back(section, double):
    values = pictures_of(section)[1].values
    for name in ("dx", "dgamma", "dbeta"):
        close(values[name], getattr(double, name))


def test_the_batch_is_real():
    """x is what the layer before gives for training images, and dy what the loss's backward pass brings."""
    bn, x, dy, labels = five_steps.mini_batch(0)
    network, data = digits.build("before", fastbn.BatchNorm, seed=0), digits.load(0)
    digits.train(network, seed=0, steps=five_steps.STEPS)
    np.testing.assert_array_equal(bn.running_mean, network.norms()[1].running_mean)
    chosen = np.random.default_rng([0, 5]).choice(len(data.train_images), 10, replace=False)
    np.testing.assert_array_equal(labels, data.train_labels[chosen])
    value = data.train_images[chosen]
    for layer in network.layers[:3]:
        value = layer.forward(value)
    np.testing.assert_allclose(network.layers[3].forward(value), x, rtol=1e-5, atol=1e-6)

    def loss(output):
        for layer in network.layers[5:]:
            output = layer.forward(output)
        return softmax_cross_entropy(output.astype(np.float64), labels)[0]

    for layer in network.norms():
        layer.update_running_stats = False
    y, direction = network.layers[4].forward(x), np.random.default_rng(0).normal(size=dy.shape)
    numeric = (loss((y + 1e-2 * direction).astype(np.float32)) - loss((y - 1e-2 * direction).astype(np.float32))) / 2e-2
    assert numeric == pytest.approx(float(np.sum(dy * direction)), rel=0.02)


def test_the_batch_is_a_copy():
    first = five_steps.mini_batch(0)
    first.bn(first.x)
    first.x[:], first.bn.gamma[:] = 0, 0
    second = five_steps.mini_batch(0)
    assert second.x.any() and second.bn.gamma.all() and second.bn.num_batches_tracked == five_steps.STEPS


def test_the_framed_feature_has_the_mean_furthest_from_0(section, double):
    distance = np.abs(double.mean[:five_steps.SHOWN]) / np.sqrt(double.var[:five_steps.SHOWN])
    feature = numbers_of(section)["five_steps_feature"]
    assert feature == np.argmax(distance)
    for picture in pictures_of(section):
        frames = [line for axes in picture.figure.axes for line in axes.lines]
        assert frames and all(set(frame.get_xdata()) == {feature - 0.5, feature + 0.5} for frame in frames)


def test_the_page_has_the_features_numbers(section, double):
    numbers, batch = numbers_of(section), five_steps.mini_batch(0)
    feature, image = numbers["five_steps_feature"], numbers["five_steps_image"]

    def check(name, wanted):
        assert abs(numbers[f"five_steps_{name}"] - wanted[feature]) <= 2e-6 * np.abs(wanted).max(), name

    for name, wanted in {"mean": double.mean, "var": double.var, "mean_again": double.mean, "var_again": double.var,
                         "var_unbiased": double.unbiased, "gamma": batch.bn.gamma, "beta": batch.bn.beta,
                         "mean_old": batch.bn.running_mean, "var_old": batch.bn.running_var,
                         "mean_new": double.running_mean, "var_new": double.running_var,
                         "dbeta": double.dbeta, "dgamma": double.dgamma}.items():
        check(name, wanted)
    assert numbers["five_steps_dx_sum"] == pytest.approx(0, abs=1e-5 * np.abs(double.dx).max())
    columns = {"x": batch.x, "centred": batch.x - double.mean, "normalized": double.normalized, "y": double.y,
               "dy": batch.dy, "dy_normalized": batch.dy * double.normalized, "dx": double.dx}
    for name, wanted in columns.items():
        for row in range(len(wanted)):
            check(f"{name}_{row}", wanted[row])
    for name in ("x", "normalized", "y"):
        assert numbers[f"five_steps_{name}"] == numbers[f"five_steps_{name}_{image}"]


def test_the_heat_maps_show_the_matrices(section):
    forward, backward = pictures_of(section)
    values, gradients = forward.values, backward.values
    moving = [np.stack([values["before"][name], getattr(values["bn"], name)]) for name in ("running_mean", "running_var")]
    wanted = [values["x"], values["moments"].mean, values["moments"].var(), values["normalized"], values["bn"].gamma,
              values["bn"].beta, values["y"], *moving]
    assert_shown(forward, wanted)
    assert_shown(backward, [gradients[name] for name in ("dy", "dbeta", "dgamma", "dx")])


def assert_shown(picture, wanted):
    shown = [axes.images[0] for axes in picture.figure.axes if axes.images]
    for image, array in zip(shown, wanted, strict=True):
        np.testing.assert_array_equal(image.get_array(), np.atleast_2d(array)[:, :five_steps.SHOWN])
        if image.get_array().min() < 0:
            assert image.norm.vmin == -image.norm.vmax, "a diverging map has its middle at 0"


def test_the_lines_work_alone(section):
    forward, backward = pictures_of(section)
    found = run_in_fresh_process(forward.code, "[y.tolist(), bn.running_mean.tolist(), bn.running_var.tolist()]")
    bn = forward.values["bn"]
    assert found == [forward.values["y"].tolist(), bn.running_mean.tolist(), bn.running_var.tolist()]
    found = run_in_fresh_process(backward.code, "[dx.tolist(), dgamma.tolist(), dbeta.tolist()]")
    assert found == [backward.values[name].tolist() for name in ("dx", "dgamma", "dbeta")]


@pytest.mark.parametrize("seed", [1, 2, 2**32 - 1])
def test_any_seed(seed):
    first = five_steps.make(Settings(seed=seed))
    five_steps._mini_batch.cache_clear()
    again = five_steps.make(Settings(seed=seed, quick=True))
    assert text_of(first) == text_of(again) and numbers_of(first) == numbers_of(again)
    double = Double(five_steps.mini_batch(seed))
    close(pictures_of(first)[0].values["y"], double.y)
    close(pictures_of(first)[1].values["dx"], double.dx)
