"""Moving averages: what a layer remembers of its batches while it trains, beside the exact statistics of all the data.

Watched is the batch norm after the first linear layer of the demo's network. What enters it depends on the weights of that
one linear layer alone, so the statistics of all the training images are exact at every step.
"""
import functools
from dataclasses import dataclass

import numpy as np

import fastbn
from fastbn.demo import training
from fastbn.demo.network import BEFORE
from fastbn.demo.settings import HIDDEN_SIZES
from fastbn.demo.settings import Settings as DemoSettings
from fastbn.demo.timing import endless_batches
from fastbn.explain import digits
from fastbn.explain.section import Number, Picture, Section, Text, named_table, run_code
from fastbn.explain.style import FAINT, INK, SERIES, new_figure, styled

FEATURES = HIDDEN_SIZES[0]
STEPS, QUICK_STEPS = 300, 200
MOMENTA = (0.5, 0.9, 0.99, None)
EARLY = 20       # the step of the table's first column
POINT_EVERY = 3  # batches: enough to see their spread, in a third of the picture's bytes


@dataclass(frozen=True)
class Record:
    """For every step of a training, the fastbn.Moments of its batch and those of all the data at its weights.

    inputs: (N, C) float32, what the layer sees of all the training images at the weights of the last step.
    """

    batches: tuple
    exact: tuple
    inputs: np.ndarray

    def feature(self):
        """The feature whose exact mean moves the farthest, measured by its standard deviation at the end."""
        means = np.array([moments.mean for moments in self.exact])
        return int(np.argmax(np.ptp(means, axis=0) / np.sqrt(self.exact[-1].var())))

    def exact_values(self):
        """(mean, variance with ddof=1) of all the data, arrays of shape (steps, C)."""
        return np.array([m.mean for m in self.exact]), np.array([m.var(1) for m in self.exact])

    def batch_values(self):
        """The same of every batch."""
        return np.array([m.mean for m in self.batches]), np.array([m.var(1) for m in self.batches])


@dataclass(frozen=True)
class Track:
    """running_mean and running_var of a layer after every step, arrays of shape (steps, C)."""

    mean: np.ndarray
    var: np.ndarray


@functools.lru_cache(maxsize=4)
def train(seed, steps):
    """Train the demo's network with batch norm before its activations for that many steps; a Record."""
    data, settings = digits.load(seed), DemoSettings(seed=seed)
    network, optimizer = training.make_network(data, settings, BEFORE)
    linear, norm = network.layers[:2]
    batches, exact = [], []
    with digits.one_thread():
        for _, batch in zip(range(steps), endless_batches(data, settings)):
            inputs = data.train_images @ linear.weight + linear.bias
            exact.append(fastbn.moments(inputs))
            training.training_step(network, optimizer, *batch)
            batches.append(norm.batch_moments)
    return Record(tuple(batches), tuple(exact), inputs)


def follow(layer, record):
    """Let a layer take its step of the moving averages with every batch; a Track."""
    means, variances = [], []
    for moments in record.batches:
        layer.update(moments)
        means.append(layer.running_mean.copy())
        variances.append(layer.running_var.copy())
    return Track(np.array(means), np.array(variances))


def lag(record, track):
    """How far the moving average of the mean is from the exact mean, in standard deviations of the exact variance.

    Root mean square over the features, an array of shape (steps,).
    """
    mean, var = record.exact_values()
    return np.sqrt(np.mean((track.mean - mean) ** 2 / var, axis=1))


def noise(record):
    """The same distance of the batches' own means, averaged over the steps: a number."""
    mean, var = record.exact_values()
    return float(np.sqrt(np.mean((record.batch_values()[0] - mean) ** 2 / var)))


def name(momentum):
    return "momentum None: all batches alike" if momentum is None else f"momentum {momentum:g}"


@styled
def draw_averages(record, tracks, feature):
    """Mean and variance of one feature by step: batches as points, moving averages as lines, all the data in ink."""
    figure, axes = new_figure(2, 1, height=6.4, sharex=True)
    steps = np.arange(1, len(record.batches) + 1)
    values = zip(("mean", "var"), record.batch_values(), record.exact_values(), ("mean", "variance"))
    for panel, (attribute, batches, exact, label) in zip(axes, values):
        panel.scatter(steps[::POINT_EVERY], batches[::POINT_EVERY, feature], s=9, color=FAINT, linewidths=0,
                      label="one batch (every third)")
        panel.plot(steps, exact[:, feature], color=INK, linewidth=2.4, label="all the data, exact")
        for (momentum, track), (colour, dashes) in zip(tracks.items(), SERIES):
            panel.plot(steps, getattr(track, attribute)[:, feature], color=colour, linestyle=dashes, label=name(momentum))
        panel.set_ylabel(f"{label} of feature {feature}")
    axes[1].set_xlabel("training step")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


@styled
def draw_lags(lags, batch_noise):
    """The lag by step, one line for each momentum, and the distance of a single batch's mean."""
    figure, axes = new_figure(height=3.6)
    for (momentum, values), (colour, dashes) in zip(lags.items(), SERIES):
        axes.plot(np.arange(1, len(values) + 1), values, color=colour, linestyle=dashes, label=name(momentum))
    axes.axhline(batch_noise, color=INK, linewidth=1, linestyle=(0, (2, 2)), label="a single batch")
    axes.set(yscale="log", xlabel="training step", ylabel="distance from the exact mean\n(standard deviations)")
    axes.yaxis.set_major_formatter("{x:g}")
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def make(settings):
    steps = QUICK_STEPS if settings.quick else STEPS
    averages, lags = _averages(settings.seed, steps), _lags(settings.seed, steps)
    record = averages.values["record"]
    by_momentum = lags.values["lags"]
    return Section("Moving averages", (
        _introduction(record), averages, _about_lag(by_momentum, lags.values["noise"]), lags, _table(by_momentum, steps),
        _calibration(record, by_momentum),
    ))


