"""What was built, what this machine offers, what is in use; the number of threads and the memory kept for results."""
import os
import sys

import numpy as np

from . import _core, _environment, _openmp
from ._engine import checks

_came_from = {}  # for each setting that is not the default: the variable or call that set it


def set_num_threads(num_threads):
    """Let every call from now on use at most so many threads.

    Parameters
    ----------
    num_threads : int or None
        The limit; None takes it away.

    Raises
    ------
    TypeError, ValueError
        If num_threads is no positive int.

    Notes
    -----
    This can only lower the number, never raise it. The number is otherwise OpenMP's maximum (OMP_NUM_THREADS,
    threadpoolctl). Where OMP_NUM_THREADS is not set, it is also at most the processors that the calling thread may
    run on and a container's quota. FASTBN_NUM_THREADS sets the limit that a process starts with.

    Examples
    --------
    >>> import fastbn
    >>> fastbn.set_num_threads(1)
    >>> fastbn.get_num_threads()
    1
    >>> fastbn.set_num_threads(None)
    """
    _core.set_num_threads(checks.threads(num_threads))
    _came_from["threads"] = (num_threads, f"set_num_threads({num_threads})")


def get_num_threads():
    """Tell the threads that a call may use now.

    Returns
    -------
    int
        1 without OpenMP, and in a forked child until `rearm_threads` is called.

    Notes
    -----
    A call uses fewer where it is short, while other calls of this process are under way, while the process backs off
    (`set_backoff`), where waking sleeping threads costs more than they gain, and where the system has no thread to
    give.

    Examples
    --------
    >>> import fastbn
    >>> fastbn.get_num_threads() >= 1
    True
    """
    return _core.get_num_threads()


def set_backoff(on):
    """Switch backing off on or off.

    Parameters
    ----------
    on : bool
        It is on by default; FASTBN_BACKOFF=0 switches it off when a process starts.

    Raises
    ------
    TypeError
        If on is no bool.

    Notes
    -----
    Backing off means that calls take fewer threads for up to a second after threads have lost more time by waiting
    for each other than they gained. That happens on a machine that is busy with other programs: a call ends with its
    last thread, and the system may take one off its processor for milliseconds. Teams are halved, down to one thread,
    and grow again afterwards; results do not change. ``get_config()["backoffs"]`` tells how often it happened.

    Examples
    --------
    >>> import fastbn
    >>> before = fastbn.get_backoff()
    >>> fastbn.set_backoff(False)
    >>> fastbn.get_backoff()
    False
    >>> fastbn.set_backoff(before)
    """
    if not isinstance(on, (bool, np.bool_)):
        raise TypeError(f"on is {on!r}, expected True or False")
    _core.set_backoff(on)
    _came_from["backoff"] = f"set_backoff({on})"


def get_backoff():
    """Tell whether backing off is on.

    Returns
    -------
    bool
        See set_backoff.

    Examples
    --------
    >>> import fastbn
    >>> isinstance(fastbn.get_backoff(), bool)
    True
    """
    return _core.get_backoff()


def rearm_threads():
    """Use threads again in a forked child.

    Raises
    ------
    RuntimeError
        If fastbn itself had used threads before the fork.

    Notes
    -----
    After a fork fastbn computes on one thread, since the parent's OpenMP threads do not exist in the child and
    waiting for them would hang. It cannot know whether another library that shares its OpenMP pool had used threads:
    call this where that is certain not to be so.

    Examples
    --------
    >>> import fastbn
    >>> fastbn.rearm_threads()    # changes nothing outside of a forked child
    """
    _core.rearm_threads()


def set_output_cache(nbytes):
    """Limit the memory of freed results that is kept for the next ones.

    Parameters
    ----------
    nbytes : int or None
        The most bytes; None: 512 MiB, 0: none.

    Raises
    ------
    TypeError, ValueError
        If nbytes is no int of at least 0.

    Notes
    -----
    An array of more than 32 MiB that a call returned, once nothing refers to it, would go back to the system, which
    clears its pages before it hands them out again: that costs two to three times the computation. Such memory is
    kept instead, the longest unused goes first, and the system may take it whenever it runs short.
    FASTBN_OUTPUT_CACHE sets the bytes that a process starts with, also as 64M or 2G. It works on Linux; elsewhere,
    and where NumPy was given another allocator, nothing is kept.

    Examples
    --------
    >>> import fastbn
    >>> before = fastbn.get_output_cache()
    >>> fastbn.set_output_cache(0)
    >>> fastbn.get_output_cache()
    0
    >>> fastbn.set_output_cache(before)
    """
    _core.set_output_cache(_OUTPUT_CACHE if nbytes is None else checks.byte_count(nbytes, "nbytes"))
    _came_from["output cache"] = f"set_output_cache({nbytes})"


