"""Entries of .safetensors files, through the package of that name, which is imported only when it is used."""
import contextlib

from .._data import atomic_write


def _package():
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError("a .safetensors file needs the package safetensors: pip install 'fastbn[convert]'") from error
    return safetensors


def read(path, choose, check):
    """{name: array} from a file.

    choose(keys of the file): {name: key} of what to read; nothing else of the file is. check({name: shape}): raises
    ValueError where these are no arrays of one layer; no data are read before.
    Raises OSError, ImportError, ValueError (no such file, damaged, of a type that NumPy lacks), and what those raise.
    """
    safetensors = _package()
    with atomic_write.opened(path):  # whose errors are plainer
        pass
    try:
        with safetensors.safe_open(path, framework="np") as file:
            keys = choose(list(file.keys()))
            check({name: tuple(file.get_slice(key).get_shape()) for name, key in keys.items()})
            return {name: _array(file, key, path) for name, key in keys.items()}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is no .safetensors file, or it is damaged ({error})") from error


def keys(path):
    """Those of a file. Raises OSError, ImportError, ValueError."""
    found = []
    read(path, lambda names: found.extend(names) or {}, lambda shapes: None)
    return found


def _array(file, key, path):
    dtype = file.get_slice(key).get_dtype()
    if dtype == "BF16":
        with contextlib.suppress(ImportError):
            import ml_dtypes  # noqa: F401 - adds bfloat16 to NumPy
    try:
        return file.get_tensor(key)
    except (AttributeError, TypeError) as error:  # numpy.float8_e4m3fn is none
        needs = "needs the package ml_dtypes" if dtype == "BF16" else "has no type for"
        raise ValueError(f"{path} has {key} of dtype {dtype}, which NumPy {needs}: save it as F32") from error


def write(path, arrays):
    """Raises OSError, ImportError; a failure leaves an older file as it was."""
    content = _package().numpy.save(arrays)
    with atomic_write.replacing(path) as file:
        file.write(content)
