"""Smaller teams while large ones lose time: by reports of a clock that the test holds, and by threads that come late.

Nothing here is timed: whether backing off pays is what `python -m bench.busy` measures.
"""

import pytest

import fastbn
from fastbn import _core
from test_processes import TEAM, needs_openmp, run_fine

MS = 1_000_000
SECOND = 1000 * MS
TEAMS = [2, 8, 64]
LOSING = 20 * MS  # a call of which hardly anything is computing


@pytest.fixture(autouse=True)
def as_at_the_start():
    _core.backoff_reset()
    yield
    _core.backoff_reset()


def lose(threads, now):
    """Reports a call, by the largest team allowed, that did nothing but wait. Returns the team's size."""
    team = _core.backoff_limit(threads, now)
    _core.backoff_report(team, LOSING, 0, now)
    return team


@pytest.mark.parametrize("threads", TEAMS)
def test_teams_are_halved_down_to_one_thread(threads):
    teams, now = [], SECOND
    while not teams or teams[-1] > 1:
        teams.append(lose(threads, now))
        now += 1
    assert teams == [threads >> k for k in range(len(teams))] and teams[-1] == 1
    assert _core.backoff_limit(1, now) == 1


@pytest.mark.parametrize("threads", TEAMS)
def test_all_threads_are_back_within_two_seconds(threads):
    """This holds even after the longest period, which ten seconds of losses lead to."""
    now = SECOND
    for _ in range(1000):
        if _core.backoff_limit(threads, now) > 1:
            lose(threads, now)
        now += 10 * MS
    limits = [_core.backoff_limit(threads, now + k * MS) for k in range(2000)]
    assert limits == sorted(limits) and limits[-1] == threads
    assert set(limits) <= {threads >> k for k in range(7)}


def test_a_while_lasts_a_second_at_most():
    now = SECOND
    while now < 30 * SECOND:
        lose(2, now)
        begin = now
        while _core.backoff_limit(2, now) == 1:
            now += MS
        assert MS <= now - begin <= SECOND + MS
    assert now - begin >= SECOND  # losses have not stopped


def test_whiles_double_where_losses_go_on_and_shrink_where_they_do_not():
    def length_of_the_next(quiet):
        nonlocal now
        now += quiet
        lose(2, now)
        begin = now
        while _core.backoff_limit(2, now) == 1:
            now += MS
        return now - begin

    now = SECOND
    first = length_of_the_next(0)
    assert 2 * first - 5 * MS <= length_of_the_next(0) <= 2 * first + 5 * MS
    assert length_of_the_next(SECOND) == first


def test_what_a_team_gained_is_set_against_what_it_lost():
    for k in range(100):
        _core.backoff_report(2, MS, MS, k)          # as fast as a team can be
        _core.backoff_report(2, 2 * MS, MS // 2, k)  # as much lost
    assert _core.backoff_limit(2, SECOND) == 2
    before = _core.backoffs()
    for k in range(100):
        _core.backoff_report(2, 2 * MS, MS // 2, k)
    assert _core.backoffs() > before


def test_threads_that_had_slept_are_no_loss():
    for k in range(100_000):
        _core.backoff_report(2, 20_000, 1000, k)
    assert _core.backoff_limit(2, 100_000) == 2


def test_a_larger_team_that_was_under_way_does_not_halve_again():
    assert lose(8, SECOND) == 8
    _core.backoff_report(8, LOSING, 0, SECOND + 1)
    assert _core.backoff_limit(8, SECOND + 2) == 4


def test_switched_off():
    fastbn.set_backoff(False)
    try:
        before = fastbn.get_config()["backoffs"]
        for now in range(SECOND, SECOND + 50):
            assert lose(8, now) == 8
        assert fastbn.get_config()["backoffs"] == before and not fastbn.get_backoff()
    finally:
        fastbn.set_backoff(True)
    assert fastbn.get_backoff() and fastbn.get_config()["backoff"]
    lose(8, SECOND)
    assert fastbn.get_config()["backoffs"] == before + 1
    with pytest.raises(TypeError, match="on is 'off', expected True or False"):
        fastbn.set_backoff("off")


@needs_openmp
@pytest.mark.parametrize("threads", TEAMS)
def test_threads_that_come_late(threads):
    """Real calls, whose threads arrive 3 ms late: smaller and smaller teams, and the same bits from all."""
    run_fine(f"""
        _core.set_bytes_per_thread(1)
        x, dy = data(1, (8, 64, 400)), data(2, (8, 64, 400))
        expected = fastbn.batch_norm_training(x, num_threads=1)[0].tobytes()
        def team():
            y = fastbn.batch_norm_training(x)[0]
            assert y.tobytes() == expected
            return _core.last_team_size()
        _core.delay_threads(3_000_000)
        teams = [team() for _ in range(100)]
        assert set(teams) <= {{{threads} >> k for k in range(7)}} and teams[0] == {threads} and 1 in teams, teams
        assert 0 < fastbn.get_config()["backoffs"] <= 100
        _core.delay_threads(0)
        print("fine")
    """, OMP_NUM_THREADS=str(threads))


@needs_openmp
def test_the_team_comes_back():
    run_fine("""
        _core.set_bytes_per_thread(1)
        x = data(1, (8, 64, 400))
        def team():
            fastbn.batch_norm_inference(x, np.zeros(64, "f4"), np.ones(64, "f4"))
            return _core.last_team_size()
        _core.delay_threads(3_000_000)
        assert 1 in [team() for _ in range(50)]
        _core.delay_threads(0)
        while team() < 2:
            time.sleep(0.001)
        print("fine")
    """, OMP_NUM_THREADS="2")


@needs_openmp
def test_switched_off_by_the_environment():
    script = TEAM + """
_core.set_bytes_per_thread(1)
_core.delay_threads(3_000_000)
assert {team() for _ in range(20)} == {2} and not fastbn.get_backoff() and fastbn.get_config()["backoffs"] == 0
print("fine")
"""
    run_fine(script, OMP_NUM_THREADS="2", FASTBN_BACKOFF="0")