def get_output_cache():
    """Tell the bytes that may be kept, see set_output_cache.

    Returns
    -------
    int
        0 on systems where nothing is kept.

    Examples
    --------
    >>> import fastbn
    >>> fastbn.get_output_cache() >= 0
    True
    """
    return _core.get_output_cache()


_OUTPUT_CACHE = _core.get_output_cache()


def _start():
    """What the environment says."""
    threads = _environment.setting("FASTBN_NUM_THREADS", _environment.read_threads,
                                   f"a whole number from 1 to {_environment.MOST_THREADS}, or 0 for no limit",
                                   "there is no limit")
    nbytes = _environment.setting("FASTBN_OUTPUT_CACHE", _environment.read_bytes, "bytes such as 1000000, 64M or 2G",
                                  f"{_size(_OUTPUT_CACHE)} are kept")
    backoff = _environment.setting("FASTBN_BACKOFF", _environment.read_switch, "0 or 1", "it is on")
    if "FASTBN_NUM_THREADS" in os.environ:  # the core would read more spellings than are promised
        _core.set_num_threads(threads or 0)
    if nbytes is not None:
        _core.set_output_cache(nbytes)
    if backoff is not None:
        _core.set_backoff(backoff)
    _came_from["threads"] = (threads or None, "FASTBN_NUM_THREADS")
    found = {"output cache": (nbytes, "FASTBN_OUTPUT_CACHE"), "backoff": (backoff, "FASTBN_BACKOFF")}
    _came_from.update({what: name for what, (value, name) in found.items() if value is not None})


def _threads_came_from():
    if _core.openmp() is None:
        return "built without OpenMP"
    limit, origin = _came_from.get("threads", (None, None))
    if limit is not None and _core.get_num_threads() == limit:
        return origin
    if _core.maximum_is_chosen():
        return "OMP_NUM_THREADS"
    return "default: OpenMP's maximum, within the processors that this process may use"


def get_config():
    """Tell the configuration.

    Returns
    -------
    dict of str to object
        Strings, ints, bools and lists of these; None where unknown.

    Examples
    --------
    >>> import fastbn
    >>> "openmp" in fastbn.get_config()
    True
    """
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
        "idle_threads": _openmp.IDLE_THREADS if _core.openmp() else None,
        "backoff": _core.get_backoff(),
        "backoffs": _core.backoffs(),
        "output_cache": _core.get_output_cache(),
        "cache_bytes": [_core.cache_bytes(level) or None for level in (1, 2, 3)],
    }


def _size(nbytes):
    if nbytes is None:
        return "unknown"
    return f"{nbytes // 2**20} MiB" if nbytes >= 2**20 and nbytes % 2**20 == 0 else f"{nbytes // 1024} KiB"


def show_config(file=None):
    """Print the configuration, one line for each item.

    Parameters
    ----------
    file : file object, optional
        Where it is printed; standard output by default.

    Examples
    --------
    >>> import io
    >>> import fastbn
    >>> text = io.StringIO()
    >>> fastbn.show_config(file=text)
    >>> "instruction sets" in text.getvalue()
    True
    """
    config = get_config()
    caches = ", ".join(f"L{level} {_size(n)}" for level, n in enumerate(config["cache_bytes"], 1))
    rows = [
        ("fastbn", f"{config['version']} (C interface {config['abi_version']})"),
        ("Python, NumPy", f"{config['python']}{' (abi3 build)' if config['limited_api'] else ''}, {config['numpy']}"),
        ("compiler", config["compiler"]),
        ("flags", config["flags"]),
        ("instruction sets", f"built {', '.join(config['isa_built'])}; supported {', '.join(config['isa_supported'])}; "
                             f"active {config['isa_active']} "
                             f"({'FASTBN_ISA' if os.environ.get('FASTBN_ISA') else 'default: the best of these'})"),
        ("threads", f"{config['num_threads']} ({_threads_came_from()})"),
        ("OpenMP", config["openmp"] or "none: every call runs on one thread"),
        ("idle threads", config["idle_threads"] or "none"),
        ("backing off", f"{'on' if config['backoff'] else 'off'} ({_came_from.get('backoff', 'default')}); so far "
                        f"{config['backoffs']} times"),
        ("data caches", caches),
        ("output cache", f"{_size(config['output_cache'])} ({_came_from.get('output cache', 'default')})"),
    ]
    for name, value in rows:
        print(f"{name:17} {value}", file=file)


_start()
