# The operations with all that they may have beyond normalization, included by _core.pyx: activations, residuals, weights.
# For the general way: arrays of shape (n, c, s) of any data type, see _canonical.py; parameters and statistics are
# float64.


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


cdef fastbn_shape shape_of_array(cnp.ndarray a) except *:
    cdef fastbn_shape shape
    if cnp.PyArray_NDIM(a) != 3:
        raise ValueError("an array is not of shape (n, c, s)")
    shape.n, shape.c, shape.s = cnp.PyArray_DIM(a, 0), cnp.PyArray_DIM(a, 1), cnp.PyArray_DIM(a, 2)
    if not read_dtype(a, &shape.dtype):
        raise TypeError("an array is of no type of data")
    return shape


cdef class Extra:
    """What goes with a call. Attributes are None where there is nothing.

    residual, dresidual, written: arrays like x. weights: (n * s,) in the type of the arithmetic, of the sum `total`;
    counts: (c,), the total weights where NaN entries are left out.
    """
    cdef cnp.ndarray residual, dresidual, written
    cdef cnp.ndarray weights
    cdef const double[::1] counts
    cdef double total, slope
    cdef int activation
    cdef bint inverts
    cdef fastbn_extra c_extra
    cdef fastbn_weights c_weights

    def __init__(self, int activation=0, double slope=0, *, cnp.ndarray residual=None, cnp.ndarray dresidual=None,
                 cnp.ndarray written=None, bint inverts=False, cnp.ndarray weights=None, double total=0,
                 const double[::1] counts=None):
        self.activation, self.slope = activation, slope
        self.residual, self.dresidual, self.written, self.inverts = residual, dresidual, written, inverts
        self.weights, self.total, self.counts = weights, total, counts

    cdef const fastbn_weights *weights_for_c(self) noexcept:
        if self.weights is None:
            return NULL
        self.c_weights.data = cnp.PyArray_DATA(self.weights)
        self.c_weights.total = self.total
        self.c_weights.counts = &self.counts[0] if self.counts is not None else NULL
        return &self.c_weights

    cdef void add_to(self, fastbn_params *params) noexcept:
        self.c_extra.residual, self.c_extra.written = input_of(self.residual), input_of(self.written)
        self.c_extra.dresidual = output_of(self.dresidual)
        self.c_extra.inverts = self.inverts
        self.c_extra.weights = self.weights_for_c()
        params.activation, params.slope = <fastbn_activation> self.activation, self.slope
        params.extra = &self.c_extra


def fused_moments(cnp.ndarray x not None, Extra extra not None, double[::1] mean not None, double[::1] m2 not None,
                  int threads):
    cdef fastbn_shape shape = shape_of_array(x)
    cdef fastbn_input data = input_of(x)
    cdef const fastbn_weights *weights = extra.weights_for_c()
    cdef fastbn_status status
    with nogil:
        status = fastbn_weighted_moments(&shape, data, weights, &mean[0], &m2[0], threads)
    check(status)


def fused_inference(cnp.ndarray x not None, Extra extra not None, const double[::1] mean not None,
                    const double[::1] var not None, const double[::1] gamma, const double[::1] beta, double eps,
                    cnp.ndarray y not None, int threads):
    cdef fastbn_shape shape = shape_of_array(x)
    cdef fastbn_params params = as_params(gamma, beta)
    extra.add_to(&params)
    call_inference(&shape, input_of(x), &mean[0], &var[0], &params, eps, output_of(y), threads)


def fused_training(cnp.ndarray x not None, Extra extra not None, const double[::1] gamma, const double[::1] beta,
                   double eps, cnp.ndarray y not None, double[::1] mean not None, double[::1] var not None,
                   double[::1] rstd not None, int threads):
    cdef fastbn_shape shape = shape_of_array(x)
    cdef fastbn_params params = as_params(gamma, beta)
    extra.add_to(&params)
    call_training(&shape, input_of(x), &params, eps, output_of(y), &mean[0], &var[0], &rstd[0], threads)


def fused_backward(cnp.ndarray x, cnp.ndarray dy not None, Extra extra not None, const double[::1] gamma,
                   const double[::1] beta, const double[::1] mean not None, const double[::1] rstd not None,
                   bint frozen, cnp.ndarray dx, double[::1] dgamma, double[::1] dbeta, int threads):
    cdef fastbn_shape shape = shape_of_array(dy)
    cdef fastbn_params params = as_params(gamma, beta)
    extra.add_to(&params)
    call_backward(&shape, input_of(x), input_of(dy), &params, &mean[0], &rstd[0], frozen, output_of(dx),
                  <void *> &dgamma[0] if dgamma is not None else NULL,
                  <void *> &dbeta[0] if dbeta is not None else NULL, threads)
