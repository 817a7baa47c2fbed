# The operations on plain arrays, included by _core.pyx: from the arguments to the C core and its results in one go.
#
# Each function for Python takes all arguments by position and gives None where the general way must be taken. Without
# binding they are plain built-ins, which a call under the limited API reaches without making a tuple first.


cdef bint can_infer(const plain_call *call, cnp.ndarray x, object mean, object var, object gamma, object beta,
                    object out) noexcept:
    """Whether the statistics and parameters are vectors of one type, and `out` fits."""
    cdef cnp.npy_intp c = call.shape.c
    cdef int kind
    if mean is None or var is None or not is_vector(mean, c):
        return False
    kind = cnp.PyArray_TYPE(<cnp.ndarray> mean)
    return (is_vector_of(var, c, kind) and is_vector_of(gamma, c, kind) and is_vector_of(beta, c, kind) and fits(out, x)
            and is_clear_of(out, mean) and is_clear_of(out, var) and is_clear_of(out, gamma) and is_clear_of(out, beta))


cdef int infer(const plain_call *call, cnp.ndarray x, object residual, cnp.ndarray y, object mean, object var,
               object gamma, object beta) except -1:
    cdef fastbn_params params
    cdef fastbn_extra extra
    params.gamma, params.beta = data_or_null(gamma), data_or_null(beta)
    params.dtype = dtype_of_kind(cnp.PyArray_TYPE(<cnp.ndarray> mean))
    params.activation, params.slope = call.activation, call.slope
    params.extra = with_residual(&call.shape, residual, &extra)
    return call_inference(&call.shape, packed_input(&call.shape, x), data_or_null(mean), data_or_null(var), &params,
                          call.eps, packed_output(&call.shape, y), call.threads)


@cython.binding(False)
def plain_inference(x, mean, var, gamma, beta, eps, axis, out, num_threads, act, residual):
    """act: None, or an fusion.Extras with an activation alone."""
    cdef plain_call call
    cdef cnp.ndarray y
    if not read_call(x, axis, num_threads, &call) or not read_eps(eps, &call.eps):
        return None
    read_activation(act, &call)
    if not can_infer(&call, <cnp.ndarray> x, mean, var, gamma, beta, out) or not can_add(x, residual, out):
        return None
    y = target_of(out, <cnp.ndarray> x)
    infer(&call, <cnp.ndarray> x, residual, y, mean, var, gamma, beta)
    return y


cdef Saved saved_of_inference(const plain_call *call, cnp.ndarray x, object mean, object var, object gamma,
                              object beta, cnp.ndarray y):
    """For a backward in which mean and var are constants; all as can_infer wants them."""
    cdef Saved saved = Saved.__new__(Saved)
    saved.axis = call.axis
    saved.take(x, call.shape.c, gamma, beta, True, is_same_memory(y, x))
    saved.activation, saved.slope = call.activation, call.slope
    widen(mean, saved.row(MEAN))
    widen(var, saved.row(VAR))
    saved.set_rstd(call.eps)
    return saved


@cython.binding(False)
def plain_frozen(x, mean, var, gamma, beta, eps, axis, out, num_threads, act):
    """(y, saved). act: as above."""
    cdef plain_call call
    cdef cnp.ndarray y
    cdef Saved saved
    if not read_call(x, axis, num_threads, &call) or not read_eps(eps, &call.eps):
        return None
    read_activation(act, &call)
    if not can_infer(&call, <cnp.ndarray> x, mean, var, gamma, beta, out):
        return None
    y = target_of(out, <cnp.ndarray> x)
    infer(&call, <cnp.ndarray> x, None, y, mean, var, gamma, beta)
    saved = saved_of_inference(&call, <cnp.ndarray> x, mean, var, gamma, beta, y)
    saved.extras = act
    return y, saved


cdef int read_activation(object act, plain_call *call) except -1:
    if act is not None:
        call.activation, call.slope = <fastbn_activation> <int> act.activation.code, act.activation.slope
    return 0


cdef bint can_train(const plain_call *call, cnp.ndarray x, object gamma, object beta, object out) noexcept:
    return (is_vector(gamma, call.shape.c) and is_vector(beta, call.shape.c) and fits(out, x)
            and is_clear_of(out, gamma) and is_clear_of(out, beta))


cdef fastbn_params params_as_given(Saved saved, object gamma, object beta) noexcept:
    """gamma and beta of the caller, if they have one type, else the copies: memory that was not just written, which
    other threads would take from this one's cache."""
    cdef fastbn_params params = saved.params()
    cdef int kind = cnp.NPY_FLOAT64 if gamma is None else cnp.PyArray_TYPE(<cnp.ndarray> gamma)
    if is_vector_of(beta, cnp.PyArray_DIM(saved.rows, 1), kind):
        params.gamma, params.beta = data_or_null(gamma), data_or_null(beta)
        params.dtype = dtype_of_kind(kind)
    return params


cdef Saved train(const plain_call *call, cnp.ndarray x, object residual, object gamma, object beta, cnp.ndarray y):
    """Writes y; gamma and beta are vectors or None. With a residual only the general way goes back."""
    cdef Saved saved = Saved.__new__(Saved)
    cdef fastbn_params params
    cdef fastbn_extra extra
    saved.axis = call.axis
    saved.take(x, call.shape.c, gamma, beta, False, is_same_memory(y, x))
    params = params_as_given(saved, gamma, beta)
    params.activation, params.slope = call.activation, call.slope
    params.extra = with_residual(&call.shape, residual, &extra)
    if residual is None:
        saved.activation, saved.slope = call.activation, call.slope
    call_training(&call.shape, packed_input(&call.shape, x), &params, call.eps, packed_output(&call.shape, y),
                  saved.row(MEAN), saved.row(VAR), saved.row(RSTD), call.threads)
    return saved


