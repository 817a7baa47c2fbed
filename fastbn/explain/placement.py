"""Section 8: batch norm before the activation, after it, or nowhere: learning curves and final accuracy over seeds."""
import functools
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy import stats

from fastbn.demo.settings import LEARNING_RATES, TARGET_ACCURACY, Settings
from fastbn.demo.training import History, Variant, train_variant
from fastbn.explain import digits
from fastbn.explain.section import Number, Picture, Section, Text, named_table, run_code
from fastbn.explain.style import BLUE, GREEN, INK, ORANGE, new_figure, styled

SEEDS, EPOCHS = 10, 60
QUICK_SEEDS, QUICK_EPOCHS = 5, 15
EARLY = 3  # epochs, at which the curves are compared in words
CONFIDENCE = 0.95
LARGEST_SEED = 2**32 - 1  # that scikit-learn takes
STYLES = ((ORANGE, "--"), (BLUE, "-"), (GREEN, "-."))  # by the order of VARIANTS


@dataclass(frozen=True)
class Runs:
    """Trainings of one variant that differ in their seed alone.

    losses, accuracies: (seeds, epochs) float64: the mean training loss of each epoch in nats; the share of the test images
    that are classified right after it, by the moving averages.
    """

    variant: Variant
    seeds: tuple
    losses: np.ndarray
    accuracies: np.ndarray
    test_images: int

    @property
    def key(self):
        """In the names of numbers."""
        return self.variant.position or "none"

    @property
    def final(self):
        """(seeds,): the accuracies after the last epoch."""
        return self.accuracies[:, -1]

    def epochs_to(self, accuracy):
        """(seeds,): the first epoch after which each had that accuracy; infinite where none had."""
        reached = self.accuracies >= accuracy
        return np.where(reached.any(axis=1), 1.0 + reached.argmax(axis=1), np.inf)


class Interval(NamedTuple):
    """A mean over seeds, and how far to either side its confidence interval reaches."""

    mean: float
    reach: float

    @property
    def low(self):
        return self.mean - self.reach

    @property
    def high(self):
        return self.mean + self.reach


@functools.lru_cache(maxsize=8)
def train(variant, *, seeds, epochs):
    """The Runs of a variant of the demo's network (fastbn.demo.training.VARIANTS), one for each of `seeds`.

    A seed decides which images are for testing, the weights at the start and the mini-batches: it is the same run for every
    variant, but for the batch norm. Raises RuntimeError where a loss is no longer finite.
    """
    histories = [_train_one(variant, seed, epochs) for seed in seeds]
    losses = np.array([history.losses for history in histories])
    accuracies = np.array([history.accuracies for history in histories])
    losses.flags.writeable = accuracies.flags.writeable = False  # they are shared
    return Runs(variant, tuple(seeds), losses, accuracies, len(digits.load(seeds[0]).test_labels))


def _train_one(variant, seed, epochs):
    history = History(variant)
    with digits.one_thread():
        train_variant(digits.load(seed), Settings(seed=seed, epochs=epochs), history, lambda: None)
    if history.diverged:
        raise RuntimeError(f"the training with batch norm {variant.name!r} and seed {seed} diverged: its loss is not finite")
    return history


def mean_interval(values, comparisons=1):
    """The Interval of a mean by Student's t. Several comparisons all hold together with CONFIDENCE (Bonferroni)."""
    count = len(values)
    quantile = stats.t.ppf(1 - (1 - CONFIDENCE) / comparisons / 2, count - 1)
    return Interval(float(np.mean(values)), float(quantile * np.std(values, ddof=1) / count**0.5))


def differences(runs):
    """{(i, j): (seeds,)} the final accuracies of runs[i] less those of runs[j], seed by seed, for every pair."""
    return {(j, i): runs[j].final - runs[i].final for i, j in combinations(range(len(runs)), 2)}


def binomial_error(runs):
    """The standard error of one run's accuracy that comes from its number of test images alone: sqrt(p (1 - p) / n)."""
    p = float(runs.final.mean())
    return (p * (1 - p) / runs.test_images) ** 0.5


