"""Loads the core, and with it OpenMP's library, so that idle threads soon leave their processors to others.

GNU's library lets a thread that waits for work spin for some milliseconds before it sleeps. That takes the processor
from NumPy's matrix products between two calls, and from other processes. How long it spins is read from the environment
when the library is loaded, and nothing changes it later. So GOMP_SPINCOUNT is set while the core is imported and taken
away again: neither child processes nor another copy of the library, such as PyTorch's, see it. Where the caller has
chosen (GOMP_SPINCOUNT, OMP_WAIT_POLICY), or the library was there before, nothing is changed. LLVM's library has a
function for it, which csrc/parallel.c calls.
"""
import os
import platform

import numpy  # noqa: F401 - first: no library of its own shall see the setting

# Rounds that take a tenth of a millisecond in all. That is longer than the gap between calls that follow each other. A round of x86 has
# a pause of some 25 ns; elsewhere it takes a nanosecond or two (untested).
SPINS = "4000" if platform.machine() in ("x86_64", "AMD64", "i686") else "60000"


def _chosen(*names):
    """A phrase that names those of these variables that are set; None where none is."""
    found = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    return f"as {' and '.join(found)} in the environment says" if found else None


def _loaded_libraries():
    """The files of GNU's OpenMP libraries in this process; None where the system does not tell."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
            files = {line.split(maxsplit=5)[-1].strip() for line in file if line.count("/")}
            return {file for file in files if "gomp" in os.path.basename(file)}
    except OSError:
        return None


def _load():
    """Imports the core. Returns a phrase about when idle threads sleep, for get_config."""
    chosen, before = _chosen("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"), _loaded_libraries()
    if not chosen:
        os.environ["GOMP_SPINCOUNT"] = SPINS
    try:
        from . import _core
    finally:
        if not chosen:
            del os.environ["GOMP_SPINCOUNT"]
    if _core.openmp() == "libomp":
        return _chosen("KMP_BLOCKTIME", "OMP_WAIT_POLICY") or "sleep after a millisecond"
    if chosen:
        return chosen
    after = _loaded_libraries()
    if _core.openmp() != "libgomp" or before is None or after is None:
        return "as the OpenMP library does by itself"
    if after - before:
        return "sleep after a tenth of a millisecond"
    return ("spin for some milliseconds, since another package had loaded the OpenMP library before: import fastbn first, "
            f"or set GOMP_SPINCOUNT={SPINS} in the environment")


IDLE_THREADS = _load()
