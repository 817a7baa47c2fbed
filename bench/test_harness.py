"""The harness itself: what is asked for is measured, right answers are told from wrong ones, all is reported."""
import json
import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("rich", reason="rich is not installed: the extra 'bench' has it")

from bench import cell as cell_module  # noqa: E402
from bench import cli, compare, grid, readme, report, store, timing  # noqa: E402
from bench import run as run_module  # noqa: E402
from bench.cases import (  # noqa: E402
    DTYPES, FUSED, HALVES, Case, allocate, check, make_data, reference, sample_features)
from bench.cell import measure_cell  # noqa: E402
from bench.grid import Job, Wanted, make_groups, make_jobs  # noqa: E402
from bench.limit import Limit, LimitError  # noqa: E402
from bench.peers import CONTENDERS, load  # noqa: E402
from bench.run import make_document  # noqa: E402
from bench.timing import Entry, measure, ratio  # noqa: E402
from bench.verdict import fastest_peer, judge, regime  # noqa: E402

pytestmark = pytest.mark.full

OPERATIONS = ("inference", "training", "backward", "moments")
ALL = Wanted(operations=(*OPERATIONS, "call"), layouts=("first", "last", "table"), dtypes=("float32",),
             alignments=("numpy", "64"), threads=(1, 2), grid="full", sweeps=("size", "features"))
CACHES = {"l2": 2**20, "llc": 2**25}
MACHINE = {"cpu": "Some processor", "processors": 2, "caches": CACHES, "load": [0, 0, 0], "python": "3.11.7",
           "limit": True, "versions": {"fastbn": "0.1.0", "numpy": "2.0.0", "torch": "2.5.0"}}


# Grid and cases

def test_grid_has_what_it_promises():
    jobs = [job for job in make_jobs(ALL) if not job.sweep]
    shapes = {job.case.shape for job in jobs}
    assert {(50, 64, 112, 112), (32, 64, 112, 112), (1, 64, 112, 112), (96, 448, 8, 8), (32, 63, 28, 28),
            (32, 64, 1, 1), (1000000, 3), (32, 64, 147, 147)} <= shapes
    assert (1, 1024, 15, 15) in shapes and (50, 1024, 15, 15) not in shapes  # DenseNet-121 is listed with a batch of 1
    assert len(jobs) == len(set(jobs))
    assert {(j.case.operation, j.threads, j.case.alignment) for j in jobs if j.case.shape == (4096, 512)} == {
        (operation, threads, alignment)
        for operation in OPERATIONS for threads in (1, 2) for alignment in ("numpy", "64")}
    assert {j.case.shape for j in jobs if j.case.operation == "call"} == {(1, 64), (64, 64)}
    assert len(grid.net_shapes()) == len(set(grid.net_shapes())) > 220


FULL = replace(ALL, operations=(*ALL.operations, *FUSED), halves=HALVES)


def test_full_grid_has_a_few_cells_of_what_is_fused_and_of_half_types():
    plain, jobs = make_jobs(ALL), make_jobs(FULL)
    without = set(plain)
    more = [job for job in jobs if job not in without]
    assert len(jobs) == len(set(jobs)) and len(more) < len([job for job in plain if not job.sweep]) / 20
    fused = [job.case for job in more if job.case.is_fused]
    assert {case.operation for case in fused} == set(FUSED) and {case.dtype for case in fused} == {"float32"}
    assert {(32, 256, 56, 56), (32, 512, 7, 7), (64, 1024)} < {case.shape for case in fused}
    halves = [job for job in more if not job.case.is_fused]
    assert {(j.case.operation, j.case.dtype, j.case.layout, j.threads) for j in halves} == {
        (operation, dtype, layout, threads) for operation in ("inference", "training") for dtype in HALVES
        for layout in ("first", "last") for threads in (1, 2)}
    assert min(job.case.bytes for job in halves) > 3 * CACHES["llc"]
    assert not [job for job in more if job.sweep or job.case.alignment != "numpy"]


def test_what_is_fused_can_be_asked_for():
    def asked(**more):
        return {(job.case.operation, job.case.shape) for job in make_jobs(replace(
            ALL, operations=("inference_relu",), sweeps=(), alignments=("numpy",), threads=(1,), **more))}
    assert asked(shapes=((8, 4),)) == {("inference_relu", (8, 4))}
    assert asked(grid="quick") == {("inference_relu", shape) for shape in grid.QUICK}
    assert asked(grid="full") == {("inference_relu", shape) for shape in grid.FUSED_SHAPES}
    assert not asked(grid=None)


def test_sweeps_cover_sizes_and_features():
    jobs = [job for job in make_jobs(ALL) if job.sweep]
    sizes = sorted({job.case.array_bytes for job in jobs if job.sweep == "size"})
    assert len(sizes) == 17 and all(0.94 < size / 2**k < 1.03 for size, k in zip(sizes, range(14, 31)))
    features = {job.case.features for job in jobs if job.sweep == "features"}
    assert {1, 3, 63, 64, 2048} <= features
    tables = [job.case.array_bytes for job in jobs if job.sweep == "features" and job.case.layout == "table"]
    assert min(tables) > 0.99 * 2**23 and max(tables) <= 2**23


def test_shapes_of_ones_own_take_the_place_of_the_grid():
    jobs = make_jobs(replace(ALL, shapes=((8, 4), (2, 3, 5, 5)), sweeps=(), alignments=("numpy",), threads=(1,)))
    assert {str(job.case) for job in jobs} == {
        *(f"{o}-8x4-table" for o in (*OPERATIONS, "call")),
        *(f"{o}-2x3x5x5-{layout}" for o in OPERATIONS for layout in ("first", "last"))}


def test_every_beginning_of_the_order_is_spread_evenly():
    groups = make_groups([job for job in make_jobs(ALL) if not job.sweep])
    assert sum(map(len, groups)) == len([job for job in make_jobs(ALL) if not job.sweep])

    def kinds(some):
        return {key: sum((g[0].case.layout, g[0].case.alignment) == key for g in some) / len(some)
                for key in (("first", "numpy"), ("last", "numpy"), ("first", "64"), ("last", "64"), ("table", "64"))}

    whole, median = kinds(groups), np.median([g[0].case.array_bytes for g in groups])
    for count in (30, 60, 120, 240, 480):
        begun = groups[:count]
        assert all(abs(share - whole[key]) < 0.05 for key, share in kinds(begun).items())
        assert 0.4 < np.mean([g[0].case.array_bytes < median for g in begun]) < 0.6


