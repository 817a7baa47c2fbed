"""What was built, what this machine offers, what is in use; the number of threads and the memory kept for results."""
import os
import sys

import numpy as np

from . import _checks, _core


def set_num_threads(num_threads):
    """Lets every call from now on use at most `num_threads` threads; None takes the limit away.

    OpenMP's own maximum (OMP_NUM_THREADS, threadpoolctl) still holds: this can only lower it. FASTBN_NUM_THREADS sets the
    limit that a process starts with. Raises TypeError, ValueError.
    """
    _core.set_num_threads(_checks.threads(num_threads))


def get_num_threads():
    """The threads that a call may use now: 1 without OpenMP and in a forked child."""
    return _core.get_num_threads()


def rearm_threads():
    """In a forked child: use threads again.

    After a fork fastbn computes on one thread, since the parent's OpenMP threads do not exist in the child and waiting for them would
    hang. Call this where it is certain that no library had started the OpenMP pool before the fork.
    """
    _core.rearm_threads()


def set_output_cache(nbytes):
    """Keeps at most `nbytes` bytes of the memory of freed results for the next ones; None: 512 MiB, 0: none.

    An array of more than 32 MiB that a call returned, once nothing refers to it, would go back to the system, which clears its
    pages before it hands them out again: that costs two to three times the computation. Such memory is kept instead, the
    longest unused goes first, and the system may take it whenever it runs short. FASTBN_OUTPUT_CACHE sets the bytes that a
    process starts with. Linux only; elsewhere, and where NumPy was given another allocator, nothing is kept.
    Raises TypeError, ValueError.
    """
    _core.set_output_cache(_OUTPUT_CACHE if nbytes is None else _checks.byte_count(nbytes, "nbytes"))


def get_output_cache():
    """The bytes that may be kept, see set_output_cache; 0 on systems where nothing is."""
    return _core.get_output_cache()


_OUTPUT_CACHE = _core.get_output_cache()
if os.environ.get("FASTBN_OUTPUT_CACHE", "").isdecimal():
    set_output_cache(int(os.environ["FASTBN_OUTPUT_CACHE"]))


def get_config():
    """The configuration as a dict: strings, ints, bools and lists of strings; None where unknown."""
    names = _core.isa_names()
    return {
        "version": _core.version(),
        "abi_version": _core.abi_version(),
        "python": sys.version.split()[0],
        "numpy": np.__version__,
        "compiler": _core.compiler(),
        "flags": _core.build_flags(),
        "limited_api": _core.is_abi3(),
        "isa_built": [name for name in names if _core.isa_built(name)],
        "isa_supported": [name for name in names if _core.isa_supported(name)],
        "isa_active": _core.isa_active(),
        "openmp": _core.openmp(),
        "num_threads": _core.get_num_threads(),
        "output_cache": _core.get_output_cache(),
        "cache_bytes": [_core.cache_bytes(level) or None for level in (1, 2, 3)],
    }


def _size(nbytes):
    if nbytes is None:
        return "unknown"
    return f"{nbytes // 2**20} MiB" if nbytes >= 2**20 and nbytes % 2**20 == 0 else f"{nbytes // 1024} KiB"


def show_config(file=None):
    """Prints the configuration, one line for each item, to `file` (standard output by default)."""
    config = get_config()
    caches = ", ".join(f"L{level} {_size(n)}" for level, n in enumerate(config["cache_bytes"], 1))
    rows = [
        ("fastbn", f"{config['version']} (C interface {config['abi_version']})"),
        ("Python, NumPy", f"{config['python']}{' (abi3 build)' if config['limited_api'] else ''}, {config['numpy']}"),
        ("compiler", config["compiler"]),
        ("flags", config["flags"]),
        ("instruction sets", f"built {', '.join(config['isa_built'])}; supported {', '.join(config['isa_supported'])}; "
                             f"active {config['isa_active']}"),
        ("threads", f"{config['num_threads']}"),
        ("OpenMP", config["openmp"] or "none: every call runs on one thread"),
        ("data caches", caches),
        ("output cache", _size(config["output_cache"])),
    ]
    for name, value in rows:
        print(f"{name:17} {value}", file=file)
