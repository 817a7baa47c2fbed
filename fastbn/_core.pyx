# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The C core for Python: typed memoryviews in, status codes out as exceptions; nothing else.

Data are memoryviews of shape (n, c, s), see csrc/fastbn.h, whose last axis is contiguous; _canonical.py makes them. There is a function for each data type
instead of a fused one, whose dispatch costs more than a small call.
"""
import os

cimport numpy as cnp

cnp.import_array()

cdef extern from "parallel.h":
    int64_t fbn_set_bytes_per_thread(int64_t nbytes)
    int fbn_last_team_size()

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

ctypedef fused real:
    float
    double


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


# ---- arrays ----

cdef fastbn_dtype dtype_of(real *unused) noexcept:
    return FASTBN_FLOAT32 if real is float else FASTBN_FLOAT64


cdef fastbn_shape shape_of(const real[:, :, :] a) except *:
    cdef fastbn_shape shape
    if a.shape[2] > 1 and a.strides[2] != sizeof(real):
        raise ValueError("the last axis of x is not contiguous")
    shape.n, shape.c, shape.s = a.shape[0], a.shape[1], a.shape[2]
    shape.dtype = dtype_of(<real *> NULL)
    return shape


cdef fastbn_input as_input(const real[:, :, :] a) noexcept:
    cdef fastbn_input array
    array.data, array.stride_n, array.stride_c = NULL, 0, 0
    if a is not None:
        array.data = <const void *> &a[0, 0, 0]
        array.stride_n, array.stride_c = a.strides[0] // <int> sizeof(real), a.strides[1] // <int> sizeof(real)
    return array


cdef fastbn_output as_output(real[:, :, :] a) noexcept:
    cdef fastbn_output array
    array.data, array.stride_n, array.stride_c = NULL, 0, 0
    if a is not None:
        array.data = <void *> &a[0, 0, 0]
        array.stride_n, array.stride_c = a.strides[0] // <int> sizeof(real), a.strides[1] // <int> sizeof(real)
    return array


cdef fastbn_params as_params(const double[::1] gamma, const double[::1] beta) noexcept:
    cdef fastbn_params params
    params.gamma = <const void *> &gamma[0] if gamma is not None else NULL
    params.beta = <const void *> &beta[0] if beta is not None else NULL
    params.dtype = FASTBN_FLOAT64
    return params


def wants_packed(int64_t n, int64_t c, int64_t s):
    """Whether data of this shape must be packed to be computed fast and with the bits of a packed array."""
    cdef fastbn_shape shape
    shape.n, shape.c, shape.s, shape.dtype = n, c, s, FASTBN_FLOAT32
    return fastbn_wants_packed(&shape) != 0


# ---- the operations; parameters and statistics are float64 ----

cdef int run_moments(const real[:, :, :] x, double[::1] mean, double[::1] m2, int threads) except -1:
    cdef fastbn_shape shape = shape_of(x)
    cdef fastbn_input source = as_input(x)
    cdef fastbn_status status
    with nogil:
        status = fastbn_moments(&shape, source, &mean[0], &m2[0], threads)
    return check(status)


def moments_f32(const float[:, :, :] x not None, double[::1] mean not None, double[::1] m2 not None, int threads):
    run_moments(x, mean, m2, threads)


def moments_f64(const double[:, :, :] x not None, double[::1] mean not None, double[::1] m2 not None, int threads):
    run_moments(x, mean, m2, threads)


cdef int run_inference(const real[:, :, :] x, const double[::1] mean, const double[::1] var,
                       const double[::1] gamma, const double[::1] beta, double eps, real[:, :, :] y,
                       int threads) except -1:
    cdef fastbn_shape shape = shape_of(x)
    cdef fastbn_input source = as_input(x)
    cdef fastbn_output target = as_output(y)
    cdef fastbn_params params = as_params(gamma, beta)
    cdef fastbn_status status
    with nogil:
        status = fastbn_inference(&shape, source, &mean[0], &var[0], &params, eps, target, threads)
    return check(status)


def inference_f32(const float[:, :, :] x not None, const double[::1] mean not None, const double[::1] var not None,
                  const double[::1] gamma, const double[::1] beta, double eps, float[:, :, :] y not None,
                  int threads):
    run_inference(x, mean, var, gamma, beta, eps, y, threads)


def inference_f64(const double[:, :, :] x not None, const double[::1] mean not None, const double[::1] var not None,
                  const double[::1] gamma, const double[::1] beta, double eps, double[:, :, :] y not None,
                  int threads):
    run_inference(x, mean, var, gamma, beta, eps, y, threads)


cdef int run_training(const real[:, :, :] x, const double[::1] gamma, const double[::1] beta, double eps,
                      real[:, :, :] y, double[::1] mean, double[::1] var, double[::1] rstd,
                      int threads) except -1:
    cdef fastbn_shape shape = shape_of(x)
    cdef fastbn_input source = as_input(x)
    cdef fastbn_output target = as_output(y)
    cdef fastbn_params params = as_params(gamma, beta)
    cdef fastbn_status status
    with nogil:
        status = fastbn_training(&shape, source, &params, eps, target, &mean[0], &var[0], &rstd[0], threads)
    return check(status)


def training_f32(const float[:, :, :] x not None, const double[::1] gamma, const double[::1] beta, double eps,
                 float[:, :, :] y not None, double[::1] mean not None, double[::1] var not None,
                 double[::1] rstd not None, int threads):
    run_training(x, gamma, beta, eps, y, mean, var, rstd, threads)


def training_f64(const double[:, :, :] x not None, const double[::1] gamma, const double[::1] beta, double eps,
                 double[:, :, :] y not None, double[::1] mean not None, double[::1] var not None,
                 double[::1] rstd not None, int threads):
    run_training(x, gamma, beta, eps, y, mean, var, rstd, threads)


cdef int run_backward(const real[:, :, :] x, const real[:, :, :] dy, const double[::1] gamma,
                      const double[::1] mean, const double[::1] rstd, bint frozen, real[:, :, :] dx,
                      double[::1] dgamma, double[::1] dbeta, int threads) except -1:
    cdef fastbn_shape shape = shape_of(dy)
    cdef fastbn_input source = as_input(x)
    cdef fastbn_input upstream = as_input(dy)
    cdef fastbn_output target = as_output(dx)
    cdef fastbn_params params = as_params(gamma, None)
    cdef void *dgamma_data = <void *> &dgamma[0] if dgamma is not None else NULL
    cdef void *dbeta_data = <void *> &dbeta[0] if dbeta is not None else NULL
    cdef fastbn_status status
    with nogil:
        status = fastbn_backward(&shape, source, upstream, &params, &mean[0], &rstd[0], frozen, target, dgamma_data,
                                 dbeta_data, threads)
    return check(status)


def backward_f32(const float[:, :, :] x, const float[:, :, :] dy not None, const double[::1] gamma,
                 const double[::1] mean not None, const double[::1] rstd not None, bint frozen,
                 float[:, :, :] dx, double[::1] dgamma, double[::1] dbeta, int threads):
    run_backward(x, dy, gamma, mean, rstd, frozen, dx, dgamma, dbeta, threads)


def backward_f64(const double[:, :, :] x, const double[:, :, :] dy not None, const double[::1] gamma,
                 const double[::1] mean not None, const double[::1] rstd not None, bint frozen,
                 double[:, :, :] dx, double[::1] dgamma, double[::1] dbeta, int threads):
    run_backward(x, dy, gamma, mean, rstd, frozen, dx, dgamma, dbeta, threads)


def round_f32(const double[::1] a not None, float[::1] rounded not None):
    """Without NumPy's warning where a float32 overflows."""
    cdef Py_ssize_t i
    for i in range(a.shape[0]):
        rounded[i] = <float> a[i]