def test_a_group_is_what_shares_its_data():
    for group in make_groups(make_jobs(ALL))[:50]:
        assert len({(j.case.shape, j.case.layout, j.case.alignment, j.case.dtype, j.sweep) for j in group}) == 1


def test_time_is_shared_between_grid_and_sweeps():
    used, order = {"grid": 0.0, "sweeps": 0.0}, []
    for name, _ in grid.share_time({"grid": (range(20), 2 / 3), "sweeps": (range(20), 1 / 3)}, used):
        order.append(name)
        used[name] += 1
    assert order[:18].count("grid") == 12 and len(order) == 40


def test_case_counts_the_least_bytes():
    size = 4 * 32 * 64 * 56 * 56
    assert {o: Case(o, (32, 64, 56, 56), "first").bytes // size for o in OPERATIONS} == {
        "inference": 2, "training": 2, "backward": 3, "moments": 1}
    assert {o: Case(o, (32, 64, 56, 56), "first").bytes // size for o in FUSED} == {
        "inference_relu": 2, "inference_add_relu": 3, "training_relu": 2, "training_add_relu": 3, "backward_relu": 3,
        "backward_add_relu": 5}
    assert Case("moments", (4, 3), "table", "float64").bytes == 96
    assert Case("inference", (4, 3), "table", "bfloat16").bytes == 48
    assert Case("backward", (4, 3), "table", "float16").bytes == 72


@pytest.mark.parametrize("dtype", DTYPES)
def test_alignment(dtype):
    for shape in ((1,), (3, 7), (33, 5, 2)):
        array = allocate(shape, dtype, "64")
        assert array.ctypes.data % 64 == 0 and array.flags.c_contiguous
        assert array.shape == shape and array.dtype == dtype
    data = make_data(Case("backward", (4, 3, 5, 5), "last", dtype, "64"))
    assert all(a.ctypes.data % 64 == 0 for a in (data.x, data.dy, data.empty()))
    assert data.empty() is not data.empty()
    data.output = data.empty()
    assert data.empty() is data.output and data.for_operation("training").empty() is data.output
    assert data.for_operation("training").dy is None and data.for_operation("training").x is data.x
    more = make_data(Case("inference", (4, 3), "table"), operations={"inference", "backward_relu", "training_add_relu"})
    assert more.for_operation("backward_relu").residual is None and more.for_operation("backward_relu").dy is more.dy
    assert more.for_operation("training_add_relu").residual is more.residual is not None
    assert more.for_operation("inference").residual is more.for_operation("inference").dy is None


@pytest.mark.parametrize("layout, shape", [
    ("first", (40, 5, 60, 61)), ("last", (3, 5, 200, 201)), ("table", (500001, 3))])
