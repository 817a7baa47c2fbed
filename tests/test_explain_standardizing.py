"""Section 1 of the report, standardizing: its numbers against NumPy in float64."""
import numpy as np
import pytest

for package in ("matplotlib", "jinja2"):
    pytest.importorskip(package, reason="the report's packages are not installed: the extra 'demo' has them")

from fastbn.explain import standardizing  # noqa: E402
from fastbn.explain.section import Picture, Settings, Table, Text, run_code  # noqa: E402

pytestmark = pytest.mark.full

seeds = pytest.mark.parametrize("seed", [0, 1, 12345])


def blocks(section, kind):
    return [block for block in section.blocks if isinstance(block, kind)]


def numbers(section):
    """By name: those of texts and of tables."""
    found = {name: number.value for text in blocks(section, Text) for name, number in text.numbers.items()}
    for table in blocks(section, Table):
        found.update({name: table.rows[row][column].value for (row, column), name in table.names.items()})
    return found


def exact(seed):
    """(x, y) in float64; eps as fastbn's default."""
    x = standardizing.two_features(seed).astype(np.float64)
    return x, (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)


@seeds
def test_the_features_have_their_scales_and_go_together(seed):
    x = standardizing.two_features(seed)
    assert x.shape == (400, 2) and x.dtype == np.float32
    assert x[:, 0].min() >= 1 and x[:, 0].max() <= 5
    assert x[:, 1].min() >= 1000 and x[:, 1].max() <= 99_999
    assert 0.3 < np.corrcoef(x.T)[0, 1] < 0.7
    assert np.array_equal(x, standardizing.two_features(seed))
    assert not np.array_equal(x, standardizing.two_features(seed + 1))


@seeds
def test_the_numbers(seed):
    x, y = exact(seed)
    found = numbers(standardizing.make(Settings(seed=seed)))
    for feature in (0, 1):
        assert found[f"standardizing_mean_before_{feature + 1}"] == pytest.approx(x[:, feature].mean(), rel=1e-7)
        assert found[f"standardizing_variance_before_{feature + 1}"] == pytest.approx(x[:, feature].var(), rel=1e-6)
        assert found[f"standardizing_mean_after_{feature + 1}"] == pytest.approx(0, abs=1e-6)
        assert found[f"standardizing_variance_after_{feature + 1}"] == pytest.approx(y[:, feature].var(), rel=1e-6)
    assert found["standardizing_ratio"] == pytest.approx(x[:, 1].std() / x[:, 0].std(), rel=1e-6)
    assert found["standardizing_variance_missed"] == pytest.approx(1 - y[:, 0].var(), abs=1e-6)
    assert 0 <= found["standardizing_mean_left"] < 1e-6
    assert len(found) == 11


@seeds
def test_both_pictures_show_the_standardized_data(seed):
    x, y = exact(seed)
    section = standardizing.make(Settings(seed=seed))
    scatter, histograms = blocks(section, Picture)
    for picture in (scatter, histograms):
        np.testing.assert_allclose(picture.values["y"], y, rtol=1e-5, atol=1e-5)
    before, after = scatter.figure.axes
    for axes, data in ((before, x), (after, y)):
        points = axes.collections[0].get_offsets()
        np.testing.assert_allclose(points, data, rtol=1e-5, atol=1e-5)
        assert np.ptp(axes.get_xlim()) == pytest.approx(np.ptp(axes.get_ylim()))  # one scale for both
        for ends, values in ((axes.get_xlim(), data[:, 0]), (axes.get_ylim(), data[:, 1])):
            assert ends[0] <= values.min() and values.max() <= ends[1]
    heights = [[patch.get_height() for patch in axes.patches] for axes in histograms.figure.axes]
    assert all(sum(panel) == len(x) for panel in heights)


@pytest.mark.parametrize("index", [0, 1])
def test_the_lines_under_a_picture_leave_what_the_page_has(index):
    picture = blocks(standardizing.make(Settings(seed=4)), Picture)[index]
    again = run_code(picture.code)
    for name in ("x", "y"):
        assert np.array_equal(again[name], picture.values[name])
    assert "seed=4" in picture.code and "fastbn." in picture.code


@pytest.mark.parametrize("value, text", [(30739.4, "30,739"), (348357504.0, "348,357,504"), (0.68251, "0.683"),
                                         (-1e-8, "0.000"), (0.99999, "1.000"), (-1234.5, "-1,234")])
def test_numbers_as_they_are_shown(value, text):
    assert str(standardizing._plain(value)) == text