def make(settings):
    count, epochs = (QUICK_SEEDS, QUICK_EPOCHS) if settings.quick else (SEEDS, EPOCHS)
    first = settings.seed * count % (LARGEST_SEED - count)  # pages of other seeds have other runs
    seeds = f"range({first}, {first + count})"
    trained = f"""from fastbn.demo.training import VARIANTS  # BatchNorm nowhere, before, after
from fastbn.explain import placement

runs = [placement.train(variant, seeds={seeds}, epochs={epochs})
        for variant in VARIANTS]
"""
    curves, finals = trained + "figure = placement.draw_curves(runs)", trained + "figure = placement.draw_final(runs)"
    values, final_values = run_code(curves), run_code(finals)
    runs = values["runs"]
    curve_picture = Picture(
        code=curves, values=values, alt=_curves_alt(runs),
        caption=f"Line: the mean over {count} seeds; band: from the least to the greatest of them. Above, the training "
                "loss; below, the accuracy on test images.")
    final_picture = Picture(
        code=finals, values=final_values, alt=_final_alt(runs),
        caption=f"Test accuracy after {epochs} epochs: a dot for every seed, above them the mean with its "
                f"{100 * CONFIDENCE:g} % interval.")
    return Section("Before or after the activation", (
        _opening(runs, settings), curve_picture, _early(runs), _table(runs), final_picture, _uncertainty(runs),
        *_verdicts(runs)))


# ---- pictures ----

@styled
def draw_curves(runs):
    """Training loss and test accuracy by epoch for each of the Runs: mean over seeds, and least to greatest."""
    figure, (loss, accuracy) = new_figure(2, 1, height=6.0, sharex=True)
    epochs = 1 + np.arange(runs[0].losses.shape[1])
    for one, (colour, dashes) in zip(runs, STYLES):
        for axes, values in ((loss, one.losses), (accuracy, 100 * one.accuracies)):
            axes.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.22, linewidth=0)
            axes.plot(epochs, values.mean(axis=0), color=colour, linestyle=dashes, label=one.variant.name)
    loss.set(yscale="log", ylabel="training loss (cross-entropy, nats)")
    loss.yaxis.set_major_formatter("{x:g}")
    accuracy.set(xlabel="epoch", xlim=(0, epochs[-1]), ylabel="test accuracy (%)", ylim=(0, 102))
    accuracy.legend(loc="lower right", title="batch norm")
    return figure


@styled
def draw_final(runs):
    """The accuracy of every seed after the last epoch, and the mean with its interval, for each of the Runs."""
    figure, axes = new_figure(height=2.9)
    for place, (one, (colour, _)) in enumerate(zip(runs, STYLES)):
        interval = mean_interval(one.final)
        spread = np.linspace(-0.18, 0.18, len(one.final))
        axes.plot(100 * one.final, place + spread, "o", color=colour, markersize=4, alpha=0.7)
        axes.errorbar(100 * interval.mean, place - 0.34, xerr=100 * interval.reach, fmt="D", color=INK, markersize=5,
                      elinewidth=1.4, capsize=4)
    axes.set_yticks(range(len(runs)), [one.variant.name for one in runs])
    axes.set(ylabel="batch norm", ylim=(len(runs) - 0.5, -0.6),
             xlabel=f"test accuracy after {runs[0].losses.shape[1]} epochs (%)")
    axes.grid(False, axis="y")
    return figure


# ---- text and table ----

def _opening(runs, settings):
    seeds, epochs = runs[0].accuracies.shape
    shortened = "This is the quick page, with fewer seeds and epochs than the full one. " if settings.quick else ""
    return Text(
        "Ioffe and Szegedy put batch norm before the activation; many put it after. Here both, and a network without, learn "
        "the digits {placement_seeds} times each for {placement_epochs} epochs. A seed decides which images are for "
        f"testing, the weights and the mini-batches, and is the same run for all three. {shortened}The learning rate, "
        "{placement_rate}, suits the network without batch norm; another rate, network or data could end otherwise.",
        placement_seeds=Number(seeds), placement_epochs=Number(epochs),
        placement_rate=Number(LEARNING_RATES[Settings.activation]))


