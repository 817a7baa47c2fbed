"""The harness of the frameworks' table: what is absent is left out, wrong answers are not timed, all is reported."""
import json
from io import StringIO
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rich", reason="rich is not installed: the extra 'bench' has it")

import fastbn  # noqa: E402
from bench import report  # noqa: E402
from bench.frameworks import __main__ as command  # noqa: E402
from bench.frameworks import compare, run  # noqa: E402
from bench.frameworks.cases import make_case  # noqa: E402

pytestmark = pytest.mark.full

SHAPES = ((4, 3, 2, 2), (16, 5))


def composed(case):
    """Batch norm and its gradients in NumPy."""
    axes = tuple(axis for axis in range(case.x.ndim) if axis != case.axis)
    def wide(a):
        return a.reshape([-1 if axis == case.axis else 1 for axis in range(case.x.ndim)])
    rstd = wide(1 / np.sqrt(case.x.var(axes) + case.eps))
    h = (case.x - wide(case.x.mean(axes))) * rstd
    dbeta, dgamma = case.dy.sum(axes), (case.dy * h).sum(axes)
    count = case.x.size // dbeta.size
    dx = wide(case.gamma) * rstd * (case.dy - wide(dbeta) / count - h * wide(dgamma) / count)
    return h * wide(case.gamma) + wide(case.beta), dx, dgamma, dbeta


def with_fastbn(case):
    y, saved = fastbn.batch_norm_training(case.x, case.gamma, case.beta, axis=case.axis, eps=case.eps)
    return y, *fastbn.batch_norm_backward(case.dy, saved)


def framework(own=composed, ours=with_fastbn, **more):
    return SimpleNamespace(NAME="NumPy", REPLACES="a formula", version=lambda: "2.0",
                           pair=lambda case: (lambda: own(case), lambda: ours(case)), **more)


def absent():
    raise ImportError("No module named 'nowhere'")


def measured(found, output=None):
    """(exit status, what is printed)."""
    file = StringIO()
    status = run.run(found, SHAPES, 0.01, 1, output, report.console_for(file))
    return status, file.getvalue()


def test_a_framework_is_checked_timed_and_reported(tmp_path):
    found = {"numpy": framework(overhead=lambda: 1.25),
             "nowhere": SimpleNamespace(NAME="No", REPLACES="", version=absent)}
    status, text = measured(found, tmp_path / "out.json")
    assert status == 0
    assert "nowhere left out: No module named 'nowhere'" in text and "NumPy" in text and "1.25" in text
    document = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    row, = document["rows"]
    assert row["framework"] == "NumPy" and row["overhead_us"] == 1.25 and not row["failed"]
    assert list(row["cases"]) == ["4x3x2x2", "16x5"]
    for case in row["cases"].values():
        assert case["own_ms"] > 0 and case["fastbn_ms"] > 0 and case["speedup"] > 0
    assert document["threads"] == 1 and document["machine"]["versions"]["fastbn"] == fastbn.__version__


def test_times_are_of_the_right_functions():
    def slow(case):
        for _ in range(200):
            result = composed(case)
        return result
    row = run.measure_framework(framework(own=slow), SHAPES[1:], 0.01)
    assert row["cases"]["16x5"]["speedup"] > 5
    assert row["cases"]["16x5"]["own_ms"] > 5 * row["cases"]["16x5"]["fastbn_ms"] and row["overhead_us"] is None


def test_wrong_results_are_not_timed():
    def wrong(case):
        y, dx, dgamma, dbeta = with_fastbn(case)
        return y, dx * 1.01, dgamma, dbeta
    status, text = measured({"wrong": framework(ours=wrong), "right": framework()})
    assert status == 1 and "NumPy, 16x5: Disagreement: result 1 differs by" in text
    assert len(run.measure_framework(framework(ours=wrong), SHAPES, 0.01)["failed"]) == 2


def test_what_a_framework_raises_is_reported():
    def broken(case):
        raise RuntimeError("out of order [here]")
    status, text = measured({"broken": framework(ours=broken)})
    assert status == 1 and "RuntimeError: out of order [here]" in text and "failed" in text


@pytest.mark.parametrize("own, ours, message", [
    (None, None, "own returns 0 arrays and ours 0"),
    ((np.ones(2), None), (np.ones(2), np.ones(2)), "own returns 1 arrays and ours 2"),
    (np.ones(2), np.ones(3), "result 0 has shape"),
    ((np.ones(2), [np.ones(2)]), [np.ones(2), np.full(2, np.nan)], "result 1 differs by nan"),
])
def test_disagreements_are_named(own, ours, message):
    with pytest.raises(compare.Disagreement, match=message):
        compare.check(own, ours)


def test_results_may_be_nested():
    compare.check((np.ones(2), (np.zeros(1), None)), [np.ones(2, np.float32), np.zeros(1)])


def test_all_files_are_found_without_their_frameworks():
    found = run.discover()
    assert {"onnx", "autograd"} <= set(found)
    for module in found.values():
        assert module.NAME and module.REPLACES and callable(module.version) and callable(module.pair)


@pytest.mark.parametrize("name", run.discover())
def test_each_framework_agrees_with_fastbn(name):
    module = run.discover()[name]
    try:
        module.version()
    except ImportError as error:
        pytest.skip(f"{name} is absent: {error}")
    for shape in SHAPES:
        case = make_case(shape)
        before = case.x.copy(), case.dy.copy()
        compare.check(*(function() for function in module.pair(case)))
        assert np.array_equal(case.x, before[0]) and np.array_equal(case.dy, before[1])


def test_the_step_of_a_network_in_autograd(monkeypatch, capsys):
    pytest.importorskip("autograd")
    from bench.frameworks import autograd_mlp
    monkeypatch.setattr(autograd_mlp, "SIZES", (5, 8, 8, 8, 3))
    monkeypatch.setattr(autograd_mlp, "BATCH", 16)
    autograd_mlp.main(["--rounds", "2"])
    assert "batch norm costs" in capsys.readouterr().out
    assert np.shape(autograd_mlp.measure(3, np.float64)) == (3, 3)


def test_command_line(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "discover", lambda: {"numpy": framework(), "wrong": framework(ours=lambda case: case.x)})
    monkeypatch.setattr(run, "SHAPES", SHAPES)
    assert command.main(["--only", "NumPy", "--seconds", "0.01", "--output", str(tmp_path / "out.json")]) == 0
    assert "16x5" in capsys.readouterr().out and (tmp_path / "out.json").exists()
    assert command.main(["--seconds", "0.01"]) == 1
    with pytest.raises(SystemExit) as stopped:
        command.main(["--only", "tensorflow"])
    assert stopped.value.code == 2 and "--only tensorflow: there are numpy, wrong" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["--seconds", "0"])
    assert "0 is not above 0" in capsys.readouterr().err


def test_cases_have_one_axis_of_features():
    for shape in SHAPES:
        case = make_case(shape)
        assert case.x.shape == case.dy.shape == shape and case.gamma.shape == case.beta.shape == (shape[1],)
        assert case.x.dtype == case.dy.dtype == case.gamma.dtype == np.float32 and not np.array_equal(case.x, case.dy)