def _follow_lines(seed, steps):
    return (
        "import fastbn\n"
        "from fastbn.explain import moving_averages\n\n"
        f"record = moving_averages.train(seed={seed}, steps={steps})\n"
        f"layers = {{m: fastbn.BatchNorm({FEATURES}, momentum=m) for m in {MOMENTA}}}\n"
        "tracks = {m: moving_averages.follow(layer, record) for m, layer in layers.items()}\n"
    )


def _averages(seed, steps):
    code = _follow_lines(seed, steps) + "figure = moving_averages.draw_averages(record, tracks, record.feature())"
    values = run_code(code)
    record = values["record"]
    feature = record.feature()
    mean = record.exact_values()[0][:, feature]
    ends = ", ".join(f"{track.mean[-1, feature]:.3g} with {name(momentum)}" for momentum, track in values["tracks"].items())
    return Picture(
        code=code, values=values,
        caption="The feature whose mean moves the farthest. A layer starts with a moving mean of 0 and variance of 1.",
        alt=f"Mean and variance of one feature over {steps} training steps. The exact mean goes from {mean[0]:.3g} to "
            f"{mean[-1]:.3g}; the batches' points scatter about it; the moving averages follow it and end at {ends}.")


def _lags(seed, steps):
    code = _follow_lines(seed, steps) + (
        "lags = {m: moving_averages.lag(record, track) for m, track in tracks.items()}\n"
        "noise = moving_averages.noise(record)\n"
        "figure = moving_averages.draw_lags(lags, noise)")
    values = run_code(code)
    ends = ", ".join(f"{lag[-1]:.2g} with {name(momentum)}" for momentum, lag in values["lags"].items())
    return Picture(
        code=code, values=values,
        caption=f"Distance between moving and exact mean, root mean square over the {FEATURES} features.",
        alt=f"Distance of the moving mean from the exact mean by training step, on a logarithmic axis. After {steps} steps, "
            f"in standard deviations: {ends}. A single batch's mean is {values['noise']:.2g} off.")


def _introduction(record):
    return Text(
        "In training a layer normalizes by the mean and variance of its batch, here of {moving_averages_batch_size} "
        "digits. When it is used later there may be a single image and no batch, so it keeps moving averages: after "
        "each batch `new = momentum * old + (1 - momentum) * batch`. A large momentum averages over many batches, a "
        "small one forgets soon. With `momentum=None` every batch so far counts alike. Meanwhile the network learns, "
        "its weights change, and the true statistics with them. The thick line has those: mean and variance over all "
        "{moving_averages_images} training images, computed anew at the weights of each step by `fastbn.moments`.",
        moving_averages_batch_size=Number(record.batches[0].count, f"{record.batches[0].count}"),
        moving_averages_images=Number(record.exact[0].count, f"{record.exact[0].count:,}"))


def _about_lag(lags, batch_noise):
    """Worded by what the run shows: which momentum is nearest at the end, which is farthest."""
    ends = {momentum: values[-1] for momentum, values in lags.items()}
    near, far = min(ends, key=ends.get), max(ends, key=ends.get)
    return Text(
        "Two errors pull in opposite directions. A batch is a sample: its mean is off by {moving_averages_noise}, and "
        "a short memory passes much of that on. A long memory averages the chance away but tells of weights that are "
        "gone, and at first (but with None) of the value 0 that it started from: it lags. At the end of this run "
        f"{_memory(near)} is nearest to the exact mean, {{moving_averages_least_lag}} off, and "
        f"{_memory(far)} is farthest, {{moving_averages_most_lag}} off.",
        moving_averages_noise=_deviations(batch_noise), moving_averages_least_lag=_deviations(ends[near]),
        moving_averages_most_lag=_deviations(ends[far]))


def _memory(momentum):
    """The weights of an average with momentum m decay by m a batch: their sum is that of 1 / (1 - m) full weights."""
    if momentum is None:
        return "`momentum=None`, which never forgets,"
    return f"momentum {momentum:g}, a memory of some {1 / (1 - momentum):.0f} batches,"


def _deviations(value):
    return Number(float(value), f"{value:.3g} standard deviations")


def _table(lags, steps):
    at = (EARLY, steps // 2, steps)
    rows = [(name(momentum), *((f"moving_averages_lag_{momentum}_step_{step}".replace(".", "_").lower(),
                                Number(float(values[step - 1]), f"{values[step - 1]:.3f}")) for step in at))
            for momentum, values in lags.items()]
    return named_table("Distance between moving and exact mean, in standard deviations.",
                       ("", *(f"after {step} steps" for step in at)), rows)


def calibrated_error(record):
    """The lag that is left after `calibrate` with all the data at the last step's weights: rounding to float32."""
    batches = (record.inputs[start : start + 100] for start in range(0, len(record.inputs), 100))
    layer = fastbn.BatchNorm(FEATURES).calibrate(batches)
    last = record.exact[-1]
    return float(np.sqrt(np.mean((layer.running_mean - last.mean) ** 2 / last.var(1))))


def _calibration(record, lags):
    error = calibrated_error(record)
    least = min(values[-1] for values in lags.values())
    return Text(
        "Where the exact values are wanted after training, `layer.calibrate(batches)` replaces the moving averages by "
        "those of all the data, in one pass that holds one batch at a time. Then {moving_averages_calibrated} are "
        "left, by rounding to float32; the best moving average above was {moving_averages_best} off.",
        moving_averages_calibrated=Number(error, f"{error:.1e} standard deviations"),
        moving_averages_best=_deviations(least))