def _table(runs):
    rows = []
    for one in runs:
        interval, reached = mean_interval(one.final), one.epochs_to(TARGET_ACCURACY)
        cells = {"accuracy": _percent(interval.mean), "reach": _points(interval.reach, "± "),
                 "deviation": _points(np.std(one.final, ddof=1)), "least": _percent(one.final.min()),
                 "greatest": _percent(one.final.max()), "reached": Number(int(np.isfinite(reached).sum())),
                 "median_epochs": _epochs(float(np.median(reached)))}
        rows.append((one.variant.name, *((f"placement_{one.key}_{name}", cell) if isinstance(cell, Number) else cell
                                         for name, cell in cells.items())))
    seeds, epochs = runs[0].accuracies.shape
    target = f"{100 * TARGET_ACCURACY:g} %"
    return named_table(
        f"Test accuracy after {epochs} epochs over {seeds} seeds, and the epochs to {target}",
        ("batch norm", "mean", f"{100 * CONFIDENCE:g} % interval, points", "standard deviation, points", "least",
         "greatest", f"seeds that reached {target}", f"median epochs to {target}"), rows)


def _early(runs):
    means = {f"placement_{one.key}_early": _percent(one.accuracies[:, EARLY - 1].mean()) for one in runs}
    return Text(
        "The start of the curves in numbers: after {placement_early_epoch} epochs the mean test accuracy is "
        "{placement_none_early} without it, {placement_before_early} with it before the activation and "
        "{placement_after_early} after.", placement_early_epoch=Number(EARLY), **means)


def _epochs(median):
    """Where half of the seeds or more did not get there, there is no median."""
    return Number(median, f"{median:g}") if np.isfinite(median) else "not reached"


def _uncertainty(runs):
    errors = {f"placement_{one.key}_binomial": _points(binomial_error(one)) for one in runs}
    return Text(
        "How far can one trust these? One run is tested on {placement_test_images} images; had others been drawn, its "
        "accuracy would differ by about {placement_none_binomial} percentage points without batch norm, "
        "{placement_before_binomial} with it before the activation and {placement_after_binomial} after (the binomial "
        "standard error). That is part of the standard deviation over seeds, since every seed draws its own test images. "
        f"The {100 * CONFIDENCE:g} % intervals are Student's t over the seeds. They speak of these digits alone, from "
        "which all seeds draw.",
        placement_test_images=Number(runs[0].test_images), **errors)


def _verdicts(runs):
    """A paragraph on each pair, which claims a difference only where the interval of the differences is clear of 0."""
    lead = Text(
        "Pair by pair the difference is taken seed by seed, since both ran from the same seeds. The intervals of the three "
        f"differences hold together with {100 * CONFIDENCE:g} % confidence.")
    gains = differences(runs)
    return lead, *(_verdict(runs[i], runs[j], gain, len(gains)) for (i, j), gain in gains.items())


def _verdict(first, second, gain, comparisons):
    name, interval = f"placement_{first.key}_minus_{second.key}", mean_interval(gain, comparisons)
    numbers = {f"{name}_{part}": _points(value, "+" if value > 0 else "") for part, value in
               (("mean", interval.mean), ("low", interval.low), ("high", interval.high))}
    numbers[f"{name}_higher"], numbers[f"{name}_seeds"] = Number(int(np.sum(gain > 0))), Number(len(gain))
    measured = (f"{{{name}_mean}} percentage points on average, interval {{{name}_low}} to {{{name}_high}}, above 0 for "
                f"{{{name}_higher}} of {{{name}_seeds}} seeds")
    if interval.low <= 0 <= interval.high:
        claim = "That may be chance."
    else:
        better = first if interval.low > 0 else second
        claim = f"After {better.accuracies.shape[1]} epochs the better one here is: {better.variant.name}."
    return Text(f"Batch norm {first.variant.name} against {second.variant.name}: {measured}. {claim}", **numbers)


def _percent(share):
    return Number(float(share), f"{100 * share:.2f} %")


def _points(share, sign=""):
    return Number(float(share), f"{sign}{100 * share:.2f}")


def _curves_alt(runs):
    parts = [f"{one.variant.name}: at the end loss {one.losses[:, -1].mean():.3g}, accuracy {100 * one.final.mean():.1f} %"
             for one in runs]
    seeds, epochs = runs[0].losses.shape
    return (f"Learning curves over {epochs} epochs, means of {seeds} seeds, by the place of batch norm. "
            + "; ".join(parts) + ".")


def _final_alt(runs):
    parts = []
    for one in runs:
        interval = mean_interval(one.final)
        parts.append(f"{one.variant.name} {100 * interval.mean:.1f} %, interval {100 * interval.low:.1f} to "
                     f"{100 * interval.high:.1f}")
    return "Final accuracies by seed, and means with intervals, by the place of batch norm: " + "; ".join(parts) + "."
