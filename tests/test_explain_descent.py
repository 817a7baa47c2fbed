"""Section 2 of the report, descent: losses, rates and steps against plain NumPy, and against steps taken one by one."""
import numpy as np
import pytest

for package in ("matplotlib", "jinja2"):
    pytest.importorskip(package, reason="the report's packages are not installed: the extra 'demo' has them")

import fastbn  # noqa: E402
from fastbn.explain import descent, standardizing  # noqa: E402
from fastbn.explain.section import Picture, Settings, Table, Text, run_code  # noqa: E402

pytestmark = pytest.mark.full

seeds = pytest.mark.parametrize("seed", [0, 1, 12345])


def data(seed):
    x = standardizing.two_features(seed)
    return x, descent.invented_target(x, seed)


def problems(seed):
    x, t = data(seed)
    return descent.Problem.of(x, t), descent.Problem.of(fastbn.batch_norm_training(x)[0], t)


def half_squared_error(x, t, weights):
    """With the best b, by NumPy alone."""
    errors = x.astype(np.float64) @ weights - t
    return 0.5 * np.mean((errors - errors.mean())**2)


def numbers(section):
    found = {name: number.value for block in section.blocks if isinstance(block, Text)
             for name, number in block.numbers.items()}
    for table in (block for block in section.blocks if isinstance(block, Table)):
        found.update({name: table.rows[row][column].value for (row, column), name in table.names.items()})
    return found


@seeds
def test_losses_gradients_and_the_best_weights(seed, rng):
    x, t = data(seed)
    for features, problem in zip((x, fastbn.batch_norm_training(x)[0]), problems(seed)):
        scale = 1 / features.std(0).astype(np.float64)
        for weights in rng.normal(size=(5, 2)) * scale:
            assert problem.loss(weights) == pytest.approx(half_squared_error(features, t, weights), rel=1e-9)
            for i in (0, 1):
                step = 1e-4 * scale[i] * np.eye(2)[i]
                slope = (problem.loss(weights + step) - problem.loss(weights - step)) / (2 * step[i])
                assert problem.gradient(weights)[i] == pytest.approx(slope, rel=1e-5)
    spread = x.astype(np.float64).std(0)
    fitted = np.linalg.lstsq(np.column_stack([x / spread, np.ones(len(x))]), t, rcond=None)[0]
    np.testing.assert_allclose(problems(seed)[0].best, fitted[:2] / spread, rtol=1e-6)


@seeds
def test_both_models_start_and_end_at_the_same_loss(seed):
    before, after = problems(seed)
    assert before.loss(np.zeros(2)) == pytest.approx(after.loss(np.zeros(2)), rel=1e-12)
    assert before.smallest_loss == pytest.approx(after.smallest_loss, rel=1e-6)
    assert before.smallest_loss < 0.2 * before.loss(np.zeros(2))


@seeds
def test_curvatures_rates_and_conditions(seed):
    x, t = data(seed)
    before, after = problems(seed)
    covariance = np.cov(x.T.astype(np.float64), ddof=0)
    values = np.linalg.eigvalsh(covariance)
    np.testing.assert_allclose(before.hessian, covariance, rtol=1e-6)
    assert before.largest_stable_rate == pytest.approx(2 / values[1], rel=1e-6)
    assert before.condition == pytest.approx(values[1] / values[0], rel=1e-5)
    correlation = np.corrcoef(x.T.astype(np.float64))[0, 1]
    assert after.condition == pytest.approx((1 + correlation) / (1 - correlation), rel=1e-3)
    assert after.largest_stable_rate == pytest.approx(2 / (1 + correlation), rel=1e-3)


@seeds
def test_the_largest_stable_rate_is_just_that(seed):
    for problem in problems(seed):
        assert descent.loss_after(problem, 0.99) < 1 < 1e3 < descent.loss_after(problem, 1.01)


def test_a_path_is_gradient_descent():
    problem = problems(0)[1]
    path = descent.descend(problem, 0.3, 4)
    weights = np.zeros(2)
    for seen in path:
        np.testing.assert_allclose(seen, weights, atol=1e-15)
        weights = weights - 0.3 * problem.x.T @ (problem.x @ weights - problem.t) / len(problem.x)
    assert path.shape == (5, 2)


def counted(problem, rate, target):
    """Steps until the loss above the smallest is at most that share of what it was, one by one."""
    weights, start = np.zeros(2), problem.loss(np.zeros(2)) - problem.smallest_loss
    steps = 0
    while problem.loss(weights) - problem.smallest_loss > target * start:
        weights, steps = weights - rate * problem.gradient(weights), steps + 1
    return steps


@pytest.mark.parametrize("scales", [(1, 1), (1, 5), (30, 1)])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("target", [0.9, 1e-3])
def test_steps_are_those_counted_one_by_one(scales, share, target):
    x, t = data(3)
    problem = descent.Problem.of(fastbn.batch_norm_training(x)[0] * np.array(scales, np.float32), t)
    rate = share * problem.largest_stable_rate
    jumps = descent.Jumps(problem, rate)
    steps = jumps.steps_to(target)
    assert steps == counted(problem, rate, target)
    assert jumps.share_left(steps) <= target < jumps.share_left(steps - 1)


