"""The demo: its network, its plain NumPy batch norm, its checks, and whole runs of it."""
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the demo's packages are not installed")
pytest.importorskip("matplotlib", reason="the demo's packages are not installed")
pytest.importorskip("rich", reason="the demo's packages are not installed")
pytest.importorskip("threadpoolctl", reason="the demo's packages are not installed")

from matplotlib.colors import to_rgb  # noqa: E402
from matplotlib.image import imread  # noqa: E402
from threadpoolctl import threadpool_limits  # noqa: E402

import fastbn  # noqa: E402
from fastbn import _cli, _core  # noqa: E402
from fastbn.demo import inference, main, timing, training  # noqa: E402
from fastbn.demo.chart import STYLES, save_chart  # noqa: E402
from fastbn.demo.data import load_data  # noqa: E402
from fastbn.demo.network import (  # noqa: E402
    ACTIVATIONS, AFTER, BEFORE, SGD, build_network, initial_weights, softmax_cross_entropy,
)
from fastbn.demo.numpy_batchnorm import NumpyBatchNorm  # noqa: E402
from fastbn.demo.settings import Settings  # noqa: E402
from fastbn.demo.training import VARIANTS, History, Variant, train_variant  # noqa: E402
from oracle import central_differences  # noqa: E402

POSITIONS = (None, BEFORE, AFTER)


@pytest.fixture(scope="module")
def data():
    return load_data(seed=0)


@pytest.fixture(autouse=True)
def one_thread_for_matrix_products():
    """As in the demo itself: on a busy machine more make these small products far slower."""
    with threadpool_limits(limits=1, user_api="blas"):
        yield


def double_norm(num_features):
    return fastbn.BatchNorm(num_features, dtype=np.float64)


def train(data, position, **flags):
    history = History(Variant("x", position))
    network = train_variant(data, Settings(**flags), history, lambda: None)
    return history, network


# The parts

@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("position", POSITIONS)
def test_gradients_against_central_differences(rng, position, activation):
    network = build_network(initial_weights((6, 5, 4, 3), 1, np.float64), activation, position, double_norm)
    x, labels = rng.standard_normal((12, 6)), rng.integers(0, 3, 12)
    dx = network.backward(softmax_cross_entropy(network.forward(x), labels)[1])
    gradients = [("x", x, dx), *network.parameters()]
    assert len(gradients) == 1 + 6 + (4 if position else 0)
    for name, value, gradient in gradients:
        numeric = central_differences(lambda: softmax_cross_entropy(network.forward(x), labels)[0], value, 1e-6)
        np.testing.assert_allclose(gradient, numeric, rtol=1e-5, atol=1e-8, err_msg=name)


def test_softmax_cross_entropy_of_huge_logits():
    loss, gradient = softmax_cross_entropy(np.array([[1e4, 0.0], [0.0, 1e4]]), np.array([0, 0]))
    assert loss == pytest.approx(5e3)
    np.testing.assert_allclose(gradient, [[0, 0], [-0.5, 0.5]], atol=1e-12)


def test_sgd_with_momentum():
    network = build_network([np.ones((1, 1))], "relu")
    optimizer = SGD(network, learning_rate=0.5, momentum=0.9)
    layer = network.layers[0]
    layer.dweight, layer.dbias = np.array([[2.0]]), np.array([0.0])
    optimizer.step()
    optimizer.step()
    assert layer.weight[0, 0] == pytest.approx(1 - 1.0 - (0.9 * 1.0 + 1.0))
    assert layer.bias[0] == 0


@pytest.mark.parametrize("shape", [(60, 100), (9, 3), (57, 1)])
def test_numpy_batch_norm_against_fastbn(rng, shape):
    ours, plain = fastbn.BatchNorm(shape[1]), NumpyBatchNorm(shape[1])
    for layer in (ours, plain):
        layer.gamma[:] = np.linspace(0.5, 2, shape[1])
        layer.beta[:] = np.linspace(-1, 1, shape[1])
    tolerance = {"rtol": 1e-4, "atol": 1e-4}
    for _ in range(3):
        x = (rng.standard_normal(shape) * 2 + 3).astype(np.float32)
        dy = rng.standard_normal(shape).astype(np.float32)
        np.testing.assert_allclose(plain.forward(x), ours.forward(x), **tolerance)
        np.testing.assert_allclose(plain.backward(dy), ours.backward(dy), **tolerance)
        np.testing.assert_allclose(plain.dgamma, ours.dgamma, **tolerance)
        np.testing.assert_allclose(plain.dbeta, ours.dbeta, **tolerance)
    np.testing.assert_allclose(plain.running_mean, ours.running_mean, **tolerance)
    np.testing.assert_allclose(plain.running_var, ours.running_var, **tolerance)
    np.testing.assert_allclose(plain.eval().forward(x), ours.eval().forward(x), **tolerance)
    assert plain.forward(x).dtype == plain.train().forward(x).dtype == plain.backward(dy).dtype == np.float32
    assert [(name, value.dtype) for name, value, _ in plain.parameters()] == [
        (name, value.dtype) for name, value, _ in ours.parameters()
    ]


