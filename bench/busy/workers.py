"""Several processes at once, each with the default number of threads, against each with one.

As a program: one of them. It says when it is ready, starts when it is told to, and prints how often it did its work.
"""
import os
import subprocess
import sys
from time import perf_counter

from bench.busy.mix import make_mix


def work(seconds, seed):
    """How many rounds of the mix this process does."""
    calls, rounds = make_mix(seed), 0
    print("ready", flush=True)
    sys.stdin.readline()
    end = perf_counter() + seconds
    while perf_counter() < end:
        for call in calls:
            call()
        rounds += 1
    return rounds


def _start(seconds, seed, threads):
    environment = {name: value for name, value in os.environ.items() if name != "FASTBN_NUM_THREADS"}
    if threads is not None:
        environment["FASTBN_NUM_THREADS"] = str(threads)
    return subprocess.Popen([sys.executable, "-m", "bench.busy.workers", str(seconds), str(seed)], text=True,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def rounds_of(number, seconds, threads):
    """The rounds that all workers together did, started at the same moment."""
    workers = [_start(seconds, seed, threads) for seed in range(number)]
    try:
        for worker in workers:
            worker.stdout.readline()
        for worker in workers:
            worker.stdin.write("go\n")
            worker.stdin.flush()
        return sum(int(worker.communicate(timeout=10 * seconds + 60)[0]) for worker in workers)
    finally:
        for worker in workers:
            worker.kill()


if __name__ == "__main__":
    print(work(float(sys.argv[1]), int(sys.argv[2])))
