"""The harness itself: right answers are told from wrong ones, and disturbed times from clean ones."""
import json
from contextlib import nullcontext

import numpy as np
import pytest

from bench import report
from bench.cases import Case, check, make_cases, make_data, reference
from bench.timing import Entry, measure, ratio


def entry(contender, output, blocks, clean=None):
    made = Entry(contender, output, "f()", lambda number: 0.0, nullcontext)
    made.blocks, made.clean = blocks, clean or [True] * len(blocks)
    return made


def test_ratio_is_taken_within_rounds():
    base, peer = entry("fastbn", "fresh", [1.0, 2.0, 4.0]), entry("torch", "fresh", [3.0, 6.0, 12.0])
    assert ratio(peer, base) == (3.0, False)


def test_disturbed_rounds_count_only_without_others():
    base = entry("fastbn", "fresh", [1.0, 1.0, 1.0])
    assert ratio(entry("torch", "fresh", [2.0, 2.0, 90.0], [True, True, False]), base) == (2.0, False)
    assert ratio(entry("torch", "fresh", [2.0, 90.0, 90.0], [True, False, False]), base) == (90.0, True)


def test_measure_alternates_and_stops():
    order = []
    entries = [Entry(name, "fresh", "f()", lambda number, name=name: order.append(name) or 1.0, nullcontext)
               for name in "ab"]
    measure(entries, seconds=0, least_rounds=3)
    assert [len(e.blocks) for e in entries] == [3, 3]
    blocks = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    assert blocks == ["a", "b", "a", "b", "a", "b"]  # calibration, then a round each way: ab, ba, ab


@pytest.mark.parametrize("operation", ["inference", "training", "backward", "moments"])
@pytest.mark.parametrize("layout", ["first", "last"])
def test_check_tells_formulas_apart(operation, layout):
    case = Case(operation, (4, 3, 5, 2), layout)
    expected = reference(case, make_data(case))
    check(case, "right", expected, expected)
    for wrong in range(len(expected)):
        changed = [a * 1.01 if i == wrong else a for i, a in enumerate(expected)]
        with pytest.raises(AssertionError, match=f"somebody, .* result {wrong}"):
            check(case, "somebody", changed, expected)


def test_layouts_share_the_answer():
    first, last = Case("training", (4, 3, 5, 2), "first"), Case("training", (4, 3, 5, 2), "last")
    data = make_data(first)
    (y,) = reference(first, data)
    data.x = np.moveaxis(data.x, 1, -1).copy()
    np.testing.assert_allclose(np.moveaxis(reference(last, data)[0], -1, 1), y)


def test_case_counts_the_least_bytes():
    size = 4 * 32 * 64 * 56 * 56
    got = {case.operation: case.bytes for case in make_cases(shapes=[(32, 64, 56, 56)], layouts=["first"])}
    assert got == {"inference": 2 * size, "training": 2 * size, "backward": 3 * size, "moments": size}


def test_report(tmp_path, capsys):
    cell = report.Cell(Case("training", (8, 4), "table"), 2, [
        entry("fastbn", "fresh", [2e-6, 2e-6]), entry("fastbn", "out=", [1e-6, 1e-6]),
        entry("numpy", "fresh", [8e-6, 8e-6]), entry("numpy", "out=", [5e-6, 5e-6]),
        entry("torch", "fresh", [1e-6, 1e-6]),
    ])
    (title, header, rows), = report.tables([cell])
    assert title == "training, 2 threads"
    assert rows == [["8x4", "table", "2.00", "0.1", "1.00", "0.3",
                     "8.00", "4.00", "5.00", "5.00", "1.00", "0.50", "1.00"]]
    assert header[-3:] == ["torch us", "ratio", "ratio to out="]
    report.print_verdict([cell], ["numpy", "torch"])
    assert capsys.readouterr().out.splitlines() == [
        "numpy is faster than fastbn in 0 of 1 cells, fresh against fresh",
        "torch is faster than fastbn in 1 of 1 cells, fresh against fresh:",
        "  training-8x4-table, 2 threads: ratio 0.50",
    ]
    report.write_json(tmp_path / "r.json", [cell], {}, {})
    entries = json.loads((tmp_path / "r.json").read_text())["cells"][0]["entries"]
    assert [e["ratio_to_fresh"] for e in entries] == pytest.approx([1.0, 0.5, 4.0, 2.5, 0.5])
