# The layer on plain arrays, included by _core.pyx: an extension type that holds the layer's arrays.


cdef class LayerBase:
    """Holds the arrays of a layer, and computes on plain arrays without a detour through Python.

    Scale and shift are derived from the arrays in every call, so that writing to them takes effect at once. Each of
    them is None or an aligned, contiguous array of `num_features` entries of the layer's dtype; the subclass sees to
    that.
    """
    cdef object gamma_array, beta_array, mean_array, var_array
    cdef readonly Py_ssize_t num_features
    """C, the size of the feature axis, an int."""
    cdef public bint training
    """The mode, a bool: True for training, False for inference. train() and eval() set it."""
    cdef public object num_batches_tracked
    """How many batches the moving averages have seen, an int; None where track_running_stats=False."""
    cdef public object dgamma
    """The gradient with respect to gamma, an array of shape (C,), that the last backward call set; None before."""
    cdef public object dbeta
    """The gradient with respect to beta, an array of shape (C,), that the last backward call set; None before."""
    cdef public object _saved     # of the last forward call that backward may go back through, or None
    cdef public object _momentum  # None or a float
    cdef public int _ddof
    cdef object batch          # of the last training forward call: the rows of its Saved, its Moments, or None
    cdef int64_t batch_count   # with rows: the entries of each feature
    cdef bint keeps_input  # for a backward through the inference
    cdef double eps_value, activation_slope
    cdef fastbn_activation activation_code
    cdef object act
    cdef int axis_number   # meaningful where it is one axis
    cdef bint takes_fast_path, one_axis, is_double

    def __cinit__(self, *args, **kwargs):
        self.training = True
        self.takes_fast_path = False

    cdef int kind(self) noexcept:
        """NumPy's number of the arrays' type."""
        return cnp.NPY_FLOAT64 if self.is_double else cnp.NPY_FLOAT32

    cdef cnp.ndarray fast_forward(self, object x, object residual, object out):
        """y, or None where the general way must be taken."""
        cdef plain_call call
        if not self.takes_fast_path or not self.one_axis or not read_data(x, self.axis_number, &call):
            return None
        if call.shape.c != self.num_features:
            return None
        call.eps, call.threads = self.eps_value, 0
        call.activation, call.slope = self.activation_code, self.activation_slope
        if self.training:
            return None if residual is not None else self.fast_training(&call, <cnp.ndarray> x, out)
        return None if self.keeps_input else self.fast_inference(&call, <cnp.ndarray> x, residual, out)

    cdef cnp.ndarray fast_inference(self, const plain_call *call, cnp.ndarray x, object residual, object out):
        cdef cnp.ndarray y
        if not can_infer(call, x, self.mean_array, self.var_array, self.gamma_array, self.beta_array, out):
            return None
        if not can_add(x, residual, out):
            return None
        y = target_of(out, x)
        infer(call, x, residual, y, self.mean_array, self.var_array, self.gamma_array, self.beta_array)
        return y

    cdef cnp.ndarray fast_training(self, const plain_call *call, cnp.ndarray x, object out):
        cdef cnp.ndarray y
        cdef Saved saved
        cdef int64_t count = call.shape.n * call.shape.s
        if count == 1 or not can_train(call, x, self.gamma_array, self.beta_array, out):
            return None
        if self.mean_array is not None and not self.can_update(call.shape.c, out):
            return None
        y = target_of(out, x)
        saved = train(call, x, None, self.gamma_array, self.beta_array, y)
        saved.extras = self.act
        self._saved, self.batch, self.batch_count = saved, saved.rows, count
        if self.mean_array is not None:
            self.update_running(saved, count)
        return y

    cdef bint can_update(self, cnp.npy_intp c, object out) noexcept:
        """Whether nothing can go wrong once y is written."""
        cdef object mean = self.mean_array, var = self.var_array
        cdef int kind = self.kind()
        return (is_vector_of(mean, c, kind) and cnp.PyArray_ISWRITEABLE(<cnp.ndarray> mean) and is_clear_of(out, mean)
                and is_vector_of(var, c, kind) and cnp.PyArray_ISWRITEABLE(<cnp.ndarray> var) and is_clear_of(out, var)
                and PyLong_CheckExact(self.num_batches_tracked))

    cdef int update_running(self, Saved saved, int64_t count) except -1:
        cdef object seen = self.num_batches_tracked
        cdef double momentum = seen / (seen + 1) if self._momentum is None else self._momentum
        step(saved, count, self._ddof, momentum, self.mean_array, self.var_array)
        self.num_batches_tracked = seen + 1
        return 0

    cdef cnp.ndarray fast_backward(self, object dy, object out):
        """dx, with dgamma and dbeta set; or None where the general way must be taken."""
        cdef Saved saved
        cdef tuple found
        if not self.takes_fast_path or not isinstance(self._saved, Saved):
            return None
        saved = <Saved> self._saved
        if saved.gradient_kind != self.kind():  # by x, where the layer has no gamma
            return None
        found = gradients(saved, dy, out, self.gamma_array is not None, self.beta_array is not None, 0)
        if found is None:
            return None
        self._saved = None
        self.dgamma, self.dbeta = found[1], found[2]
        return found[0]

    def _check_arrays(self):
        """Raises RuntimeError where an array is not what the layer made or was given: its owner can change it in place."""
        cdef cnp.npy_intp c = self.num_features
        cdef int kind = self.kind()
        if (is_vector_of(self.gamma_array, c, kind) and is_vector_of(self.beta_array, c, kind)
                and is_vector_of(self.mean_array, c, kind) and is_vector_of(self.var_array, c, kind)):
            return
        for name, a in (("gamma", self.gamma_array), ("beta", self.beta_array), ("running_mean", self.mean_array),
                        ("running_var", self.var_array)):
            if not is_vector_of(a, c, kind):
                raise RuntimeError(f"{name} has shape {a.shape}, dtype {a.dtype} and strides {a.strides}, expected a contiguous "
                                   f"array of shape ({self.num_features},) and dtype {'float64' if self.is_double else 'float32'}"
                                   ": it was changed in place; assign another array in place of that")

    # What the subclass sets; it has checked the values.

    def _set_num_features(self, Py_ssize_t c):
        self.num_features = c

    def _set_axis(self, axis):
        """None where there are several."""
        self.one_axis = axis is not None
        self.axis_number = axis if axis is not None else 0

    def _set_activation(self, int code, double slope, act):
        """act: the Extras of calls with it alone, or None."""
        self.activation_code, self.activation_slope, self.act = <fastbn_activation> code, slope, act

    def _set_keeps_input(self, bint on):
        self.keeps_input = on

    def _get_keeps_input(self):
        return self.keeps_input

    def _set_eps(self, double eps):
        self.eps_value = eps

    def _get_eps(self):
        return self.eps_value

    def _set_batch(self, batch):
        self.batch = batch

    def _get_batch(self):
        """The batch's Moments or None, or (count, mean, var)."""
        if isinstance(self.batch, cnp.ndarray):
            return self.batch_count, self.batch[MEAN], self.batch[VAR]
        return self.batch

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
            elif name == "var":
                self.var_array = a
            else:
                raise ValueError(f"a layer has no array {name}")
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

    @cython.binding(False)
    def _forward(self, x, residual, out):
        return self.fast_forward(x, residual, out)

    @cython.binding(False)
    def _backward(self, dy, out):
        return self.fast_backward(dy, out)

    def __call__(self, x, *, residual=None, mask=None, weights=None, lengths=None, out=None, update=True, like=None):
        """The same as forward with these arguments."""
        cdef object y
        if update is True and mask is None and weights is None and lengths is None and like is None:
            y = self.fast_forward(x, residual, out)
            if y is not None:
                return y
            if residual is None:
                return self.forward(x, out=out)
        given = {"residual": residual, "mask": mask, "weights": weights, "lengths": lengths, "like": like}
        given = {name: value for name, value in given.items() if value is not None}
        if update is not True:
            given["update"] = update
        return self.forward(x, out=out, **given)