def update_running_f32(const double[::1] mean not None, const double[::1] var not None, double momentum,
                       double var_scale, float[::1] running_mean not None, float[::1] running_var not None):
    check(fastbn_update_running(mean.shape[0], &mean[0], &var[0], momentum, var_scale, &running_mean[0],
                                &running_var[0], FASTBN_FLOAT32))


def update_running_f64(const double[::1] mean not None, const double[::1] var not None, double momentum,
                       double var_scale, double[::1] running_mean not None, double[::1] running_var not None):
    check(fastbn_update_running(mean.shape[0], &mean[0], &var[0], momentum, var_scale, &running_mean[0],
                                &running_var[0], FASTBN_FLOAT64))


# ---- the layer's inference ----

cdef bint is_plain(object a) noexcept:
    """An ndarray, C-contiguous, aligned, in native byte order."""
    return (cnp.PyArray_CheckExact(a) and cnp.PyArray_ISCARRAY_RO(<cnp.ndarray> a)
            and not cnp.PyArray_ISBYTESWAPPED(<cnp.ndarray> a))


cdef void *data_or_null(object a) noexcept:
    return NULL if a is None else cnp.PyArray_DATA(<cnp.ndarray> a)


cdef bint apart(cnp.ndarray a, cnp.ndarray b) noexcept:
    """The same memory or disjoint memory."""
    cdef size_t p = <size_t> cnp.PyArray_DATA(a), q = <size_t> cnp.PyArray_DATA(b)
    return p == q or p + <size_t> cnp.PyArray_NBYTES(a) <= q or q + <size_t> cnp.PyArray_NBYTES(b) <= p


