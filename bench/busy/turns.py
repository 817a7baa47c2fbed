"""Settings take turns in blocks of a fraction of a second, so that what the machine does meanwhile meets all alike."""
import statistics
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter, sleep
from typing import Callable

import fastbn

BLOCK_SECONDS = 0.25
REST_SECONDS = 0.02  # in which the threads of the one before fall asleep


@dataclass
class Turn:
    """call() is timed within session(); seconds holds each call's time."""
    name: str
    call: Callable[[], object]
    session: Callable
    seconds: list = field(default_factory=list)

    @property
    def median(self):
        return statistics.median(self.seconds)

    @property
    def mean(self):
        return statistics.fmean(self.seconds)


def threads_session(threads):
    """Calls with so many threads of fastbn at most; None: its default."""
    @contextmanager
    def session():
        fastbn.set_num_threads(threads)
        try:
            yield
        finally:
            fastbn.set_num_threads(None)
    return session


def take_turns(turns, seconds):
    """Fills each turn's times, for about `seconds` of each in all."""
    blocks = blocks_for(seconds)
    for turn in in_turn(turns, blocks):
        with turn.session():
            _fill(turn, min(seconds / blocks, BLOCK_SECONDS))


def blocks_for(seconds):
    """How many blocks a setting has in so many seconds."""
    return max(2, round(seconds / BLOCK_SECONDS))


def in_turn(settings, blocks):
    """Yields each setting once a block, in every other block backwards, each after a rest."""
    for block in range(blocks):
        for setting in settings if block % 2 == 0 else settings[::-1]:
            sleep(REST_SECONDS)
            yield setting


def _fill(turn, seconds):
    turn.call()
    end = before = perf_counter()
    end += seconds
    while before < end:
        turn.call()
        after = perf_counter()
        turn.seconds.append(after - before)
        before = after
