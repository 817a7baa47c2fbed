# The operations as the C core has them, without the GIL where they take longer than releasing it; included by _core.pyx.

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


def wants_packed(int64_t n, int64_t c, int64_t s):
    """Whether data of this shape must be packed to be computed fast and with the bits of a packed array."""
    cdef fastbn_shape shape
    shape.n, shape.c, shape.s, shape.dtype = n, c, s, FASTBN_FLOAT32
    return fastbn_wants_packed(&shape) != 0
