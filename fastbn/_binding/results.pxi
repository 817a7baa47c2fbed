# New arrays for results, included by _core.pyx. The memory of large ones is kept, see csrc/results/kept.c: NumPy lets an array
# have an allocator of its own, https://numpy.org/doc/stable/reference/c-api/data_memory.html

from cpython.pycapsule cimport PyCapsule_New

cdef extern from "numpy/arrayobject.h":
    void *PyDataMem_DefaultHandler

cdef extern from "results/kept.h":
    void *fbn_kept_malloc(void *context, size_t nbytes) noexcept
    void *fbn_kept_calloc(void *context, size_t number, size_t nbytes) noexcept
    void *fbn_kept_realloc(void *context, void *data, size_t nbytes) noexcept
    void fbn_kept_free(void *context, void *data, size_t nbytes) noexcept
    void fbn_kept_set_limit(size_t nbytes)
    size_t fbn_kept_limit()
    size_t fbn_kept_bytes()

cdef extern from *:
    """
    static PyDataMem_Handler fbn_keeping = {
        "fastbn", 1, {NULL, fbn_kept_malloc, fbn_kept_calloc, fbn_kept_realloc, fbn_kept_free}};
    """
    cnp.PyDataMem_Handler fbn_keeping

cdef enum:
    KEPT_FROM = 33554432  # bytes; malloc itself keeps smaller blocks

cdef object keeping = PyCapsule_New(&fbn_keeping, b"mem_handler", NULL)


cdef bint is_kept(size_t nbytes):
    """Whether an array of this size gets memory that is kept. Somebody else's allocator stays in place."""
    if not KEPT_FROM < nbytes <= fbn_kept_limit():
        return False
    allocator = cnp.PyDataMem_GetHandler()
    return <void *> allocator == PyDataMem_DefaultHandler


cdef cnp.ndarray new_result(int ndim, cnp.npy_intp *shape, int kind):
    """A C-contiguous array of unknown content. kind: NumPy's number of a type of data."""
    cdef size_t nbytes = 8 if kind == cnp.NPY_FLOAT64 else 4 if kind == cnp.NPY_FLOAT32 else 2
    cdef int i
    for i in range(ndim):
        nbytes *= shape[i]
    if not is_kept(nbytes):
        return cnp.PyArray_EMPTY(ndim, shape, kind, 0)
    before = cnp.PyDataMem_SetHandler(keeping)
    try:
        return cnp.PyArray_EMPTY(ndim, shape, kind, 0)
    finally:
        cnp.PyDataMem_SetHandler(before)


def empty(tuple shape not None, int kind):
    """numpy.empty for a result; kind: dtype.num of a type of data."""
    cdef cnp.npy_intp[3] lengths
    cdef int i
    if len(shape) != 3:
        raise ValueError(f"shape is {shape}, expected (n, c, s)")
    for i in range(3):
        lengths[i] = shape[i]
    return new_result(3, lengths, kind)


def set_output_cache(size_t nbytes):
    fbn_kept_set_limit(nbytes)


def get_output_cache():
    return fbn_kept_limit()


def output_cache_used():
    """The bytes that are kept now."""
    return fbn_kept_bytes()
