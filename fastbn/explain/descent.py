"""Section 2, why it matters: gradient descent for a linear model on the data of section 1, as they are and standardized.

The model is t = w1 * rating + w2 * income + b, its loss half the mean squared error. b always has the value that is best for
the weights, so the loss is a function of two weights,
    L(w) = minimum + (w - best)^T H (w - best) / 2,    H the covariance matrix of the features,
and one step w - rate * gradient multiplies w - best by I - rate * H. Descent is stable where no eigenvalue of that matrix
exceeds 1 in size, so for rates up to 2 / (largest eigenvalue of H); how narrow the valley is, the ratio of the
eigenvalues says, H's condition number. See Boyd and Vandenberghe, "Convex Optimization", 2004, sections 9.1 and 9.3.
"""
import functools
from dataclasses import dataclass

import numpy as np

import fastbn
from fastbn.explain.section import Number, Picture, Section, Text, named_table, run_code
from fastbn.explain.style import BLUE, FAINT, GREEN, GROUND, INK, ORANGE, new_figure, styled

TARGET = 1e-3  # of the loss that can be got rid of, what is left when we stop counting
SHARES = np.arange(1, 20) / 20  # of the largest stable rate: the rates to choose from
SHOWN_STEPS = 60  # on the loss surface
TRIED_STEPS = 1000  # just under and just over the largest stable rate
MOST_DOUBLINGS = 50  # 2^50 steps
PANEL_SHAPE = 2.2  # width by height, of the loss surfaces
LINES, LINE_FACTOR = 12, 1.8  # lines of equal loss, and from each to the next
MILDER = (1, 5)  # times the standardized features: scales of which the zigzag can be seen


def invented_target(x, seed=0):
    """What the linear model shall predict, shape (N,), float64: 1.5 * rating + income / 50,000 + noise of std 0.5."""
    noise = np.random.default_rng([seed, 2]).standard_normal(len(x))
    return 1.5 * x[:, 0] + x[:, 1].astype(np.float64) / 50_000 + 0.5 * noise


@dataclass(frozen=True)
class Problem:
    """A linear model's data, about their means, in float64: so b has its best value whatever the weights are.

    x: (N, 2). t: (N,). hessian: (2, 2). best: the weights (2,) of the smallest loss.
    """

    x: np.ndarray
    t: np.ndarray
    hessian: np.ndarray
    best: np.ndarray

    @classmethod
    def of(cls, x, t):
        """The problem of features as they are and a target, both taken about their means."""
        x = x.astype(np.float64) - fastbn.moments(x).mean
        t = t - t.mean()
        hessian = x.T @ x / len(x)
        return cls(x, t, hessian, np.linalg.solve(hessian, x.T @ t / len(x)))

    def loss(self, weights):
        """Half the mean squared error, for weights of shape (..., 2)."""
        away = weights - self.best
        return self.smallest_loss + 0.5 * np.einsum("...i,ij,...j", away, self.hessian, away)

    def gradient(self, weights):
        """The loss's gradient, from the errors of the N predictions."""
        return self.x.T @ (self.x @ weights - self.t) / len(self.x)

    @functools.cached_property
    def smallest_loss(self):
        return 0.5 * float(np.mean((self.x @ self.best - self.t)**2))

    @property
    def curvatures(self):
        """The eigenvalues of the Hessian, the smallest first."""
        return np.linalg.eigvalsh(self.hessian)

    @property
    def condition(self):
        return self.curvatures[1] / self.curvatures[0]

    @property
    def largest_stable_rate(self):
        return 2 / self.curvatures[1]


def descend(problem, rate, steps):
    """The weights from (0, 0) on, shape (steps + 1, 2): every step from the gradient on all N rows."""
    path = np.zeros((steps + 1, 2))
    for before, after in zip(path, path[1:]):
        after[:] = before - rate * problem.gradient(before)
    return path


