"""The page's section on speed: contenders compute the same, numbers are those of the times. No time is judged."""
import math

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the demo's packages are not installed")

import fastbn  # noqa: E402
from explain_checks import numbers_of, pictures_of, text_of  # noqa: E402
from fastbn.explain import _peers  # noqa: E402
from fastbn.explain import speed as section  # noqa: E402
from fastbn.explain.section import Settings, run_code  # noqa: E402
from section_reading import assert_complete, unmeasured  # noqa: E402

pytestmark = pytest.mark.full

SMALL = (section.Case("table", (12, 6), 1), section.Case("channels-first", (4, 6, 3, 5), 1),
         section.Case("channels-last", (4, 3, 5, 6), -1))
OPERATIONS = ("training", "inference")


@pytest.fixture
def small(monkeypatch):
    """Small shapes and short blocks, so that the section takes a fraction of a second."""
    monkeypatch.setattr(section, "CASES", SMALL)
    for name in ("DROP_SECONDS", "BLOCK_SECONDS", "SAMPLE_SECONDS", "SLOW_SECONDS", "QUICK_SECONDS"):
        monkeypatch.setattr(section, name, 1e-5)


@pytest.fixture
def made(small):
    return section.make(Settings(quick=True))


def expected(data, operation):
    """In float64."""
    x = np.moveaxis(data.x.astype(float), data.axis, -1)
    axes = tuple(range(x.ndim - 1))
    mean, var = (x.mean(axes), x.var(axes)) if operation == "training" else (data.mean, data.var)
    y = (x - mean) / np.sqrt(var + 1e-5) * data.gamma.astype(float) + data.beta
    return np.moveaxis(y, -1, data.axis)


def test_every_name_and_picture(made):
    assert_complete(made, "speed_")
    assert [picture.measured for picture in pictures_of(made)] == [True, True]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("case", SMALL, ids=[case.name for case in SMALL])
