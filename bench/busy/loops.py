"""Calls beside busy loops: other processes that want a processor each, all the time."""
import subprocess
import sys
from contextlib import contextmanager

import numpy as np

from bench.busy.turns import Turn, take_turns, threads_session
from bench.cases import Case, make_data
from bench.peers import load

SHAPES = (((1, 64, 56, 56), "first"), ((32, 128, 28, 28), "first"), ((1, 256, 14, 14), "last"), ((64, 1024), "table"),
          ((200_000, 4), "table"))
OPERATIONS = ("inference", "training", "backward")
TABLE = (200_000, 4)  # that is standardized, in float64


@contextmanager
def busy_loops(number):
    """So many processes that compute without end."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def _session_of(contender, threads):
    """Calls with so many threads at most; None: as many as the contender takes by itself."""
    if contender.name == "fastbn":
        return threads_session(threads)
    return lambda: contender.session(contender.torch.get_num_threads())


def _turns_of(case, contenders):
    data, turns = make_data(case), []
    for contender in contenders:
        wanted = {"default": None, "one thread": 1} if contender.name == "fastbn" else {contender.name: None}
        output = "out=" if contender.can(case, "out=") else "fresh"
        for name, threads in wanted.items():
            session = _session_of(contender, threads)
            with session():
                call = contender.work(case, data, output, threads).function()
            turns.append(Turn(name, call, session))
    return turns


def cells(seconds):
    """For each cell: (its name, its turns)."""
    contenders, _ = load(["fastbn", "torch"])
    for shape, layout in SHAPES:
        for operation in OPERATIONS:
            case = Case(operation, shape, layout)
            turns = _turns_of(case, contenders)
            take_turns(turns, seconds)
            yield str(case), turns
    yield "standardize-" + "x".join(map(str, TABLE)) + "-float64", _standardizing(seconds)


def _standardizing(seconds):
    """fit and transform of scikit-learn's class, and of fastbn's where scikit-learn is installed."""
    x = np.random.default_rng(0).normal(1, 2, TABLE)
    try:
        from sklearn.preprocessing import StandardScaler

        from fastbn.sklearn import StandardScaler as FastScaler
    except ImportError:
        return []
    turns = [Turn("default", lambda: FastScaler().fit_transform(x), threads_session(None)),
             Turn("one thread", lambda: FastScaler().fit_transform(x), threads_session(1)),
             Turn("sklearn", lambda: StandardScaler().fit_transform(x), threads_session(None))]
    take_turns(turns, seconds)
    return turns
