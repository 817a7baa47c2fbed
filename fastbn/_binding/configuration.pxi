# What the C core is and is set to, included by _core.pyx.

def version():
    return fastbn_version().decode()


def abi_version():
    return fastbn_abi_version()


def compiler():
    return FBN_COMPILER.decode()


def build_flags():
    return FBN_BUILD_FLAGS.decode()


def is_abi3():
    return FBN_ABI3 != 0


def isa_names():
    """All instruction sets of the library, best first."""
    names = []
    cdef int index = 0
    while fastbn_isa_name(index) != NULL:
        names.append(fastbn_isa_name(index).decode())
        index += 1
    return tuple(names)


def isa_built(str name not None):
    return fastbn_isa_built(name.encode()) != 0


def isa_supported(str name not None):
    return fastbn_isa_supported(name.encode()) != 0


def isa_active():
    cdef const char *name = NULL
    check(fastbn_isa_active(&name))
    return name.decode()


def set_isa(name):
    """For tests: the instruction set to use from now on; None for the choice of first use."""
    cdef bytes encoded = b"" if name is None else name.encode()
    cdef fastbn_status status = fastbn_set_isa(NULL if name is None else <const char *> encoded)
    if status != FASTBN_OK and name is not None:
        raise RuntimeError(isa_message(name, status))
    check(status)


def get_num_threads():
    return fastbn_get_num_threads()


def set_num_threads(int num_threads):
    fastbn_set_num_threads(num_threads)


def rearm_threads():
    cdef fastbn_status status = fastbn_rearm_threads()
    if status == FASTBN_ERROR_FORKED:
        raise RuntimeError(f"rearm_threads: {fastbn_status_text(status).decode()}: fastbn's next call would wait for them for "
                           "ever. Start the process by spawn or forkserver, or let the parent use one thread before it "
                           "forks (FASTBN_NUM_THREADS=1)")
    check(status)


def maximum_is_chosen():
    """Whether OMP_NUM_THREADS chose OpenMP's maximum when the core was loaded."""
    return fbn_maximum_is_chosen() != 0


def set_backoff(bint on):
    fastbn_set_backoff(on)


def get_backoff():
    return fastbn_get_backoff() != 0


def backoffs():
    return fastbn_backoffs()


def openmp():
    """The OpenMP runtime that the compiler linked, or None."""
    return fastbn_openmp().decode() if fastbn_openmp() != NULL else None


def cache_bytes(int level):
    return fastbn_cache_bytes(level)
