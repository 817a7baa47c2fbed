# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The C core for Python: arrays in, status codes out as exceptions.

Two ways lead to it. The general one takes arrays of shape (n, c, s), see csrc/fastbn.h, whose last axis is contiguous;
_engine/layout.py makes them. The short one takes NumPy arrays that need no conversion as they are: a memoryview alone costs
as much as the rest of a small call.
"""
import os

cimport cython
cimport numpy as cnp
from libc.math cimport INFINITY, sqrt
from libc.stdint cimport uint16_t, uint64_t
from libc.string cimport memcpy, memset

cnp.import_array()

cdef extern from "parallel.h":
    int64_t fbn_set_bytes_per_thread(int64_t nbytes)
    int fbn_last_team_size()
    void fbn_delay_threads(int64_t nanoseconds)

cdef extern from "backoff.h":
    int fbn_backoff_limit(int threads, int64_t now)
    void fbn_backoff_report(int threads, int64_t elapsed, int64_t computed, int64_t now)
    void fbn_backoff_reset()

cdef extern from "cgroup.h":
    int fbn_cgroup_processors(const char *root)

cdef extern from "trial.h":
    void fbn_pretend_refusal(int yes)

cdef extern from *:
    """
    #if defined(__clang__)
    #define FBN_COMPILER "clang " __clang_version__
    #elif defined(__GNUC__)
    #define FBN_COMPILER "gcc " __VERSION__
    #elif defined(_MSC_VER)
    #define FBN_COMPILER "MSVC"
    #else
    #define FBN_COMPILER "unknown"
    #endif
    #ifndef FBN_BUILD_FLAGS
    #define FBN_BUILD_FLAGS ""
    #endif
    #ifdef Py_LIMITED_API
    #define FBN_ABI3 1
    #else
    #define FBN_ABI3 0
    #endif
    """
    const char *FBN_COMPILER
    const char *FBN_BUILD_FLAGS
    int FBN_ABI3

include "_binding/exports.pxi"

# ---- errors ----

cdef int check(fastbn_status status) except -1:
    if status == FASTBN_OK:
        return 0
    if status == FASTBN_ERROR_MEMORY:
        raise MemoryError("fastbn: scratch memory could not be allocated")
    if status == FASTBN_ERROR_ISA_UNKNOWN or status == FASTBN_ERROR_ISA_UNSUPPORTED:
        raise RuntimeError(isa_message(os.environ.get("FASTBN_ISA", ""), status))
    raise ValueError(f"fastbn: {fastbn_status_text(status).decode()}")


def isa_message(name, fastbn_status status):
    here = ", ".join(n for n in isa_names() if isa_supported(n))
    return (f"FASTBN_ISA={name!r}: {fastbn_status_text(status).decode()}; it may be one of {', '.join(isa_names())}, and "
            f"this build runs {here} on this processor (unset it to take the best)")


def wants_packed(int64_t n, int64_t c, int64_t s):
    """Whether data of this shape must be packed to be computed fast and with the bits of a packed array."""
    cdef fastbn_shape shape
    shape.n, shape.c, shape.s, shape.dtype = n, c, s, FASTBN_FLOAT32
    return fastbn_wants_packed(&shape) != 0


# ---- the operations, as the C core has them ----

cdef bint is_brief(const fastbn_shape *shape) noexcept:
    """Whether releasing the GIL would cost more than it gives."""
    return shape.n * shape.c * shape.s <= (2048 if shape.dtype == FASTBN_FLOAT64 else 4096)


cdef int call_moments(const fastbn_shape *shape, fastbn_input x, const fastbn_weights *weights, double *mean, double *m2,
                      int threads) except -1:
    cdef fastbn_status status
    if is_brief(shape):
        return check(fastbn_weighted_moments(shape, x, weights, mean, m2, threads))
    with nogil:
        status = fastbn_weighted_moments(shape, x, weights, mean, m2, threads)
    return check(status)


cdef int call_inference(const fastbn_shape *shape, fastbn_input x, const void *mean, const void *var,
                        const fastbn_params *params, double eps, fastbn_output y, int threads) except -1:
    cdef fastbn_status status
    if is_brief(shape):
        return check(fastbn_inference(shape, x, mean, var, params, eps, y, threads))
    with nogil:
        status = fastbn_inference(shape, x, mean, var, params, eps, y, threads)
    return check(status)


cdef int call_training(const fastbn_shape *shape, fastbn_input x, const fastbn_params *params, double eps,
                       fastbn_output y, double *mean, double *var, double *rstd, int threads) except -1:
    cdef fastbn_status status
    if is_brief(shape):
        return check(fastbn_training(shape, x, params, eps, y, mean, var, rstd, threads))
    with nogil:
        status = fastbn_training(shape, x, params, eps, y, mean, var, rstd, threads)
    return check(status)


cdef int call_backward(const fastbn_shape *shape, fastbn_input x, fastbn_input dy, const fastbn_params *params,
                       const double *mean, const double *rstd, bint frozen, fastbn_output dx, void *dgamma,
                       void *dbeta, int threads) except -1:
    cdef fastbn_status status
    if is_brief(shape):
        return check(fastbn_backward(shape, x, dy, params, mean, rstd, frozen, dx, dgamma, dbeta, threads))
    with nogil:
        status = fastbn_backward(shape, x, dy, params, mean, rstd, frozen, dx, dgamma, dbeta, threads)
    return check(status)


# ---- the operations, by the short way and the general one, and the layer ----

include "_binding/results.pxi"
include "_binding/plain_arrays.pxi"
include "_binding/kernels.pxi"
include "_binding/saved.pxi"
include "_binding/plain_calls.pxi"
include "_binding/layer_base.pxi"
include "_binding/foreign_tensors.pxi"
include "_binding/activations_for_tests.pxi"
include "_binding/xla.pxi"
include "_binding/general_calls.pxi"
include "_binding/bfloat16_capsules.pxi"


# ---- configuration ----

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


def set_bytes_per_thread(int64_t nbytes):
    """For tests: the least work a thread is started for, in bytes; 0: always all threads. Returns the previous value."""
    return fbn_set_bytes_per_thread(nbytes)


def last_team_size():
    """For tests: the threads of the last call that this thread made."""
    return fbn_last_team_size()


def delay_threads(int64_t nanoseconds):
    """For tests: each thread but the calling one arrives so much later at the end of every call."""
    fbn_delay_threads(nanoseconds)


def refuse_threads(bint yes):
    """For tests: the system seems to have no thread to give."""
    fbn_pretend_refusal(yes)


def backoff_limit(int threads, int64_t now):
    """For tests: the largest team at a time of the test's own clock."""
    return fbn_backoff_limit(threads, now)


def backoff_report(int threads, int64_t elapsed, int64_t computed, int64_t now):
    """For tests: what a team tells at its end."""
    fbn_backoff_report(threads, elapsed, computed, now)


def backoff_reset():
    """For tests: as at the start."""
    fbn_backoff_reset()


def cgroup_processors(str root not None):
    """For tests: the processors that the control groups below a folder allow; 0: no limit."""
    return fbn_cgroup_processors(root.encode())
