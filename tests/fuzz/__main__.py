"""Random calls between guard pages: python -m tests.fuzz --calls 10000 --seed 1. --only K repeats call K."""
import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from .worker import read_report, work

_PATIENCE = 120  # seconds for one call, on a machine that is busy with other things
# Bytes of growth that are a fault: heaps breathe by some MiB, and by less than the smallest object for each call.
_LEAK, _LEAK_OF_A_CALL = 32 * 2**20, 32


class Outcome(NamedTuple):
    calls: int
    faults: int
    growth: int


def main():
    options = parsed()
    numbers = range(options.first, options.first + options.calls) if options.only is None else [options.only]
    if options.child is not None:
        work(options.child, options.seed, numbers, lambda text: print(text, flush=True))
        return 0
    started = time.monotonic()
    outcome = watch(options.seed, numbers)
    leaks = outcome.growth > _LEAK + _LEAK_OF_A_CALL * outcome.calls
    seconds = time.monotonic() - started
    print(f"seed {options.seed}: {outcome.calls} calls, {outcome.faults + leaks} faults, {seconds:.1f} s, "
          f"resident memory grew by {outcome.growth / 2**20:.1f} MiB{' (a leak)' * leaks}")
    return int(outcome.faults > 0 or leaks)


def parsed():
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--calls", type=int, default=10_000, help="how many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--only", type=int, help="repeat the call of this number alone")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)  # the file in which a child leaves its reports
    options = parser.parse_args()
    if options.calls < 1:
        parser.error("--calls: at least 1")
    return options


def watch(seed, numbers):
    """Runs them in a child, and in another one from the next call on where that died."""
    faults, growth, left = 0, 0, list(numbers)
    with tempfile.TemporaryFile() as file:
        while left:
            code, last = one_child(file.fileno(), seed, left)
            faults, growth = faults + last.get("faults", 0), max(growth, last.get("growth", 0))
            if code == 0 and last.get("done"):
                break
            if not last:
                raise SystemExit(f"no call was made: {ending(code)}")
            faults += 1
            number = last["number"]
            what = last["what"] or "before its arrays were made"
            print(f"fault: seed {seed}, call {number}: {ending(code)}\n    {what}", flush=True)
            left = left[left.index(number) + 1:]
    return Outcome(len(numbers), faults, growth)


def ending(code):
    if code is None:
        return f"no end within {_PATIENCE} s"
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"the process ended with status {code}"


def one_child(handle, seed, numbers):
    """(its status, or None where it hung; its last report)"""
    os.ftruncate(handle, 0)
    which = ["--first", str(numbers[0]), "--calls", str(len(numbers))]
    module = __spec__.name.removesuffix(".__main__")
    child = subprocess.Popen([sys.executable, "-m", module, "--seed", str(seed), *which, "--child", str(handle)],
                             pass_fds=[handle])
    seen = None
    while True:
        try:
            return child.wait(timeout=_PATIENCE), read_report(handle)
        except subprocess.TimeoutExpired:
            last = read_report(handle)
            if last == seen:
                child.kill()
                child.wait()
                return None, last
            seen = last


if __name__ == "__main__":
    sys.exit(main())
