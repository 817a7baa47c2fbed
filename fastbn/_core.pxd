# The C interface of fastbn for Cython: the types and functions of fastbn.h, which says what each does.
#
# Nobody can link to an extension module: _core exports the address of each function (_binding/exports.pxi), and a module that
# cimports them gets these when it is imported.
from libc.stdint cimport int64_t

cdef extern from "fastbn.h" nogil:
    const int FASTBN_ABI_VERSION

    ctypedef enum fastbn_status:
        FASTBN_OK
        FASTBN_ERROR_NULL
        FASTBN_ERROR_SHAPE
        FASTBN_ERROR_STRIDE
        FASTBN_ERROR_DTYPE
        FASTBN_ERROR_MEMORY
        FASTBN_ERROR_ISA_UNKNOWN
        FASTBN_ERROR_ISA_UNSUPPORTED
        FASTBN_ERROR_ACTIVATION
        FASTBN_ERROR_FORKED

    ctypedef enum fastbn_dtype:
        FASTBN_FLOAT32
        FASTBN_FLOAT64
        FASTBN_FLOAT16
        FASTBN_BFLOAT16

    ctypedef struct fastbn_shape:
        int64_t n, c, s
        fastbn_dtype dtype

    ctypedef struct fastbn_input:
        const void *data
        int64_t stride_n, stride_c

    ctypedef struct fastbn_output:
        void *data
        int64_t stride_n, stride_c

    ctypedef enum fastbn_activation:
        FASTBN_IDENTITY
        FASTBN_RELU
        FASTBN_LEAKY_RELU
        FASTBN_RELU6
        FASTBN_SIGMOID
        FASTBN_TANH
        FASTBN_SILU
        FASTBN_GELU
        FASTBN_GELU_TANH
        FASTBN_HARDSWISH
        FASTBN_ELU

    ctypedef struct fastbn_weights:
        const void *data
        double total
        const double *counts
        double squares

    ctypedef struct fastbn_extra:
        fastbn_input residual
        fastbn_output dresidual
        fastbn_input written
        int inverts
        const fastbn_weights *weights

    ctypedef struct fastbn_params:
        const void *gamma
        const void *beta
        fastbn_dtype dtype
        fastbn_activation activation
        double slope
        const fastbn_extra *extra

cdef public fastbn_status fastbn_moments(const fastbn_shape *shape, fastbn_input x, double *mean, double *m2,
                                         int num_threads) noexcept nogil
cdef public fastbn_status fastbn_weighted_moments(const fastbn_shape *shape, fastbn_input x,
                                                  const fastbn_weights *weights, double *mean, double *m2,
                                                  int num_threads) noexcept nogil
cdef public fastbn_status fastbn_inference(const fastbn_shape *shape, fastbn_input x, const void *mean, const void *var,
                                           const fastbn_params *params, double eps, fastbn_output y,
                                           int num_threads) noexcept nogil
cdef public fastbn_status fastbn_training(const fastbn_shape *shape, fastbn_input x, const fastbn_params *params,
                                          double eps, fastbn_output y, double *mean, double *var, double *rstd,
                                          int num_threads) noexcept nogil
cdef public fastbn_status fastbn_backward(const fastbn_shape *shape, fastbn_input x, fastbn_input dy,
                                          const fastbn_params *params, const double *mean, const double *rstd,
                                          int frozen, fastbn_output dx, void *dgamma, void *dbeta,
                                          int num_threads) noexcept nogil
cdef public fastbn_status fastbn_double_backward(const fastbn_shape *shape, fastbn_input x, fastbn_input dy,
                                                 fastbn_input ddx, const void *ddgamma, const void *ddbeta,
                                                 const fastbn_params *params, const double *mean, const double *rstd,
                                                 int frozen, fastbn_output ddy, fastbn_output dx, void *dgamma,
                                                 int num_threads) noexcept nogil
cdef public fastbn_status fastbn_update_running(int64_t c, const double *mean, const double *var, double momentum,
                                                double var_scale, void *running_mean, void *running_var,
                                                fastbn_dtype dtype) noexcept nogil
cdef public int fastbn_wants_packed(const fastbn_shape *shape) noexcept nogil
cdef public const char *fastbn_version() noexcept nogil
cdef public int fastbn_abi_version() noexcept nogil
cdef public const char *fastbn_status_text(fastbn_status status) noexcept nogil
cdef public const char *fastbn_isa_name(int index) noexcept nogil
cdef public int fastbn_isa_built(const char *name) noexcept nogil
cdef public int fastbn_isa_supported(const char *name) noexcept nogil
cdef public fastbn_status fastbn_isa_active(const char **name) noexcept nogil
cdef public fastbn_status fastbn_set_isa(const char *name) noexcept nogil
cdef public int fastbn_get_num_threads() noexcept nogil
cdef public void fastbn_set_num_threads(int num_threads) noexcept nogil
cdef public fastbn_status fastbn_rearm_threads() noexcept nogil
cdef public void fastbn_set_backoff(int on) noexcept nogil
cdef public int fastbn_get_backoff() noexcept nogil
cdef public int64_t fastbn_backoffs() noexcept nogil
cdef public const char *fastbn_openmp() noexcept nogil
cdef public int64_t fastbn_cache_bytes(int level) noexcept nogil