@cython.binding(False)
def plain_training(x, gamma, beta, eps, axis, out, num_threads, act, residual):
    """act: as above. With a residual, saved.extras are for the caller to fill in."""
    cdef plain_call call
    cdef cnp.ndarray y
    cdef Saved saved
    if not read_call(x, axis, num_threads, &call) or not read_eps(eps, &call.eps):
        return None
    if not can_train(&call, <cnp.ndarray> x, gamma, beta, out) or not can_add(x, residual, out):
        return None
    read_activation(act, &call)
    y = target_of(out, <cnp.ndarray> x)
    saved = train(&call, <cnp.ndarray> x, residual, gamma, beta, y)
    saved.extras = act
    return y, saved


cdef bint can_step(object mean, object var, cnp.npy_intp c) noexcept:
    """Whether two moving averages can be written to."""
    cdef int kind
    if not is_vector(mean, c) or mean is None or var is None:
        return False
    kind = cnp.PyArray_TYPE(<cnp.ndarray> mean)
    return (is_vector_of(var, c, kind) and cnp.PyArray_ISWRITEABLE(<cnp.ndarray> mean)
            and cnp.PyArray_ISWRITEABLE(<cnp.ndarray> var))


cdef int step(Saved saved, int64_t count, int ddof, double momentum, object mean, object var) except -1:
    """Takes a step of moving averages for which can_step holds; momentum is the weight of the old one."""
    check(fastbn_update_running(cnp.PyArray_DIM(saved.rows, 1), saved.row(MEAN), saved.row(VAR), momentum,
                                <double> count / <double> (count - ddof), cnp.PyArray_DATA(<cnp.ndarray> mean),
                                cnp.PyArray_DATA(<cnp.ndarray> var),
                                dtype_of_kind(cnp.PyArray_TYPE(<cnp.ndarray> mean))))
    return 0


cdef object for_gradient(Saved saved, int which, bint there, const void **data):
    """gamma or beta in the type of the gradients: it came from that type, or there is none. Gives what holds the data."""
    cdef cnp.ndarray narrow
    cdef cnp.npy_intp c = cnp.PyArray_DIM(saved.rows, 1)
    cdef const double *wide = saved.row(which)
    data[0] = wide if there else NULL
    if not there or saved.gradient_kind == cnp.NPY_FLOAT64:
        return saved
    narrow = new_vector(c, cnp.NPY_FLOAT32)
    data[0] = cnp.PyArray_DATA(narrow)
    typed_kernels(narrow).round(c, wide, cnp.PyArray_DATA(narrow))
    return narrow


cdef tuple gradients(Saved saved, object dy, object out, bint wants_dgamma, bint wants_dbeta, int threads):
    """(dx, dgamma, dbeta), None for what is not wanted; or None."""
    cdef plain_call call
    cdef fastbn_params params
    cdef cnp.ndarray dx
    cdef object dgamma = None, dbeta = None, gamma, beta
    cdef bint acts = saved.activation != FASTBN_IDENTITY, uses_x
    if saved.holds_y or (saved.extras is not None and not acts) or saved.axis < 0 or not saved.has_input():
        return None
    if not read_data(saved.x, saved.axis, &call) or not are_alike(saved.x, dy):
        return None
    if acts and not saved.beta_has_gradient_kind:  # z is computed again, and may not differ
        return None
    if not fits(out, saved.x) or not fits(out, <cnp.ndarray> dy):
        return None
    gamma = for_gradient(saved, GAMMA, saved.has_gamma, &params.gamma)
    beta = for_gradient(saved, BETA, acts and saved.has_beta, &params.beta)
    params.dtype = dtype_of_kind(saved.gradient_kind)
    params.activation, params.slope, params.extra = saved.activation, saved.slope, NULL
    if wants_dgamma:
        dgamma = new_vector(call.shape.c, saved.gradient_kind)
    if wants_dbeta:
        dbeta = new_vector(call.shape.c, saved.gradient_kind)
    dx = target_of(out, saved.x)
    uses_x = wants_dgamma or acts or not saved.frozen
    call_backward(&call.shape, packed_input(&call.shape, saved.x if uses_x else None),
                  packed_input(&call.shape, dy), &params, saved.row(MEAN), saved.row(RSTD), saved.frozen,
                  packed_output(&call.shape, dx), <void *> data_or_null(dgamma), <void *> data_or_null(dbeta), threads)
    return dx, dgamma, dbeta


@cython.binding(False)
def plain_backward(dy, saved, out, num_threads):
    """All three gradients."""
    cdef int threads
    if not isinstance(saved, Saved) or not read_threads(num_threads, &threads):
        return None
    return gradients(<Saved> saved, dy, out, True, True, threads)


@cython.binding(False)
def plain_moments(x, axis, num_threads):
    """(count, mean, M2)."""
    cdef plain_call call
    cdef cnp.ndarray mean, m2
    if not read_call(x, axis, num_threads, &call):
        return None
    mean, m2 = new_vector(call.shape.c, cnp.NPY_FLOAT64), new_vector(call.shape.c, cnp.NPY_FLOAT64)
    call_moments(&call.shape, packed_input(&call.shape, x), NULL, <double *> cnp.PyArray_DATA(mean),
                 <double *> cnp.PyArray_DATA(m2), call.threads)
    return call.shape.n * call.shape.s, mean, m2
