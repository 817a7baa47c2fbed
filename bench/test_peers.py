"""Contenders give the right answer into the right array, on the threads asked for; the limit moves what it says."""
import os
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest

from bench import limit as limit_module
from bench.cases import DTYPES, FUSED, Case, check, data_type, make_data, reference
from bench.limit import Limit, LimitError
from bench.peers import CONTENDERS, load, variants

pytestmark = pytest.mark.full

SHAPES = ((4, 3, 5, 2), (2, 16, 7, 7), (3, 17, 9, 1), (2, 3, 4), (2, 16, 3, 4, 5), (64, 64), (33, 3), (1, 64))
OPERATIONS = ("inference", "training", "backward", "moments", "call")
FUSED_SHAPES = ((4, 3, 5, 2), (2, 16, 7, 7), (64, 64))
MANY = (64, 64, 16, 16)  # enough that two threads are worth it

PRESENT, MISSING = load(CONTENDERS)


def cases(shapes=SHAPES, dtypes=DTYPES):
    for shape in shapes:
        for layout in ("table",) if len(shape) == 2 else ("first", "last"):
            for operation in (*OPERATIONS, *(FUSED if shape in FUSED_SHAPES or shape == MANY else ())):
                if operation != "call" or layout == "table":
                    yield from (Case(operation, shape, layout, dtype) for dtype in dtypes)


def parameters(*chosen):
    for case in cases(*chosen):
        for contender, output in variants(case, PRESENT):
            yield pytest.param(contender, case, output, id=f"{contender.name}-{case}-{output}")
    for name, reason in MISSING.items():
        yield pytest.param(None, None, None, id=name, marks=pytest.mark.skip(reason=f"{name} left out: {reason}"))


def run(contender, case, output, threads, data):
    with contender.session(threads):
        work = contender.work(case, data, output, threads)
        result = contender.arrays(case, work.function()())
        expected = contender.reference_data(case, data) if hasattr(contender, "reference_data") else data
        error = check(case, f"{contender.name} ({output})", result, reference(case, expected))
        return result, error


@pytest.mark.parametrize("contender, case, output", list(parameters()))
def test_right_answer(contender, case, output):
    data = make_data(case)
    before = {name: array.copy() for name, array in vars(data).items() if array is not None}
    _, error = run(contender, case, output, 1, data)
    assert error < {"float32": 1e-4, "float64": 1e-9, "float16": 2e-3, "bfloat16": 1e-2}[case.dtype]
    for name, array in before.items():
        np.testing.assert_array_equal(getattr(data, name), array, err_msg=f"{contender.name} changed {name}")


@pytest.mark.parametrize("contender, case, output", list(parameters([MANY, (4096, 64)], ["float32"])))
def test_right_answer_of_two_threads(contender, case, output):
    most = PRESENT[0].fastbn.get_num_threads()
    if most < 2:
        pytest.skip(f"fastbn may use {most} thread here")
    run(contender, case, output, 2, make_data(case))


@pytest.mark.parametrize("contender, case, output", list(parameters([(4, 16, 6, 5), (64, 48)], ["float32"])))
def test_writes_where_it_says(contender, case, output):
    """Into out= it writes the caller's memory; fresh arrays are nobody's, and not each other's."""
    data = make_data(case)
    data.output = np.full(case.array_shape, 7.0, data_type(case.dtype))
    first, _ = run(contender, case, output, 1, data)
    second, _ = run(contender, case, output, 1, data)
    large = first[0]
    assert np.shares_memory(large, second[0]) == (output == "out=")
    assert np.shares_memory(large, data.output) == (output == "out=")
    assert not np.shares_memory(large, data.x)


@pytest.mark.parametrize("contender", [pytest.param(c, id=c.name) for c in PRESENT])
def test_fresh_is_fresh_in_every_call(contender):
    case = Case("inference", (64, 64), "table")
    data = make_data(case)
    with contender.session(1):
        function = contender.work(case, data, "fresh", 1).function()
        first, second = (contender.arrays(case, function())[0] for _ in range(2))
    assert not np.shares_memory(first, second)