cdef class LayerBase:
    """Holds the arrays of a layer, and computes its inference on plain arrays without a detour through Python.

    Scale and shift are derived from the arrays in every call, so that writing to them takes effect at once. Each of them is None or an
    aligned, contiguous array of `num_features` entries of the layer's dtype; the subclass sees to that.
    """
    cdef object gamma_array, beta_array, mean_array, var_array
    cdef readonly Py_ssize_t num_features
    cdef public bint training
    cdef bint keeps_input  # for a backward through the inference
    cdef double eps_value
    cdef int axis_number   # meaningful where it is one axis
    cdef bint takes_fast_path, one_axis, is_double

    def __cinit__(self, *args, **kwargs):
        self.gamma_array = self.beta_array = self.mean_array = self.var_array = None
        self.training = True
        self.takes_fast_path = False

    cdef cnp.ndarray fast_inference(self, object x, object out):
        """y, or None where the general way must be taken."""
        cdef cnp.ndarray source, target
        cdef int ndim, axis, kind
        if not self.takes_fast_path or self.training or self.keeps_input or self.mean_array is None or not is_plain(x):
            return None
        source = <cnp.ndarray> x
        kind, ndim, axis = cnp.PyArray_TYPE(source), cnp.PyArray_NDIM(source), self.axis_number
        if axis < 0:
            axis += ndim
        if not self.one_axis:
            return None
        if (kind != cnp.NPY_FLOAT32 and kind != cnp.NPY_FLOAT64) or ndim < 2 or axis < 0 or axis >= ndim:
            return None
        if cnp.PyArray_DIM(source, axis) != self.num_features:
            return None
        if out is None:
            target = cnp.PyArray_EMPTY(ndim, cnp.PyArray_DIMS(source), kind, 0)
        elif self.fits(source, out):
            target = <cnp.ndarray> out
        else:
            return None
        self.infer(source, target, axis)
        return target

    cdef bint fits(self, cnp.ndarray x, object out) noexcept:
        """Whether out is a plain array like x that shares memory with nothing else that is read."""
        cdef cnp.ndarray y
        if out is x:
            return cnp.PyArray_ISWRITEABLE(x) and self.is_apart_from_state(x)
        if not is_plain(out):
            return False
        y = <cnp.ndarray> out
        return (cnp.PyArray_ISWRITEABLE(y) and cnp.PyArray_TYPE(y) == cnp.PyArray_TYPE(x)
                and cnp.PyArray_SAMESHAPE(x, y) and apart(x, y) and self.is_apart_from_state(y))

    cdef bint is_apart_from_state(self, cnp.ndarray y) noexcept:
        cdef object a
        for a in (self.gamma_array, self.beta_array, self.mean_array, self.var_array):
            if a is not None and (not apart(y, <cnp.ndarray> a) or
                                  cnp.PyArray_DATA(y) == cnp.PyArray_DATA(<cnp.ndarray> a)):
                return False
        return True

    cdef int infer(self, cnp.ndarray x, cnp.ndarray y, int axis) except -1:
        cdef fastbn_shape shape
        cdef fastbn_input source
        cdef fastbn_output target
        cdef fastbn_params params
        cdef fastbn_status status
        cdef const void *mean = data_or_null(self.mean_array)
        cdef const void *var = data_or_null(self.var_array)
        cdef int i
        shape.n = shape.s = 1
        shape.c = self.num_features
        for i in range(axis):
            shape.n *= cnp.PyArray_DIM(x, i)
        for i in range(axis + 1, cnp.PyArray_NDIM(x)):
            shape.s *= cnp.PyArray_DIM(x, i)
        shape.dtype = FASTBN_FLOAT32 if cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT32 else FASTBN_FLOAT64
        source.data, target.data = cnp.PyArray_DATA(x), cnp.PyArray_DATA(y)
        source.stride_n = target.stride_n = shape.c * shape.s
        source.stride_c = target.stride_c = shape.s
        params.gamma, params.beta = data_or_null(self.gamma_array), data_or_null(self.beta_array)
        params.dtype = FASTBN_FLOAT64 if self.is_double else FASTBN_FLOAT32
        if cnp.PyArray_NBYTES(x) < 16384:  # releasing the GIL would cost more than it gives
            return check(fastbn_inference(&shape, source, mean, var, &params, self.eps_value, target, 0))
        with nogil:
            status = fastbn_inference(&shape, source, mean, var, &params, self.eps_value, target, 0)
        return check(status)

    # What the subclass sets; it has checked the values.

    def _set_num_features(self, Py_ssize_t c):
        self.num_features = c

    def _set_axis(self, axis):
        """None where there are several."""
        self.one_axis = axis is not None
        self.axis_number = axis if axis is not None else 0

    def _set_keeps_input(self, bint on):
        self.keeps_input = on

    def _get_keeps_input(self):
        return self.keeps_input

    def _set_eps(self, double eps):
        self.eps_value = eps

    def _get_eps(self):
        return self.eps_value

    def _enable_fast_path(self, bint on):
        self.takes_fast_path = on

    def _set_arrays(self, **arrays):
        for name, a in arrays.items():
            if name == "gamma":
                self.gamma_array = a
            elif name == "beta":
                self.beta_array = a
            elif name == "mean":
                self.mean_array = a
            else:
                self.var_array = a
            if a is not None:
                self.is_double = cnp.PyArray_TYPE(<cnp.ndarray> a) == cnp.NPY_FLOAT64

    def _get_gamma(self):
        return self.gamma_array

    def _get_beta(self):
        return self.beta_array

    def _get_mean(self):
        return self.mean_array

    def _get_var(self):
        return self.var_array

    def _infer(self, x, out):
        return self.fast_inference(x, out)

    def __call__(self, x, *, out=None):
        """The same as forward(x, out=out)."""
        cdef object y = self.fast_inference(x, out)
        return y if y is not None else self.forward(x, out=out)


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
    fastbn_rearm_threads()


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
