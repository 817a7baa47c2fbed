"""Checks of arguments, shared by the functions and the layer. Each names the argument, what was seen, what was expected, and the
likely cause; nothing has changed when one of them raises.
"""
import math
import numbers
import os
import sys
import warnings

import numpy as np

from . import dlpack

_PACKAGE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")

# The types of parameters; data may be of a half type as well.
DTYPES = _FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


def is_half(dtype):
    """float16, or the bfloat16 that other packages add to NumPy, known by its name: none of them is imported."""
    return dtype.itemsize == 2 and dtype.name in ("float16", "bfloat16")


def as_data(x, name, halves=True):
    """x as an aligned ndarray of native float32, float64 or, with `halves`, float16 or bfloat16.

    Without a copy where it is one, or an array of another library with __dlpack__.
    Raises TypeError, ValueError.
    """
    if type(x) is np.ndarray and (x.dtype is _FLOAT32 or x.dtype is _FLOAT64) and x.flags.aligned:
        return x
    if isinstance(x, (np.ma.MaskedArray, np.matrix)):
        raise TypeError(f"{name} is a {type(x).__name__}, whose mask or two-dimensional rules would be lost: pass a plain "
                        f"array, for example {'x.filled(...)' if isinstance(x, np.ma.MaskedArray) else 'np.asarray(x)'}")
    a = dlpack.asarray(x, name)
    native = a.dtype.newbyteorder("=")
    if native not in DTYPES and not (halves and is_half(native)):
        expected = "float32, float64, float16 or bfloat16" if halves else "float32 or float64"
        raise TypeError(f"{name} has dtype {a.dtype}, expected {expected}{_dtype_advice(x, a.dtype, name)}")
    if a.dtype != native or not a.dtype.isnative or not a.flags.aligned:
        a = a.astype(native)
    return a


def _dtype_advice(value, dtype, name):
    convert = f"np.asarray({name}, np.float32)" if isinstance(value, (list, tuple)) else f"{name}.astype(np.float32)"
    if dtype.kind in "iub":
        return f": integers have no fractions to normalize to; convert with {convert}"
    if hasattr(value, "toarray"):
        return f": is it a sparse matrix? pass {name}.toarray()"
    if hasattr(value, "to_numpy"):
        return f": has it nullable columns, or text? pass {name}.to_numpy(np.float32, na_value=np.nan)"
    if dtype.kind == "O":
        return ": is it a ragged list?"
    return f": convert with {convert}" if dtype.kind == "f" or is_half(dtype) else ""


def batch(x, name="x"):
    """as_data with a batch axis and a feature axis."""
    a = as_data(x, name)
    if a.ndim < 2:
        raise ValueError(f"{name} has shape {a.shape}, expected at least 2 dimensions, a batch axis and a feature axis: "
                         f"for a single sample pass {name}[None]")
    return a


def features(x, axes, c, owner="the layer"):
    """Checks that x has c features along `axes`."""
    found = x.shape[axes[0]] if len(axes) == 1 else math.prod(x.shape[i] for i in axes)
    if found == c:
        return
    axis = axes[0] if len(axes) == 1 else axes
    others = [i for i in range(x.ndim) if x.shape[i] == c]
    cause = ""
    if x.ndim - 1 in others and axis != x.ndim - 1:
        cause = ": is the input channels-last? pass axis=-1"
    elif others:
        cause = f": are the features on axis {others[-1]}? pass axis={others[-1]}"
    raise ValueError(f"axis {axis} of x has {found} entries and {owner} {c} features (x has shape {x.shape}){cause}")


def parameter(value, name, c, dtype=None):
    """value as a contiguous, aligned array of shape (c,) with the dtype, or its own float32 or float64. None stays None."""
    if value is None:
        return None
    a = as_data(value, name, halves=False)
    if a.shape != (c,):
        raise ValueError(f"{name} has shape {a.shape}, expected ({c},): one entry for each feature")
    if a.flags.c_contiguous and (dtype is None or a.dtype is dtype):
        return a
    return np.ascontiguousarray(a, dtype)


