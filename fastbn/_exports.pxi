# What other Cython modules cimport, included by _core.pyx: a function for each of fastbn.h's, by the same name.
#
# Cython puts their addresses and signatures into _core.__pyx_capi__. In this module itself a call of them is a call of
# the C function, since the compiler sees both.

# The C compiler knows these functions' arguments from the header, and checks and converts what they get.
cdef extern from "fastbn.h" nogil:
    fastbn_status c_moments "fastbn_moments"(...)
    fastbn_status c_weighted_moments "fastbn_weighted_moments"(...)
    fastbn_status c_inference "fastbn_inference"(...)
    fastbn_status c_training "fastbn_training"(...)
    fastbn_status c_backward "fastbn_backward"(...)
    fastbn_status c_double_backward "fastbn_double_backward"(...)
    fastbn_status c_update_running "fastbn_update_running"(...)
    int c_wants_packed "fastbn_wants_packed"(...)
    const char *c_version "fastbn_version"()
    int c_abi_version "fastbn_abi_version"()
    const char *c_status_text "fastbn_status_text"(...)
    const char *c_isa_name "fastbn_isa_name"(...)
    int c_isa_built "fastbn_isa_built"(...)
    int c_isa_supported "fastbn_isa_supported"(...)
    fastbn_status c_isa_active "fastbn_isa_active"(...)
    fastbn_status c_set_isa "fastbn_set_isa"(...)
    int c_get_num_threads "fastbn_get_num_threads"()
    void c_set_num_threads "fastbn_set_num_threads"(...)
    fastbn_status c_rearm_threads "fastbn_rearm_threads"()
    void c_set_backoff "fastbn_set_backoff"(...)
    int c_get_backoff "fastbn_get_backoff"()
    int64_t c_backoffs "fastbn_backoffs"()
    const char *c_openmp "fastbn_openmp"()
    int64_t c_cache_bytes "fastbn_cache_bytes"(...)


cdef fastbn_status fastbn_moments(const fastbn_shape *shape, fastbn_input x, double *mean, double *m2,
                                  int num_threads) noexcept nogil:
    return c_moments(shape, x, mean, m2, num_threads)


cdef fastbn_status fastbn_weighted_moments(const fastbn_shape *shape, fastbn_input x, const fastbn_weights *weights,
                                           double *mean, double *m2, int num_threads) noexcept nogil:
    return c_weighted_moments(shape, x, weights, mean, m2, num_threads)


cdef fastbn_status fastbn_inference(const fastbn_shape *shape, fastbn_input x, const void *mean, const void *var,
                                    const fastbn_params *params, double eps, fastbn_output y,
                                    int num_threads) noexcept nogil:
    return c_inference(shape, x, mean, var, params, eps, y, num_threads)


cdef fastbn_status fastbn_training(const fastbn_shape *shape, fastbn_input x, const fastbn_params *params, double eps,
                                   fastbn_output y, double *mean, double *var, double *rstd,
                                   int num_threads) noexcept nogil:
    return c_training(shape, x, params, eps, y, mean, var, rstd, num_threads)


cdef fastbn_status fastbn_backward(const fastbn_shape *shape, fastbn_input x, fastbn_input dy,
                                   const fastbn_params *params, const double *mean, const double *rstd, int frozen,
                                   fastbn_output dx, void *dgamma, void *dbeta, int num_threads) noexcept nogil:
    return c_backward(shape, x, dy, params, mean, rstd, frozen, dx, dgamma, dbeta, num_threads)


cdef fastbn_status fastbn_double_backward(const fastbn_shape *shape, fastbn_input x, fastbn_input dy, fastbn_input ddx,
                                          const void *ddgamma, const void *ddbeta, const fastbn_params *params,
                                          const double *mean, const double *rstd, int frozen, fastbn_output ddy,
                                          fastbn_output dx, void *dgamma, int num_threads) noexcept nogil:
    return c_double_backward(shape, x, dy, ddx, ddgamma, ddbeta, params, mean, rstd, frozen, ddy, dx, dgamma,
                             num_threads)


cdef fastbn_status fastbn_update_running(int64_t c, const double *mean, const double *var, double momentum,
                                         double var_scale, void *running_mean, void *running_var,
                                         fastbn_dtype dtype) noexcept nogil:
    return c_update_running(c, mean, var, momentum, var_scale, running_mean, running_var, dtype)


cdef int fastbn_wants_packed(const fastbn_shape *shape) noexcept nogil:
    return c_wants_packed(shape)


cdef const char *fastbn_version() noexcept nogil:
    return c_version()


cdef int fastbn_abi_version() noexcept nogil:
    return c_abi_version()


cdef const char *fastbn_status_text(fastbn_status status) noexcept nogil:
    return c_status_text(status)


cdef const char *fastbn_isa_name(int index) noexcept nogil:
    return c_isa_name(index)


cdef int fastbn_isa_built(const char *name) noexcept nogil:
    return c_isa_built(name)


cdef int fastbn_isa_supported(const char *name) noexcept nogil:
    return c_isa_supported(name)


cdef fastbn_status fastbn_isa_active(const char **name) noexcept nogil:
    return c_isa_active(name)


cdef fastbn_status fastbn_set_isa(const char *name) noexcept nogil:
    return c_set_isa(name)


cdef int fastbn_get_num_threads() noexcept nogil:
    return c_get_num_threads()


cdef void fastbn_set_num_threads(int num_threads) noexcept nogil:
    c_set_num_threads(num_threads)


cdef fastbn_status fastbn_rearm_threads() noexcept nogil:
    return c_rearm_threads()


cdef void fastbn_set_backoff(int on) noexcept nogil:
    c_set_backoff(on)


cdef int fastbn_get_backoff() noexcept nogil:
    return c_get_backoff()


cdef int64_t fastbn_backoffs() noexcept nogil:
    return c_backoffs()


cdef const char *fastbn_openmp() noexcept nogil:
    return c_openmp()


cdef int64_t fastbn_cache_bytes(int level) noexcept nogil:
    return c_cache_bytes(level)
