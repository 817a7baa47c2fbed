"""Section 1, standardizing data: two features on scales far apart, before and after (x - mean) / std."""
import numpy as np

from fastbn.explain.section import Number, Picture, Section, Text, named_table, run_code
from fastbn.explain.style import BLUE, ORANGE, new_figure, styled

ROWS = 400
FEATURES = ("rating, 1 to 5", "income, 1,000 to 99,999")
BINS = 24


def two_features(seed=0):
    """Invented people: their rating of something, from 1 to 5, and their income, from 1,000 to 99,999; (400, 2), float32.

    Who earns more tends to rate higher: both are logistic functions of normal numbers, whose correlation is 0.5.
    """
    rng = np.random.default_rng(seed)
    first = rng.standard_normal(ROWS)
    second = 0.5 * first + 0.75**0.5 * rng.standard_normal(ROWS)
    rating = 1 + 4 / (1 + np.exp(-first))
    income = 1000 + 98999 / (1 + np.exp(1 - second))
    return np.stack([rating, income], axis=1).astype(np.float32)


@styled
def draw_scatter(x, y):
    """Every row as a point, before (x) and after (y); both axes of a panel have the same scale."""
    figure, (before, after) = new_figure(1, 2, height=3.7)
    reach = max(3.0, float(np.abs(y).max()) * 1.1)
    for axes, data, colour, title in ((before, x, BLUE, "before"), (after, y, ORANGE, "after: standardized")):
        axes.scatter(*data.T, s=9, color=colour, alpha=0.55, linewidths=0)
        axes.set(title=title, aspect="equal", xlabel="rating", ylabel="income")
    before.set(xlim=(-50_000, 50_000), ylim=(0, 100_000), xticks=(-50_000, 0, 50_000), yticks=range(0, 100_001, 25_000))
    after.set(xlim=(-reach, reach), ylim=(-reach, reach), xlabel="rating, in standard deviations",
              ylabel="income, in standard deviations")
    for axis in (before.xaxis, before.yaxis):
        axis.set_major_formatter("{x:,.0f}")
    return figure


@styled
def draw_histograms(x, y):
    """How many rows have each value: a line of panels for each feature, before (x) and after (y)."""
    figure, panels = new_figure(2, 2, height=4.2)
    for feature, line in enumerate(panels):
        for axes, data, colour in zip(line, (x, y), (BLUE, ORANGE)):
            axes.hist(data[:, feature], bins=BINS, color=colour, alpha=0.8)
            axes.grid(False, axis="x")
        line[0].set(xlabel=FEATURES[feature].partition(",")[0], ylabel="rows")
        line[1].set(xlabel="in standard deviations from the mean")
    panels[0, 0].set_title("before")
    panels[0, 1].set_title("after: standardized")
    panels[1, 0].xaxis.set_major_formatter("{x:,.0f}")
    return figure


def make(settings):
    scatter = _scatter(settings.seed)
    before, after = scatter.values["before"], scatter.values["after"]
    return Section("Standardizing data", (
        _why(before), scatter, _table(before, after), _how(after), _histograms(settings.seed, before, after)))


def _why(before):
    ratio = np.sqrt(before.var()[1] / before.var()[0])
    return Text(
        "Take two features of some invented people: what they rate something, from 1 to 5, and what they earn, from "
        "1,000 to 99,999. Both may matter as much, yet incomes spread {standardizing_ratio} times as widely as "
        "ratings. Drawn on one scale, all the ratings fall on a line. A method that looks at distances, or goes "
        "downhill step by step, sees what we see there: incomes, and next to nothing of the ratings.",
        standardizing_ratio=Number(ratio, f"{ratio:,.0f}"))


def _scatter(seed):
    code = f"""\
import fastbn
from fastbn.explain import standardizing

x = standardizing.two_features(seed={seed})
before = fastbn.moments(x)
y = fastbn.batch_norm_inference(x, before.mean, before.var())
after = fastbn.moments(y)
figure = standardizing.draw_scatter(x, y)"""
    values = run_code(code)
    before, after = values["before"], values["after"]
    return Picture(
        code=code, values=values,
        caption=f"{ROWS} people, each a point. Within a panel both axes have the same scale.",
        alt=f"Two scatter plots of {ROWS} points. Before: on axes 100,000 wide the points stand in one upright line, "
            f"since the standard deviation of the ratings is {before.var()[0]**0.5:.2f} and that of the incomes "
            f"{before.var()[1]**0.5:,.0f}. After: a round cloud about 0, with standard deviations of "
            f"{after.var()[0]**0.5:.2f} and {after.var()[1]**0.5:.2f}.")


def _table(before, after):
    """The moments of both features, two lines a feature."""
    rows = [(title, when, *((f"standardizing_{name}_{when}_{feature + 1}", _plain(values[feature]))
                            for name, values in (("mean", moments.mean), ("variance", moments.var()))))
            for feature, title in enumerate(FEATURES) for when, moments in (("before", before), ("after", after))]
    return named_table("Mean and variance of the two features, by `fastbn.moments`.",
                       ("feature", "", "mean", "variance"), rows)


def _plain(value):
    """With thousands where it is large, and three decimals where it is small."""
    return Number(value, f"{value:,.0f}" if abs(value) >= 1000 else f"{round(value, 3) + 0.0:.3f}")


def _how(after):
    worst, missed = np.abs(after.mean).max(), abs(1 - after.var()[0])
    return Text(
        "Standardizing is two steps for each feature by itself: subtract its mean, divide by its standard "
        "deviation, which is the square root of its variance. Then every feature has mean 0 and variance 1, and a "
        "value says how many standard deviations it lies above or below the mean. The means left here are at most "
        "{standardizing_mean_left} away from 0: the results are float32, which holds about seven digits. The "
        "variance of the ratings misses 1 by {standardizing_variance_missed}, since `eps` (1e-5 here) is added to "
        "each variance before the division, so that a feature that never changes is not divided by 0. Histograms "
        "show what does not change: the shape of a feature's distribution. It moves, and is stretched or squeezed, "
        "and no more; what leaned to one side still does.",
        standardizing_mean_left=Number(worst, f"{worst:.0e}"), standardizing_variance_missed=Number(missed, f"{missed:.1e}"))


def _histograms(seed, before, after):
    code = f"""\
import fastbn
from fastbn.explain import standardizing

x = standardizing.two_features(seed={seed})
y, saved = fastbn.batch_norm_training(x)  # x's own statistics, in the same call
figure = standardizing.draw_histograms(x, y)"""
    return Picture(
        code=code, values=run_code(code),
        caption="The same data as histograms. `batch_norm_training` does in one call what `moments` and "
                "`batch_norm_inference` did above.",
        alt=f"Four histograms. Ratings from 1 to 5 with mean {before.mean[0]:.2f}, and incomes up to 99,999 with "
            f"mean {before.mean[1]:,.0f} and a tail to the right; beside each the standardized values, in the same "
            f"shape, with mean {_plain(after.mean[0])} and variance {_plain(after.var()[0])}, and mean "
            f"{_plain(after.mean[1])} and variance {_plain(after.var()[1])}.")
