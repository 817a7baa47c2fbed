# bfloat16 through DLPack, included by _core.pyx: NumPy refuses to read or write that type, since it has none of its
# own. It takes the same bits as uint16; so the type that a capsule names is changed on the way.
# The structs and numbers are those of _binding/torch_exchange.pxi.
from cpython.pycapsule cimport PyCapsule_IsValid


cdef dl_tensor *tensor_of(object capsule) except NULL:
    if PyCapsule_IsValid(capsule, "dltensor_versioned"):
        return &(<dl_versioned *> PyCapsule_GetPointer(capsule, "dltensor_versioned")).tensor
    return <dl_tensor *> PyCapsule_GetPointer(capsule, "dltensor")


cdef bint rename(object capsule, int old, int new) except -1:
    cdef dl_tensor *tensor = tensor_of(capsule)
    if tensor.code != old or tensor.bits != 16 or tensor.lanes != 1:
        return False
    tensor.code = new
    return True


def bfloat16_as_bits(capsule):
    """Makes a new capsule of bfloat16 one of uint16. Returns whether it was one. Raises ValueError (no such capsule)."""
    return rename(capsule, DL_BFLOAT, DL_UINT)


def bits_as_bfloat16(capsule):
    """The way back."""
    return rename(capsule, DL_UINT, DL_BFLOAT)
