# The operations on another framework's tensors, included by _core.pyx. Their memory is read through DLPack's C exchange
# API, in a fifth of the time of the framework's own way to an array: https://dmlc.github.io/dlpack/latest/c_api.html
from cpython.exc cimport PyErr_Clear
from cpython.pycapsule cimport PyCapsule_GetPointer

# As dlpack.h lays them out; its versions of one major number agree in that.
cdef struct dl_tensor:
    void *data
    int device_type, device_id
    int ndim
    unsigned char code, bits
    unsigned short lanes
    int64_t *shape
    int64_t *strides  # in elements
    uint64_t byte_offset

cdef struct dl_versioned:  # what a capsule holds
    unsigned int major, minor
    void *manager
    void *deleter
    uint64_t flags
    dl_tensor tensor

ctypedef int (*dl_reader)(void *tensor, dl_tensor *out) noexcept

cdef struct dl_exchange:
    unsigned int major, minor
    void *previous
    void *allocator
    void *from_object
    void *to_object
    dl_reader read
    void *stream

cdef enum:
    DL_MAJOR = 1
    DL_CPU = 1
    DL_UINT = 1
    DL_FLOAT = 2
    DL_BFLOAT = 4
    DL_DIMS = 8


cdef int kind_of_tensor(const dl_tensor *t) noexcept:
    """NumPy's number of a type of data; -1 of another, and of bfloat16 while no array of it was seen."""
    if t.lanes != 1:
        return -1
    if t.code == DL_BFLOAT and t.bits == 16:
        return bfloat16_kind
    if t.code != DL_FLOAT:
        return -1
    if t.bits == 64:
        return cnp.NPY_FLOAT64
    return cnp.NPY_FLOAT32 if t.bits == 32 else cnp.NPY_FLOAT16 if t.bits == 16 else -1


cdef bint is_dense(const dl_tensor *t) noexcept:
    """Whether C-contiguous, and more than one entry: a lone one may be part of anything, a negated view even."""
    cdef int64_t expected = 1
    cdef int i
    for i in range(t.ndim - 1, -1, -1):
        if t.shape[i] != 1 and t.strides[i] != expected:
            return False
        expected *= t.shape[i]
    return expected > 1


@cython.final
cdef class Exchange:
    """The operations for tensors of given types; what is not as simple as they expect gives None."""
    cdef dl_reader read
    cdef tuple types

    def __init__(self, *types):
        """types: the first has the API as an attribute. Raises AttributeError, ValueError (it cannot be used)."""
        cdef dl_exchange *api = <dl_exchange *> PyCapsule_GetPointer(types[0].__dlpack_c_exchange_api__,
                                                                     b"dlpack_exchange_api")
        if api.major != DL_MAJOR or api.read == NULL:
            raise ValueError(f"{types[0].__name__} exchanges by DLPack {api.major}, expected {DL_MAJOR}")
        self.read, self.types = api.read, types

    cdef object view(self, object tensor, bint *ok):
        """An array on the tensor's memory; None of None. ok: set to False where there is none."""
        cdef dl_tensor t
        cdef cnp.npy_intp[DL_DIMS] shape
        cdef cnp.ndarray a
        cdef int i, kind
        if tensor is None or not ok[0]:
            return None
        ok[0] = type(tensor) in self.types
        if not ok[0]:
            return None
        if self.read(<void *> tensor, &t) != 0:
            PyErr_Clear()
            ok[0] = False
            return None
        kind = kind_of_tensor(&t)
        ok[0] = (t.device_type == DL_CPU and kind >= 0 and t.ndim <= DL_DIMS and t.data != NULL and t.strides != NULL
                 and is_dense(&t))
        if not ok[0]:
            return None
        for i in range(t.ndim):
            shape[i] = t.shape[i]
        a = cnp.PyArray_SimpleNewFromData(t.ndim, shape, kind, <char *> t.data + t.byte_offset)
        cnp.set_array_base(a, tensor)
        return a

    @cython.binding(False)
    def training(self, x, mean, var, gamma, beta, eps, momentum, num_threads, act):
        """(y, saved), after a step of the moving averages mean and var. momentum is the weight of the batch.

        y is an array; saved is without x, which backward wants again. act: None, or an Extras with an activation alone.
        """
        cdef plain_call call
        cdef cnp.ndarray y
        cdef Saved saved
        cdef bint ok = (mean is None) == (var is None)
        cdef double old = 1.0
        x, gamma, beta = self.view(x, &ok), self.view(gamma, &ok), self.view(beta, &ok)
        mean, var = self.view(mean, &ok), self.view(var, &ok)
        if not ok or not read_call(x, 1, num_threads, &call) or not read_eps(eps, &call.eps):
            return None
        if call.shape.n * call.shape.s == 1 or not can_train(&call, <cnp.ndarray> x, gamma, beta, None):
            return None
        if mean is not None:
            if not PyFloat_CheckExact(momentum) or not can_step(mean, var, call.shape.c):
                return None
            old -= PyFloat_AsDouble(momentum)
        read_activation(act, &call)
        y = target_of(None, <cnp.ndarray> x)
        saved = train(&call, <cnp.ndarray> x, None, gamma, beta, y)
        if mean is not None:
            step(saved, call.shape.n * call.shape.s, 1, old, mean, var)
        saved.extras, saved.x = act, None
        return y, saved

    @cython.binding(False)
    def inference(self, x, mean, var, gamma, beta, eps, num_threads, act, bint keeps):
        """(y, saved) as above; without `keeps` saved is None."""
        cdef plain_call call
        cdef cnp.ndarray y
        cdef Saved saved
        cdef bint ok = True
        x, gamma, beta = self.view(x, &ok), self.view(gamma, &ok), self.view(beta, &ok)
        mean, var = self.view(mean, &ok), self.view(var, &ok)
        if not ok or not read_call(x, 1, num_threads, &call) or not read_eps(eps, &call.eps):
            return None
        if not can_infer(&call, <cnp.ndarray> x, mean, var, gamma, beta, None):
            return None
        read_activation(act, &call)
        y = target_of(None, <cnp.ndarray> x)
        infer(&call, <cnp.ndarray> x, None, y, mean, var, gamma, beta)
        if not keeps:
            return y, None
        saved = saved_of_inference(&call, <cnp.ndarray> x, mean, var, gamma, beta, y)
        saved.extras, saved.x = act, None
        return y, saved

    @cython.binding(False)
    def backward(self, dy, x, Saved saved not None, num_threads):
        """(dx, dgamma, dbeta), arrays."""
        cdef bint ok = True
        cdef int threads
        dy, x = self.view(dy, &ok), self.view(x, &ok)
        if not ok or x is None or not read_threads(num_threads, &threads):
            return None
        saved.x = x
        try:
            return gradients(saved, dy, None, True, True, threads)
        finally:
            saved.x = None
