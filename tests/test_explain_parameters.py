"""The page's section 4: the four arrays of the batch norm layers of a trained network."""
import numpy as np
import pytest

for package in ("sklearn", "matplotlib", "rich", "threadpoolctl"):
    pytest.importorskip(package, reason="the demo's packages are not installed")

import fastbn  # noqa: E402
from explain_checks import numbers_of, pictures_of, run_in_fresh_process, text_of  # noqa: E402
from fastbn.explain import digits, parameters  # noqa: E402
from fastbn.explain.section import Settings, Table  # noqa: E402

pytestmark = pytest.mark.full


class RecordingNorm(fastbn.BatchNorm):
    """Keeps the mean and the unbiased variance of every training batch, by NumPy in float64."""

    def __init__(self, num_features):
        super().__init__(num_features)
        self.batches = []

    def forward(self, x):
        wide = x.astype(np.float64)
        self.batches.append((wide.mean(axis=0), wide.var(axis=0, ddof=1)))
        return super().forward(x)


@pytest.fixture(scope="module")
def section():
    return parameters.make(Settings(seed=0))


@pytest.fixture(scope="module")
def states(section):
    return pictures_of(section)[0].values["states"]


def test_moving_averages_against_the_batches(states):
    network = digits.build("before", RecordingNorm, seed=0)
    digits.train(network, seed=0, steps=parameters.STEPS)
    for bn, state in zip(network.norms(), states, strict=True):
        mean, var = np.zeros(100), np.ones(100)
        for batch_mean, batch_var in bn.batches:
            mean, var = 0.9 * mean + 0.1 * batch_mean, 0.9 * var + 0.1 * batch_var
        assert len(bn.batches) == state["num_batches_tracked"] == parameters.STEPS
        np.testing.assert_allclose(state["running_mean"], mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(state["running_var"], var, rtol=1e-5)


def test_the_table_has_every_array_with_its_shape_and_range(section, states):
    table = next(block for block in section.blocks if isinstance(block, Table))
    numbers = numbers_of(section)
    assert len(table.rows) == 12
    for row, (layer, name) in zip(table.rows, ((layer, name) for layer in range(3) for name in parameters.ARRAYS)):
        values = states[layer][name].astype(np.float64)
        assert row[:3] == (str(layer + 1), name, str(values.shape)) and values.shape == (100,)
        assert numbers[f"parameters_{name}_least_{layer + 1}"] == values.min()
        assert numbers[f"parameters_{name}_mean_{layer + 1}"] == pytest.approx(values.mean(), rel=1e-12)
        assert numbers[f"parameters_{name}_greatest_{layer + 1}"] == values.max()
        assert float(row[4]) == getattr(fastbn.BatchNorm(1), name)[0]


def test_the_counts_of_numbers(section):
    numbers = numbers_of(section)
    sizes = (64, 100, 100, 100, 10)
    weights = sum(a * b + b for a, b in zip(sizes, sizes[1:]))
    assert numbers["parameters_learned"] == numbers["parameters_moving"] == 3 * 2 * 100
    assert numbers["parameters_total"] == weights + 600
    assert numbers["parameters_share"] == 600 / (weights + 600)


def test_the_furthest_parameter(section, states):
    furthest = max(max(abs(float(g) - 1) for g in state["gamma"]) for state in states)
    furthest = max(furthest, max(abs(float(b)) for state in states for b in state["beta"]))
    assert numbers_of(section)["parameters_furthest"] == pytest.approx(furthest, rel=1e-6)


def test_a_bar_goes_from_the_start_to_the_value(section, states):
    panels = pictures_of(section)[0].figure.axes
    for axes, (name, (_, start, _)) in zip(panels, parameters.ARRAYS.items(), strict=True):
        for line, state in zip(axes.lines, states):
            heights = np.reshape(line.get_ydata(), (-1, 3))
            np.testing.assert_array_equal(heights[:, 0], start)
            np.testing.assert_array_equal(heights[:, 1].astype(np.float32), state[name])
            assert np.isnan(heights[:, 2]).all()


def test_the_lines_work_alone(section, states):
    names = list(parameters.ARRAYS)
    expression = f"[[state[name].tolist() for name in {names}] for state in states]"
    found = run_in_fresh_process(pictures_of(section)[0].code, expression)
    assert found == [[state[name].tolist() for name in names] for state in states]


@pytest.mark.parametrize("seed", [1, 2**32 - 1])
def test_any_seed(seed):
    first, again = parameters.make(Settings(seed=seed)), parameters.make(Settings(seed=seed, quick=True))
    assert text_of(first) == text_of(again) and numbers_of(first) == numbers_of(again)
