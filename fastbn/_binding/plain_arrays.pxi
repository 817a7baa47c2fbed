# Plain arrays, included by _core.pyx: which arguments can go to the C core as they are.
#
# Nothing here raises. Where an answer is no, the general way of _api/ takes the call, with its conversions and
# its errors; where it is yes, that way would have come to the same call of the C core.

cdef extern from "Python.h":
    bint PyFloat_CheckExact(object value) noexcept
    double PyFloat_AsDouble(object value) noexcept
    bint PyLong_CheckExact(object value) noexcept
    long PyLong_AsLongAndOverflow(object value, int *overflow) noexcept


cdef struct plain_call:
    fastbn_shape shape
    double eps
    int axis  # not negative
    int threads
    fastbn_activation activation
    double slope


# ---- numbers ----

cdef bint read_whole(object value, long least, long most, int *number) noexcept:
    cdef int overflow = 0
    cdef long found
    if not PyLong_CheckExact(value):
        return False
    found = PyLong_AsLongAndOverflow(value, &overflow)
    number[0] = <int> found
    return overflow == 0 and least <= found <= most


cdef bint read_threads(object num_threads, int *number) noexcept:
    number[0] = 0
    return num_threads is None or read_whole(num_threads, 1, 2147483647, number)


cdef bint read_eps(object eps, double *number) noexcept:
    if not PyFloat_CheckExact(eps):
        return False
    number[0] = PyFloat_AsDouble(eps)
    return 0.0 < number[0] < INFINITY


# ---- arrays ----

cdef int bfloat16_kind = -1  # NumPy's number of the type, known once an array of it was seen


cdef bint is_bfloat16(cnp.ndarray a) noexcept:
    """By the name of the type, which other packages add to NumPy; none of them is imported."""
    global bfloat16_kind
    cdef int kind = cnp.PyArray_TYPE(a)
    if kind == bfloat16_kind:
        return True
    if not cnp.PyTypeNum_ISUSERDEF(kind) or cnp.PyArray_ITEMSIZE(a) != 2:
        return False
    try:
        if a.dtype.name != "bfloat16":
            return False
    except Exception:
        return False
    bfloat16_kind = kind
    return True


cdef bint read_dtype(cnp.ndarray a, fastbn_dtype *dtype) noexcept:
    """The type of data, if it is one of the C core's."""
    cdef int kind = cnp.PyArray_TYPE(a)
    if kind == cnp.NPY_FLOAT32:
        dtype[0] = FASTBN_FLOAT32
    elif kind == cnp.NPY_FLOAT64:
        dtype[0] = FASTBN_FLOAT64
    elif kind == cnp.NPY_FLOAT16:
        dtype[0] = FASTBN_FLOAT16
    elif is_bfloat16(a):
        dtype[0] = FASTBN_BFLOAT16
    else:
        return False
    return True


cdef bint is_real(int kind) noexcept:
    """Whether parameters may have this type."""
    return kind == cnp.NPY_FLOAT32 or kind == cnp.NPY_FLOAT64


cdef fastbn_dtype dtype_of_kind(int kind) noexcept:
    """The type of a parameter by NumPy's number."""
    return FASTBN_FLOAT32 if kind == cnp.NPY_FLOAT32 else FASTBN_FLOAT64


cdef bint is_plain(object a) noexcept:
    """An ndarray, C-contiguous, aligned, in native byte order."""
    return cnp.PyArray_CheckExact(a) and cnp.PyArray_ISCARRAY_RO(<cnp.ndarray> a)


cdef bint is_vector(object a, cnp.npy_intp c) noexcept:
    """None, or a plain array of c parameters."""
    if a is None:
        return True
    return (is_plain(a) and cnp.PyArray_NDIM(<cnp.ndarray> a) == 1 and cnp.PyArray_DIM(<cnp.ndarray> a, 0) == c
            and is_real(cnp.PyArray_TYPE(<cnp.ndarray> a)))


cdef bint is_vector_of(object a, cnp.npy_intp c, int kind) noexcept:
    return a is None or (is_vector(a, c) and cnp.PyArray_TYPE(<cnp.ndarray> a) == kind)