def test_data_is_all_the_digits_split_by_seed(data):
    assert data.train_images.shape == (1347, 64) and data.test_images.shape == (450, 64)
    assert data.train_images.dtype == np.float32
    assert data.train_images.min() == 0 and data.train_images.max() == 1
    shares = np.bincount(data.test_labels) / (np.bincount(data.test_labels) + np.bincount(data.train_labels))
    assert np.abs(shares - 0.25).max() < 0.005
    assert np.array_equal(data.test_images, load_data(seed=0).test_images)
    assert not np.array_equal(data.test_images, load_data(seed=1).test_images)


# Training

def test_all_variants_start_from_the_same_weights(data):
    networks = [training.make_network(data, Settings(seed=3), variant.position)[0] for variant in VARIANTS]
    weights = [[value for name, value, _ in network.parameters() if name == "weight"] for network in networks]
    for first, *others in zip(*weights):
        for other in others:
            assert np.array_equal(first, other) and not np.shares_memory(first, other)


@pytest.mark.parametrize("position", POSITIONS)
def test_same_seed_same_curves(data, position):
    first, _ = train(data, position, epochs=2, seed=5)
    second, _ = train(data, position, epochs=2, seed=5)
    other, _ = train(data, position, epochs=2, seed=6)
    assert (first.losses, first.accuracies) == (second.losses, second.accuracies)
    assert first.losses != other.losses


def test_same_curves_for_any_number_of_threads(data):
    before = _core.set_bytes_per_thread(0)
    curves = []
    try:
        for threads in (1, 2):
            fastbn.set_num_threads(threads)
            history, _ = train(data, BEFORE, epochs=2)
            curves.append((history.losses, history.accuracies))
    finally:
        fastbn.set_num_threads(None)
        _core.set_bytes_per_thread(before)
    assert curves[0] == curves[1]


def test_batch_norm_trains_faster_at_the_default_learning_rate(data):
    plain, _ = train(data, None, epochs=8)
    for position in (BEFORE, AFTER):
        history, _ = train(data, position, epochs=8)
        assert history.epochs_to(0.95) is not None
        assert history.losses[-1] < plain.losses[-1] / 4


def test_epochs_to_an_accuracy():
    history = History(VARIANTS[0], accuracies=[0.5, 0.95, 0.9, 0.99])
    assert history.epochs_to(0.95) == 2
    assert history.epochs_to(0.99) == 4
    assert history.epochs_to(0.999) is None


def test_divergence_ends_the_training(data):
    with np.errstate(all="ignore"):
        history, _ = train(data, None, epochs=3, learning_rate=1e38)
    assert history.diverged
    assert len(history.losses) < 3 and np.isfinite(history.losses).all()


# The single-sample check

@pytest.mark.parametrize("position", [BEFORE, AFTER])
def test_single_samples_get_what_the_batch_gets(data, position):
    _, network = train(data, position, epochs=1)
    check = inference.check_single_samples(network, data.test_images)
    assert check.samples == 450
    assert check.norm_difference == 0
    assert check.logit_difference < 1e-5
    assert check.passed


def test_the_check_notices_batch_statistics(data):
    _, network = train(data, BEFORE, epochs=1)
    network.eval = lambda: None  # so the layers stay in training mode, where the result depends on the batch
    with pytest.warns():
        assert not inference.check_single_samples(network, data.test_images[:20]).passed


def test_a_check_of_nan_does_not_pass():
    assert not inference.SingleSampleCheck(450, np.nan, 0.0).passed
    assert not inference.SingleSampleCheck(450, 0.0, np.nan).passed


# Time and chart

def test_timing_counts_every_step_of_both(data):
    contestants = timing.time_norms(data, Settings(), steps=7)
    assert [contestant.name for contestant in contestants] == ["fastbn", "plain NumPy"]
    for contestant in contestants:
        assert len(contestant.step_seconds) == len(contestant.norm_seconds) == 7
        assert 0 < contestant.norm_ms < contestant.step_ms


def colours_of(path):
    pixels = imread(path)
    assert pixels.shape[0] > 400 and pixels.shape[1] > 800
    return {tuple(np.round(colour * 255).astype(int)) for colour in np.unique(pixels[..., :3].reshape(-1, 3), axis=0)}


def has_curve(colours, index):
    return tuple(np.round(np.array(to_rgb(STYLES[index][0])) * 255).astype(int)) in colours