def test_data_differ_between_features_and_not_within(layout, shape):
    case = Case("backward", shape, layout)
    data = make_data(case)
    for array in (data.x, data.dy):
        rows = np.moveaxis(array, case.axis, -1).reshape(-1, case.features).astype(np.float64)
        mean, std = rows.mean(axis=0), rows.std(axis=0)
        assert len(set(mean.round(6))) == len(set(std.round(6))) == case.features
        assert mean.min() > -1.1 and mean.max() < 2.1 and std.min() > 0.45 and std.max() < 2.1
        np.testing.assert_allclose(rows[:len(rows) // 2].mean(axis=0), mean, atol=0.05)
        assert np.abs(np.corrcoef(rows.T) - np.eye(case.features)).max() < 0.05


@pytest.mark.parametrize("operation", [*OPERATIONS, *FUSED])
@pytest.mark.parametrize("layout", ["first", "last"])
def test_check_tells_formulas_apart(operation, layout):
    case = Case(operation, (4, 3, 5, 2), layout)
    expected = reference(case, make_data(case))
    assert check(case, "right", expected, expected) == 0
    for wrong in range(len(expected)):
        changed = [a * 1.01 if i == wrong else a for i, a in enumerate(expected)]
        with pytest.raises(AssertionError, match=f"somebody, .* result {wrong}"):
            check(case, "somebody", changed, expected)
    assert check(case, "nearly", [a * (1 + 1e-6) for a in expected], expected) == pytest.approx(1e-6, rel=1e-3)
    with pytest.raises(AssertionError, match="shape"):
        check(case, "somebody", [a[:-1] for a in expected], expected)


@pytest.mark.parametrize("operation", [*OPERATIONS, *FUSED])
@pytest.mark.parametrize("layout", ["first", "last"])
def test_a_sample_of_features_has_the_answer_of_the_whole(operation, layout):
    case, some = Case(operation, (4, 6, 5, 2), layout), np.array([0, 2, 5])
    data = make_data(case)
    whole, part = reference(case, data), reference(case, data, some)
    for a, b in zip(whole, part):
        np.testing.assert_array_equal(np.take(a, some, axis=case.axis if a.ndim > 1 else 0), b)
    assert check(case, "right", whole, part, some) == 0
    broken = [a.copy() for a in whole]
    np.moveaxis(broken[0], case.axis if broken[0].ndim > 1 else 0, 0)[5] *= 2
    with pytest.raises(AssertionError, match="relative error"):
        check(case, "somebody", broken, part, some)


def test_reference_of_what_is_fused():
    def answer(operation):
        data = make_data(Case(operation, (50, 4), "table"), operations=FUSED)
        return reference(Case(operation, (50, 4), "table"), data.for_operation(operation)), data
    (y,), data = answer("training")
    assert (answer("training_relu")[0][0] == np.maximum(y, 0)).all() and (y < 0).any()
    assert (answer("training_add_relu")[0][0] == np.maximum(y + data.residual, 0)).all()
    dx, dgamma, dbeta, dresidual = answer("backward_add_relu")[0]
    np.testing.assert_allclose(dresidual, data.dy * (y + data.residual > 0))
    data.dy = dresidual.astype(np.float64)
    expected = reference(Case("backward", (50, 4), "table"), data)
    for got, want in zip((dx, dgamma, dbeta), expected, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)


def test_either_gradient_is_right_at_the_kink():
    case = Case("backward_relu", (50, 1), "table")
    data = make_data(case)
    data.gamma[:], data.beta[:], data.dy[:] = 1, 0, 1
    data.x[:] = np.where(np.arange(50) < 25, -2.0, 2.0)[:, None]
    data.x[0] = 0
    data.x[1] -= data.x.sum()
    expected = reference(case, data)
    assert list(np.flatnonzero(np.isnan(expected[0]))) == [0]
    got = [a.copy() for a in expected]
    got[0][0] = 99
    assert check(case, "either", got, expected) == 0
    got[0][2] = np.nan
    with pytest.raises(AssertionError, match="result 0"):
        check(case, "somebody", got, expected)


def test_check_allows_for_long_chains_of_additions():
    def allows(case, error):
        expected = reference(case, make_data(case))
        try:
            check(case, "chain", [a * (1 + error) for a in expected], expected)
        except AssertionError:
            return False
        return True
    short, long = (Case("moments", (n, 2), "table") for n in (1000, 200_000))
    assert allows(short, 0.0009) and not allows(short, 0.0011) and allows(long, 0.0039) and not allows(long, 0.0041)
    assert not allows(Case("inference", (200_000, 2), "table"), 0.0011)


def test_a_gradient_near_zero_is_no_error():
    case = Case("backward", (10_000, 1), "table")
    dx, dgamma, dbeta = reference(case, make_data(case))
    near = check(case, "near", [dx, dgamma * 0 + 0.05, dbeta], [dx, dgamma * 0, dbeta])
    assert near == pytest.approx(0.05 / 100)
    with pytest.raises(AssertionError, match="result 1"):
        check(case, "far", [dx, dgamma * 0 + 0.2, dbeta], [dx, dgamma * 0, dbeta])


def test_samples_are_small_and_spread():
    assert list(sample_features(Case("training", (8, 5), "table"))) == [0, 1, 2, 3, 4]
    large = sample_features(Case("training", (32, 256, 56, 56), "first"))
    assert large[0] == 0 and large[-1] == 255 and 2 < len(large) < 10
    assert list(sample_features(Case("training", (10**7, 3), "table"))) == [0]


def test_layouts_share_the_answer():
    first, last = Case("training", (4, 3, 5, 2), "first"), Case("training", (4, 3, 5, 2), "last")
    data = make_data(first)
    (y,) = reference(first, data)
    data.x = np.moveaxis(data.x, 1, -1).copy()
    np.testing.assert_allclose(np.moveaxis(reference(last, data)[0], -1, 1), y)


# Timing

def entry(contender, output, blocks, clean=None):
    made = Entry(contender, output, "f()", lambda number: 0.0, nullcontext)
    made.blocks, made.clean = blocks, clean or [True] * len(blocks)
    return made


def synthetic(contender, seconds, order=None, **more):
    """An entry whose calls take so many seconds, or pretend to."""
    def timer(number):
        if order is not None:
            order.append(contender)
        return seconds() * number if callable(seconds) else seconds * number
    return Entry(contender, "fresh", "f()", timer, nullcontext, **more)


def test_ratio_is_taken_within_rounds():
    base, peer = entry("fastbn", "fresh", [1.0, 2.0, 4.0]), entry("torch", "fresh", [3.0, 6.0, 12.0])
    assert ratio(peer, base) == (3.0, False)
    assert ratio(entry("torch", "fresh", [3.0, 6.0]), base) == (3.0, False)  # it was dropped after two rounds
    assert ratio(entry("torch", "fresh", [9.0, 9.0, 4.0, 4.0]), entry("fastbn", "fresh", [1.0] * 4), 2) == (4.0, False)


def test_disturbed_rounds_count_only_without_others():
    base = entry("fastbn", "fresh", [1.0, 1.0, 1.0])
    assert ratio(entry("torch", "fresh", [2.0, 2.0, 90.0], [True, True, False]), base) == (2.0, False)
    assert ratio(entry("torch", "fresh", [2.0, 90.0, 90.0], [True, False, False]), base) == (90.0, True)


@pytest.fixture
def busy_machine(monkeypatch):
    """Another process takes a processor for 4 ms in every sample."""
    count = iter(range(10**6))
    seen = [0]

    def preemptions():
        seen[0] = next(count)
        return seen[0]
    monkeypatch.setattr(timing, "_preemptions", preemptions)
    monkeypatch.setattr(timing, "_waited", lambda: 0.004 * seen[0])


def test_waiting_disturbs_short_samples_alone(busy_machine):
    short, long = synthetic("short", 0.02), synthetic("long", 0.2, kept=True)
    measure([short, long], seconds=0, least_rounds=3)
    assert short.clean == [False] * 3 and short.disturbed
    assert long.clean == [True] * 3 and not long.disturbed


def test_preemptions_without_waiting_disturb_nothing(busy_machine, monkeypatch):
    monkeypatch.setattr(timing, "_waited", lambda: 1.0)
    short = synthetic("short", 0.02)
    measure([short], seconds=0, least_rounds=3)
    assert short.clean == [True] * 3


def test_waiting_is_told_in_seconds():
    before = timing._waited()
    assert 0 <= before <= timing._waited() < 10_000


def test_measure_alternates_and_stops():
    order = []
    entries = [synthetic(name, 1.0, order) for name in "ab"]
    measure(entries, seconds=0, least_rounds=3)
    assert [len(e.blocks) for e in entries] == [3, 3]
    blocks = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    assert blocks == ["a", "b", "a", "b", "a", "b"]  # calibration, then a round each way: ab, ba, ab


def test_those_far_behind_get_two_rounds():
    entries = [synthetic("fastbn", 0.03, kept=True), synthetic("near", 0.1), synthetic("far", 0.2)]
    measure(entries, seconds=0, least_rounds=5)
    assert [len(e.blocks) for e in entries] == [3, 3, 2]  # calls above 60 ms: three rounds in place of five
    assert [e.dropped for e in entries] == [False, False, True]
    measure(entries, seconds=0, least_rounds=5)
    assert [len(e.blocks) for e in entries] == [6, 6, 2]
    slow_base = [synthetic("fastbn", 0.2, kept=True), synthetic("fast", 0.01)]
    measure(slow_base, seconds=0, least_rounds=5)
    assert not slow_base[0].dropped


def test_nobody_is_dropped_for_a_disturbance():
    entries = [entry("fastbn", "fresh", [1.0, 1.0]), entry("torch", "fresh", [9.0, 9.0], [False, False])]
    timing._drop_those_far_behind(entries)
    assert not entries[1].dropped


def test_short_calls_take_little_time():
    from time import perf_counter

    def spin():
        begin = perf_counter()
        while perf_counter() - begin < 20e-6:
            pass
        return 20e-6
    entries = [synthetic(name, lambda: spin()) for name in "abcdefgh"]
    begin = perf_counter()
    measure(entries, seconds=0.3)
    assert perf_counter() - begin < 1.5  # 0.4 on an idle machine
    assert all(len(e.blocks) >= 5 for e in entries)


# A cell, with contenders that take as long as they are told

class Fake:
    """Right answers in a time of its own. seconds: of a call, or a list with one for each session."""

    def __init__(self, name, seconds, wrong=0.0, refuses=False):
        self.name, self.seconds, self.wrong, self.refuses = name, seconds, wrong, refuses

    def session(self, threads):
        if isinstance(self.seconds, list) and len(self.seconds) > 1:
            self.seconds.pop(0)
        return nullcontext()

    def can(self, case, output):
        return output in case.outputs

    def work(self, case, data, output, threads):
        if self.refuses:
            raise RuntimeError("this shape is none of mine")
        result = tuple(np.asarray(a) + self.wrong for a in reference(case, data))
        return SimpleNamespace(expression="f()", function=lambda: lambda: result,
                               timer=lambda: lambda number: number * float(np.ravel(self.seconds)[0]))

    def arrays(self, case, result):
        return result


class FakeLimit:
    has_threads = True

    def __init__(self, probes, seconds=0.05, handovers=(30.0, 40.0)):
        self.probes, self.seconds, self.handovers = list(probes), seconds, list(handovers)

    def probe(self, threads):
        return self.probes.pop(0)

    def handover(self):
        return self.handovers.pop(0)

    def entries(self, operation, data, out, threads):
        assert (out is None) == (operation == "moments")
        return [Entry(name, "out=", "y = x", lambda number, s=s: s * number, nullcontext)
                for name, s in (("limit", self.seconds * 2), ("limit nt", self.seconds))]


def fake_cell(contenders, limit=None, operation="training", seconds=0.0):
    case = Case(operation, (4, 3), "table")
    data = make_data(case)
    data.output = data.empty()
    return measure_cell(Job(case, 2), contenders, limit, data, seconds, 3)


def test_cell_is_json_and_complete():
    cell = fake_cell([Fake("fastbn", 0.1), Fake("torch", 0.2), Fake("numpy", 0.9)], FakeLimit([30.0, 33.0]))
    assert json.loads(json.dumps(cell)) == cell
    assert (cell["operation"], cell["shape"], cell["layout"], cell["threads"]) == ("training", [4, 3], "table", 2)
    assert cell["limit_seconds"] == 0.05 and cell["limits"] == {"limit": 0.1, "limit nt": 0.05}
    assert cell["probe"] == [30.0, 33.0] and cell["handover"] == [30.0, 40.0]
    assert not cell["flagged"] and not cell["retries"] and not cell["failed"]
    found = {(e["contender"], e["output"]): e for e in cell["entries"]}
    assert len(found) == 6
    assert found["fastbn", "out="]["ratio"] is None and found["fastbn", "out="]["share"] == pytest.approx(0.5)
    assert found["torch", "out="]["ratio"] == pytest.approx(2) and found["numpy", "fresh"]["ratio"] == pytest.approx(9)
    assert found["torch", "out="]["gbps"] == pytest.approx(96 / 0.2 / 1e9)
    assert len(found["numpy", "fresh"]["blocks"]) == 2 and len(found["torch", "fresh"]["blocks"]) == 3
    assert found["torch", "fresh"]["error"] == 0


def test_cell_is_flagged_when_the_machine_changed():
    contenders = [Fake("fastbn", 0.1), Fake("torch", 0.2)]
    assert fake_cell(contenders, FakeLimit([30.0, 40.0]))["flagged"]
    assert not fake_cell(contenders, FakeLimit([30.0, 34.0]))["flagged"]
    assert fake_cell(contenders, FakeLimit([30.0, 34.0], handovers=[27.0, 160.0]))["flagged"]
    unknown = fake_cell(contenders, FakeLimit([30.0, 34.0], handovers=[27.0, None]))
    assert unknown["handover"] is None and not unknown["flagged"]


def test_cell_without_a_limit():
    cell = fake_cell([Fake("fastbn", 0.1), Fake("torch", 0.2)], operation="moments")
    assert cell["limit_seconds"] is None and cell["probe"] is None and not cell["flagged"]
    assert [(e["output"], e["share"]) for e in cell["entries"]] == [("fresh", None)] * 2


def test_who_is_wrong_or_refuses_is_not_timed():
    cell = fake_cell([Fake("fastbn", 0.1), Fake("torch", 0.2, wrong=0.1), Fake("onednn", 0.2, refuses=True)])
    assert {e["contender"] for e in cell["entries"]} == {"fastbn"}
    reasons = {f["contender"]: f["reason"] for f in cell["failed"]}
    assert re.search("AssertionError: torch .* relative error", reasons["torch"])
    assert reasons["onednn"] == "RuntimeError: this shape is none of mine"


def test_a_lost_cell_is_measured_five_times_and_the_median_decides():
    # One session to check, one to calibrate, then one a block: three for each measurement. The first two are lost.
    base = [None, 0.1, 0.1, *[0.1] * 6, *[0.05] * 9]
    cell = fake_cell([Fake("fastbn", base), Fake("torch", 0.08)], operation="moments")
    ratios = [r["fresh"]["torch"] for r in cell["retries"]]
    assert ratios == pytest.approx([0.8, 0.8, 1.6, 1.6, 1.6])
    assert fastest_peer(cell, "fresh") == (pytest.approx(1.6), "torch")
    lost = fake_cell([Fake("fastbn", 0.1), Fake("torch", 0.08)], operation="moments")
    assert len(lost["retries"]) == cell_module.MEASUREMENTS == 5
    assert fastest_peer(lost, "fresh") == (pytest.approx(0.8), "torch")


def test_a_disturbed_cell_is_measured_twice(busy_machine):
    cell = fake_cell([Fake("fastbn", 0.01), Fake("torch", 0.005)], operation="moments")
    assert [(len(e["blocks"]), e["disturbed"]) for e in cell["entries"]] == [(6, True)] * 2
    assert cell["retries"] == []  # nobody knows that it was lost
    assert judge([cell], CACHES)["disturbed"] == 1


@pytest.mark.parametrize("operation, dtype, against", [
    ("training_add_relu", "float32", "training-4x3-table"), ("backward_relu", "float16", "backward-4x3-table-float16"),
    ("inference", "float16", "inference-4x3-table"), ("moments", "float16", "moments-4x3-table")])
def test_own_other_call_is_measured_in_the_same_rounds(operation, dtype, against):
    class Own(Fake):
        """Half as long for what is plain and float32; it keeps what it was asked for."""
        def work(self, case, data, output, threads):
            asked.append((str(case), data.x.dtype, data.residual is None, data.dy is None))
            plain = not case.is_fused and (case.dtype == "float32" or operation in FUSED)
            return Fake("fastbn", 0.05 if plain else 0.1).work(case, data, output, threads)

    asked, case = [], Case(operation, (4, 3), "table", dtype)
    data = make_data(case)
    data.output = data.empty()
    cell = measure_cell(Job(case, 1), [Own("fastbn", 0), Fake("torch", 0.08)], None, data, 0.0, 3)
    assert [(own["against"], own["output"]) for own in cell["own"]] == [(against, output) for output in case.outputs]
    assert [own["ratio"] for own in cell["own"]] == pytest.approx([2.0] * len(case.outputs))
    other = np.dtype(dtype if operation in FUSED else "float32")
    assert asked[-1] == (against, other, True, "backward" not in operation)
    assert {e["contender"] for e in cell["entries"]} == {"fastbn", "torch"} and len(cell["retries"]) == 5
    assert fake_cell([Fake("fastbn", 0.1)])["own"] == []


def test_real_contenders_and_the_real_limit():
    """Everything together, on a shape that takes microseconds."""
    contenders, _ = load(["fastbn", "numpy"])
    try:
        limit = Limit()
    except LimitError:
        limit = None
    case = Case("backward", (64, 48), "table", alignment="64")
    data = make_data(case)
    data.output = data.empty()
    cell = measure_cell(Job(case, 1), contenders, limit, data, 0.01, 2)
    assert not cell["failed"] and len(cell["entries"]) == 4
    assert all(0 < e["seconds"] < 0.1 and e["error"] < 1e-5 for e in cell["entries"])
    assert limit is None or 0 < cell["limit_seconds"] < min(e["seconds"] for e in cell["entries"])


# Verdict, tables and charts from cells that were never measured

def made_cell(job, times, flagged=False, limit=None, ratios=()):
    """times: {contender: (seconds fresh, seconds out=)}, or (seconds fresh,). ratios: to fastbn's own other call."""
    case, entries = job.case, []
    outputs = ("fresh", "out=") if case.operation != "moments" else ("fresh",)
    own = dict(zip(outputs, times["fastbn"]))
    for name, seconds in times.items():
        for output, value in zip(outputs, seconds):
            entries.append({
                "contender": name, "output": output, "expression": "f()", "seconds": value,
                "gbps": case.bytes / value / 1e9, "share": limit and limit / value,
                "ratio": None if name == "fastbn" else value / own[output], "error": 1e-7,
                "disturbed": False, "blocks": [value] * 3, "clean": [True] * 3})
    return {"operation": case.operation, "shape": list(case.shape), "layout": case.layout, "dtype": case.dtype,
            "alignment": case.alignment, "threads": job.threads, "sweep": job.sweep, "bytes": case.bytes,
            "array_bytes": case.array_bytes, "limit_seconds": limit, "limit_disturbed": False, "limits": {},
            "probe": [10.0, 10.0], "handover": [30.0, 32.0] if job.threads > 1 else None, "flagged": flagged,
            "entries": entries, "failed": [], "retries": [],
            "own": [{"against": "plain", "output": output, "seconds": own[output] / ratio, "ratio": ratio,
                     "disturbed": False} for output, ratio in zip(outputs, ratios)]}


def some_cells():
    first = made_cell(Job(Case("training", (32, 512, 7, 7), "last"), 1),
                      {"fastbn": (2e-4, 1e-4), "numpy": (8e-4, 5e-4), "torch": (1e-4,)}, limit=8e-5)
    second = made_cell(Job(Case("inference", (64, 1024), "table", alignment="64"), 2),
                       {"fastbn": (2e-6, 1e-6), "numpy": (8e-6, 4e-6), "torch": (3e-6,)}, flagged=True, limit=5e-7)
    return [first, second]


def test_verdict_takes_the_fastest_peer_of_each_output():
    verdict = judge(some_cells(), CACHES)
    # Training: torch 0.5 fresh, numpy 5 into an array; inference: torch 1.5 fresh, numpy 4.
    assert verdict["comparisons"] == 4 and verdict["geometric_mean"] == pytest.approx((0.5 * 5 * 1.5 * 4) ** 0.25)
    assert verdict["under_1"] == 1 and verdict["flagged"] == 1 and verdict["disturbed"] == 0
    assert verdict["handover"] == {"least": 31.0, "median": 31.0, "greatest": 31.0}
    assert judge(some_cells()[:1], CACHES)["handover"] is None
    (lost,) = verdict["lost"]
    assert (lost["peer"], lost["output"], lost["ratio"], lost["shape"]) == ("torch", "fresh", 0.5, [32, 512, 7, 7])
    assert verdict["peers"]["torch"]["under_1"] == 1 and verdict["peers"]["numpy"]["least"] == 4
    shares = {(s["operation"], s["regime"]): s["median"] for s in verdict["shares"]}
    assert shares == {("training", "last-level cache"): pytest.approx(0.8), ("inference", "L2"): pytest.approx(0.5)}


def cells_with_own_calls():
    """Fused ones of a megabyte and half ones of 100."""
    times = {"fastbn": (2e-4, 1e-4), "torch": (4e-4,)}
    add = made_cell(Job(Case("inference_add_relu", (1024, 256), "table"), 1), times, ratios=(1.6, 1.5))
    relu = made_cell(Job(Case("training_relu", (1024, 256), "table"), 1), times, ratios=(1.0, 1.04))
    halves = [made_cell(Job(Case("inference", (2**17, 200), "table", dtype), 1), times, ratios=(0.7, 0.5))
              for dtype in HALVES]
    return [add, relu, *halves]


def test_verdict_on_own_calls():
    cells = cells_with_own_calls()
    own = {(row["operation"], row["dtype"]): row for row in judge(cells, CACHES)["own"]}
    assert len(own) == 4
    add, half = own["inference_add_relu", "float32"], own["inference", "bfloat16"]
    assert add["bar"] == pytest.approx(1.05 * 3 / 2) and (add["above"], add["comparisons"]) == (1, 2)
    assert own["training_relu", "float32"]["bar"] == 1.05 and own["training_relu", "float32"]["above"] == 0
    assert half["bar"] == pytest.approx(1 / 1.7) and half["above"] == 1 and half["regime"] == "memory"
    assert half["median"] == pytest.approx(0.6)
    assert own["inference", "float16"]["bar"] is None and own["inference", "float16"]["above"] == 0
    cells[0]["own"][0]["disturbed"] = True
    assert judge(cells, CACHES)["own"][0]["above"] == 0
    small = made_cell(Job(Case("inference", (64, 64), "table", "bfloat16"), 1), {"fastbn": (1.0, 1.0)}, ratios=(0.9,))
    assert judge([small], CACHES)["own"][0]["bar"] is None and judge(some_cells(), CACHES)["own"] == []


def test_own_calls_in_tables_and_in_the_readme(tmp_path):
    tables = {title: (header, rows) for title, header, rows in report.tables(cells_with_own_calls())}
    header, rows = tables["inference_add_relu, 1 thread"]
    assert header[8:10] == ["own", "torch"] and [row[8] for row in rows] == ["1.60", "1.50"]
    runs = [{"machine": MACHINE, "date": "2026-01-02", "arguments": ""}]
    document = make_document(runs, cells_with_own_calls(), 4)
    lines = readme.section(document).splitlines()
    assert "| inference_add_relu | float32 | table | last-level cache | 2 | 1.50 | 1.55 | 1.60 | 1.575 | 1 |" in lines
    assert "| inference | float16 | table | memory | 2 | 0.50 | 0.60 | 0.70 |  |  |" in lines
    with open(tmp_path / "t.txt", "w", encoding="utf-8") as file:
        report.print_verdict(report.console_for(file), "grid", document["verdict"]["grid"])
    assert re.search(r"inference +bfloat16 +table +memory +2 +0.50 +0.60 +0.70 +0.588 +1\b",
                     (tmp_path / "t.txt").read_text(encoding="utf-8"))


def test_disturbed_comparisons_count_nowhere():
    cells = some_cells()
    cells[0]["entries"][-1]["disturbed"] = True  # torch, the one that wins
    verdict = judge(cells, CACHES)
    assert verdict["disturbed"] == 1 and verdict["comparisons"] == 3 and not verdict["lost"]


def test_regimes():
    case = Case("training", (1024, 128), "table")  # 1 MiB in two arrays
    assert regime(made_cell(Job(case, 1), {"fastbn": (1.0, 1.0)}), CACHES) == "L2"
    case = replace(case, shape=(1025, 128))
    assert regime(made_cell(Job(case, 1), {"fastbn": (1.0, 1.0)}), CACHES) == "last-level cache"
    assert regime(made_cell(Job(case, 2), {"fastbn": (1.0, 1.0)}), CACHES) == "L2"
    case = replace(case, shape=(2**17, 128))
    assert regime(made_cell(Job(case, 2), {"fastbn": (1.0, 1.0)}), CACHES) == "memory"
    assert regime(made_cell(Job(case, 2), {"fastbn": (1.0, 1.0)}), {"l2": None, "llc": None}) == "unknown"


def test_tables(tmp_path):
    tables = {title: (header, rows) for title, header, rows in report.tables(some_cells())}
    assert set(tables) == {"training, 1 thread", "inference, 2 threads"}
    header, rows = tables["training, 1 thread"]
    assert header == ["shape", "layout", "type", "align", "output", "us", "GB/s", "limit", "numpy", "torch", "error",
                      "peers' error"]
    assert rows == [
        ["32x512x7x7", "last", "float32", "numpy", "fresh", "200", "32.1", "0.40", "4.00", "0.50", "1e-07", "1e-07"],
        ["32x512x7x7", "last", "float32", "numpy", "out=", "100", "64.2", "0.80", "5.00", "", "1e-07", "1e-07"]]
    assert tables["inference, 2 threads"][1][0][0] == "64x1024!"
    with open(tmp_path / "t.txt", "w", encoding="utf-8") as file:
        console = report.console_for(file)
        report.print_tables(console, some_cells())
        report.print_verdict(console, "grid", judge(some_cells(), CACHES))
    text = (tmp_path / "t.txt").read_text(encoding="utf-8")
    assert "training, 32x512x7x7, last, 1 thread, fresh output: 0.50 (torch)" in text
    assert "1 of 2 cells are flagged" in text and "geometric mean of 4 comparisons" in text
    assert "two threads hand over a cache line in 31 to 31 ns" in text


def made_run():
    """A quick grid and quick sweeps, every cell with made-up times."""
    jobs = make_jobs(replace(ALL, grid="quick", quick=True, alignments=("numpy",), threads=(2,)))
    return [made_cell(job, {"fastbn": (size * 2e-11 + 1e-6,) * 2, "numpy": (size * 1e-10 + 5e-6,) * 2,
                            "torch": (size * 3e-11 + 9e-6,)}, limit=size * 1.5e-11)
            for job, size in ((job, job.case.bytes) for job in jobs)]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    charts = pytest.importorskip("bench.charts", reason="matplotlib is not installed", exc_type=ImportError)
    folder = tmp_path_factory.mktemp("charts")
    return folder, charts.draw(folder, made_run(), MACHINE)


def test_charts_are_made_of_every_kind(drawn):
    folder, files = drawn
    assert {path.stem for path in files} == {
        "speedup", "speedup-shapes", "speed-channels-first", "speed-channels-last", "cost-size-channels-first",
        "cost-size-channels-last", "cost-features-tables"}
    for path in files:
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000
        assert ElementTree.parse(path.with_suffix(".svg")).getroot().tag.endswith("svg")


def test_charts_of_what_is_fused_and_of_half_types(tmp_path):
    charts = pytest.importorskip("bench.charts", reason="matplotlib is not installed", exc_type=ImportError)
    names = {path.stem for path in charts.draw(tmp_path, 2 * cells_with_own_calls(), MACHINE)}
    assert names == {"speedup", "speedup-fused"}
    fused = charts.speedup([cell for cell in cells_with_own_calls() if cell["operation"] in FUSED], "title")
    assert [axes.get_title().split(",")[0] for axes in fused.axes] == ["inference_add_relu", "training_relu"]


def test_charts_name_axes_and_lines():
    charts = pytest.importorskip("bench.charts", reason="matplotlib is not installed", exc_type=ImportError)
    cells = made_run()
    size = [cell for cell in cells if cell["sweep"] == "size" and cell["layout"] == "first"]
    figures = {
        "GB/s": charts.over_size(size, "title", CACHES, speed=True),
        "ns an element": charts.over_size(size, "title", CACHES, speed=False),
        "time of peer / time of fastbn": charts.speedup(size, "title")}
    for label, figure in figures.items():
        panel = figure.axes[0]
        assert panel.get_ylabel() == label and panel.get_yscale() == "log" and figure.axes[-1].get_xlabel()
        assert {axes.get_title().split(",")[0] for axes in figure.axes} == set(OPERATIONS)
    labels = {text.get_text() for text in figures["GB/s"].legends[0].get_texts()}
    assert labels == {"the machine's limit", "fastbn", "numpy", "torch (fresh output)"}
    line = next(line for line in figures["GB/s"].axes[0].get_lines() if line.get_label() == "fastbn")
    assert line.get_xdata()[0] == 2**14 and line.get_ydata()[-1] == pytest.approx(50, rel=0.01)
    assert charts.over_size([], "title", CACHES, speed=True) is None


# A run's folder, the command line, the README

def test_store_resumes_after_a_cut(tmp_path):
    cells = some_cells()
    with store.Store(tmp_path) as kept:
        kept.add("run", {"machine": MACHINE})
        kept.add("cell", cells[0])
    with open(tmp_path / store.CELLS, "a", encoding="utf-8") as file:
        file.write('{"cell": {"operation": "tra')  # killed here
    with store.Store(tmp_path) as kept:
        kept.add("cell", cells[1])
    runs, found = store.read(tmp_path)
    assert len(runs) == 1 and [store.key(c) for c in found] == [store.key(c) for c in cells]
    assert store.key(cells[1]) == store.key_of_job(Job(Case("inference", (64, 1024), "table", alignment="64"), 2))
    assert found[0]["entries"][0]["blocks"] == [2e-4] * 3


def test_document_holds_everything(tmp_path):
    document = make_document([{"machine": MACHINE, "date": "2026-01-02", "arguments": ""}], some_cells(), 2)
    with store.Store(tmp_path) as kept:
        kept.write_document(document)
    read = store.read_document(tmp_path)
    assert read["complete"] and read["cells"] == store.rounded(some_cells())
    assert read["verdict"]["grid"]["under_1"] == 1 and read["verdict"]["sweeps"]["cells"] == 0


def test_numbers_are_rounded_for_json():
    assert store.rounded({"a": (1 / 3, float("nan")), 2: 1}) == {"a": [0.333333, None], "2": 1}


def run_bench(folder, *more):
    return cli.main(["--shapes", "8x4", "--layouts", "table", "--operations", "inference", "--alignments", "numpy",
                     "--threads", "1", "--peers", "numpy", "--seconds", "0.01", "--no-charts", "--out", str(folder),
                     *more])


def test_command_line_from_end_to_end(tmp_path, capsys):
    assert run_bench(tmp_path / "run") == 0
    printed = capsys.readouterr().out
    assert "inference, 1 thread" in printed and "grid: the fastest peer takes" in printed
    document = store.read_document(tmp_path / "run")
    assert document["complete"] and len(document["cells"]) == 1
    arguments = document["runs"][0]["arguments"]
    assert arguments.startswith("--shapes 8x4") and str(tmp_path) not in arguments
    assert "8x4" in (tmp_path / "run" / "tables.txt").read_text(encoding="utf-8")
    with pytest.raises(SystemExit) as stopped:
        run_bench(tmp_path / "run")
    assert stopped.value.code == 2 and "has 1 measured cells: --resume" in capsys.readouterr().err
    assert run_bench(tmp_path / "run", "--resume", "--threads", "1", "--dtypes", "float32,float64") == 0
    document = store.read_document(tmp_path / "run")
    assert [c["dtype"] for c in document["cells"]] == ["float32", "float64"] and len(document["runs"]) == 2
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--peers", "numpy,sklearn", "--out", str(tmp_path / "run"), "--resume", "--shapes", "8x4"])
    if "sklearn" in load(["fastbn", "sklearn"])[1]:
        pytest.skip("scikit-learn is not installed: the peers are the same")
    assert stopped.value.code == 2 and "another machine, or with other versions or peers" in capsys.readouterr().err


def test_budget_ends_a_run(tmp_path, capsys):
    assert run_bench(tmp_path, "--budget", "0") == 0
    assert store.read_document(tmp_path)["complete"] is False


def test_large_arrays_are_left_out(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_bench(tmp_path, "--max-bytes", "64")
    assert stopped.value.code == 2
    shown = capsys.readouterr()
    assert "1 of 1 cells left out" in shown.out and "no case has" in shown.err


@pytest.mark.parametrize("arguments, message", [
    (["--shapes", "8"], "'8' is no shape; write NxC or NxCxHxW"),
    (["--shapes", "8x0"], "is no shape"),
    (["--operations", "train"], "'train' is none of inference, training"),
    (["--operations", "relu"], "'relu' is none of .* inference_relu"),
    (["--threads", "none"], "neither a positive number nor 'all'"),
    (["--threads", "100000"], "--threads 100000: fastbn may use"),
    (["--budget", "soon"], "'soon' is no time; write 90"),
    (["--max-bytes", "1GB"], "'1GB' is no size; write bytes, or 512MiB"),
    (["--peers", "fastbn"], "'fastbn' is none of"),
    (["--only", "sweeps", "--shapes", "8x4"], "--only sweeps: it excludes --shapes"),
    (["--resume"], "--resume: no run in"),
])
def test_command_line_says_what_is_wrong(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2 and re.search(re.escape(message).replace(r"\.\*", ".*"), capsys.readouterr().err)


def test_without_ml_dtypes_bfloat16_is_left_out(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run_module, "has_bfloat16", lambda: False)
    assert run_bench(tmp_path, "--dtypes", "bfloat16,float32") == 0
    assert "1 cells left out: bfloat16 needs ml_dtypes" in capsys.readouterr().out
    assert [cell["dtype"] for cell in store.read_document(tmp_path)["cells"]] == ["float32"]


def test_flags_become_what_is_wanted():
    def wanted(*arguments):
        return cli.wanted(cli.make_parser().parse_args(arguments))
    assert wanted().sweeps == ("size", "features")
    assert wanted().grid == "full" and wanted().alignments == ("numpy", "64")
    for without in (["--shapes", "8x4"], ["--no-sweeps"], ["--only", "grid"]):
        assert wanted(*without).sweeps == ()
    assert set(FUSED) < set(wanted().operations) and wanted().halves == HALVES and wanted().dtypes == ("float32",)
    for few in (["--quick"], ["--grid", "small"], ["--shapes", "8x4"], ["--only", "sweeps"]):
        assert not set(FUSED) & set(wanted(*few).operations) and wanted(*few).halves == ()
    assert wanted("--quick", "--operations", "training_relu").operations == ("training_relu",)
    assert wanted("--dtypes", "float64").halves == ()
    assert wanted("--only", "sweeps").grid is None and wanted("--only", "sweeps").sweeps
    assert wanted("--quick").grid == "quick" and wanted("--quick").alignments == ("numpy",)
    assert not [job for job in make_jobs(wanted("--only", "sweeps")) if not job.sweep]
    parse = cli.make_parser().parse_args
    assert parse(["--budget", "1.5h"]).budget == 5400 and parse(["--max-bytes", "1.5GiB"]).max_bytes == 3 * 2**29


def test_readme_sections_and_picture(tmp_path, capsys):
    runs = [{"machine": MACHINE, "date": "2026-01-02", "arguments": "--grid small"}]
    with store.Store(tmp_path) as kept:
        kept.write_document(make_document(runs, some_cells(), 2))
    (tmp_path / "bench").mkdir()
    paths = {"whole": tmp_path / "bench" / "README.md", "short": tmp_path / "README.md"}
    for kind, path in paths.items():
        first, last = readme.MARKS[kind]
        path.write_text(f"before\n{first}\nold\n{last}\nafter\n", encoding="utf-8")
    assert readme.main([str(tmp_path), "--root", str(tmp_path)]) == 0
    whole, short = (path.read_text(encoding="utf-8") for path in paths.values())
    assert whole.startswith(f"before\n{readme.MARKS['whole'][0]}\nMeasured on 2026-01-02 on Some processor")
    assert whole.endswith("\nafter\n") and short.endswith("\nafter\n")
    assert "old" not in whole and "`python -m bench --grid small`, against numpy 2.0.0, torch 2.5.0" in whole
    # Time and share into an array; torch is ahead with a fresh output. The other cell is not of NumPy's alignment.
    assert "| 32 x 512 x 7 x 7 | channels-last | 100 (0.80; torch 0.5) |  |  |" in whole and "64 x 1024" not in whole
    assert "- training, 32x512x7x7, last, 1 thread, fresh output: 0.50 (torch)" in whole
    assert "| 32x512x7x7 last | 100 (0.5) |" in short and max(map(len, short.splitlines())) <= 110
    assert (tmp_path / ".github" / "speed.png").stat().st_size < 60_000


def test_readme_sections_without_marks(tmp_path, capsys):
    runs = [{"machine": MACHINE, "date": "2026-01-02", "arguments": "--grid small"}]
    with store.Store(tmp_path) as kept:
        kept.write_document(make_document(runs, some_cells(), 2))
    (tmp_path / "bench").mkdir()
    for path in (tmp_path / "bench" / "README.md", tmp_path / "README.md"):
        path.write_text("no marks", encoding="utf-8")
    with pytest.raises(SystemExit):
        readme.main([str(tmp_path), "--root", str(tmp_path)])
    assert f"no line {readme.MARKS['whole'][0]}" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "no marks" and not (tmp_path / ".github").exists()


# Peers of one's own, two runs, the end of a run

def test_the_peer_of_the_document_is_measured(tmp_path, monkeypatch):
    document = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    (tmp_path / "mine.py").write_text(re.search(r"^```python\n(.*?)^```$", document, re.M | re.S)[1], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bench.peers.CONTENDERS", dict(CONTENDERS))
    flags = "--peer mine:Mine --peers numpy --shapes 64x64 --layouts table --operations inference --threads 1 --seconds 0.01"
    assert cli.main([*flags.split(), "--no-charts", "--out", str(tmp_path / "run")]) == 0
    cells = store.read_document(tmp_path / "run")["cells"]
    entries = [entry for cell in cells for entry in cell["entries"] if entry["contender"] == "mine"]
    assert entries and all(entry["output"] == "out=" and entry["error"] < 1e-5 for entry in entries)


@pytest.mark.parametrize("place, reason", [("nowhere:X", "cannot be imported"), ("json:X", "cannot be imported"),
                                           ("json", "cannot be imported"), ("json:JSONDecoder", "lacks name")])
def test_a_peer_that_is_none(tmp_path, capsys, place, reason):
    with pytest.raises(SystemExit):
        cli.main(["--peer", place, "--quick", "--out", str(tmp_path)])
    error = capsys.readouterr().err
    assert f"--peer {place!r}" in error and reason in error


def test_a_run_cut_short_says_how_to_go_on(tmp_path, capsys):
    flags = "--quick --only grid --peers numpy --threads 1 --budget 0.001s --no-charts"
    assert cli.main([*flags.split(), "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"0\.001 s are over: 0 of \d+ cells; --resume --out .* goes on", printed)


def test_the_first_line_of_the_verdict(capsys):
    document = make_document([{"machine": MACHINE, "date": "2026-01-02", "arguments": ""}], some_cells(), 2)
    report.print_headline(report.console_for(), document["verdict"])
    assert re.match(r"fastbn is the fastest in \d+ of \d+ comparisons; ", capsys.readouterr().out)


def test_no_chart_of_a_few_points(tmp_path):
    charts = pytest.importorskip("bench.charts", reason="matplotlib is not installed", exc_type=ImportError)
    assert charts.draw(tmp_path, some_cells(), MACHINE) == []


def run_with(folder, factor):
    cells = some_cells()
    for cell in cells:
        for entry in cell["entries"]:
            entry["seconds"] *= factor
    with store.Store(folder) as kept:
        kept.write_document(make_document([{"machine": MACHINE, "date": "2026-01-02", "arguments": ""}], cells, 2))


def test_two_runs_are_compared(tmp_path, capsys):
    run_with(tmp_path / "a", 1)
    run_with(tmp_path / "b", 0.5)
    assert compare.main([str(tmp_path / "a"), str(tmp_path / "b" / "run.json")]) == 0
    printed = capsys.readouterr().out
    assert "takes 0.500 times the time of" in printed and "most gained:\n  0.50" in printed
    with pytest.raises(SystemExit):
        compare.main([str(tmp_path / "a"), str(tmp_path / "nothing")])
    assert "does not exist" in capsys.readouterr().err


def test_runs_without_a_common_cell(tmp_path):
    with pytest.raises(store.StoreError, match="no undisturbed cell in common"):
        compare.print_comparison(report.console_for(), ("a", "b"), {}, {})
