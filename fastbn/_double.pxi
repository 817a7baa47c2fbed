# The gradient of the backward on memoryviews, included by _core.pyx; parameters and statistics are float64.

cdef const double *doubles_or_null(const double[::1] a) noexcept:
    return &a[0] if a is not None else NULL


cdef int run_double_backward(const real[:, :, :] x, const real[:, :, :] dy, const real[:, :, :] ddx,
                             const double[::1] ddgamma, const double[::1] ddbeta, const double[::1] gamma,
                             const double[::1] mean, const double[::1] rstd, bint frozen, real[:, :, :] ddy,
                             real[:, :, :] dx, double[::1] dgamma, int threads) except -1:
    cdef fastbn_shape shape = shape_of(dy, FASTBN_FLOAT32 if real is float else FASTBN_FLOAT64)
    cdef fastbn_params params = as_params(gamma, None)
    cdef fastbn_input x_in = as_input(x), dy_in = as_input(dy), ddx_in = as_input(ddx)
    cdef fastbn_output ddy_out = as_output(ddy), dx_out = as_output(dx)
    cdef const double *ddgamma_data = doubles_or_null(ddgamma)
    cdef const double *ddbeta_data = doubles_or_null(ddbeta)
    cdef const double *mean_data = &mean[0]
    cdef const double *rstd_data = &rstd[0]
    cdef void *dgamma_data = <void *> &dgamma[0] if dgamma is not None else NULL
    cdef fastbn_status status
    with nogil:
        status = fastbn_double_backward(&shape, x_in, dy_in, ddx_in, ddgamma_data, ddbeta_data, &params, mean_data,
                                        rstd_data, frozen, ddy_out, dx_out, dgamma_data, threads)
    return check(status)


def double_backward_f32(const float[:, :, :] x, const float[:, :, :] dy not None, const float[:, :, :] ddx,
                        const double[::1] ddgamma, const double[::1] ddbeta, const double[::1] gamma,
                        const double[::1] mean not None, const double[::1] rstd not None, bint frozen,
                        float[:, :, :] ddy, float[:, :, :] dx, double[::1] dgamma, int threads):
    run_double_backward(x, dy, ddx, ddgamma, ddbeta, gamma, mean, rstd, frozen, ddy, dx, dgamma, threads)


def double_backward_f64(const double[:, :, :] x, const double[:, :, :] dy not None, const double[:, :, :] ddx,
                        const double[::1] ddgamma, const double[::1] ddbeta, const double[::1] gamma,
                        const double[::1] mean not None, const double[::1] rstd not None, bint frozen,
                        double[:, :, :] ddy, double[:, :, :] dx, double[::1] dgamma, int threads):
    run_double_backward(x, dy, ddx, ddgamma, ddbeta, gamma, mean, rstd, frozen, ddy, dx, dgamma, threads)
