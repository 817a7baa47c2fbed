"""How long it takes: contenders alternate in short blocks within one run.

A machine's speed drifts (clock, memory bandwidth, neighbours), so only times measured within the same tenths of a
second are divided by each other: every round runs one block of each contender, a ratio is taken within the round, and
the median of the rounds' ratios is reported. The first milliseconds of a block are dropped: the thread pool of the
contender before it spins on after its last parallel region, and its data fills the caches.

On a busy machine one preempted thread costs a parallel call whole scheduler ticks, a hundred times its own length. So
a sample during which threads of this process had to wait for a processor, for more than a twentieth of its time, is
left out where enough others remain; a block in which they do not is disturbed, and so are its round's ratios. They
count only where there is nothing else, and are marked. (Preemptions alone would not do as a sign: where every processor
is in use, the kernel's own threads take some microseconds in every call.)

A contender far behind the fastest gets two rounds: more would cost most of the time and say nothing new.
"""
import os
import statistics
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from time import perf_counter, sleep
from typing import Callable

try:
    from resource import RUSAGE_SELF, getrusage
except ImportError:  # Windows does not tell
    getrusage = None

DROP_SECONDS = 0.004    # OpenMP pools spin for up to some milliseconds
BLOCK_SECONDS = 0.005
SAMPLE_SECONDS = 50e-6  # calls shorter than this are timed several at once
LEAST_SAMPLES = 3       # of a block, unless the calls are slow
SLOW_SECONDS = 0.060    # a block ends here, with one sample if need be
LEAST_ROUNDS = 5
SLOW_ROUNDS = 3         # where one call of a contender takes SLOW_SECONDS
FAR_BEHIND = 4          # times the time of the fastest with the same output
ROUNDS_FOR_ALL = 2      # before those far behind are left out
TICK_SECONDS = 0.004    # what a preemption may cost
HARMLESS = 0.05         # of a sample's time may go by in waiting for a processor


@dataclass
class Entry:
    """One thing to time. timer(number) returns the seconds that `number` calls took."""
    contender: str
    output: str
    expression: str
    timer: Callable[[int], float]
    session: Callable[[], AbstractContextManager]
    kept: bool = False  # through all rounds, however slow: what the others are divided by
    number: int = 0     # of calls in a sample; 0 before calibration
    blocks: list = field(default_factory=list)
    clean: list = field(default_factory=list)  # for each block, whether it was undisturbed
    dropped: bool = False

    @property
    def key(self):
        return self.contender, self.output

    @property
    def seconds(self):
        return typical(self.blocks, self.clean)[0]

    @property
    def disturbed(self):
        return typical(self.blocks, self.clean)[1]


def entry_of(name, function):
    """An Entry for calls of a function without arguments, with the garbage collector on: what a contender leaves to it is
    part of its price.
    """
    def timer(number):
        begin = perf_counter()
        for _ in range(number):
            function()
        return perf_counter() - begin
    return Entry(name, "fresh", name, timer, nullcontext, kept=True)


def typical(values, clean):
    """The median of the undisturbed values; of all, and True, where there are fewer than two of those (one of two)."""
    kept = [value for value, undisturbed in zip(values, clean, strict=True) if undisturbed]
    enough = max(1, min(2, len(values) - 1))
    return (statistics.median(kept), False) if len(kept) >= enough else (statistics.median(values), True)


def _calibrate(entry):
    entry.number = 1
    with entry.session():
        if entry.timer(1) > SLOW_SECONDS:
            return
        while entry.timer(entry.number) < SAMPLE_SECONDS:
            entry.number *= 2


def _preemptions():
    """Involuntary context switches of all threads of this process so far."""
    return getrusage(RUSAGE_SELF).ru_nivcsw if getrusage else 0


def _waited():
    """Seconds that this process's threads have waited for a processor so far; an estimate outside of Linux."""
    try:
        threads = os.listdir("/proc/self/task")
    except OSError:
        return _preemptions() * TICK_SECONDS
    return sum(map(_waited_by, threads)) * 1e-9


def _waited_by(thread):
    """Nanoseconds."""
    try:
        with open(f"/proc/self/task/{thread}/schedstat", "rb", buffering=0) as file:
            return int(file.read().split()[1])
    except (OSError, IndexError):  # it has just ended
        return 0


def _warm_up(entry):
    """A slow call fills its caches by itself: it only waits for the pools to come to rest."""
    if entry.blocks and entry.blocks[-1] > SLOW_SECONDS:
        sleep(DROP_SECONDS)
        return
    begin, calls = perf_counter(), 0
    while calls < 2 or perf_counter() - begin < DROP_SECONDS:
        calls += 1
        if entry.timer(entry.number) > SLOW_SECONDS:
            break


def _samples(entry):
    """Seconds a call: (undisturbed, all). Takes up to three times as long where few are undisturbed."""
    clean, samples, waited, before, begin = [], [], _waited(), _preemptions(), perf_counter()
    while True:
        seconds = entry.timer(entry.number)
        samples.append(seconds / entry.number)
        after = _preemptions()
        if after == before:
            clean.append(samples[-1])
        else:
            waited_before, waited = waited, _waited()
            if waited - waited_before <= HARMLESS * seconds:
                clean.append(samples[-1])
        before, elapsed = after, perf_counter() - begin
        enough = len(clean) >= LEAST_SAMPLES or elapsed >= 3 * BLOCK_SECONDS
        if elapsed >= SLOW_SECONDS or (elapsed >= BLOCK_SECONDS and len(samples) >= LEAST_SAMPLES and enough):
            return clean, samples


def _add_block(entry):
    with entry.session():
        _warm_up(entry)
        clean, samples = _samples(entry)
    undisturbed = len(clean) >= min(LEAST_SAMPLES, len(samples))
    entry.blocks.append(statistics.median(clean if undisturbed else samples))
    entry.clean.append(undisturbed)


def _drop_those_far_behind(entries):
    """By their quickest undisturbed block: nobody is dropped for a disturbance."""
    for entry in entries:
        clean = [block for block, undisturbed in zip(entry.blocks, entry.clean) if undisturbed]
        if clean and not entry.kept and len(entry.blocks) >= ROUNDS_FOR_ALL:
            fastest = min(min(other.blocks) for other in entries if other.output == entry.output)
            entry.dropped = entry.dropped or min(clean) > FAR_BEHIND * fastest


def _least_rounds(entries, wanted):
    slow = any(entry.blocks and max(entry.blocks) > SLOW_SECONDS for entry in entries if not entry.dropped)
    return min(wanted, SLOW_ROUNDS) if slow else wanted


def measure(entries, seconds, least_rounds=LEAST_ROUNDS):
    """Fill entry.blocks and .clean, one value a round, for about `seconds` in all. Every other round runs backwards.

    Called again with the same entries it adds rounds. Those dropped stay dropped: their blocks are those of the first
    rounds.
    """
    for entry in entries:
        if entry.number == 0:
            _calibrate(entry)
    begin, rounds = perf_counter(), 0
    while rounds < _least_rounds(entries, least_rounds) or perf_counter() - begin < seconds:
        active = [entry for entry in entries if not entry.dropped]
        for entry in active if rounds % 2 == 0 else active[::-1]:
            _add_block(entry)
        rounds += 1
        _drop_those_far_behind(entries)


def ratio(peer, base, first=0):
    """How many times longer the peer takes, the median over the rounds from `first` on; and whether it is disturbed."""
    ratios = [p / b for p, b in zip(peer.blocks[first:], base.blocks[first:])]
    return typical(ratios, [p and b for p, b in zip(peer.clean[first:], base.clean[first:])])
