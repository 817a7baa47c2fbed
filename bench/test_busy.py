"""python -m bench.busy: the whole run in small, and what its parts count."""

import numpy as np
import pytest

import fastbn
from bench.busy import __main__, callers, idle, loops, mix, network, turns, workers

pytestmark = pytest.mark.full

pytest.importorskip("rich")


@pytest.fixture(autouse=True)
def no_limit_is_left():
    before = fastbn.get_num_threads()
    yield
    assert fastbn.get_num_threads() == before


def test_the_whole_run(capsys):
    flags = ["--loops", "1", "--workers", "2", "--seconds", "0.02", "--work-seconds", "0.1"]
    assert __main__.main(flags) == 0
    output = " ".join(capsys.readouterr().out.split())
    for words in ("processor time in 20 ms after a call: median", "geometric means of 15 cells: medians",
                  "2 processes at once, rounds of the mix in 0.1 s: default", "2 calling threads, calls a second: default",
                  "training step of matrix products and batch norms, batch 64: default"):
        assert words in output


def test_parts_alone(capsys):
    assert __main__.main(["--only", "idle"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "busy loops" in lines[0]
    with pytest.raises(SystemExit):
        __main__.main(["--only", "nothing"])


def test_busy_loops_end():
    with loops.busy_loops(2):
        pass
    with pytest.raises(ZeroDivisionError), loops.busy_loops(1):
        1 / 0


def test_turns_alternate_within_their_sessions():
    seen = []
    pair = [turns.Turn(name, lambda: seen.append(fastbn.get_num_threads()), turns.threads_session(threads))
            for name, threads in (("default", None), ("one thread", 1))]
    turns.take_turns(pair, 0.01)
    assert set(seen) == {fastbn.get_num_threads(), 1} and all(turn.seconds for turn in pair)
    assert all(0 < turn.median and 0 < turn.mean for turn in pair)


def test_the_mix_is_every_operation_on_every_shape():
    calls = mix.make_mix(0)
    assert len(calls) == 3 * len(mix.SHAPES)
    results = [call() for call in calls]
    for shape, (y, trained, gradients) in zip(mix.SHAPES, zip(*[iter(results)] * 3)):
        assert y.shape == trained[0].shape == gradients[0].shape == shape


def test_workers_report_what_they_did():
    assert workers.rounds_of(2, 0.05, 1) >= 2
    assert workers.rounds_of(1, 0.05, None) >= 1


def test_calling_threads_and_idle_threads():
    assert min(callers.calls_of(2, 0.05)) > 0
    median, largest = idle.milliseconds(rounds=3)
    assert 0 <= median <= largest


def test_a_training_step_is_the_same_with_any_number_of_threads():
    steps = [network.make_step(64) for _ in range(2)]
    for step, threads in zip(steps, (None, 1)):
        with turns.threads_session(threads)():
            for _ in range(3):
                step()
    first, second = ([cell.cell_contents for cell in step.__closure__] for step in steps)
    weights = [[a for a in contents if isinstance(a, list) and isinstance(a[0], np.ndarray)] for contents in (first, second)]
    for a, b in zip(weights[0][0], weights[1][0]):
        np.testing.assert_array_equal(a, b)
