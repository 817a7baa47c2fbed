# bfloat16 through DLPack, included by _core.pyx: NumPy refuses to read or write that type, since it has none of its
# own. It takes the same bits as uint16; so the type that a capsule names is changed on the way.
#
# The structs: https://dmlc.github.io/dlpack/latest/c_api.html, up to the field that is looked at.
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid

cdef extern from *:
    """
    typedef struct fbn_dltensor {
        void *data;
        int32_t device_type, device_id, ndim;
        uint8_t code, bits;
        uint16_t lanes;
    } fbn_dltensor;

    typedef struct fbn_dltensor_versioned {
        uint32_t major, minor;
        void *manager;
        void (*deleter)(void *);
        uint64_t flags;
        fbn_dltensor tensor;
    } fbn_dltensor_versioned;
    """
    ctypedef struct fbn_dltensor:
        unsigned char code, bits
        uint16_t lanes

    ctypedef struct fbn_dltensor_versioned:
        fbn_dltensor tensor

cdef enum:
    DLPACK_UINT = 1
    DLPACK_BFLOAT = 4


cdef fbn_dltensor *tensor_of(object capsule) except NULL:
    if PyCapsule_IsValid(capsule, "dltensor_versioned"):
        return &(<fbn_dltensor_versioned *> PyCapsule_GetPointer(capsule, "dltensor_versioned")).tensor
    return <fbn_dltensor *> PyCapsule_GetPointer(capsule, "dltensor")


cdef bint rename(object capsule, int old, int new) except -1:
    cdef fbn_dltensor *tensor = tensor_of(capsule)
    if tensor.code != old or tensor.bits != 16 or tensor.lanes != 1:
        return False
    tensor.code = new
    return True


def bfloat16_as_bits(capsule):
    """Makes a new capsule of bfloat16 one of uint16. Returns whether it was one. Raises ValueError (no such capsule)."""
    return rename(capsule, DLPACK_BFLOAT, DLPACK_UINT)


def bits_as_bfloat16(capsule):
    """The way back."""
    return rename(capsule, DLPACK_UINT, DLPACK_BFLOAT)
