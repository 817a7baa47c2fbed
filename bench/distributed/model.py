"""A step's messages over any number of ranks P, from what was measured on few.

    gather   a * log2(P) + b * (P - 1) * bytes + the time to sort and merge P records
    tree     2 * log2(P) * (a + b * bytes) + log2(P) * the time to merge two records

The first terms are those of a recursive doubling, and of a binomial tree up and back (Thakur, Rabenseifner and Gropp,
"Optimization of collective communication operations in MPICH", 2005). a, in seconds, and b, in seconds a byte, are
fitted, for each of both, to bare messages between ranks that had a processor each. Merging is measured as it is, on one
rank, for as many records as there would be, from MERGED on in proportion. On a network a and b are others: they are
arguments.
"""
import math
from time import perf_counter
from typing import NamedTuple

import numpy as np

from fastbn import Moments
from fastbn.distributed._communicator import Ranks
from fastbn.distributed._handshake import MESSAGE_BYTES
from fastbn.distributed._merging import merged, summed

MERGED, MERGE_ROUNDS = 128, 5


class Costs(NamedTuple):
    """What a message costs: seconds, and seconds a byte."""

    start: float
    byte: float


def factors(way, ranks):
    """What a and b * bytes are multiplied by."""
    hops = math.log2(ranks)
    return (hops, ranks - 1) if way == "gather" else (2 * hops, 2 * hops)


def fit(way, measured):
    """Costs from [(ranks, bytes, seconds), ...], by least squares of relative errors, neither below 0."""
    rows = np.array([(starts, times * size) for ranks, size, _ in measured for starts, times in [factors(way, ranks)]])
    seconds = np.array([one[2] for one in measured])
    found = np.linalg.lstsq(rows / seconds[:, None], np.ones(len(rows)), rcond=None)[0]
    return Costs(*map(float, np.maximum(found, 0.0)))


def sizes_of_step(features):
    """Bytes of the messages of forward and backward, of each rank: the agreement, the moments, the sums."""
    probe = Recorder(2, features)
    take_part(Ranks(probe, 3), features)
    return [MESSAGE_BYTES, *probe.sizes]


class Recorder:
    """A communicator of one process that plays so many ranks, with records of their own; sizes: of what was sent."""

    def __init__(self, size, features):
        self.size, self.features, self.sizes = size, features, []

    def Get_rank(self):
        return 0

    def Get_size(self):
        return self.size

    def Allgather(self, sendbuf, recvbuf):
        self.sizes.append(sendbuf.nbytes)
        recvbuf[...] = sendbuf
        if recvbuf.dtype == np.float64:
            recvbuf[...] = np.random.default_rng(1).normal(2, 0.1, recvbuf.shape)
        else:
            sums = recvbuf[:, -16 * self.features:].view(np.float64)
            sums[...] = np.random.default_rng(1).normal(size=sums.shape)


def take_part(ranks, features):
    """Merges the moments, then the sums."""
    merged(ranks, Moments(4, np.zeros(features), np.ones(features)))
    summed(ranks, np.zeros((2, features)))


def merging_seconds(ranks, features):
    """The time of both merges of a step where so many records have been gathered, without the gathering."""
    if ranks > MERGED:
        return merging_seconds(MERGED, features) * ranks / MERGED
    comm = Recorder(ranks, features)
    with_messages, messages = [], []
    for _ in range(MERGE_ROUNDS):
        begin = perf_counter()
        take_part(Ranks(comm, ranks + 1), features)
        with_messages.append(perf_counter() - begin)
        begin = perf_counter()
        for buffer in (np.empty((4, features)), np.empty(comm.sizes[1], np.uint8)):
            comm.Allgather(buffer, np.empty((ranks, *buffer.shape), buffer.dtype))
        messages.append(perf_counter() - begin)
    return max(0.0, min(with_messages) - min(messages))  # nothing but disturbances makes these slower


def step_seconds(way, ranks, features, costs):
    """The time of the messages of a step and their merging."""
    starts, times = factors(way, ranks)
    messages = sum(starts * costs.start + times * costs.byte * size for size in sizes_of_step(features))
    if way == "gather":
        return messages + merging_seconds(ranks, features)
    return messages + math.log2(ranks) * merging_seconds(2, features)


def received_bytes(way, ranks, features):
    """What the rank that gets most gets in a step; on a tree rank 0, which has log2(P) messages from below."""
    hops = math.ceil(math.log2(ranks))
    return sum(sizes_of_step(features)) * (ranks - 1 if way == "gather" else hops)
