"""NumPy arrays out of the objects of other frameworks, without importing any of them."""
import numpy as np

from .._engine import checks


def belongs(value, *packages):
    """Whether a class of one of the packages is among value's classes: then somebody else has imported that package."""
    return any(str(cls.__module__).partition(".")[0] in packages for cls in type(value).__mro__)


def is_a(value, name, package):
    """Whether a class of this name, of the package or a module in it, is among value's classes."""
    return any(cls.__name__ == name and f"{cls.__module__}.".startswith(f"{package}.") for cls in type(value).__mro__)


def as_array(value):
    """The numbers of a tensor, variable, parameter, array or list; half types widened to float32, which loses nothing.

    May share memory with value. None stays None.
    """
    if value is None or isinstance(value, np.ndarray):
        return _widened(value)
    if belongs(value, "torch"):
        return _of_torch(value)
    if belongs(value, "chainer"):
        return _widened(value.array)
    return _widened(np.asarray(value))


def _of_torch(tensor):
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point() and tensor.element_size() < 4:
        tensor = tensor.float()  # NumPy has no bfloat16
    return tensor.numpy()


def _widened(a):
    return a.astype(np.float32) if isinstance(a, np.ndarray) and checks.is_half(a.dtype) else a