@pytest.mark.parametrize("name, count", [
    ("fastbn", lambda c: c.fastbn.get_num_threads()), ("torch", lambda c: c.torch.get_num_threads()),
    ("onednn", lambda c: c._library.omp_get_max_threads())])
def test_session_sets_threads_and_restores_them(name, count):
    contender = next((c for c in PRESENT if c.name == name), None)
    if contender is None:
        pytest.skip(f"{name} left out: {MISSING[name]}")
    before = count(contender)
    with pytest.raises(ZeroDivisionError), contender.session(1):
        assert count(contender) == 1
        1 / 0
    assert count(contender) == before


def test_load_says_why_a_peer_is_missing(monkeypatch):
    class Absent:
        name = "absent"

        def __init__(self):
            raise ImportError("no module named absent")

    monkeypatch.setitem(CONTENDERS, "absent", Absent)
    present, missing = load(["absent", "numpy"])
    assert [contender.name for contender in present] == ["numpy"]
    assert missing == {"absent": "no module named absent"}
    monkeypatch.setitem(CONTENDERS, "fastbn", Absent)
    with pytest.raises(ImportError, match="fastbn cannot be imported .*pip install"):
        load(["fastbn"])


@pytest.mark.parametrize("operation, without", [
    ("inference", set()), ("inference_relu", {"sklearn"}), ("inference_add_relu", {"sklearn", "onednn"}),
    ("training_relu", {"sklearn", "onnxruntime"}), ("backward_add_relu", {"sklearn", "onnxruntime", "onednn"})])
def test_one_case_has_every_contender(operation, without):
    """So that a change of can() cannot quietly leave somebody out."""
    found = {contender.name for contender, _ in variants(Case(operation, (64, 64), "table"), PRESENT)}
    assert found == {contender.name for contender in PRESENT} - without


# ---- the limit ----

