"""Accuracy: how large mean / std may become before float32 statistics go wrong, for fastbn, plain NumPy and PyTorch.

Errors are those of the computation alone: the reference is the float64 result for the very same float32 numbers, its sums
by math.fsum, which rounds once.
"""
import functools
import math
from dataclasses import dataclass

import numpy as np

from fastbn.explain import _peers
from fastbn.explain.section import Number, Picture, Section, Text, named_table, run_code
from fastbn.explain.style import BLUE, GREEN, INK, ORANGE, new_figure, styled

EPS = 1e-5
FEATURES = 8
SHAPES = {"table": (4096, FEATURES), "channels-first": (16, FEATURES, 16, 16)}  # as many entries of a feature
RATIOS = tuple(float(f"{10 ** (exponent / 2):.3g}") for exponent in range(13))  # mean / std, 1 to 1e6
QUANTITIES = ("mean", "var", "y")
VARIANCE_BOUND = 1e-6            # the contract's, relative; see What it promises in the README
FLOOR = 1e-10                    # the least error that is drawn
STYLES = {"fastbn": (BLUE, "-", "o"), "NumPy": (ORANGE, "--", "s"), "PyTorch": (GREEN, "-.", "^")}


@dataclass(frozen=True)
class Result:
    """mean and var (biased) of shape (C,), and y = (x - mean) / sqrt(var + eps), of x's shape."""

    mean: np.ndarray
    var: np.ndarray
    y: np.ndarray


@functools.lru_cache(maxsize=2)
def _noise(layout, seed):
    return np.random.default_rng([seed, 9]).standard_normal(SHAPES[layout])


def data(ratio, layout, seed):
    """float32 numbers with a standard deviation of 1 and that mean, in one of the SHAPES."""
    return (ratio + _noise(layout, seed)).astype(np.float32)


def _along(x, values):
    return values.reshape(1, -1, *[1] * (x.ndim - 2))


def reference(x):
    """The Result for float32 numbers x in float64, its sums exact but for one rounding."""
    features = np.moveaxis(x, 1, 0).reshape(x.shape[1], -1).astype(np.float64)
    mean = np.array([math.fsum(feature) / feature.size for feature in features])
    squares = (features - mean[:, None]) ** 2
    var = np.array([math.fsum(feature) / feature.size for feature in squares])
    return Result(mean, var, (x.astype(np.float64) - _along(x, mean)) / np.sqrt(_along(x, var) + EPS))


def by_numpy(x):
    """What one writes: NumPy's mean and var, in the type of x."""
    axes = (0, *range(2, x.ndim))
    mean, var = x.mean(axis=axes), x.var(axis=axes)
    return Result(mean, var, (x - _along(x, mean)) / np.sqrt(_along(x, var) + np.float32(EPS)))


def by_torch(x):
    """torch.nn.functional.batch_norm; its statistics by moving averages that keep nothing of the old (momentum 1).

    On one thread: its bits depend on their number, and the page's numbers on the seed alone.
    """
    import torch

    count = x.size // x.shape[1]
    mean, var = torch.zeros(x.shape[1]), torch.zeros(x.shape[1])
    with _peers.threads_set(1):
        y = torch.nn.functional.batch_norm(torch.from_numpy(x), mean, var, training=True, momentum=1.0, eps=EPS)
    return Result(mean.numpy(), var.numpy() * ((count - 1) / count), y.numpy())


def has_torch():
    return _peers.is_installed("PyTorch")


def others():
    """{name: function of x that returns a Result}: NumPy, and PyTorch where it is installed."""
    return {"NumPy": by_numpy, **({"PyTorch": by_torch} if has_torch() else {})}


def error(result, exact):
    """The largest errors over the features: {"mean": in standard deviations, "var": relative, "y": absolute}."""
    return {
        "mean": float(np.max(np.abs(result.mean - exact.mean) / np.sqrt(exact.var))),
        "var": float(np.max(np.abs(result.var - exact.var) / exact.var)),
        "y": float(np.max(np.abs(result.y - exact.y))),
    }


def measure(functions, layout, seed):
    """{name: {quantity: errors, an array with an entry for each of RATIOS}}."""
    batches = [data(ratio, layout, seed) for ratio in RATIOS]
    exact = [reference(x) for x in batches]
    found = {name: [error(call(x), true) for x, true in zip(batches, exact)] for name, call in functions.items()}
    return {name: {quantity: np.array([one[quantity] for one in errors]) for quantity in QUANTITIES}
            for name, errors in found.items()}


def mean_bound():
    """The contract's bound of the mean in standard deviations: one float32 ulp of max(|mean|, std), for each of RATIOS."""
    return np.spacing(np.array(RATIOS, np.float32)).astype(np.float64)


