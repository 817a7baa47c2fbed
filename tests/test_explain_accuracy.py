"""The page's section on accuracy: its reference against exact rational sums, its errors against the contract."""
from fractions import Fraction

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the demo's packages are not installed")

import fastbn  # noqa: E402
from explain_checks import numbers_of, pictures_of, run_in_fresh_process, text_of  # noqa: E402
from fastbn.explain import accuracy as section  # noqa: E402
from fastbn.explain.section import Settings, run_code  # noqa: E402
from section_reading import assert_complete, unmeasured  # noqa: E402

pytestmark = pytest.mark.full

SETTINGS = Settings(quick=True)
LAYOUTS = tuple(section.SHAPES)


@pytest.fixture(scope="module")
def made():
    return section.make(SETTINGS)


@pytest.fixture(scope="module")
def errors(made):
    """By layout."""
    return dict(zip(LAYOUTS, (picture.values["errors"] for picture in pictures_of(made))))


def test_the_section_is_complete(made):
    assert_complete(made, "accuracy_")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ratio", [1.0, 1e6])
def test_the_reference_is_right_to_float64_s_rounding(layout, ratio):
    x = section.data(ratio, layout, 5)
    exact = section.reference(x)
    assert x.dtype == np.float32 and x.shape == exact.y.shape == section.SHAPES[layout]
    for feature in (0, section.FEATURES - 1):
        values = [Fraction(float(value)) for value in x[:, feature].ravel()]
        mean = sum(values) / len(values)
        var = sum((value - mean) ** 2 for value in values) / len(values)
        assert exact.mean[feature] == pytest.approx(float(mean), rel=1e-15)
        assert exact.var[feature] == pytest.approx(float(var), rel=1e-9)
        y = (float(values[0] - mean)) / np.sqrt(float(var) + section.EPS)
        assert exact.y[:, feature].ravel()[0] == pytest.approx(y, rel=1e-9)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_data_have_the_mean_and_the_spread_that_the_axis_says(layout):
    for ratio in section.RATIOS:
        x = section.data(ratio, layout, 0).astype(float)
        axes = (0, *range(2, x.ndim))
        np.testing.assert_allclose(x.mean(axes), ratio, atol=0.1)
        np.testing.assert_allclose(x.std(axes), 1, atol=0.05)
    assert section.RATIOS[0] == 1 and section.RATIOS[-1] == 1e6


def test_errors_of_a_known_result():
    exact = section.Result(np.array([1.0, 2.0]), np.array([4.0, 1.0]), np.zeros((3, 2)))
    wrong = section.Result(np.array([1.5, 2.0]), np.array([4.0, 1.5]), np.full((3, 2), -0.25))
    assert section.error(wrong, exact) == {"mean": 0.25, "var": 0.5, "y": 0.25}
    assert section.error(exact, exact) == {"mean": 0, "var": 0, "y": 0}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fastbn_keeps_its_contract(errors, layout):
    found = errors[layout]["fastbn"]
    ulps = np.spacing(np.float32(section.RATIOS))
    np.testing.assert_array_equal(section.mean_bound(), ulps)
    assert (found["mean"] <= ulps).all()
    assert (found["var"] <= 1e-6).all()
    assert (found["y"] < 1e-5).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_errors_against_a_reference_of_one_s_own(errors, layout):
    """float128 where there is one; NumPy's float32 formulas written once more."""
    x = section.data(section.RATIOS[-1], layout, 0)
    axes = (0, *range(2, x.ndim))
    wide = x.astype(np.longdouble)
    mean, var = wide.mean(axis=axes), wide.var(axis=axes)
    for name, got in (("NumPy", (np.mean(x, axis=axes), np.var(x, axis=axes))),
                      ("fastbn", (lambda m: (m.mean, m.var()))(fastbn.moments(x)))):
        found = errors[layout][name]
        assert found["mean"][-1] == pytest.approx(float(np.max(abs(got[0] - mean) / np.sqrt(var))), rel=1e-5, abs=1e-12)
        assert found["var"][-1] == pytest.approx(float(np.max(abs(got[1] - var) / var)), rel=1e-5, abs=1e-12)


def test_numbers_are_those_of_the_pictures(made, errors):
    found = numbers_of(made)
    for layout, by_name in errors.items():
        for name, by_quantity in by_name.items():
            for quantity, values in by_quantity.items():
                key = f"accuracy_{layout}_{name}_{quantity}_at_1e6".replace("-", "_").lower()
                assert found[key] == values[-1]
    assert found["accuracy_table_fastbn_var_worst"] == errors["table"]["fastbn"]["var"].max() <= section.VARIANCE_BOUND
    assert 0 < found["accuracy_table_fastbn_mean_share"] <= 1
    assert found["accuracy_table_numpy_var_worst"] > found["accuracy_table_fastbn_var_worst"]


def test_lines_and_bounds_are_drawn(made):
    panels = pictures_of(made)[0].figure.axes
    assert len(panels) == 3 and all(axes.get_xscale() == axes.get_yscale() == "log" for axes in panels)
    drawn = {line.get_label(): line.get_ydata() for line in panels[1].get_lines()}
    assert (drawn["fastbn's promise"] == section.VARIANCE_BOUND).all()
    errors = pictures_of(made)[0].values["errors"]
    np.testing.assert_array_equal(drawn["NumPy"], errors["NumPy"]["var"])
    np.testing.assert_array_equal(drawn["fastbn"], np.maximum(errors["fastbn"]["var"], section.FLOOR))


def test_without_pytorch_a_line_says_so(monkeypatch):
    monkeypatch.setattr(section, "has_torch", lambda: False)
    assert list(section.others()) == ["NumPy"]
    made = section.make(SETTINGS)
    assert "PyTorch is not installed here" in text_of(made)
    assert not any("pytorch" in name for name in numbers_of(made))


def test_pytorch_where_it_is_installed(made, errors):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    assert "PyTorch is not installed" not in text_of(made)
    x = section.data(1.0, "channels-first", 0)
    exact, found = section.reference(x), section.by_torch(x)
    np.testing.assert_allclose(found.mean, exact.mean, rtol=1e-5)
    np.testing.assert_allclose(found.var, exact.var, rtol=1e-5)
    np.testing.assert_allclose(found.y, exact.y, atol=1e-5)
    assert set(errors["table"]) == {"fastbn", "NumPy", "PyTorch"}


@pytest.mark.parametrize("seed", [1, 2])
def test_any_seed(seed):
    other = section.make(Settings(seed=seed))
    assert_complete(other, "accuracy_")
    assert numbers_of(other)["accuracy_table_fastbn_mean_share"] <= 1
    for picture in pictures_of(other):
        assert picture.values["errors"]["fastbn"]["var"].max() <= section.VARIANCE_BOUND


def test_the_same_seed_gives_the_same_numbers(made):
    assert unmeasured(section.make(SETTINGS)) == unmeasured(made)


def test_pasted_lines_give_what_the_page_has(made):
    for picture in pictures_of(made):
        pasted = run_code(picture.code)["errors"]
        for name, by_quantity in picture.values["errors"].items():
            for quantity, values in by_quantity.items():
                np.testing.assert_array_equal(pasted[name][quantity], values)


def test_lines_work_in_a_fresh_interpreter(made):
    picture = pictures_of(made)[0]
    errors = run_in_fresh_process(picture.code, "errors['fastbn']['y'].tolist()")
    assert errors == picture.values["errors"]["fastbn"]["y"].tolist()
