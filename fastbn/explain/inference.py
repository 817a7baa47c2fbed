"""Inference: a sample gets the same answer alone and in any batch; what batch statistics do instead; drift by feature."""
import copy
import functools
import warnings
from dataclasses import dataclass

import numpy as np

import fastbn
from fastbn.demo.data import Data
from fastbn.demo.inference import check_single_samples, one_by_one
from fastbn.demo.network import BEFORE, Network
from fastbn.demo.settings import Settings as DemoSettings
from fastbn.explain import digits
from fastbn.explain.section import Number, Picture, Section, Text, run_code
from fastbn.explain.style import BLUE, GREEN, INK, ORANGE, SKY, new_figure, styled

EPOCHS, QUICK_EPOCHS = 8, 4
BATCH_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128, 256)
SHUFFLES, QUICK_SHUFFLES = 6, 2
SHOWN_FEATURES = 20
DIGITS = (3, 8)       # two images of the first picture
BRIGHTER = 1.5        # times, clipped at white
FAR = 0.1             # nats of divergence


@dataclass(frozen=True)
class Trained:
    """The demo's data, and its network in inference mode after training with batch norm before the activations."""

    data: Data
    network: Network

    def before_norm(self, images):
        """What enters the first batch norm layer: (N, C)."""
        with digits.one_thread():
            return self.network.layers[0].forward(images)

    @property
    def norm(self):
        return self.network.norms()[0]