cdef bint read_data(object x, int axis, plain_call *call) noexcept:
    """Whether x is a plain batch, not empty, that has this axis; its shape and the axis, counted from the front."""
    cdef cnp.ndarray a
    cdef fastbn_shape *shape = &call.shape
    cdef int i, ndim
    if not is_plain(x):
        return False
    a = <cnp.ndarray> x
    ndim = cnp.PyArray_NDIM(a)
    if axis < 0:
        axis += ndim
    if ndim < 2 or axis < 0 or axis >= ndim or not read_dtype(a, &shape.dtype) or cnp.PyArray_SIZE(a) == 0:
        return False
    shape.n = shape.s = 1
    shape.c = cnp.PyArray_DIM(a, axis)
    for i in range(axis):
        shape.n *= cnp.PyArray_DIM(a, i)
    for i in range(axis + 1, ndim):
        shape.s *= cnp.PyArray_DIM(a, i)
    call.axis = axis
    return True


cdef bint read_call(object x, object axis, object num_threads, plain_call *call) noexcept:
    cdef int number
    call.activation, call.slope = FASTBN_IDENTITY, 0
    return (read_whole(axis, -64, 63, &number) and read_data(x, number, call)
            and read_threads(num_threads, &call.threads))


# ---- where results go ----

cdef bint apart(cnp.ndarray a, cnp.ndarray b) noexcept:
    cdef size_t p = <size_t> cnp.PyArray_DATA(a), q = <size_t> cnp.PyArray_DATA(b)
    return p + <size_t> cnp.PyArray_NBYTES(a) <= q or q + <size_t> cnp.PyArray_NBYTES(b) <= p


cdef bint are_alike(cnp.ndarray a, object b) noexcept:
    """Whether b is a plain array of the type and shape of a, which is one."""
    return (is_plain(b) and cnp.PyArray_TYPE(<cnp.ndarray> b) == cnp.PyArray_TYPE(a)
            and cnp.PyArray_SAMESHAPE(a, <cnp.ndarray> b))


cdef bint is_same_memory(object out, cnp.ndarray x) noexcept:
    return out is not None and cnp.PyArray_DATA(<cnp.ndarray> out) == cnp.PyArray_DATA(x)


cdef bint fits(object out, cnp.ndarray x) noexcept:
    """None, or a plain array like x that may be written to while x is read: x's memory or apart from it."""
    if out is None:
        return True
    return (are_alike(x, out) and cnp.PyArray_ISWRITEABLE(<cnp.ndarray> out)
            and (is_same_memory(out, x) or apart(<cnp.ndarray> out, x)))


cdef bint can_add(cnp.ndarray x, object residual, object out) noexcept:
    """Whether the residual is None or a plain array like x, apart from `out`, which fits."""
    return residual is None or (are_alike(x, residual) and is_clear_of(out, residual))


cdef bint is_clear_of(object out, object a) noexcept:
    """Whether an array `out` that fits lies apart from the vector a; either may be None."""
    return out is None or a is None or apart(<cnp.ndarray> out, <cnp.ndarray> a)


cdef cnp.ndarray target_of(object out, cnp.ndarray x):
    """out, or a new array like x."""
    if out is not None:
        return <cnp.ndarray> out
    return new_result(cnp.PyArray_NDIM(x), cnp.PyArray_DIMS(x), cnp.PyArray_TYPE(x))


cdef cnp.ndarray new_vector(cnp.npy_intp c, int kind):
    return cnp.PyArray_EMPTY(1, &c, kind, 0)


# ---- for the C core ----

cdef const void *data_or_null(object a) noexcept:
    return NULL if a is None else cnp.PyArray_DATA(<cnp.ndarray> a)


cdef fastbn_input packed_input(const fastbn_shape *shape, object a) noexcept:
    cdef fastbn_input array
    array.data = data_or_null(a)
    array.stride_n, array.stride_c = shape.c * shape.s, shape.s
    return array


cdef fastbn_output packed_output(const fastbn_shape *shape, cnp.ndarray a) noexcept:
    cdef fastbn_output array
    array.data = cnp.PyArray_DATA(a)
    array.stride_n, array.stride_c = shape.c * shape.s, shape.s
    return array


cdef const fastbn_extra *with_residual(const fastbn_shape *shape, object residual, fastbn_extra *extra) noexcept:
    """What goes with a forward call: `extra` with this alone, or nothing."""
    if residual is None:
        return NULL
    memset(extra, 0, sizeof(fastbn_extra))
    extra.residual = packed_input(shape, residual)
    return extra
