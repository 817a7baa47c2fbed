# The general way to the core, included by _core.pyx: each operation with all that it may have beyond normalization.
#
# Data are arrays of shape (n, c, s) of any data type, see _engine/layout.py; they are no memoryviews, since bfloat16 arrays
# export no buffer, and so their types, sizes and strides are checked here. Parameters, statistics and gradients are
# memoryviews of float64.


cdef int check_data(cnp.ndarray a, cnp.ndarray like, bint writes) except -1:
    """a is of like's shape and type, as the core walks it; None passes."""
    cdef int axis
    cdef cnp.npy_intp size
    if a is None:
        return 0
    if cnp.PyArray_NDIM(a) != 3 or cnp.PyArray_TYPE(a) != cnp.PyArray_TYPE(like):
        raise ValueError("an array is not of shape (n, c, s), or of another type than the others")
    size = cnp.PyArray_ITEMSIZE(a)
    for axis in range(3):
        if cnp.PyArray_DIM(a, axis) != cnp.PyArray_DIM(like, axis):
            raise ValueError("arrays are not of one shape (n, c, s)")
        if cnp.PyArray_DIM(a, axis) > 1 and cnp.PyArray_STRIDE(a, axis) % size:
            raise ValueError("a stride is not a number of entries")
    if cnp.PyArray_DIM(a, 2) > 1 and cnp.PyArray_STRIDE(a, 2) != size:
        raise ValueError("the last axis of an array is not contiguous")
    if writes and not cnp.PyArray_ISWRITEABLE(a):
        raise ValueError("an array for results cannot be written to")
    return 0


cdef fastbn_shape shape_of(cnp.ndarray a) except *:
    cdef fastbn_shape shape
    if cnp.PyArray_NDIM(a) != 3:
        raise ValueError("an array is not of shape (n, c, s)")
    shape.n, shape.c, shape.s = cnp.PyArray_DIM(a, 0), cnp.PyArray_DIM(a, 1), cnp.PyArray_DIM(a, 2)
    if not read_dtype(a, &shape.dtype):
        raise TypeError("an array is of no type of data")
    check_data(a, a, False)
    return shape


cdef fastbn_input input_of(cnp.ndarray a) noexcept:
    """None: absent."""
    cdef fastbn_input array
    array.data, array.stride_n, array.stride_c = NULL, 0, 0
    if a is not None:
        array.data = cnp.PyArray_DATA(a)
        array.stride_n = cnp.PyArray_STRIDE(a, 0) // cnp.PyArray_ITEMSIZE(a)
        array.stride_c = cnp.PyArray_STRIDE(a, 1) // cnp.PyArray_ITEMSIZE(a)
    return array


cdef fastbn_output output_of(cnp.ndarray a) noexcept:
    cdef fastbn_input array = input_of(a)
    cdef fastbn_output result
    result.data, result.stride_n, result.stride_c = <void *> array.data, array.stride_n, array.stride_c
    return result


cdef const double *read_pointer(const double[::1] a, const fastbn_shape *shape) except? NULL:
    """A pointer to a vector of one number a feature; NULL for None. Raises ValueError (another length)."""
    if a is None:
        return NULL
    if a.shape[0] != shape.c:
        raise ValueError(f"a vector has {a.shape[0]} entries, expected {shape.c}, one a feature")
    return &a[0] if a.shape[0] else NULL


cdef double *write_pointer(double[::1] a, const fastbn_shape *shape) except? NULL:
    return <double *> read_pointer(a, shape)