@pytest.fixture(scope="module", params=["native", "plain"])
def limit(request):
    """Compiled for this machine; and with no flags: the least instruction set, without OpenMP."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "plain":
            patch.setattr(limit_module, "FLAGS", ((),))
        try:
            return Limit()
        except LimitError as error:
            pytest.skip(str(error))


SIZES, OFFSETS = (0, 1, 5, 16, 63, 64, 65, 129, 1000, 4099), ((0, 0), (1, 0), (0, 1), (3, 5))


def pieces(limit):
    """(items, offset of the input, of the output, threads): teams for some only, since a busy machine delays them."""
    for items, offsets in product(SIZES, OFFSETS):
        yield items, *offsets, 1
    for items, threads in product((5, 65, 4099), (2, 3) if limit.has_threads else ()):
        yield items, 3, 5, threads


def guarded(items, dtype, offset):
    """An array that begins `offset` items after the start of a cache line, in a larger one of sevens."""
    whole = np.full(items + 256, 7, dtype)
    start = -whole.ctypes.data % 64 // whole.itemsize + offset
    return whole, slice(start, start + items)


@pytest.mark.parametrize("nontemporal", [False, True])
@pytest.mark.parametrize("operation, dtype", [("inference", "float32"), ("training", "float64"),
                                              ("backward", "float32"), ("backward", "float64"),
                                              ("backward", "float16"), ("backward_relu", "float32"),
                                              ("inference_add_relu", "float32"), ("training_relu", "float32")])
def test_limit_writes_what_it_says(limit, operation, dtype, nontemporal):
    rng = np.random.default_rng(0)
    for items, offset_in, offset_out, threads in pieces(limit):
        whole, inside = guarded(items, dtype, offset_out)
        out = whole[inside]
        x, dy = (guarded(items, dtype, offset_in) for _ in range(2))
        data = SimpleNamespace(x=x[0][x[1]], dy=dy[0][dy[1]], residual=dy[0][dy[1]])
        data.x[...], data.dy[...] = rng.standard_normal((2, items))
        assert 0 < limit.timer(operation, data, out, threads, nontemporal)(2) < 10
        expected = data.x + data.dy if "backward" in operation or "add" in operation else data.x
        if dtype == "float16":
            expected = (data.x.view(np.uint16) + data.dy.view(np.uint16)).view(dtype)
        np.testing.assert_array_equal(out, expected)
        outside = np.delete(whole, np.arange(inside.start, inside.stop))
        np.testing.assert_array_equal(outside, np.full_like(outside, 7))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_limit_of_backward_through_a_residual_writes_two_arrays(limit, dtype, monkeypatch):
    rng, made = np.random.default_rng(0), []
    monkeypatch.setattr(limit_module.np, "zeros_like", lambda a: made.append(np.full_like(a, 7)) or made[-1])
    for items, threads in ((4, 1), (1000, 1), (4098, 2 if limit.has_threads else 1)):
        x, dy, residual = rng.standard_normal((3, items)).astype(dtype)
        out = np.full(items, 7, dtype)
        limit.timer("backward_add_relu", SimpleNamespace(x=x, dy=dy, residual=residual), out, threads)(2)
        expected = (x.view(np.uint16) + dy.view(np.uint16)).view(dtype) if dtype == "float16" else x + dy
        np.testing.assert_array_equal(out, expected)
        np.testing.assert_array_equal(made[-1], residual)


def test_limit_reads_everything(limit):
    rng = np.random.default_rng(0)
    for items, offset, _, threads in pieces(limit):
        whole, inside = guarded(items, np.float32, offset)
        x = whole[inside]
        x[...] = rng.standard_normal(items)
        limit.timer("moments", SimpleNamespace(x=x), None, threads)(2)
        assert limit.read.value == np.bitwise_xor.reduce(x.view(np.int32), initial=np.int32(0))


def test_limit_entries(limit):
    data = SimpleNamespace(x=np.ones(1000, np.float32), dy=np.ones(1000, np.float32))
    out = np.zeros(1000, np.float32)
    names = [entry.contender for entry in limit.entries("backward", data, out, 1)]
    assert names == ["limit", "limit nt"][:1 + limit.has_nontemporal]
    assert [entry.contender for entry in limit.entries("moments", data, None, 1)] == ["limit"]
    if limit.has_threads:
        assert limit.entries("moments", data, None, 2)[-1].contender == "limit on one thread"
    assert limit.entries("backward", data, out, 1)[0].timer(1) > 0
    np.testing.assert_array_equal(out, 2)


def test_limit_seconds_grow_with_the_bytes(limit):
    def seconds(items):
        x = np.ones(items, np.float32)
        return limit.seconds("inference", SimpleNamespace(x=x), np.ones_like(x), 1)
    assert 0 < 8 * seconds(2**10) < seconds(2**19)  # 512 times as many
    assert limit.probe(1) > 0.1


def test_limit_times_a_handover(limit):
    nanoseconds = limit.handover()
    if not limit.has_threads or os.cpu_count() == 1:
        assert nanoseconds is None
    else:
        assert 1 < nanoseconds < 1e9


def test_limit_refuses(limit, monkeypatch):
    data = SimpleNamespace(x=np.ones((4, 6), np.float32), dy=None)
    with pytest.raises(ValueError, match="dy is None"):
        limit.timer("backward", data, np.ones_like(data.x), 1)
    with pytest.raises(ValueError, match="residual is None"):
        limit.timer("inference_add_relu", SimpleNamespace(x=data.x, residual=None), np.ones_like(data.x), 1)
    with pytest.raises(ValueError, match="out has 48 bytes, expected a contiguous array of x's 96"):
        limit.timer("training", data, np.ones((4, 3), np.float32), 1)
    with pytest.raises(ValueError, match="out has 96 bytes and gaps"):
        limit.timer("training", data, np.ones((6, 4), np.float32).T, 1)
    monkeypatch.setattr(limit, "has_threads", False)
    with pytest.raises(LimitError, match="no OpenMP: the limit of 2 threads"):
        limit.timer("moments", data, None, 2)


def test_limit_needs_a_compiler():
    with pytest.raises(LimitError, match="no C compiler found .* looked for no-such-compiler; install one"):
        Limit("no-such-compiler")
    with pytest.raises(LimitError, match="false cannot compile limit.c: it gives no reason"):
        Limit("false")
