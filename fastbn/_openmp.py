"""Loads the core, and with it OpenMP's library, so that idle threads soon leave their processors to others.

GNU's library lets a thread that waits for work spin for some milliseconds before it sleeps. That takes the processor
from NumPy's matrix products between two calls, and from other processes. How long it spins is read from the environment
when the library is loaded, and nothing changes it later. So GOMP_SPINCOUNT is set while the core is imported and taken
away again: neither child processes nor another copy of the library, such as PyTorch's, see it. Where the caller has
chosen (GOMP_SPINCOUNT, OMP_WAIT_POLICY), or the library was there before, nothing is changed. LLVM's library has a
function for it, which csrc/parallel.c calls.
"""
import os

# Rounds of a tenth of a millisecond on the whole: longer than calls that follow each other are apart.
SPINS = "4000"


def _chosen(*names):
    """A sentence, where the environment has one of these."""
    found = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    return f"as {' and '.join(found)} in the environment says" if found else None


def _loaded_libraries():
    """The files of GNU's OpenMP libraries in this process; None where the system does not tell."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
            return {line.split(maxsplit=5)[-1] for line in file if "gomp" in line}
    except OSError:
        return None


def _load():
    """Imports the core; a sentence about idle threads."""
    if chosen := _chosen("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        from . import _core  # noqa: F401
        return chosen
    before = _loaded_libraries()
    os.environ["GOMP_SPINCOUNT"] = SPINS
    try:
        from . import _core
    finally:
        del os.environ["GOMP_SPINCOUNT"]
    if _core.openmp() == "libomp":
        return _chosen("KMP_BLOCKTIME") or "sleep after a millisecond"
    if _core.openmp() != "libgomp" or before is None:
        return "as the OpenMP library does by itself"
    if _loaded_libraries() - before:
        return "sleep after a tenth of a millisecond"
    return ("spin for some milliseconds, since another package had loaded the OpenMP library before: import fastbn first, "
            f"or set GOMP_SPINCOUNT={SPINS} in the environment")


IDLE_THREADS = _load()
