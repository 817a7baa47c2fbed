# The functions of fastbn.h, included by _core.pyx. _core.pxd declares them again as this module's own, public ones, of which
# Cython puts the addresses and signatures into _core.__pyx_capi__; the definition of each is the C function itself.
cdef extern from "fastbn.h" nogil:
    fastbn_status fastbn_moments(const fastbn_shape *shape, fastbn_input x, double *mean, double *m2,
                                 int num_threads) noexcept
    fastbn_status fastbn_weighted_moments(const fastbn_shape *shape, fastbn_input x, const fastbn_weights *weights,
                                          double *mean, double *m2, int num_threads) noexcept
    fastbn_status fastbn_inference(const fastbn_shape *shape, fastbn_input x, const void *mean, const void *var,
                                   const fastbn_params *params, double eps, fastbn_output y, int num_threads) noexcept
    fastbn_status fastbn_training(const fastbn_shape *shape, fastbn_input x, const fastbn_params *params, double eps,
                                  fastbn_output y, double *mean, double *var, double *rstd, int num_threads) noexcept
    fastbn_status fastbn_backward(const fastbn_shape *shape, fastbn_input x, fastbn_input dy,
                                  const fastbn_params *params, const double *mean, const double *rstd, int frozen,
                                  fastbn_output dx, void *dgamma, void *dbeta, int num_threads) noexcept
    fastbn_status fastbn_double_backward(const fastbn_shape *shape, fastbn_input x, fastbn_input dy, fastbn_input ddx,
                                         const void *ddgamma, const void *ddbeta, const fastbn_params *params,
                                         const double *mean, const double *rstd, int frozen, fastbn_output ddy,
                                         fastbn_output dx, void *dgamma, int num_threads) noexcept
    fastbn_status fastbn_update_running(int64_t c, const double *mean, const double *var, double momentum,
                                        double var_scale, void *running_mean, void *running_var,
                                        fastbn_dtype dtype) noexcept
    int fastbn_wants_packed(const fastbn_shape *shape) noexcept
    const char *fastbn_version() noexcept
    int fastbn_abi_version() noexcept
    const char *fastbn_status_text(fastbn_status status) noexcept
    const char *fastbn_isa_name(int index) noexcept
    int fastbn_isa_built(const char *name) noexcept
    int fastbn_isa_supported(const char *name) noexcept
    fastbn_status fastbn_isa_active(const char **name) noexcept
    fastbn_status fastbn_set_isa(const char *name) noexcept
    int fastbn_get_num_threads() noexcept
    void fastbn_set_num_threads(int num_threads) noexcept
    fastbn_status fastbn_rearm_threads() noexcept
    void fastbn_set_backoff(int on) noexcept
    int fastbn_get_backoff() noexcept
    int64_t fastbn_backoffs() noexcept
    const char *fastbn_openmp() noexcept
    int64_t fastbn_cache_bytes(int level) noexcept
