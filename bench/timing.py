"""How long it takes: contenders alternate in short blocks within one run.

A machine's speed drifts (clock, memory bandwidth, neighbours), so only times measured within the same tenths of a
second are divided by each other: every round runs one block of each contender, a ratio is taken within the round, and
the median of the rounds' ratios is reported. The first milliseconds of a block are dropped: the thread pool of the
contender before it spins on after its last parallel region, and its data fills the caches.

On a busy machine one preempted thread costs a parallel call whole scheduler ticks, a hundred times its own length. So
a sample during which the system took a processor from this process is left out where enough others remain; a block in
which they do not is disturbed, and so are its round's ratios. They count only where there is nothing else, and are
marked.
"""
import statistics
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Callable

try:
    from resource import RUSAGE_SELF, getrusage
except ImportError:  # Windows does not tell
    getrusage = None

DROP_SECONDS = 0.005
BLOCK_SECONDS = 0.010
SAMPLE_SECONDS = 50e-6  # calls shorter than this are timed several at once
LEAST_SAMPLES = 3       # of a block, unless the calls are slow
SLOW_SECONDS = 0.060    # a block ends here, with one sample if need be


@dataclass
class Entry:
    """One thing to time. timer(number) returns the seconds that `number` calls took."""
    contender: str
    output: str
    expression: str
    timer: Callable[[int], float]
    session: Callable[[], AbstractContextManager]
    number: int = 1
    blocks: list = field(default_factory=list)
    clean: list = field(default_factory=list)  # for each block, whether it was undisturbed

    @property
    def key(self):
        return self.contender, self.output

    @property
    def seconds(self):
        return _typical(self.blocks, self.clean)[0]

    @property
    def disturbed(self):
        return _typical(self.blocks, self.clean)[1]


def _typical(values, clean):
    """The median of the undisturbed values; of all, and True, where there are fewer than two of those."""
    kept = [value for value, undisturbed in zip(values, clean, strict=True) if undisturbed]
    return (statistics.median(kept), False) if len(kept) >= 2 else (statistics.median(values), True)


def _calibrate(entry):
    with entry.session():
        entry.timer(1)
        while entry.timer(entry.number) < SAMPLE_SECONDS:
            entry.number *= 2


def _preemptions():
    """Involuntary context switches of all threads of this process so far."""
    return getrusage(RUSAGE_SELF).ru_nivcsw if getrusage else 0


def _warm_up(entry):
    begin, calls = perf_counter(), 0
    while calls < 2 or perf_counter() - begin < DROP_SECONDS:
        calls += 1
        if entry.timer(entry.number) > SLOW_SECONDS:
            break


def _samples(entry):
    """Seconds a call: (undisturbed, all). Takes up to three times as long where few are undisturbed."""
    clean, samples, begin, before = [], [], perf_counter(), _preemptions()
    while True:
        samples.append(entry.timer(entry.number) / entry.number)
        after = _preemptions()
        if after == before:
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


def measure(entries, seconds, least_rounds=5):
    """Fill entry.blocks and .clean, one value a round, for about `seconds` in all. Every other round runs backwards."""
    for entry in entries:
        _calibrate(entry)
    begin, rounds = perf_counter(), 0
    while rounds < least_rounds or perf_counter() - begin < seconds:
        for entry in entries if rounds % 2 == 0 else entries[::-1]:
            _add_block(entry)
        rounds += 1


def ratio(peer, base):
    """How many times longer the peer takes, the median over the rounds; and whether it is disturbed."""
    ratios = [p / b for p, b in zip(peer.blocks, base.blocks, strict=True)]
    return _typical(ratios, [p and b for p, b in zip(peer.clean, base.clean, strict=True)])
