"""The machine's limit: how fast limit.c, compiled here and now, moves an operation's bytes over the very same buffers.

Ordinary stores are faster while the data stay in a cache, non-temporal ones beyond; the limit is the better of the two.
Small arrays are moved fastest by one thread, whatever number may be used: there that is measured too.
"""
import ctypes
import os
import shlex
import shutil
import statistics
import subprocess
import sysconfig
import tempfile
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace

import numpy as np

from bench.cases import has_residual, plain
from bench.timing import Entry

SOURCE = Path(__file__).with_name("limit.c")
COMMON_FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-shared")
FLAGS = (("-march=native", "-fopenmp"), ("-fopenmp",), ("-march=native",), ())  # the first that this compiler takes

SMALL_BYTES = 512 * 2**10  # of x; larger arrays gain from every thread
PROBE_BYTES = 64 * 2**20
PROBE_SECONDS = 0.020
HANDOVERS = 300  # round trips in a sample

_READ, _COPY, _ADD_FLOAT32, _ADD_FLOAT64, _ADD_HALVES = range(5)  # enum kind of limit.c
_ADDS = {2: _ADD_HALVES, 4: _ADD_FLOAT32, 8: _ADD_FLOAT64}       # by the size of an item
_EXPRESSIONS = {"moments": "read x", "inference": "y = x", "training": "y = x", "call": "y = x",
                "backward": "dx = x + dy"}


class LimitError(RuntimeError):
    """The limit cannot be measured here; the message says why."""


def _find_compiler(compiler):
    wanted = [compiler] if compiler else [os.environ.get("CC"), sysconfig.get_config_var("CC"), "cc"]
    for command in filter(None, wanted):
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return words
    raise LimitError("no C compiler found to measure the machine's limit with: looked for "
                     f"{', '.join(filter(None, wanted))}; install one, or set CC to its name")


def _compile(compiler, folder):
    path, messages = str(Path(folder) / "limit.so"), ""
    for flags in FLAGS:
        command = [*compiler, *COMMON_FLAGS, *flags, str(SOURCE), "-o", path]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        messages = done.stderr.strip()
        if done.returncode == 0:
            try:
                return ctypes.CDLL(path)
            except OSError as error:  # compiled, but without the OpenMP runtime
                messages = str(error)
    raise LimitError(f"{' '.join(compiler)} cannot compile {SOURCE.name}: {messages[-500:] or 'it gives no reason'}")


def _moves(operation, dtype):
    """(kind, what is read beside x: dy, residual or None)."""
    if operation == "moments":
        return _READ, None
    if plain(operation) == "backward":
        return _ADDS[dtype.itemsize], "dy"
    return (_ADDS[dtype.itemsize], "residual") if has_residual(operation) else (_COPY, None)


def _expression(operation):
    if not has_residual(operation):
        return _EXPRESSIONS[plain(operation)]
    return "dx = x + dy; dresidual = residual" if plain(operation) == "backward" else "y = x + residual"


def _check(name, array, x):
    if array is None:
        raise ValueError(f"{name} is None, expected an array like x")
    if array.nbytes != x.nbytes or not array.flags.c_contiguous:
        seen = f"has {array.nbytes} bytes{'' if array.flags.c_contiguous else ' and gaps'}"
        raise ValueError(f"{name} {seen}, expected a contiguous array of x's {x.nbytes} bytes")


