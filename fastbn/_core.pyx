# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
# cython: embedsignature=True, embedsignature.format=clinic
"""The C core for Python: arrays in, status codes out as exceptions.

Two ways lead to it. The general one takes arrays of shape (n, c, s), see csrc/fastbn.h, whose last axis is contiguous;
_engine/layout.py makes them. The short one takes NumPy arrays that need no conversion as they are: a memoryview alone costs
as much as the rest of a small call.
"""
import os

cimport cython
cimport numpy as cnp
from libc.math cimport INFINITY
from libc.stdint cimport uint16_t, uint64_t
from libc.string cimport memcpy, memset

cnp.import_array()

cdef extern from "parallel.h":
    int64_t fbn_set_bytes_per_thread(int64_t nbytes)
    int fbn_last_team_size()
    void fbn_delay_threads(int64_t nanoseconds)
    int fbn_maximum_is_chosen()

cdef extern from "backoff.h":
    int fbn_backoff_limit(int threads, int64_t now)
    void fbn_backoff_report(int threads, int64_t elapsed, int64_t computed, int64_t now)
    void fbn_backoff_reset()

cdef extern from "machine.h":
    int fbn_cgroup_processors(const char *root)
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

# In reading order: each file needs those before it alone.
include "_binding/errors.pxi"
include "_binding/core_calls.pxi"
include "_binding/results.pxi"
include "_binding/plain_arrays.pxi"
include "_binding/kernels.pxi"
include "_binding/saved.pxi"
include "_binding/plain_calls.pxi"
include "_binding/layer_base.pxi"
include "_binding/general_calls.pxi"
include "_binding/torch_exchange.pxi"
include "_binding/bfloat16_capsules.pxi"
include "_binding/xla.pxi"
include "_binding/configuration.pxi"
include "_binding/activations_for_tests.pxi"
include "_binding/hooks_for_tests.pxi"
include "_binding/hidden_names.pxi"
