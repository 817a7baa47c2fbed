# The active kernels, included by _core.pyx: those that it calls itself, on plain arrays.

cdef extern from "kernels.h":
    cdef struct fbn_typed:
        void (*round)(int64_t c, const double *value, void *rounded) noexcept
        void (*widen)(int64_t c, const void *value, double *widened) noexcept
        void (*activate)(const void *z, void *y, int64_t n, fastbn_activation activation, double slope) noexcept
        void (*activate_gradient)(const void *z, const void *dy, void *dz, int64_t n, fastbn_activation activation,
                                  double slope) noexcept

    cdef struct fbn_kernels:
        fbn_typed typed[2]
        void (*rstd)(int64_t c, const double *var, double eps, double *rstd) noexcept

    fastbn_status fbn_kernels_active(const fbn_kernels **kernels)

    const int FBN_ACTIVATIONS
    const char *fbn_activation_name(fastbn_activation activation)


cdef const fbn_kernels *active_kernels() except NULL:
    cdef const fbn_kernels *kernels = NULL
    check(fbn_kernels_active(&kernels))
    return kernels


cdef const fbn_typed *typed_kernels(cnp.ndarray a) except NULL:
    """The kernels for the type of a, float32 or float64."""
    return &active_kernels().typed[<int> dtype_of_kind(cnp.PyArray_TYPE(a))]


# In the order of fastbn_activation; the list stands in csrc/kernels/activations.inc.
cdef tuple ACTIVATIONS = tuple([fbn_activation_name(<fastbn_activation> i).decode() for i in range(FBN_ACTIVATIONS)])


def activation_names():
    """The activations that have a kernel."""
    return ACTIVATIONS