class Jumps:
    """Many steps of descent at once: two steps are one linear map, and so are two of those; 2^30 steps take 30 products."""

    @np.errstate(over="ignore", invalid="ignore")  # of rates that are not stable
    def __init__(self, problem, rate):
        self._problem = problem
        self._maps = [np.eye(2) - rate * problem.hessian]
        while len(self._maps) < MOST_DOUBLINGS:
            self._maps.append(self._maps[-1] @ self._maps[-1])

    def share_left(self, steps):
        """After that many steps from (0, 0), the loss above the smallest, as a share of what it was."""
        away = -self._problem.best
        for power, jump in enumerate(self._maps):
            if steps >> power & 1:
                away = jump @ away
        return self._share(away)

    @np.errstate(over="ignore", invalid="ignore")
    def steps_to(self, target):
        """The first step after which the share is at most `target`; None beyond 2^50, and where the loss grows."""
        away, steps = -self._problem.best, 0
        if self._share(away) <= target:
            return 0
        for power in reversed(range(len(self._maps))):
            further = self._maps[power] @ away
            if not self._share(further) <= target:
                away, steps = further, steps + 2**power
        return steps + 1 if steps + 1 < 2**len(self._maps) else None

    def _share(self, away):
        best, hessian = self._problem.best, self._problem.hessian
        return float(away @ hessian @ away / (best @ hessian @ best))


def best_rate(problem):
    """(rate, steps): of the SHARES of the largest stable rate the one that comes to TARGET in the fewest steps."""
    rates = SHARES * problem.largest_stable_rate
    counts = [Jumps(problem, rate).steps_to(TARGET) for rate in rates]
    steps, rate = min((steps, rate) for steps, rate in zip(counts, rates) if steps is not None)
    return float(rate), steps


def loss_after(problem, share, steps=TRIED_STEPS):
    """The loss after real steps at a share of the largest stable rate, as a multiple of the loss at the start."""
    with np.errstate(over="ignore"):
        path = descend(problem, share * problem.largest_stable_rate, steps)
        return float(problem.loss(path[-1]) / problem.loss(path[0]))


@styled
def draw_surfaces(before, milder, after):
    """The loss by the two weights, as lines of equal loss, and on it the first steps of descent at the best rate of each."""
    figure, panels = new_figure(3, 1, height=10.6)
    figure.get_layout_engine().set(h_pad=0.1)
    for axes, problem, equal in zip(panels, (before, milder, after), (False, True, True)):
        path = descend(problem, best_rate(problem)[0], SHOWN_STEPS)
        across, upright = _ranges(np.concatenate([path, problem.best[None]]), equal)
        _contours(axes, problem, across, upright)
        axes.plot(*path.T, color=ORANGE, linewidth=1.2, marker="o", markersize=3.2, label=f"the first {SHOWN_STEPS} steps")
        axes.plot(*path[0], linestyle="none", marker="s", color=INK, markersize=6, label="start")
        axes.plot(*problem.best, linestyle="none", marker="*", color=GREEN, markeredgecolor=INK, markersize=13,
                  label="smallest loss")
        axes.set(xlim=across, ylim=upright, xlabel="weight of the rating", ylabel="weight of the income")
    panels[0].set(title="before: a narrow valley", ylabel="weight of the income, times 10,000")
    panels[0].yaxis.set_major_formatter(lambda value, _: f"{1e4 * value:.1f}".replace("-", "\N{MINUS SIGN}"))
    panels[1].set(title=f"scales that differ {MILDER[1]} times: a zigzag", aspect="equal")
    panels[2].set(title="after standardizing: a bowl", aspect="equal")
    panels[0].legend(loc="upper right", ncols=3, frameon=True, facecolor=GROUND, edgecolor="none", framealpha=0.85)
    return figure


def _ranges(points, equal):
    """((left, right), (bottom, top)) around the points; equal: of a panel with one scale for both axes."""
    middle, half = (points.max(0) + points.min(0)) / 2, np.ptp(points, axis=0) / 2
    wide, tall = (PANEL_SHAPE * 1.5 * half.max(), 1.5 * half.max()) if equal else (1.6 * half[0], 2.2 * half[1])
    return (middle[0] - wide, middle[0] + wide), (middle[1] - tall, middle[1] + tall)