def test_no_steps_and_too_many():
    problem = problems(0)[1]
    jumps = descent.Jumps(problem, 0.5 * problem.largest_stable_rate)
    assert jumps.share_left(0) == pytest.approx(1) and jumps.steps_to(1.0) == 0
    assert jumps.steps_to(-1.0) is None
    assert descent.Jumps(problem, 1.01 * problem.largest_stable_rate).steps_to(1e-3) is None


@seeds
def test_jumps_before_standardizing_land_where_steps_do(seed):
    problem = problems(seed)[0]
    rate = 0.95 * problem.largest_stable_rate
    jumps, path = descent.Jumps(problem, rate), descent.descend(problem, rate, 3000)
    start = problem.loss(np.zeros(2)) - problem.smallest_loss
    for steps in (1, 2, 17, 1000, 3000):
        left = (problem.loss(path[steps]) - problem.smallest_loss) / start
        assert jumps.share_left(steps) == pytest.approx(left, rel=1e-9)


@seeds
def test_steps_before_standardizing_against_the_formula_by_eigenvalues(seed):
    """The error shrinks by 1 - rate * eigenvalue a step in each eigenvector's direction."""
    problem = problems(seed)[0]
    rate, steps = descent.best_rate(problem)
    values, vectors = np.linalg.eigh(problem.hessian)
    parts = values * (vectors.T @ problem.best)**2
    left = np.sum(parts * np.exp(2 * steps * np.log(np.abs(1 - rate * values)))) / parts.sum()
    assert left == pytest.approx(descent.TARGET, rel=1e-3)


@seeds
def test_the_best_rate_is_the_best_of_those_tried(seed):
    for problem in problems(seed):
        rate, steps = descent.best_rate(problem)
        rates = descent.SHARES * problem.largest_stable_rate
        tried = [descent.Jumps(problem, rate).steps_to(descent.TARGET) for rate in rates]
        assert steps == min(tried) and 0 < rate < problem.largest_stable_rate


@seeds
def test_the_numbers(seed):
    before, after = problems(seed)
    found = numbers(descent.make(Settings(seed=seed)))
    for when, problem in (("before", before), ("after", after)):
        rate, steps = descent.best_rate(problem)
        assert found[f"descent_steps_{when}"] == steps and found[f"descent_rate_{when}"] == rate
        assert found[f"descent_condition_{when}"] == problem.condition
        assert found[f"descent_stable_rate_{when}"] == problem.largest_stable_rate
        assert found[f"descent_under_{when}"] < 1 < found[f"descent_over_{when}"]
    assert found["descent_steps_after"] < 20 and found["descent_steps_before"] > 1e8
    assert found["descent_steps_after"] == counted(after, found["descent_rate_after"], descent.TARGET)
    assert found["descent_rate_gain"] == after.largest_stable_rate / before.largest_stable_rate
    assert found["descent_start"] == pytest.approx(half_squared_error(*data(seed), np.zeros(2)))
    assert found["descent_smallest"] == pytest.approx(before.smallest_loss, rel=1e-6)


@seeds
def test_pictures(seed):
    surfaces, losses = [block for block in descent.make(Settings(seed=seed)).blocks if isinstance(block, Picture)]
    before, after = problems(seed)
    x, t = data(seed)
    milder = descent.Problem.of(fastbn.batch_norm_training(x)[0] * descent.MILDER, t)
    for axes, problem in zip(surfaces.figure.axes, (before, milder, after), strict=True):
        path = descent.descend(problem, descent.best_rate(problem)[0], descent.SHOWN_STEPS)
        drawn = axes.lines[0].get_xydata()
        np.testing.assert_allclose(drawn, path)
        for ends, values in ((axes.get_xlim(), drawn[:, 0]), (axes.get_ylim(), drawn[:, 1])):
            assert ends[0] < values.min() and values.max() < ends[1]
        assert axes.get_xlim()[0] < problem.best[0] < axes.get_xlim()[1]
        assert len(axes.collections[0].levels) == descent.LINES
    for curve, problem in zip(losses.figure.axes[0].lines[::2], problems(seed)):
        steps, left = curve.get_xydata().T
        jumps = descent.Jumps(problem, descent.best_rate(problem)[0])
        np.testing.assert_allclose(left, [100 * jumps.share_left(int(step)) for step in steps])
        assert np.all(np.diff(left) < 0)


@pytest.mark.parametrize("index", [0, 1])
def test_the_lines_under_a_picture_leave_what_the_page_has(index):
    picture = [block for block in descent.make(Settings(seed=4)).blocks if isinstance(block, Picture)][index]
    again = run_code(picture.code)
    for name in ("x", "t", "y"):
        assert np.array_equal(again[name], picture.values[name])
    for axes, other in zip(again["figure"].axes, picture.figure.axes):
        assert np.array_equal(axes.lines[0].get_xydata(), other.lines[0].get_xydata())


@pytest.mark.parametrize("value, text", [(734_123_456.7, "734,000,000"), (1234.5, "1,230"), (999.4, "999.4"),
                                         (3.46, "3.46")])
def test_large_numbers_as_they_are_shown(value, text):
    assert str(descent._large(value)) == text
