"""The same bits for every instruction set of this machine, every number of threads and every run.

This is the one table of that: identity_operations.py has what is computed, identity_script.py for which arrays. Each
instruction set has a process of its own with OMP_NUM_THREADS=16, in which identity_script.py computes everything
with 1 to 16 threads, really that many: the small-work threshold is off, and the size of each team is checked.
"""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastbn
from fastbn import _core
from identity_script import ELSEWHERE

SCRIPT = Path(__file__).with_name("identity_script.py")
THREADS = (1, 2, 3, 4, 7, 8, 16)
ISAS = [name for name in _core.isa_names() if _core.isa_supported(name)]
# Idle threads sleep: on a machine with fewer than 16 cores spinning ones would take the time of those that work.
SETTINGS = {"OMP_NUM_THREADS": "16", "OMP_DYNAMIC": "false", "OMP_WAIT_POLICY": "passive", "OMP_THREAD_LIMIT": "64",
            "OPENBLAS_NUM_THREADS": "1"}


def start(arguments, **environment):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("FASTBN_", "OMP_", "GOMP_", "KMP_"))}
    return subprocess.run([sys.executable, *map(str, arguments)], env={**clean, **SETTINGS, **environment},
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=300)


@functools.cache
def table(isa, by_environment=False, shapes="all", threads=THREADS):
    """{(threads, operation, dtype, layout): (isa, team, hash)} of one run."""
    arguments = [SCRIPT, "--shapes", shapes, "--threads", ",".join(map(str, threads))]
    environment = {"FASTBN_ISA": isa} if by_environment else {}
    done = start(arguments if by_environment else [*arguments, "--isa", isa], **environment)
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    return {(int(k), operation, dtype, layout): (active, int(team), digest)
            for active, k, team, operation, dtype, layout, digest in rows}


def hashes(rows, threads):
    return {key[1:]: digest for key, (_, _, digest) in rows.items() if key[0] == threads}


def assert_equal_hashes(got, expected):
    assert got.keys() == expected.keys() and len(got) > 50
    different = [key for key in got if got[key] != expected[key]]
    assert not different, f"{len(different)} of {len(got)} differ: {different[:8]}"


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("isa", ISAS)
def test_every_isa_and_thread_count_gives_the_same_bits(isa, threads):
    assert_equal_hashes(hashes(table(isa), threads), hashes(table("generic"), 1))


@pytest.mark.parametrize("there, here", ELSEWHERE.items())
def test_bits_do_not_depend_on_the_place_in_memory(there, here):
    """Seen on one instruction set by one thread, since the others have the same bits."""
    rows = hashes(table("generic"), 1)
    got, expected = ({key[:2]: rows[key] for key in rows if key[2] == layout} for layout in (there, here))
    assert_equal_hashes(got, expected)


@pytest.mark.parametrize("isa", ISAS)
def test_the_isa_asked_for_is_the_one_that_computed(isa):
    assert {active for active, _, _ in table(isa).values()} == {isa}


@pytest.mark.skipif(not fastbn.get_config()["openmp"], reason="built without OpenMP: one thread only")
@pytest.mark.parametrize("isa", ISAS)
def test_the_teams_really_had_that_many_threads(isa):
    small = [(key, team) for key, (_, team, _) in table(isa).items() if not key[3].startswith("wide") and team > key[0]]
    assert not small
    short = [(key, team) for key, (_, team, _) in table(isa).items() if key[3].startswith("wide") and team != key[0]]
    assert not short, f"{len(short)} calls had another number of threads: {short[:8]}"


def test_two_runs_give_the_same_bits():
    again = table.__wrapped__(ISAS[0], shapes="few", threads=(1, 4))
    first = table(ISAS[0])
    assert again and all(first[key] == row for key, row in again.items())


@pytest.mark.parametrize("isa", ISAS)
def test_isa_from_the_environment(isa):
    rows = table(isa, by_environment=True, shapes="few", threads=(1, 3))
    assert {active for active, _, _ in rows.values()} == {isa}
    reference = hashes(table("generic"), 1)
    for threads in (1, 3):
        got = hashes(rows, threads)
        assert_equal_hashes(got, {key: reference[key] for key in got})


def unusable_isas():
    foreign = [name for name in _core.isa_names() if not _core.isa_supported(name)]
    return ["sse9", "AVX2 ", *foreign]


@pytest.mark.parametrize("isa", unusable_isas())
def test_unusable_isa_in_the_environment(isa):
    """The import works; the first computation says which setting is wrong, what it holds and what would do."""
    code = (
        "import numpy as np, fastbn\n"
        "print('imported')\n"
        "for call in (lambda: fastbn.moments(np.ones((4, 3))), lambda: fastbn.BatchNorm(3)(np.ones((4, 3), 'f4'))):\n"
        "    try:\n"
        "        call()\n"
        "    except (ValueError, RuntimeError) as error:\n"
        "        print(type(error).__name__, error)\n"
    )
    done = start(["-c", code], FASTBN_ISA=isa)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and lines[0] == "imported" and len(lines) == 3, done.stdout + done.stderr
    for message in lines[1:]:
        assert "FASTBN_ISA" in message and isa.strip() in message
        assert all(name in message for name in ISAS), message


@pytest.mark.parametrize("isa", unusable_isas())
def test_unusable_isa_by_call(isa):
    before = _core.isa_active()
    with pytest.raises((ValueError, RuntimeError), match=isa):
        _core.set_isa(isa)
    assert _core.isa_active() == before


def test_empty_isa_in_the_environment_is_none():
    done = start(["-c", "from fastbn import _core; print(_core.isa_active())"], FASTBN_ISA="")
    assert done.stdout.split() == ISAS[:1], done.stderr
