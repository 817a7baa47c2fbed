"""The part of oneDNN's C interface (version 3, with OpenMP) that batch normalization needs, through ctypes.

Values of the constants and signatures: dnnl.h, dnnl_types.h, dnnl_common_types.h.
"""
import ctypes
import ctypes.util
import weakref
from ctypes import POINTER, byref, c_byte, c_char_p, c_float, c_int, c_int64, c_size_t, c_uint, c_void_p
from importlib import metadata

PACKAGE = "onednn-cpu-gomp"

CPU, IN_ORDER, FLOAT32, QUERY_IMPLEMENTATION, QUERY_WORKSPACE = 1, 1, 3, 8, 135
ALLOCATE = c_void_p(-1)  # as a memory's address: oneDNN allocates it
FORWARD_TRAINING, FORWARD_INFERENCE, BACKWARD = 64, 96, 128
USE_GLOBAL_STATS, USE_SCALE_AND_SHIFT, FUSE_RELU = 1, 2 | 4, 8
SRC, DST, MEAN, VARIANCE, SCALE, SHIFT, WORKSPACE = 1, 17, 49, 50, 51, 52, 64
DIFF_SRC, DIFF_DST, DIFF_SCALE, DIFF_SHIFT = 129, 145, 255, 256

MOST_DIMENSIONS = 5  # of a batch normalization
Dims = c_int64 * 12


class Argument(ctypes.Structure):
    _fields_ = [("arg", c_int), ("memory", c_void_p)]


class Version(ctypes.Structure):
    _fields_ = [("major", c_int), ("minor", c_int), ("patch", c_int)]


# {function: (the kind of object that it makes, its arguments after the first, a pointer to the new handle)}
_CREATORS = {
    "engine_create": ("engine", [c_int, c_size_t]),
    "stream_create": ("stream", [c_void_p, c_uint]),
    "memory_desc_create_with_strides": ("memory_desc", [c_int, Dims, c_int, Dims]),
    "memory_create": ("memory", [c_void_p, c_void_p, c_void_p]),
    "batch_normalization_forward_primitive_desc_create": (
        "primitive_desc", [c_void_p, c_int, c_void_p, c_void_p, c_float, c_uint, c_void_p]),
    "batch_normalization_backward_primitive_desc_create": (
        "primitive_desc", [c_void_p, c_int, c_void_p, c_void_p, c_void_p, c_float, c_uint, c_void_p, c_void_p]),
    "primitive_create": ("primitive", [c_void_p]),
}


def load():
    """The library, from the package's files or where the system keeps it. Raises ImportError."""
    for path in filter(None, _candidates()):
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        major = _version(library).major
        if major != 3:
            raise ImportError(f"the oneDNN at {path} has version {major}, expected 3; install {PACKAGE}")
        if not hasattr(library, "omp_set_num_threads"):
            raise ImportError(f"the oneDNN at {path} does not use OpenMP: its threads cannot be set; install {PACKAGE}")
        return _declare(library)
    raise ImportError(f"no oneDNN library is found; install {PACKAGE}")


def _candidates():
    try:
        files = [str(file.locate()) for file in metadata.files(PACKAGE) or () if file.name.startswith("libdnnl.so.")]
    except metadata.PackageNotFoundError:
        files = []
    return [*sorted(files, key=len), ctypes.util.find_library("dnnl")]


def _version(library):
    library.dnnl_version.restype = POINTER(Version)
    return library.dnnl_version().contents


def _declare(library):
    for name, (kind, argtypes) in _CREATORS.items():
        getattr(library, f"dnnl_{name}").argtypes = [POINTER(c_void_p), *argtypes]
        getattr(library, f"dnnl_{kind}_destroy").argtypes = [c_void_p]
    library.dnnl_primitive_execute.argtypes = [c_void_p, c_void_p, c_int, POINTER(Argument)]
    library.dnnl_memory_set_data_handle.argtypes = [c_void_p, POINTER(c_byte)]
    library.dnnl_primitive_desc_query.argtypes = [c_void_p, c_int, c_int, c_void_p]
    library.dnnl_primitive_desc_query_md.argtypes = [c_void_p, c_int, c_int]
    library.dnnl_primitive_desc_query_md.restype = c_void_p
    return library


def version_text(library):
    version = _version(library)
    return f"{version.major}.{version.minor}.{version.patch}"


def implementation(library, primitive_desc):
    name = c_char_p()
    status = library.dnnl_primitive_desc_query(primitive_desc, QUERY_IMPLEMENTATION, 0, byref(name))
    return "unknown" if status or not name.value else name.value.decode()


class Handles:
    """Makes oneDNN's objects, and destroys them, the last first, when it is collected itself."""

    def __init__(self, library):
        self._library, self._made = library, []
        weakref.finalize(self, _destroy, library, self._made)

    def create(self, creator, *arguments):
        handle = c_void_p()
        status = getattr(self._library, f"dnnl_{creator}")(byref(handle), *arguments)
        if status:
            raise RuntimeError(f"oneDNN: dnnl_{creator} returned status {status}, expected 0")
        self._made.append((_CREATORS[creator][0], handle))
        return handle


def _destroy(library, made):
    for kind, handle in reversed(made):
        getattr(library, f"dnnl_{kind}_destroy")(handle)