@styled
def draw_errors(errors):
    """Three panels by mean / std, both axes logarithmic: the error of the mean, of the variance, of the output."""
    figure, axes = new_figure(3, 1, height=8.4, sharex=True)
    labels = ("error of the mean\n(standard deviations)", "error of the variance\n(relative)",
              "error of the output\n(absolute)")
    bounds = {"mean": mean_bound(), "var": np.full(len(RATIOS), VARIANCE_BOUND)}
    for panel, quantity, label in zip(axes, QUANTITIES, labels):
        for name, by_quantity in errors.items():
            colour, dashes, marker = STYLES[name]
            panel.plot(RATIOS, np.maximum(by_quantity[quantity], FLOOR), color=colour, linestyle=dashes, marker=marker,
                       markersize=5, label=name)
        if quantity in bounds:
            panel.plot(RATIOS, bounds[quantity], color=INK, linewidth=1.2, linestyle=(0, (2, 2)), label="fastbn's promise")
        panel.set(xscale="log", yscale="log", ylabel=label)
        panel.xaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_major_formatter("{x:g}")
        panel.minorticks_off()
    axes[-1].set_xlabel("mean / standard deviation of the data")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def make(settings):
    pictures = {layout: _picture(layout, settings.seed) for layout in SHAPES}
    errors = {layout: picture.values["errors"] for layout, picture in pictures.items()}
    return Section("Accuracy", (
        _introduction(errors["table"]), pictures["table"], _about_layouts(errors), pictures["channels-first"],
        _table(errors), _about_torch(),
    ))


def _picture(layout, seed):
    code = (
        "import fastbn\n"
        "from fastbn.explain import accuracy\n\n"
        "def by_fastbn(x):\n"
        f"    y, saved = fastbn.batch_norm_training(x, eps={EPS:g})\n"
        "    return accuracy.Result(saved.mean, saved.var, y)\n\n"
        "contenders = {\"fastbn\": by_fastbn, **accuracy.others()}\n"
        f"errors = accuracy.measure(contenders, \"{layout}\", seed={seed})\n"
        "figure = accuracy.draw_errors(errors)")
    values = run_code(code)
    worst = "; ".join(f"{name} {found['var'][0]:.1e} to {found['var'].max():.1e}"
                      for name, found in values["errors"].items())
    shape = " x ".join(map(str, SHAPES[layout]))
    return Picture(
        code=code, values=values,
        caption=f"float32, {'a table' if layout == 'table' else 'channels-first maps'} of {shape}; the largest error over "
                f"{FEATURES} features, against float64. Less than {FLOOR:g} is drawn as that.",
        alt=f"Errors of mean, variance and output by mean / standard deviation from 1 to a million, on logarithmic axes. "
            f"Relative error of the variance at 1, and at its largest: {worst}.")


def _introduction(errors):
    return Text(
        "A batch norm subtracts the mean, and where the mean is large beside the spread, most digits of a float32 are "
        "about the mean. A sum over many such numbers soon has no digits left for the spread. How far does that go? "
        "The numbers have a standard deviation of 1 and a mean from 1 to a million; what is wrong with a result is "
        "measured against float64 for the same numbers. fastbn promises a mean within one float32 step of max(|mean|, "
        "std), and a variance within 1e-6. Its largest error of the variance here is "
        "{accuracy_table_fastbn_var_worst}, and of the mean {accuracy_table_fastbn_mean_share} of what is promised. "
        "With NumPy's `mean` and `var` in float32 the variance is wrong by up to {accuracy_table_numpy_var_worst} "
        "times its value.",
        accuracy_table_fastbn_var_worst=_short(errors["fastbn"]["var"].max()),
        accuracy_table_fastbn_mean_share=_short(np.max(errors["fastbn"]["mean"] / mean_bound())),
        accuracy_table_numpy_var_worst=_short(errors["NumPy"]["var"].max()))


def _short(value):
    return Number(float(value), f"{value:,.0f}" if value >= 10 else f"{value:.2g}")


def _about_layouts(errors):
    table, first = errors["table"]["NumPy"]["var"].max(), errors["channels-first"]["NumPy"]["var"].max()
    relation = "less than" if first < table else "more than" if first > table else "equal to"
    return Text(
        "In which order a library adds up depends on how the numbers lie in memory. In a table the entries of a "
        "feature are far apart; in channels-first maps they lie side by side in runs, which NumPy adds by halves, "
        "with less rounding. There its largest error of the variance is {accuracy_first_numpy_var_worst}, "
        f"{relation} the table's; fastbn's is {{accuracy_first_fastbn_var_worst}}.",
        accuracy_first_numpy_var_worst=_short(first),
        accuracy_first_fastbn_var_worst=_short(errors["channels-first"]["fastbn"]["var"].max()))


def _table(errors):
    rows = [(layout, name, *((f"accuracy_{layout}_{name}_{quantity}_at_1e6".replace("-", "_").lower(),
                              _short(found[quantity][-1])) for quantity in QUANTITIES))
            for layout, by_name in errors.items() for name, found in by_name.items()]
    return named_table("Errors at mean / standard deviation = 1e6.", (
        "data", "by", "mean (standard deviations)", "variance (relative)", "output (absolute)"), rows)


def _about_torch():
    if not has_torch():
        return Text("PyTorch is not installed here; where it is, it stands beside the others.")
    return Text("PyTorch here is `torch.nn.functional.batch_norm` in training mode, on the same numbers.")
