"""Several Python threads of one process, each calling a layer in inference, against the same with num_threads=1."""
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import numpy as np

import fastbn
from bench.busy.turns import blocks_for, in_turn, threads_session

SHAPE = (1, 64, 56, 56)


def _calls_until(end, bn, x, out):
    calls = 0
    while perf_counter() < end:
        for _ in range(20):
            bn(x, out=out)
        calls += 20
    return calls


def calls_of(number, seconds):
    """Calls a second of all threads together: (with the default number of threads, with one)."""
    bn, done = fastbn.BatchNorm(SHAPE[1]).eval(), {None: 0, 1: 0}
    xs = np.random.default_rng(0).normal(3, 2, (number, *SHAPE)).astype(np.float32)
    outs = np.empty_like(xs)
    blocks = blocks_for(seconds)
    with ThreadPoolExecutor(number) as pool:
        for threads in in_turn((None, 1), blocks):
            with threads_session(threads)():
                end = perf_counter() + seconds / blocks
                done[threads] += sum(pool.map(_calls_until, [end] * number, [bn] * number, xs, outs))
    return done[None] / seconds, done[1] / seconds
