"""Section 3: what reaches the last sigmoid of the demo's network while it trains, with and without batch norm."""
import functools
from dataclasses import dataclass

import numpy as np

import fastbn
from fastbn.explain import digits
from fastbn.explain.section import Number, Picture, Section, Text, named_table, run_code
from fastbn.explain.style import BLUE, INK, ORANGE, new_figure, styled

STEPS, EVERY = 661, 4  # mini-batches of training, 22 to the epoch; the first and each fourth after it are looked at
FLAT = 3.0  # beyond this on either side a sigmoid's slope is under a fifth of its greatest
PERCENTILES = (5, 25, 50, 75, 95)
NAMES = {"plain": "without batch norm", "normed": "with batch norm"}
COLOURS = {"plain": ORANGE, "normed": BLUE}


@dataclass(frozen=True)
class Recording:
    """steps: (K,) int64, their numbers, from 1; values: (K, N, C) float32, what the N images of each step's batch gave."""

    steps: np.ndarray
    values: np.ndarray


@functools.lru_cache(maxsize=4)
def record(make_norm=None, *, seed, steps=STEPS, every=EVERY):
    """A Recording of the last sigmoid's inputs over so many training steps, of the first step and each `every`-th after it.

    make_norm(num_features) makes the layers of batch norm before the sigmoids, such as fastbn.BatchNorm; None: none. The
    weights at the start and the mini-batches are the same with and without.
    """
    network = digits.build("before" if make_norm else None, make_norm, seed=seed)
    listener = digits.Listener()
    network.layers.insert(len(network.layers) - 2, listener)  # the sigmoid and the output layer come after it
    numbers, values = [], []

    def keep(number):
        if number % every == 1 % every:
            numbers.append(number)
            values.append(listener.x.copy())

    digits.train(network, seed=seed, steps=steps, after_step=keep)
    recording = Recording(np.array(numbers), np.stack(values))
    recording.values.flags.writeable = False  # it is shared
    return recording


def flat_shares(recording):
    """(K,): the share of a step's values that lie beyond +-FLAT."""
    return np.mean(np.abs(recording.values) > FLAT, axis=(1, 2))


def spreads(recording):
    """(K, C): each feature's standard deviation over the images of the step."""
    return np.array([fastbn.moments(x).var() ** 0.5 for x in recording.values])


def make(settings):
    recordings = f"""import fastbn
from fastbn.explain import activations

plain = activations.record(seed={settings.seed})
normed = activations.record(fastbn.BatchNorm, seed={settings.seed})
"""
    bands = recordings + "figure = activations.draw_bands(plain, normed)"
    spread = recordings + """spreads = [[fastbn.moments(x).var() ** 0.5 for x in one.values]
           for one in (plain, normed)]
figure = activations.draw_spreads(plain.steps, *spreads)"""
    values, spread_values = run_code(bands), run_code(spread)
    shown = {name: values[name] for name in NAMES}
    band_picture = Picture(
        code=bands, values=values, alt=_bands_alt(shown),
        caption="What the last sigmoid gets, all images and features of a step together: median, the middle half (dark) and "
                "the middle nine tenths (light). Beyond the dotted lines the sigmoid is nearly flat.")
    spread_picture = Picture(
        code=spread, values=spread_values, alt=_spreads_alt(shown),
        caption="How far images differ in one feature: the standard deviation over the images of a step, for the median "
                "feature (line) and the middle nine tenths of the features (band).")
    return Section("The same inside a network",
                   (_opening(shown), band_picture, _flatness(shown), spread_picture, _closing(shown), _table(shown)))


@styled
def draw_bands(plain, normed):
    """Percentiles of all values of a step, by step: one panel without and one with batch norm, on the same axes."""
    figure, panels = new_figure(2, 1, height=5.2, sharex=True, sharey=True)
    for axes, name, recording in zip(panels, NAMES, (plain, normed)):
        levels = np.percentile(recording.values, PERCENTILES, axis=(1, 2))
        _draw_band(axes, recording.steps, levels, COLOURS[name])
        for edge in (-FLAT, FLAT):
            axes.axhline(edge, color=INK, linewidth=0.9, linestyle=":")
        axes.set_title(NAMES[name], loc="left")
        axes.set_ylabel("input of the sigmoid")
    panels[-1].set(xlabel="training step", xlim=(0, plain.steps[-1]))
    return figure