@functools.lru_cache(maxsize=4)
def train(seed, epochs):
    """Train the demo's network for that many epochs. The result is shared: leave its layers as they are."""
    data, network = digits.load(seed), digits.build(BEFORE, fastbn.BatchNorm, seed=seed)
    digits.train(network, seed=seed, steps=epochs * (len(data.train_images) // DemoSettings.batch_size))
    network.eval()
    return Trained(data, network)


def differing(together, apart):
    """How many numbers of two float32 arrays differ in a bit."""
    return int(np.count_nonzero(together.view(np.uint32) != apart.view(np.uint32)))


def alone_in_training(norm, x):
    """What the layer would make of every row of x as a batch of its own by the statistics of that batch; (N, C)."""
    norm = copy.copy(norm).train()
    norm.update_running_stats = False
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "one value per feature", UserWarning)
        return one_by_one(norm, x)


def two_digits(trained, x):
    """The rows of x, what enters the layer for the test images: the first 3 and the first 8."""
    labels = trained.data.test_labels
    return np.concatenate([x[labels == digit][:1] for digit in DIGITS])


@styled
def draw_two_digits(by_averages, by_batches, beta):
    """Two panels of lines over the layer's first features: the outputs of both images, by either kind of statistics."""
    figure, axes = new_figure(2, 1, height=5.6, sharex=True)
    features = np.arange(SHOWN_FEATURES)
    titles = "by the moving averages (inference)", "by the statistics of a batch of one image"
    for panel, outputs, title in zip(axes, (by_averages, by_batches), titles):
        for row, digit, colour, marker in zip(outputs, DIGITS, (BLUE, ORANGE), "os"):
            panel.plot(features, row[:SHOWN_FEATURES], color=colour, marker=marker, linestyle="-" if marker == "o" else "--",
                       markersize=5 if marker == "s" else 7, label=f"an image of the digit {digit}")
        panel.step(features, beta[:SHOWN_FEATURES], color=INK, linewidth=1, where="mid", label="beta")
        panel.set_title(title, loc="left")
        panel.set_ylabel("output y")
    axes[1].set(xlabel="feature", ylim=axes[0].get_ylim(), xticks=features[::2])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


@dataclass(frozen=True)
class Company:
    """The test images in batches by batch statistics, an entry a batch size.

    accuracy: the share recognized, the mean over the shuffles. changed: the share of the images whose predicted digit is not
    the same in all shuffles, so depends on the other images of its batch.
    """

    sizes: tuple
    accuracy: np.ndarray
    changed: np.ndarray


def _predictions(network, images, size, order):
    predicted = np.empty(len(images), int)
    for start in range(0, len(images), size):
        rows = order[start : start + size]
        predicted[rows] = network.forward(images[rows]).argmax(axis=1)
    return predicted


def in_company(trained, shuffles, seed, sizes=BATCH_SIZES):
    """Predict the test images in shuffled batches of these sizes by batch statistics; a Company.

    The images left over at a shuffle's end are a smaller batch.
    """
    network = copy.deepcopy(trained.network)
    network.train()
    for norm in network.norms():
        norm.update_running_stats = False
    images, labels = trained.data.test_images, trained.data.test_labels
    rng = np.random.default_rng([seed, 7])
    orders = [rng.permutation(len(images)) for _ in range(shuffles)]
    with warnings.catch_warnings(), digits.one_thread():
        warnings.filterwarnings("ignore", "one value per feature", UserWarning)
        predicted = np.array([[_predictions(network, images, size, order) for order in orders] for size in sizes])
    return Company(sizes, np.mean(predicted == labels, axis=(1, 2)), np.mean(np.ptp(predicted, axis=1) > 0, axis=1))


def accuracy(trained, images):
    """The share of the test images, or of changed copies of them, that the network recognizes in inference mode."""
    with digits.one_thread():
        predicted = trained.network.forward(images).argmax(axis=1)
    return float(np.mean(predicted == trained.data.test_labels))


@styled
def draw_company(company, inference_accuracy):
    """Accuracy and the share of changeable answers by batch size, beside inference."""
    figure, axes = new_figure(height=3.6)
    axes.axhline(100 * inference_accuracy, color=INK, linewidth=1.4, linestyle=(0, (4, 2)),
                 label="recognized, by the moving averages")
    axes.plot(company.sizes, 100 * company.accuracy, color=BLUE, marker="o", label="recognized, by batch statistics")
    axes.plot(company.sizes, 100 * company.changed, color=ORANGE, marker="s", linestyle="--",
              label="answer depends on the batch, by batch statistics")
    axes.set_xscale("log", base=2)
    axes.set_xticks(company.sizes[::2], [str(size) for size in company.sizes[::2]])
    axes.minorticks_off()
    axes.set(ylim=(-3, 103), xlabel="images in a batch", ylabel="test images (%)")
    figure.legend(loc="outside upper center", ncols=1)
    return figure


def brighter(images):
    """The images with every pixel BRIGHTER times as bright, at most white."""
    return np.minimum(images * np.float32(BRIGHTER), 1)


@styled
def draw_drift(usual, shifted):
    """Bars of the divergence by feature, sorted by that of the shifted images; and the shift of the mean."""
    figure, axes = new_figure(2, 1, height=5.4, sharex=True)
    order = np.argsort(-shifted.divergence)
    places = np.arange(len(order))
    for panel, attribute, label in zip(axes, ("divergence", "mean_shift"),
                                       ("divergence (nats)", "shift of the mean\n(standard deviations)")):
        panel.bar(places, getattr(shifted, attribute)[order], width=0.8, color=SKY, label="brighter images")
        panel.scatter(places, getattr(usual, attribute)[order], s=10, color=GREEN, linewidths=0, zorder=3,
                      label="the images as they are")
        panel.set_ylabel(label)
    axes[1].axhline(0, color=INK, linewidth=0.8)
    axes[1].set_xlabel("features, those that drift most first")
    axes[0].legend(loc="upper right")
    return figure


def make(settings):
    epochs = QUICK_EPOCHS if settings.quick else EPOCHS
    train_line = f"trained = inference.train(seed={settings.seed}, epochs={epochs})\n"
    alone, company = _alone(train_line), _company(train_line, settings)
    drift = _drift(train_line)
    return Section("Inference", (
        _same_bits(alone.values), alone, _about_company(company.values), company, _about_drift(drift.values), drift,
    ))


def _alone(train_line):
    code = (
        "from fastbn.explain import inference\n\n" + train_line +
        "x, norm = trained.before_norm(trained.data.test_images), trained.norm\n"
        "alone = inference.one_by_one(norm, x)\n"
        "different = inference.differing(norm(x), alone)\n"
        "two = inference.two_digits(trained, x)\n"
        "in_training = inference.alone_in_training(norm, two)\n"
        "figure = inference.draw_two_digits(norm(two), in_training, norm.beta)")
    values = run_code(code)
    a, b = values["norm"](values["two"])[:, :SHOWN_FEATURES]
    return Picture(
        code=code, values=values,
        caption=f"The same layer and the same two images, the first {SHOWN_FEATURES} features of its output.",
        alt=f"Outputs of a batch norm layer for images of the digits {DIGITS[0]} and {DIGITS[1]}. By the moving averages "
            f"the two differ, by up to {np.abs(a - b).max():.2g}. By the statistics of a batch of one image both are the "
            "same line, which is beta.")


def _same_bits(values):
    images, features = values["x"].shape
    trained = values["trained"]
    with digits.one_thread():
        logits = check_single_samples(trained.network, trained.data.test_images).logit_difference
    off = float(np.abs(values["in_training"] - values["norm"].beta).max())
    return Text(
        "A trained layer normalizes by its moving averages, which no longer depend on the batch. So an image gets the "
        "same answer alone as among others. The first batch norm layer has {inference_compared} outputs for "
        "{inference_images} test images; computed one image at a time and all at once, {inference_different} of them "
        "differ in any bit. (The whole network's answers agree to {inference_logits} of the largest, since NumPy's matrix "
        "product adds in another order for one row than for many.) A batch's own statistics would not do: of a single "
        "image the mean of a feature is its only value and the variance is 0, so x - mean is 0, and the output is "
        "beta, whatever the image (the largest difference from beta here: {inference_off_beta}).",
        inference_compared=Number(images * features, f"{images * features:,}"),
        inference_images=Number(images, f"{images}"),
        inference_different=Number(values["different"], f"{values['different']}"),
        inference_logits=Number(logits, f"{logits:.1e}"),
        inference_off_beta=Number(off, f"{off:g}"))


def _company(train_line, settings):
    shuffles = QUICK_SHUFFLES if settings.quick else SHUFFLES
    code = (
        "from fastbn.explain import inference\n\n" + train_line +
        "recognized = inference.accuracy(trained, trained.data.test_images)\n"
        f"company = inference.in_company(trained, shuffles={shuffles}, seed={settings.seed})\n"
        "figure = inference.draw_company(company, recognized)")
    values = run_code(code)
    company = values["company"]
    shown = ", ".join(f"{100 * company.accuracy[i]:.0f} % in batches of {company.sizes[i]}" for i in (0, 1, 3, 7, -1))
    return Picture(
        code=code, values=values,
        caption=f"The test images in {shuffles} random orders. With batch statistics both curves depend on the batch size.",
        alt=f"Test images recognized by batch size. With the moving averages {100 * values['recognized']:.1f} %, whatever "
            f"the batch; with batch statistics {shown}. The other images decide {100 * company.changed[3]:.0f} % of "
            f"the answers in batches of {company.sizes[3]}, {100 * company.changed[-1]:.0f} % in those of "
            f"{company.sizes[-1]}.")


def _about_company(values):
    company = values["company"]
    shares = {size: (company.accuracy[i], company.changed[i]) for i, size in enumerate(company.sizes)}
    largest = company.sizes[-1]
    better = " Where there are many test images at once, their own statistics may fit better than averages that lag."
    return Text(
        "In the whole network, batches of one leave {inference_accuracy_batch_1} of the test images recognized: all "
        "get the same answer. The statistics of a small batch are rough guesses, and which images share it decides "
        "about the answer. In batches of 4, {inference_accuracy_batch_4} are recognized, and "
        "{inference_changed_batch_4} of the images get another digit in another order; in batches of 64, "
        "{inference_changed_batch_64} still do. By the moving averages {inference_accuracy} are recognized, in "
        "batches of any size, and by batch statistics "
        f"{{inference_accuracy_batch_{largest}}} in batches of {largest}."
        + better * bool(shares[largest][0] > values["recognized"]),
        inference_accuracy_batch_1=_percent(shares[1][0]), inference_accuracy_batch_4=_percent(shares[4][0]),
        inference_changed_batch_4=_percent(shares[4][1]), inference_changed_batch_64=_percent(shares[64][1]),
        inference_accuracy=_percent(values["recognized"]),
        **{f"inference_accuracy_batch_{largest}": _percent(shares[largest][0])})


def _percent(share):
    return Number(float(share), f"{100 * share:.1f} %")


def _drift(train_line):
    code = (
        "from fastbn.explain import inference\n\n" + train_line +
        "images = trained.data.test_images\n"
        "usual = trained.norm.drift(trained.before_norm(images))\n"
        "shifted = trained.norm.drift(trained.before_norm(inference.brighter(images)))\n"
        "figure = inference.draw_drift(usual, shifted)")
    values = run_code(code)
    usual, shifted = values["usual"], values["shifted"]
    return Picture(
        code=code, values=values,
        caption=f"The {len(shifted.divergence)} features of the first batch norm layer: bars for images {BRIGHTER:g} times "
                "as bright, points for the test images as they are.",
        alt=f"Divergence and shift of the mean by feature. For brighter images the divergence goes up to "
            f"{shifted.divergence.max():.2g} nats and means shift by {shifted.mean_shift.min():.2g} to "
            f"{shifted.mean_shift.max():.2g} standard deviations; for the images as they are the divergence is at most "
            f"{usual.divergence.max():.2g} nats.")


def _about_drift(values):
    trained, shifted, usual = values["trained"], values["shifted"], values["usual"]
    far, usual_far = (int(np.count_nonzero(drift.divergence > FAR)) for drift in (shifted, usual))
    bright = accuracy(trained, brighter(values["images"]))
    return Text(
        "The moving averages hold as long as the data are like those of the training. `layer.drift(x)` tells how far "
        "a batch lies from them, feature by feature: 0 means that mean and spread agree. Here the test images come as "
        f"they are, and then {BRIGHTER:g} times as bright, as from another camera. The number of features with a divergence "
        f"over {FAR:g} nats goes from {{inference_drifting_usual}} to {{inference_drifting_shifted}}, the largest from "
        "{inference_drift_usual} to {inference_drift_shifted}. The network recognizes "
        "{inference_accuracy_brighter} of the brighter images. Drift needs no labels, so it can be watched where the right answers are not "
        "known.",
        inference_drifting_usual=Number(usual_far, f"{usual_far}"), inference_drifting_shifted=Number(far, f"{far}"),
        inference_drift_usual=_nats(usual), inference_drift_shifted=_nats(shifted),
        inference_accuracy_brighter=_percent(bright))


def _nats(drift):
    return Number(float(drift.divergence.max()), f"{drift.divergence.max():.2g} nats")