@pytest.mark.parametrize("name", _peers.PEERS)
def test_peers_compute_batch_norm(name, case, operation):
    prepare = _peers.installed(operation).get(name)
    if prepare is None:
        pytest.skip(f"no {operation} by {name} here")
    data = section.make_data(case, 0)
    data.out[:] = np.nan
    with _peers.threads_set(1):
        call = prepare(data, 1)
        if call is None:
            pytest.skip(f"{name} has nothing for {case.name}")
        returned = call()
    if name == "scikit-learn":  # without gamma and beta, and not into out
        got = returned.reshape(data.x.shape) * data.gamma + data.beta
    else:
        got = data.out
    np.testing.assert_allclose(got, expected(data, operation), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_lines_call_fastbn_right(made, operation):
    ours = pictures_of(made)[OPERATIONS.index(operation)].values["ours"]
    for case in SMALL:
        for threads in (1, 2):
            data = section.make_data(case, 3)
            data.out[:] = np.nan
            ours(data, threads)()
            np.testing.assert_allclose(data.out, expected(data, operation), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_copies_copy_everything(threads):
    data = section.make_data(SMALL[1], 0)
    with section.ThreadPoolExecutor(threads) as pool:
        for name, copy in section._copies(data, pool, threads).items():
            data.out[:] = np.nan
            copy()
            assert np.array_equal(data.out, data.x), name


def test_ratios_are_taken_within_a_round():
    seconds = {"copy": np.array([4.0, 1.0, 1.0]), "copy by threads": np.array([2.0, 3.0, 3.0]),
               "fastbn": np.array([4.0, 1.0, 4.0]), section.ALONE: np.array([8.0, 4.0, 4.0]),
               "NumPy": np.array([40.0, 30.0, 8.0])}
    assert section.limit(seconds).tolist() == [2, 1, 1]
    assert section.shares(seconds) == {"fastbn": 0.5, section.ALONE: 0.25, "NumPy": 0.05}
    assert section.times_ours(seconds) == {"NumPy": 10.0}


def test_a_block_gives_the_fastest_call_of_those_that_count(monkeypatch):
    """By a clock that only calls move: the first call is dropped, then at least three count."""
    clock, durations = [0.0], iter([0.25, 1.0, 0.5, 0.75, 0.125])
    monkeypatch.setattr(section, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(section, "SLOW_SECONDS", 10)

    def call():
        clock[0] += next(durations)

    assert section._block(call) == 0.5
    assert next(durations) == 0.125


def test_short_calls_are_timed_several_at_once(monkeypatch):
    clock, calls = [0.0], []
    monkeypatch.setattr(section, "perf_counter", lambda: clock[0])

    def call():
        calls.append(clock[0])
        clock[0] += 2**-20

    assert section._block(call) == 2**-20
    assert clock[0] >= section.DROP_SECONDS + section.BLOCK_SECONDS
    assert section._sample(call, 8) == 2**-20 and len(calls) > 8


@pytest.mark.parametrize("seconds", [0.0, 0.05])
def test_every_contender_has_as_many_rounds(small, seconds):
    turns = {"a": lambda: None, "b": lambda: None}
    found = section._in_turns(turns, seconds)
    assert len(found["a"]) == len(found["b"]) >= section.LEAST_ROUNDS
    assert all((values > 0).all() for values in found.values())


def test_numbers_are_those_of_the_times(made):
    found = numbers_of(made)
    assert found["speed_threads"] == fastbn.get_num_threads()
    for picture, operation in zip(pictures_of(made), OPERATIONS):
        for case in SMALL:
            seconds, key = picture.values["seconds"][case.name], f"speed_{operation}_{case.name}_".replace("-", "_")
            bytes_moved = 2 * math.prod(case.shape) * 4
            copies = np.minimum(seconds["copy"], seconds["copy by threads"])
            assert found[key + "copy"] == pytest.approx(bytes_moved / np.median(copies) / 1e9)
            assert found[key + "time"] == pytest.approx(np.median(seconds["fastbn"]) * 1e6)
            assert found[key + "share"] == pytest.approx(np.median(copies / seconds["fastbn"]))
            others = [np.median(seconds[name] / seconds["fastbn"]) for name in _peers.PEERS if name in seconds]
            assert found[key + "other"] == pytest.approx(min(others))


def test_bars_are_the_shares(made):
    picture = pictures_of(made)[1]
    for axes, case in zip(picture.figure.axes, SMALL):
        widths = [bar.get_width() / 100 for bar in axes.patches]
        assert widths == pytest.approx(list(section.shares(picture.values["seconds"][case.name]).values()))


def test_what_is_not_measured_repeats(made):
    assert unmeasured(section.make(Settings(quick=True))) == unmeasured(made)


def test_with_one_thread(small):
    fastbn.set_num_threads(1)
    try:
        made = section.make(Settings(quick=True))
    finally:
        fastbn.set_num_threads(None)
    found = numbers_of(made)
    assert found["speed_threads"] == 1
    assert found["speed_training_table_time"] == found["speed_training_table_time_1_thread"]
    assert section.ALONE not in pictures_of(made)[0].values["seconds"]["table"]


def test_numpy_alone(small, monkeypatch):
    monkeypatch.setattr(_peers, "is_installed", lambda name: name == "NumPy")
    made = section.make(Settings(quick=True))
    assert "not installed: PyTorch, ONNX Runtime, scikit-learn" in text_of(made)
    assert set(pictures_of(made)[1].values["seconds"]["table"]) <= {*section.COPIES, "fastbn", section.ALONE, "NumPy"}


def test_a_broken_peer_is_none(monkeypatch):
    monkeypatch.setitem(_peers.PEERS, "broken", ({"inference": None}, ("fastbn.explain.no_such_module",)))
    assert not _peers.is_installed("broken") and "broken" not in _peers.installed("inference")
    assert "not installed: " in _peers.described() and _peers.described().endswith("broken")


def test_threads_of_pytorch_are_given_back():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    before = torch.get_num_threads()
    with pytest.raises(KeyError), _peers.threads_set(before + 1):
        assert torch.get_num_threads() == before + 1 and torch.is_inference_mode_enabled()
        raise KeyError
    assert torch.get_num_threads() == before and not torch.is_inference_mode_enabled()


def test_the_section_s_own_shapes():
    """A table, channels-first and channels-last maps; input and output of the first are small, the others' are not."""
    table, first, last = section.CASES
    assert (len(table.shape), first.axis, last.axis) == (2, 1, -1)
    assert table.nbytes == 2**20 and first.nbytes > last.nbytes > 20 * 2**20


def test_pasted_lines_work(small, made):
    for picture in pictures_of(made):
        pasted = run_code(picture.code)["seconds"]
        assert {name: set(seconds) for name, seconds in pasted.items()} == {
            name: set(seconds) for name, seconds in picture.values["seconds"].items()}
