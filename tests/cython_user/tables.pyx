# cython: language_level=3, boundscheck=False, wraparound=False
"""Tables normalized without the GIL, each by one thread."""
cimport fastbn
from cython.parallel cimport prange
from fastbn cimport FASTBN_ABI_VERSION, FASTBN_FLOAT32, FASTBN_OK, FASTBN_RELU
from fastbn cimport fastbn_input, fastbn_output, fastbn_params, fastbn_shape, fastbn_status


cdef fastbn_status one_table(const float *x, float *y, double *statistics, Py_ssize_t n, Py_ssize_t c) noexcept nogil:
    """statistics: room for mean, var and rstd, c entries each."""
    cdef fastbn_shape shape = fastbn_shape(n=n, c=c, s=1, dtype=FASTBN_FLOAT32)
    cdef fastbn_params params = fastbn_params(gamma=NULL, beta=NULL, dtype=FASTBN_FLOAT32, activation=FASTBN_RELU,
                                              slope=0, extra=NULL)
    return fastbn.fastbn_training(&shape, fastbn_input(x, c, 1), &params, 1e-5, fastbn_output(y, c, 1), statistics,
                                  statistics + c, statistics + 2 * c, 1)


def normalize(const float[:, :, ::1] x, float[:, :, ::1] y, double[:, :, ::1] statistics):
    """relu of each table of x (k, n, c) by its own statistics, to y; these to statistics (k, 3, c)."""
    cdef Py_ssize_t i
    cdef int failed = 0
    if (y.shape[0] != x.shape[0] or y.shape[1] != x.shape[1] or y.shape[2] != x.shape[2] or x.shape[2] == 0
            or statistics.shape[0] != x.shape[0] or statistics.shape[1] != 3 or statistics.shape[2] != x.shape[2]):
        raise ValueError("x and y are of shape (k, n, c), statistics of (k, 3, c)")
    for i in prange(x.shape[0], nogil=True):
        if one_table(&x[i, 0, 0], &y[i, 0, 0], &statistics[i, 0, 0], x.shape[1], x.shape[2]) != FASTBN_OK:
            failed += 1
    if failed:
        raise RuntimeError(f"{failed} tables failed")


def refusal():
    """What the library says of a wrong shape."""
    cdef fastbn_shape shape = fastbn_shape(n=-1, c=1, s=1, dtype=FASTBN_FLOAT32)
    cdef double mean = 0, m2 = 0
    return fastbn.fastbn_status_text(fastbn.fastbn_moments(&shape, fastbn_input(NULL, 1, 1), &mean, &m2, 0)).decode()


def versions():
    """(of the header, of the library)"""
    return FASTBN_ABI_VERSION, fastbn.fastbn_abi_version()
