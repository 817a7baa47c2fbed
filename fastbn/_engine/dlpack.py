"""Arrays of other libraries, through DLPack: read without a copy, written to, and made of results.

No library is imported, but for ml_dtypes where a tensor is bfloat16. Through NumPy, which does not know the type, such a
tensor passes as uint16, see _binding/bfloat16_capsules.pxi.
Standard: https://dmlc.github.io/dlpack/latest/python_spec.html
"""
import sys

import numpy as np

from .. import _core

# DLPack's numbers. Memory that the processor addresses: CPU, pinned for CUDA and ROCm, CUDA managed.
_ADDRESSABLE = (1, 3, 11, 13)
_DEVICES = {2: "a CUDA device", 4: "an OpenCL device", 7: "a Vulkan device", 8: "a Metal device", 10: "a ROCm device",
            14: "a oneAPI device", 15: "a WebGPU device"}
# What libraries refuse with; DLPack asks for the first.
_REFUSALS = (BufferError, RuntimeError, TypeError, ValueError, AttributeError)


def is_foreign(value):
    """Whether value is an array of another library."""
    return not isinstance(value, np.ndarray) and hasattr(value, "__dlpack__")


def concerns(*values):
    return any(value is not None and is_foreign(value) for value in values)


def asarray(value, name):
    """np.asarray, for which an array of another library is none of Python objects: its memory as a NumPy array.

    Raises TypeError (bfloat16 without ml_dtypes), ValueError (on a GPU, requires a gradient, refused by its library).
    """
    return _view(value, name) if is_foreign(value) else np.asarray(value)


def writable(out):
    """The same of `out`, which is written to. What is no array of another library stays as it is."""
    if not concerns(out):
        return out
    a = _view(out, "out")
    if not a.flags.writeable:
        raise ValueError(f"out is read-only: {_why_read_only(out)}; pass an array that may be written to, or no out")
    return a


def _why_read_only(out):
    kind = type(out).__name__
    if np.lib.NumpyVersion(np.__version__) < "2.1.0":
        return f"to NumPy {np.__version__} every {kind} is, 2.1 is the first to know better"
    return f"its library gives a {kind} away so, or by a DLPack older than 1.0, which cannot say"


def _view(value, name):
    _refuse_gradient(value, name)
    device = _other_device(value, name)
    if device is not None:
        raise ValueError(f"{name} is on {device}, expected an array in the memory of the CPU: move it, with "
                         f"{name}.cpu() in PyTorch, jax.device_put({name}, jax.devices('cpu')[0]) in JAX")
    source = _Renamed(value, _core.bfloat16_as_bits)
    try:
        a = np.from_dlpack(source)
    except _REFUSALS as error:
        raise _unreadable(value, name, error) from error
    return a.view(_bfloat16(name)) if source.renamed else a


def _other_device(value, name):
    """Where an array is whose memory the processor cannot address; None for any other."""
    try:
        number = int(value.__dlpack_device__()[0])
    except _REFUSALS as error:
        raise _unreadable(value, name, error) from error
    return None if number in _ADDRESSABLE else _DEVICES.get(number, f"a device of DLPack's type {number}")


def _unreadable(value, name, error):
    return ValueError(f"{name} is a {type(value).__name__} whose memory cannot be read as it is: {error}; pass a dense "
                      f"array in one piece (np.asarray({name}) copies, where its library allows it; inside jax.jit and "
                      "jax.grad arrays have no values)")


def _refuse_gradient(value, name):
    if getattr(value, "requires_grad", False) is True:
        raise ValueError(f"{name} requires a gradient, which would get lost: pass {name}.detach(), or take "
                         "fastbn.interop.torch (pip install 'fastbn[torch]'), which has gradients")


def _bfloat16(name):
    try:
        from ml_dtypes import bfloat16
    except ImportError:
        raise TypeError(f"{name} is bfloat16, which NumPy has with the package ml_dtypes alone: pip install ml_dtypes, "
                        "or convert it to float32") from None
    return bfloat16


class _Renamed:
    """An array that gives itself away under another type: bfloat16 to NumPy as its bits, bits to others as bfloat16.

    rename(capsule): writes the type, and returns what `renamed` is from then on.
    """

    def __init__(self, value, rename):
        self.value, self.rename, self.renamed = value, rename, None

    def __dlpack_device__(self):
        return self.value.__dlpack_device__()

    def __dlpack__(self, **options):
        capsule = self.value.__dlpack__(**options)
        self.renamed = self.rename(capsule)
        return capsule


def maker_of(like):
    """What makes an array of like's kind from one of NumPy's, on the same memory where its library can; None for NumPy.

    Raises TypeError, ValueError.
    """
    if like is None or like is np or isinstance(like, np.ndarray):
        return None
    device = _other_device(like, "like") if is_foreign(like) else None
    if device is not None:
        raise ValueError(f"like is on {device}, and results are in the memory of the CPU: pass like=the library (torch, "
                         "say) and move them")
    from_dlpack = next((home.from_dlpack for home in _homes(like) if hasattr(home, "from_dlpack")), None)
    if from_dlpack is None:
        raise TypeError(f"like is {_brief(like)}, expected an array of a library that has from_dlpack, or such a "
                        "library: numpy, torch, jax.numpy, ...")
    return lambda a: from_dlpack(
        _Renamed(a.view(np.uint16), _core.bits_as_bfloat16) if a.dtype.name == "bfloat16" else a)


def _homes(like):
    """Where from_dlpack may be: like itself, its array namespace, the packages of its classes."""
    yield like
    if is_foreign(like):
        if hasattr(like, "__array_namespace__"):
            yield like.__array_namespace__()
        for cls in type(like).__mro__:
            yield sys.modules.get(str(cls.__module__).partition(".")[0])


def _brief(value):
    text = getattr(value, "__name__", None) or repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"


def calling(function, arguments, like, out=None, *, model=None, **options):
    """function(**arguments, **options), with `out` where there is one, on NumPy arrays; its results are of like's kind.

    arguments: {name: array or anything else}. model: an array of the results' type; None: the first argument. What was
    written to `out` is returned as that very object.
    """
    make, target = maker_of(like), writable(out)
    arguments = {name: _view(value, name) if concerns(value) else value for name, value in arguments.items()}
    if make is not None:
        _try(make, like, np.asarray(next(iter(arguments.values())) if model is None else model).dtype)
    if out is not None:
        options["out"] = target
    results = function(**arguments, **options)

    def returned(result):
        if target is not None and result is target:
            return out
        return make(result) if make is not None and isinstance(result, np.ndarray) else result
    return tuple(map(returned, results)) if isinstance(results, tuple) else returned(results)


def _try(make, like, dtype):
    """Before anything is computed or changed."""
    if dtype.kind != "f" and dtype.name != "bfloat16":
        return  # refused by name later
    try:
        make(np.zeros(1, dtype))
    except _REFUSALS as error:
        raise TypeError(f"the results are {dtype}, which the library of like={_brief(like)} does not take: "
                        f"{error}") from error
