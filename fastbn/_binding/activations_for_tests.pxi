# The kernels of the activations for tests, included by _core.pyx: one call of the kernel, on plain arrays.

cdef cnp.ndarray like(object z, object a, str name):
    """a, which has to be a plain array of the type and size of z; a fresh one for None."""
    if not is_plain(z) or not is_real(cnp.PyArray_TYPE(z)):
        raise TypeError("z must be a C-contiguous float32 or float64 array")
    if a is None:
        return cnp.PyArray_EMPTY(cnp.PyArray_NDIM(z), cnp.PyArray_DIMS(z), cnp.PyArray_TYPE(z), 0)
    if not is_plain(a) or cnp.PyArray_TYPE(a) != cnp.PyArray_TYPE(z) or cnp.PyArray_SIZE(a) != cnp.PyArray_SIZE(z):
        raise TypeError(f"{name} must be a C-contiguous array of the type and size of z")
    return a


def activate(z, str activation not None, double slope=0.0, out=None):
    """For tests: the activation of every entry of z. slope: of leaky_relu, alpha of elu."""
    cdef fastbn_activation number = <fastbn_activation> <int> ACTIVATIONS.index(activation)
    cdef cnp.ndarray y = like(z, out, "out")
    typed_kernels(z).activate(cnp.PyArray_DATA(z), cnp.PyArray_DATA(y), cnp.PyArray_SIZE(z), number, slope)
    return y


def activate_gradient(z, dy, str activation not None, double slope=0.0, out=None):
    """For tests: dy times the derivative of the activation at every entry of z."""
    cdef fastbn_activation number = <fastbn_activation> <int> ACTIVATIONS.index(activation)
    cdef cnp.ndarray dy_array = like(z, dy, "dy"), dz = like(z, out, "out")
    typed_kernels(z).activate_gradient(cnp.PyArray_DATA(z), cnp.PyArray_DATA(dy_array), cnp.PyArray_DATA(dz),
                                       cnp.PyArray_SIZE(z), number, slope)
    return dz
