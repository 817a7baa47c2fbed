# The layer's inference, included by _core.pyx: an extension type that holds the layer's arrays.


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

    Scale and shift are derived from the arrays in every call, so that writing to them takes effect at once. Each of
    them is None or an
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