class Limit:
    """compiler: a command; None takes CC of the environment, Python's own, or cc. Raises LimitError without one."""

    def __init__(self, compiler=None):
        self.compiler = _find_compiler(compiler)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            self._library = _compile(self.compiler, folder)
        self._run = self._library.limit_seconds
        self._run.argtypes = [*[ctypes.c_int] * 3, *[ctypes.c_void_p] * 3,
                              ctypes.c_size_t, *[ctypes.c_void_p] * 2, ctypes.c_long, ctypes.c_void_p]
        self._run.restype = ctypes.c_double
        self._handover = self._library.handover_seconds
        self._handover.argtypes, self._handover.restype = [ctypes.c_long], ctypes.c_double
        self.has_threads = bool(self._library.limit_has_threads())
        self.has_nontemporal = bool(self._library.limit_has_nontemporal())
        self.read = ctypes.c_int32()  # the exclusive or of the 32-bit words that were read last
        self._probe_arrays = None

    def timer(self, operation, data, out, threads, nontemporal=False):
        """timer(number): seconds of so many repetitions on data.x, and data.dy or data.residual, into out.

        Moments leave out unused. Backward through a residual writes an array of its own beside out.
        """
        kind, other = _moves(operation, data.x.dtype)
        arrays = {"out": out if kind != _READ else None, "x": data.x, other: getattr(data, other) if other else None}
        if other == "dy" and has_residual(operation):
            arrays.update(dresidual=np.zeros_like(data.residual), residual=data.residual)
        for name, array in arrays.items():
            if name is not None and (name, kind) != ("out", _READ):
                _check(name, array, data.x)
        if threads > 1 and not self.has_threads:
            raise LimitError(f"{self.compiler[0]} has no OpenMP: the limit of {threads} threads cannot be measured")
        addresses = [None if array is None else array.ctypes.data for array in arrays.values()]
        items = data.x.nbytes // {_ADD_FLOAT64: 8, _ADD_HALVES: 2}.get(kind, 4)
        start = (kind, int(nontemporal), threads, *addresses[:3], items, *(addresses[3:] or (None, None)))

        def timer(number, run=self._run, read=ctypes.byref(self.read), keep_alive=arrays):
            return run(*start, number, read)
        return timer

    def entry(self, operation, data, out, threads, nontemporal=False, name="limit"):
        """For timing.measure: alternates with the contenders. It sets no thread count but its own."""
        return Entry(name, "fresh" if operation == "moments" else "out=", _expression(operation),
                     self.timer(operation, data, out, threads, nontemporal), nullcontext)

    def entries(self, operation, data, out, threads):
        """The entries of which the fastest is the limit."""
        entries = [self.entry(operation, data, out, threads)]
        if self.has_nontemporal and operation != "moments":
            entries.append(self.entry(operation, data, out, threads, True, "limit nt"))
        if threads > 1 and data.x.nbytes <= SMALL_BYTES:
            entries.append(self.entry(operation, data, out, 1, False, "limit on one thread"))
        return entries

    def seconds(self, operation, data, out, threads, least_seconds=0.010):
        """The limit alone, not among contenders: of each entry the median of at least five samples."""
        return min(_median_seconds(entry.timer, least_seconds)
                   for entry in self.entries(operation, data, out, threads))

    def probe(self, threads):
        """GB/s, read and written, of a copy of 64 MiB: it tells whether the machine is in the same state as before."""
        if self._probe_arrays is None:
            self._probe_arrays = np.ones((2, PROBE_BYTES // 4), np.float32)
        x, out = self._probe_arrays
        timer = self.timer("inference", SimpleNamespace(x=x), out, threads, self.has_nontemporal)
        return 2 * PROBE_BYTES / _median_seconds(timer, PROBE_SECONDS) / 1e9

    def handover(self):
        """Nanoseconds until what one thread has written arrives at another; None where two do not run at the same time.

        Some 30 where they share a cache, several times as much where they do not. The host of a virtual machine may
        move its processors from one to the other at any time.
        """
        samples = [self._handover(HANDOVERS) for _ in range(5)]
        return None if min(samples) < 0 else statistics.median(samples) * 1e9


def _median_seconds(timer, least_seconds):
    number = 1
    while timer(number) < 50e-6:
        number *= 2
    samples, begin = [], perf_counter()
    while len(samples) < 5 or perf_counter() - begin < least_seconds:
        samples.append(timer(number) / number)
    return statistics.median(samples)