@cython.final
cdef class Extra:
    """What goes with a call. Attributes are None where there is nothing.

    residual, dresidual, written: arrays like x. weights: (n * s,) in the type of the arithmetic, of the sum `total` and the
    sum of squares `squares` (0: unknown); counts: (c,), the total weights where NaN entries are left out.
    """
    cdef cnp.ndarray residual, dresidual, written
    cdef cnp.ndarray weights
    cdef const double[::1] counts
    cdef double total, squares, slope
    cdef int activation
    cdef bint inverts
    cdef fastbn_extra c_extra
    cdef fastbn_weights c_weights

    cdef int check_weights(self, const fastbn_shape *shape) except -1:
        cdef int kind = cnp.NPY_FLOAT64 if shape.dtype == FASTBN_FLOAT64 else cnp.NPY_FLOAT32
        if self.weights is not None and (not is_vector_of(self.weights, shape.n * shape.s, kind)):
            raise ValueError(f"the weights are no plain array of {shape.n * shape.s} entries of the arithmetic's type")
        read_pointer(self.counts, shape)
        return 0

    def __init__(self, int activation=0, double slope=0, *, cnp.ndarray residual=None, cnp.ndarray dresidual=None,
                 cnp.ndarray written=None, bint inverts=False, cnp.ndarray weights=None, double total=0,
                 const double[::1] counts=None, double squares=0):
        self.activation, self.slope = activation, slope
        self.residual, self.dresidual, self.written, self.inverts = residual, dresidual, written, inverts
        self.weights, self.total, self.counts, self.squares = weights, total, counts, squares

    cdef const fastbn_weights *weights_for_c(self) noexcept:
        if self.weights is None:
            return NULL
        self.c_weights.data = cnp.PyArray_DATA(self.weights)
        self.c_weights.total, self.c_weights.squares = self.total, self.squares
        self.c_weights.counts = &self.counts[0] if self.counts is not None else NULL
        return &self.c_weights

    cdef int add_to(self, fastbn_params *params, const fastbn_shape *shape, cnp.ndarray x) except -1:
        self.check_weights(shape)
        check_data(self.residual, x, False)
        check_data(self.written, x, False)
        check_data(self.dresidual, x, True)
        self.c_extra.residual, self.c_extra.written = input_of(self.residual), input_of(self.written)
        self.c_extra.dresidual = output_of(self.dresidual)
        self.c_extra.inverts = self.inverts
        self.c_extra.weights = self.weights_for_c()
        params.activation, params.slope = <fastbn_activation> self.activation, self.slope
        params.extra = &self.c_extra
        return 0


cdef fastbn_params params_of(const fastbn_shape *shape, const double[::1] gamma, const double[::1] beta, Extra extra,
                             cnp.ndarray x) except *:
    """extra: None where there is nothing beyond normalization."""
    cdef fastbn_params params
    params.gamma, params.beta, params.dtype = read_pointer(gamma, shape), read_pointer(beta, shape), FASTBN_FLOAT64
    params.activation, params.slope, params.extra = FASTBN_IDENTITY, 0, NULL
    if extra is not None:
        extra.add_to(&params, shape, x)
    return params


def moments(cnp.ndarray x not None, Extra extra, double[::1] mean not None, double[::1] m2 not None, int threads):
    cdef fastbn_shape shape = shape_of(x)
    if extra is not None:
        extra.check_weights(&shape)
    call_moments(&shape, input_of(x), NULL if extra is None else extra.weights_for_c(), write_pointer(mean, &shape),
                 write_pointer(m2, &shape), threads)


def inference(cnp.ndarray x not None, Extra extra, const double[::1] mean not None, const double[::1] var not None,
              const double[::1] gamma, const double[::1] beta, double eps, cnp.ndarray y not None, int threads):
    cdef fastbn_shape shape = shape_of(x)
    cdef fastbn_params params = params_of(&shape, gamma, beta, extra, x)
    check_data(y, x, True)
    call_inference(&shape, input_of(x), read_pointer(mean, &shape), read_pointer(var, &shape), &params, eps, output_of(y), threads)


def training(cnp.ndarray x not None, Extra extra, const double[::1] gamma, const double[::1] beta, double eps,
             cnp.ndarray y not None, double[::1] mean not None, double[::1] var not None, double[::1] rstd not None,
             int threads):
    cdef fastbn_shape shape = shape_of(x)
    cdef fastbn_params params = params_of(&shape, gamma, beta, extra, x)
    check_data(y, x, True)
    call_training(&shape, input_of(x), &params, eps, output_of(y), write_pointer(mean, &shape), write_pointer(var, &shape),
                  write_pointer(rstd, &shape), threads)