def epsilon(eps):
    eps = real(eps, "eps")
    if not 0.0 < eps < math.inf:
        raise ValueError(f"eps is {eps}, expected a finite number above 0: it keeps 1 / sqrt(var + eps) finite; 1e-30 in "
                         "place of 0 changes no bit where no variance is as small, as in a frozen layer")
    return eps


def real(value, name):
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (numbers.Real, np.floating)):
        raise TypeError(f"{name} is {value!r}, expected a number")
    return float(value)


def finite(value, name):
    value = real(value, name)
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value}, expected a finite number")
    return value


def momentum(value):
    """The weight of the old average, a number from 0 to 1."""
    if value is None:
        raise ValueError("momentum is None, expected a number from 0 to 1, the weight of the old average")
    value = real(value, "momentum")
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"momentum is {value}, expected a number from 0 to 1, the weight of the old average")
    return value


def momentum_or_none(value):
    """The same, or None: the average of all batches, each with the same weight."""
    return None if value is None else momentum(value)


def ddof(value):
    if value not in (0, 1):
        raise ValueError(f"ddof is {value!r}, expected 1 (unbiased running variance) or 0 (biased)")
    return int(value)


def is_whole(value):
    """Whether value is an int, Python's or NumPy's, and no bool."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.bool_))


def byte_count(nbytes, name):
    if not is_whole(nbytes):
        raise TypeError(f"{name} is {nbytes!r}, expected an int, a number of bytes, or None")
    if nbytes < 0:
        raise ValueError(f"{name} is {nbytes}, expected at least 0")
    return min(int(nbytes), sys.maxsize)


def threads(num_threads):
    """The C core's number: 0 for None."""
    if num_threads is None:
        return 0
    if not is_whole(num_threads):
        raise TypeError(f"num_threads is {num_threads!r}, expected a positive int or None")
    if num_threads < 1:
        raise ValueError(f"num_threads is {num_threads}, expected at least 1, or None for the settings' number")
    return min(int(num_threads), 2**31 - 1)


def output(out, like, inputs, arrangement):
    """Checks `out` for a result with the shape and dtype of `like` and gives its (n, c, s) view.

    inputs: {name: array} that are read while out is written; out may be one of them, but not overlap one in part.
    """
    if not isinstance(out, np.ndarray) or isinstance(out, (np.ma.MaskedArray, np.matrix)):
        raise TypeError(f"out is a {type(out).__name__}, expected a NumPy array")
    if out.shape != like.shape:
        raise ValueError(f"out has shape {out.shape}, expected {like.shape}, the shape of the input")
    if out.dtype != like.dtype or not out.dtype.isnative:
        raise TypeError(f"out has dtype {out.dtype}, expected {like.dtype}, the dtype of the input")
    if not out.flags.writeable:
        raise ValueError("out is read-only")
    if not out.flags.aligned:
        raise ValueError("out is not aligned to its dtype: pass a copy of it")
    view = arrangement.view(np.asarray(out))
    if view is None or (not view.flags.c_contiguous and _overlaps_itself(view)):
        raise ValueError(f"out has strides {out.strides}, a layout that cannot be written in place for axis "
                         f"{arrangement.order[arrangement.first]}: pass a contiguous array")
    for name, a in inputs.items():
        refuse_overlap(out, a, name)
    return view


def share_memory(a, b):
    """Whether two arrays have an element in common; True where finding out would take too long."""
    try:
        return np.shares_memory(a, b, max_work=10**5)
    except np.exceptions.TooHardError:
        return True


def refuse_overlap(out, a, name):
    if a is None or not np.may_share_memory(out, a):
        return
    same = (out.__array_interface__["data"][0] == a.__array_interface__["data"][0] and out.shape == a.shape
            and out.strides == a.strides and out.dtype == a.dtype)
    if not same and share_memory(out, a):
        raise ValueError(f"out and {name} overlap: pass {name} itself to compute in place, or memory of its own")


def _overlaps_itself(view):
    if view.size == 0:
        return False
    reach = view.itemsize
    for stride, size in sorted((abs(stride), size) for stride, size in zip(view.strides, view.shape) if size > 1):
        if stride < reach:
            return True
        reach = stride * size
    return False


def warn(message):
    """A UserWarning that names the line outside fastbn from which the call came, however many functions lie between."""
    frame, level = sys._getframe(1), 2
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)