def test_chart_draws_only_the_variants_that_have_epochs(tmp_path):
    histories = [History(variant) for variant in VARIANTS]
    histories[1].add_epoch(1.0, 0.5, 0.1)
    save_chart(tmp_path / "one.png", histories, "title")
    histories[2].add_epoch(2.0, 0.25, 0.1)
    histories[2].add_epoch(1.0, 0.75, 0.1)
    save_chart(tmp_path / "two.png", histories, "title")
    one, two = colours_of(tmp_path / "one.png"), colours_of(tmp_path / "two.png")
    assert has_curve(one, 1) and not has_curve(one, 2)
    assert has_curve(two, 1) and has_curve(two, 2)


# Whole runs

def start_demo(folder, *flags, **keywords):
    command = [sys.executable, "-m", "fastbn", "demo", *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder, **keywords)


def test_a_short_run(tmp_path):
    with start_demo(tmp_path, "--epochs=2", "--output=deep/er", "--threads=1") as process:
        shown, complaints = process.communicate(timeout=120)
    assert process.returncode == 0, complaints
    assert complaints == ""
    lines = shown.splitlines()
    assert max(map(len, lines)) < 110 and len(lines) < 50, "the progress bars must not flood a log"
    for variant in VARIANTS:
        assert any(line.startswith(f"| {variant.name} ") and "| " in line for line in lines)
    assert shown.count("2/2") == 3
    assert shown.count("largest difference 0 (allowed: 0)") == 2
    assert "up to 1 thread\n" in shown
    assert "plain NumPy" in shown
    chart = tmp_path / "deep" / "er" / "curves.png"
    assert lines[-1] == f"Chart: {Path('deep/er/curves.png')}"
    colours = colours_of(chart)
    assert all(has_curve(colours, index) for index in range(3))
    assert [path.name for path in chart.parent.iterdir()] == ["curves.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent to one process on Windows")
def test_ctrl_c(tmp_path):
    def default_interrupt():  # where pytest runs in the background, SIGINT is ignored, and that is inherited
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with start_demo(tmp_path, "--epochs=100000", "--output=.", preexec_fn=default_interrupt) as process:
        for line in process.stdout:
            if line.startswith("Training:"):
                break
        time.sleep(2)  # some hundred epochs' time
        process.send_signal(signal.SIGINT)
        shown, complaints = process.communicate(timeout=60)
    assert process.returncode == 130
    assert complaints == ""
    assert "| none " in shown and "interrupted" in shown.splitlines()[-1]
    assert has_curve(colours_of(tmp_path / "curves.png"), 0)


def run_here(capsys, tmp_path, *flags):
    status = _cli.main(["demo", "--epochs=1", f"--output={tmp_path / 'out'}", *flags])
    return status, capsys.readouterr()


def interrupt(*arguments, **keywords):
    raise KeyboardInterrupt


def test_an_interrupt_before_the_first_epoch(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "training_step", interrupt)
    status, captured = run_here(capsys, tmp_path)
    assert status == 130
    assert "no chart" in captured.out and "interrupted" in captured.out.splitlines()[-1]
    assert not list((tmp_path / "out").iterdir())


def test_an_interrupt_after_training_keeps_the_results(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(main, "time_norms", interrupt)
    status, captured = run_here(capsys, tmp_path)
    assert status == 130
    assert captured.out.count("largest difference 0") == 2 and "Time per" not in captured.out
    assert (tmp_path / "out" / "curves.png").stat().st_size > 0


def test_a_failed_check_is_exit_status_1(capsys, tmp_path, monkeypatch):
    failed = inference.SingleSampleCheck(samples=450, norm_difference=1e-7, logit_difference=0.0)
    monkeypatch.setattr(main, "check_single_samples", lambda network, images: failed)
    status, captured = run_here(capsys, tmp_path)
    assert status == 1
    assert "FAILED" in captured.out and "1e-07" in captured.out


def test_a_learning_rate_that_diverges_is_reported_without_warnings(capsys, tmp_path, recwarn):
    status, captured = run_here(capsys, tmp_path, "--learning-rate=1e38")
    assert status == 0
    assert "diverged" in captured.out
    assert not [warning for warning in recwarn if issubclass(warning.category, RuntimeWarning)]


@pytest.mark.parametrize("below", ["", "below", "below/deeper"])
def test_an_unwritable_folder(capsys, tmp_path, below):
    (tmp_path / "file").write_text("not a folder")
    folder = tmp_path / "file" / below
    assert _cli.main(["demo", "--output", str(folder)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith(f"fastbn: error: argument --output: cannot write to {str(folder)!r}: ")


def test_a_chart_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "out" / "curves.png").mkdir(parents=True)
    status, captured = run_here(capsys, tmp_path)
    assert status == 2
    assert "Test" in captured.out, "the table comes all the same"
    assert captured.err.count("\n") == 1 and "curves.png" in captured.err