def backward(cnp.ndarray x, cnp.ndarray dy not None, Extra extra, const double[::1] gamma, const double[::1] beta,
             const double[::1] mean not None, const double[::1] rstd not None, bint frozen, cnp.ndarray dx,
             double[::1] dgamma, double[::1] dbeta, int threads):
    cdef fastbn_shape shape = shape_of(dy)
    cdef fastbn_params params = params_of(&shape, gamma, beta, extra, dy)
    check_data(x, dy, False)
    check_data(dx, dy, True)
    call_backward(&shape, input_of(x), input_of(dy), &params, read_pointer(mean, &shape), read_pointer(rstd, &shape), frozen,
                  output_of(dx), write_pointer(dgamma, &shape), write_pointer(dbeta, &shape), threads)


def double_backward(cnp.ndarray x, cnp.ndarray dy not None, cnp.ndarray ddx, const double[::1] ddgamma,
                    const double[::1] ddbeta, const double[::1] gamma, const double[::1] mean not None,
                    const double[::1] rstd not None, bint frozen, cnp.ndarray ddy, cnp.ndarray dx, double[::1] dgamma,
                    int threads):
    """The data are float32 or float64."""
    cdef fastbn_shape shape = shape_of(dy)
    cdef fastbn_params params = params_of(&shape, gamma, None, None, dy)
    cdef fastbn_input x_in = input_of(x), dy_in = input_of(dy), ddx_in = input_of(ddx)
    cdef fastbn_output ddy_out = output_of(ddy), dx_out = output_of(dx)
    cdef const double *ddgamma_data = read_pointer(ddgamma, &shape)
    cdef const double *ddbeta_data = read_pointer(ddbeta, &shape)
    cdef const double *mean_data = read_pointer(mean, &shape)
    cdef const double *rstd_data = read_pointer(rstd, &shape)
    cdef double *dgamma_data = write_pointer(dgamma, &shape)
    cdef fastbn_status status
    for a in (x, ddx):
        check_data(a, dy, False)
    for a in (ddy, dx):
        check_data(a, dy, True)
    with nogil:
        status = fastbn_double_backward(&shape, x_in, dy_in, ddx_in, ddgamma_data, ddbeta_data, &params, mean_data,
                                        rstd_data, frozen, ddy_out, dx_out, dgamma_data, threads)
    check(status)


# ---- parameters and running statistics, of either of their types ----

def round_f32(const double[::1] a not None, float[::1] rounded not None):
    """Without NumPy's warning where a float32 overflows."""
    cdef Py_ssize_t i
    if a.shape[0] != rounded.shape[0]:
        raise ValueError(f"{a.shape[0]} numbers do not round to {rounded.shape[0]}")
    for i in range(a.shape[0]):
        rounded[i] = <float> a[i]


def update_running(const double[::1] mean not None, const double[::1] var not None, double momentum, double var_scale,
                   cnp.ndarray running_mean not None, cnp.ndarray running_var not None):
    """The step of the moving averages, which are float32 or float64."""
    cdef float[::1] mean_f32, var_f32
    cdef double[::1] mean_f64, var_f64
    if not mean.shape[0] == var.shape[0] == running_mean.size == running_var.size:
        raise ValueError(f"{mean.shape[0]} means and {var.shape[0]} variances are no step of {running_mean.size} and "
                         f"{running_var.size} running ones")
    if mean.shape[0] == 0:
        return
    if cnp.PyArray_TYPE(running_mean) == cnp.NPY_FLOAT32:
        mean_f32, var_f32 = running_mean, running_var
        check(fastbn_update_running(mean.shape[0], &mean[0], &var[0], momentum, var_scale, &mean_f32[0], &var_f32[0],
                                    FASTBN_FLOAT32))
    else:
        mean_f64, var_f64 = running_mean, running_var
        check(fastbn_update_running(mean.shape[0], &mean[0], &var[0], momentum, var_scale, &mean_f64[0], &var_f64[0],
                                    FASTBN_FLOAT64))