def _draw_band(axes, steps, levels, colour, **style):
    low, *middle, high = levels
    axes.fill_between(steps, low, high, color=colour, alpha=0.25, linewidth=0)
    if len(middle) > 1:
        axes.fill_between(steps, middle[0], middle[-1], color=colour, alpha=0.4, linewidth=0)
    axes.plot(steps, middle[len(middle) // 2], color=colour, **style)


@styled
def draw_spreads(steps, plain, normed):
    """The features' standard deviations, (K, C) each, by step: median and the middle nine tenths, on a logarithmic axis."""
    figure, axes = new_figure(height=3.4)
    for name, spread, dashes in zip(NAMES, (plain, normed), ("--", "-")):
        levels = np.percentile(spread, (5, 50, 95), axis=1)
        _draw_band(axes, steps, levels, COLOURS[name], linestyle=dashes, label=NAMES[name])
    axes.set(yscale="log", xlim=(0, steps[-1]), xlabel="training step", ylabel="standard deviation over images")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend(loc="lower right")
    return figure


def _opening(shown):
    steps, images, features = shown["plain"].values.shape
    return Text(
        "Inside a network every layer's input is the output of layers that are learning too. Here is the demo's network "
        "learning real handwritten digits, twice: three hidden layers of {activations_features} sigmoid units, from the "
        "same weights, fed with the same mini-batches of {activations_images} images; once without batch norm and once "
        "with `fastbn.BatchNorm` before each sigmoid. The pictures show what reaches the last of the three sigmoids.",
        activations_features=Number(features), activations_images=Number(images))


def _flatness(shown):
    worst = {name: float(flat_shares(recording).max()) for name, recording in shown.items()}
    when = int(shown["plain"].steps[flat_shares(shown["plain"]).argmax()])
    return Text(
        "A sigmoid answers between -3 and 3; further out it is nearly flat, its slope under a fifth of the greatest, and "
        "little gradient comes back through it. Without batch norm {activations_flat_plain} of the values lay out there at "
        "step {activations_flat_step}, when they were most; with batch norm never more than {activations_flat_normed}.",
        activations_flat_step=Number(when, str(when)),
        activations_flat_plain=Number(worst["plain"], _percent(worst["plain"])),
        activations_flat_normed=Number(worst["normed"], _percent(worst["normed"])))


def _closing(shown):
    first = {name: float(np.median(spreads(recording)[0])) for name, recording in shown.items()}
    ratio = first["normed"] / first["plain"]
    return Text(
        "A feature that is almost the same for every image tells nothing about the image. At the first step the median "
        "feature's standard deviation is {activations_spread_plain} without batch norm and {activations_spread_normed} with "
        "it, where it is about 1 by construction: {activations_spread_ratio} times as much. After that it is gamma, "
        "learned, that decides the spread, and beta the centre, whatever the layers below do.",
        activations_spread_plain=Number(first["plain"], f"{first['plain']:.3g}"),
        activations_spread_normed=Number(first["normed"], f"{first['normed']:.3g}"),
        activations_spread_ratio=Number(ratio, f"{ratio:.3g}"))


def _table(shown):
    """At some steps, the first and the last among them: the median, the share beyond FLAT and the median spread of both."""
    chosen = np.linspace(0, len(shown["plain"].steps) - 1, 6).round().astype(int)
    columns = {}
    for name, recording in shown.items():
        columns[f"median_{name}"] = np.median(recording.values, axis=(1, 2))
        columns[f"flat_{name}"] = flat_shares(recording)
        columns[f"spread_{name}"] = np.median(spreads(recording), axis=1)
    rows = []
    for index in chosen:
        step = int(shown["plain"].steps[index])
        rows.append((str(step), *((f"activations_{key}_at_{step}", _cell(key, float(column[index])))
                                  for key, column in columns.items())))
    headings = [f"{what}, {NAMES[name]}" for name in shown for what in ("median", f"beyond ±{FLAT:g}", "feature's spread")]
    return named_table("The last sigmoid's inputs by training step; the spread is the median feature's standard "
                       "deviation over the images", ("step", *headings), rows)


def _cell(key, value):
    return Number(value, _percent(value) if key.startswith("flat") else f"{value:.3g}")


def _percent(share):
    return f"{100 * share:.3g} %"


def _bands_alt(shown):
    parts = []
    for name, recording in shown.items():
        medians = np.median(recording.values, axis=(1, 2))
        parts.append(f"{NAMES[name]} the median moves between {medians.min():.2f} and {medians.max():.2f}")
    return (f"Two charts of the sigmoid's inputs over {shown['plain'].steps[-1]} training steps: " + "; ".join(parts) + ".")


def _spreads_alt(shown):
    parts = []
    for name, recording in shown.items():
        medians = np.median(spreads(recording), axis=1)
        parts.append(f"{NAMES[name]} it goes from {medians[0]:.3g} at the first step to {medians[-1]:.3g} at the last")
    return "Chart of the median feature's standard deviation over the images, by training step: " + "; ".join(parts) + "."