def _contours(axes, problem, across, upright):
    grid = np.stack(np.meshgrid(np.linspace(*across, 121), np.linspace(*upright, 121)), axis=-1)
    above = problem.loss(grid) - problem.smallest_loss
    axes.contour(*np.moveaxis(grid, -1, 0), above, levels=above.max() * LINE_FACTOR**np.arange(-LINES, 0.0), colors=BLUE,
                 linewidths=0.9, alpha=0.75)


@styled
def draw_losses(before, after):
    """The loss above the smallest by steps, in per cent of that at the start, each at its best rate."""
    figure, axes = new_figure(height=3.4)
    for problem, name, colour, dashes in ((before, "before", BLUE, "-"), (after, "after standardizing", ORANGE, "--")):
        rate, steps = best_rate(problem)
        jumps = Jumps(problem, rate)
        shown = np.unique(np.geomspace(1, steps * 1.5 + 1, 160).astype(np.int64))
        axes.plot(shown, [100 * jumps.share_left(int(step)) for step in shown], color=colour, linestyle=dashes, label=name)
        axes.plot(steps, 100 * jumps.share_left(steps), marker="o", color=colour)
    axes.axhline(100 * TARGET, color=FAINT, linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="steps of gradient descent", ylim=(20 * TARGET, 200),
             ylabel="loss above the smallest (%)")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend(loc="lower center")
    return figure


def make(settings):
    surfaces = _surfaces(settings.seed)
    before, after = surfaces.values["before"], surfaces.values["after"]
    return Section("Why it matters: a valley and a bowl", (
        _model(before, after), surfaces, _valley(before, after), _rates(before, after), _steps(before, after),
        _losses(settings.seed, before, after)))


def _model(before, after):
    return Text(
        "Let a linear model predict something from these two features: each has a weight, and learning means to "
        "change the two weights until the squared error, the loss, is as small as it can be. (A third number, which "
        "is added to every prediction, has its best value throughout.) Gradient descent starts at weights of 0 and "
        "goes downhill, each step as long as the slope is steep, times the learning rate. The two models below can "
        "predict the same things: both start from a loss of {descent_start} and could come to {descent_smallest}.",
        descent_start=Number(before.loss(np.zeros(2))), descent_smallest=Number(after.smallest_loss))


def _surfaces(seed):
    code = f"""\
import fastbn
from fastbn.explain import descent, standardizing

x = standardizing.two_features(seed={seed})
t = descent.invented_target(x, seed={seed})
y, _ = fastbn.batch_norm_training(x)
before, after = descent.Problem.of(x, t), descent.Problem.of(y, t)
milder = descent.Problem.of(y * descent.MILDER, t)
figure = descent.draw_surfaces(before, milder, after)"""
    values = run_code(code)
    before, milder, after = (values[name] for name in ("before", "milder", "after"))
    ends = [descend(problem, best_rate(problem)[0], SHOWN_STEPS)[-1] for problem in (before, after)]
    return Picture(
        code=code, values=values,
        caption=f"Lines of equal loss (above the smallest, it grows by {LINE_FACTOR} times from each to the next), "
                f"and the path of the first {SHOWN_STEPS} steps, each at its own best learning rate. In the upper "
                f"panel the axis across spans {_large(_stretch(values['figure']))} times what the upright one spans: "
                "with one scale for both, as below, the valley would be too narrow to be seen, and all that the path "
                "shows is the jump from wall to wall. The middle panel has the standardized features, the income "
                f"multiplied by {MILDER[1]}: there the path can be seen to go from wall to wall while it creeps along "
                "the floor.",
        alt="Three contour plots. Before, the path jumps up and down between the walls of the valley and stays near a "
            f"rating's weight of {ends[0][0]:.2g}, while the smallest loss is at {before.best[0]:.2f}. In the middle, "
            f"where the valley is {milder.condition**0.5:.1f} times as long as wide, the path is a zigzag along it. "
            f"After, the lines are ellipses {after.condition**0.5:.1f} times as long as wide, and the path ends at "
            f"({ends[1][0]:.2f}, {ends[1][1]:.2f}), the smallest loss being at ({after.best[0]:.2f}, "
            f"{after.best[1]:.2f}).")


def _stretch(figure):
    """How many times the range of weights across is the upright one, in the upper panel."""
    return np.ptp(figure.axes[0].get_xlim()) / np.ptp(figure.axes[0].get_ylim())


def _valley(before, after):
    return Text(
        "The valley is steep across and nearly level along: its steepest curvature is {descent_condition_before} "
        "times its flattest. (That ratio is the condition number; in a round bowl it is 1.) The steep walls limit "
        "the learning rate, for a step too long lands higher up on the other side; and with so short a step, "
        "nothing moves along the floor. After standardizing the ratio is {descent_condition_after}. What is left of "
        "it comes from the correlation of the two features, which standardizing each by itself does not touch.",
        descent_condition_before=_large(before.condition),
        descent_condition_after=Number(after.condition, f"{after.condition:.2f}"))


def _rates(before, after):
    """The largest stable rates, and what real steps do on either side of them."""
    rows = []
    for when, problem in (("before", before), ("after", after)):
        rate = problem.largest_stable_rate
        under, over = (loss_after(problem, share) for share in (0.99, 1.01))
        rows.append((when, (f"descent_stable_rate_{when}", Number(rate, f"{rate:.3g}")),
                     (f"descent_under_{when}", Number(under, f"{under:.3g} times")),
                     (f"descent_over_{when}", Number(over, f"{over:.3g} times"))))
    return named_table(
        "The largest stable learning rate is 2 divided by the steepest curvature. To the right the loss after "
        f"{TRIED_STEPS:,} real steps, in multiples of that at the start: with a rate 1 % lower, and 1 % higher.",
        ("data", "largest stable rate", "1 % lower", "1 % higher"), rows)


def _steps(before, after):
    (rate_before, steps_before), (rate_after, steps_after) = best_rate(before), best_rate(after)
    gain = after.largest_stable_rate / before.largest_stable_rate
    return Text(
        "So standardized data allow a rate {descent_rate_gain} times as high. How many steps does it take until "
        "only {descent_target} of the loss that can be got rid of is left? Each model gets the best of the rates of "
        "5 %, 10 % and so on to 95 % of its largest stable one: {descent_rate_before} before and "
        "{descent_rate_after} after. Before, it takes {descent_steps_before} steps; after, {descent_steps_after}. "
        "(Nobody waited for the former one by one: each step is the same linear map, so two steps are one map too, "
        "and four, and so on.)",
        descent_rate_gain=_large(gain), descent_target=Number(TARGET, f"{100 * TARGET:g} %"),
        descent_rate_before=Number(rate_before, f"{rate_before:.3g}"),
        descent_rate_after=Number(rate_after, f"{rate_after:.3g}"),
        descent_steps_before=_large(steps_before), descent_steps_after=Number(steps_after))


def _large(value):
    """To three digits, with thousands: what is beyond them depends on rounding."""
    return Number(value, f"{float(f'{value:.3g}'):,.0f}" if value >= 1000 else None)


def _losses(seed, before, after):
    code = f"""\
import fastbn
from fastbn.explain import descent, standardizing

x = standardizing.two_features(seed={seed})
t = descent.invented_target(x, seed={seed})
y, _ = fastbn.batch_norm_training(x)
figure = descent.draw_losses(descent.Problem.of(x, t), descent.Problem.of(y, t))"""
    (_, steps_before), (_, steps_after) = best_rate(before), best_rate(after)
    return Picture(
        code=code, values=run_code(code),
        caption="How much of the loss above the smallest is left after so many steps; both axes are logarithmic. "
                f"The dots are where {100 * TARGET:g} % is left.",
        alt=f"Two curves of the loss over steps. After standardizing it falls to {100 * TARGET:g} % after steps: "
            f"{steps_after}; before, it falls in part within some dozen steps, stays there, and is at "
            f"{100 * TARGET:g} % after {_large(steps_before)} steps.")
