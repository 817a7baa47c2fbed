"""What is computed: an operation on one shape in one layout, its data, and the right answer.

A shape is always written (N, C, *spatial), whatever the layout; `array_shape` is how it lies in memory.

Arrays of hundreds of megabytes are made and checked in a fraction of the time that a benchmark of them takes: the data
repeat a random block of about a mebibyte, and the answer is computed in float64 for a sample of the features, over all
the entries of each.
"""
import math
from dataclasses import dataclass
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np

EPS = 1e-5
OPERATIONS = ("inference", "training", "backward", "moments", "call")
# One pass with what follows in a network: relu(bn(x)), relu(bn(x) + residual), and the backward of these.
FUSED = ("inference_relu", "inference_add_relu", "training_relu", "training_add_relu", "backward_relu",
         "backward_add_relu")
LAYOUTS = ("first", "last", "table")
ALIGNMENTS = ("numpy", "64")
DTYPES = ("float32", "float64", "float16", "bfloat16")
HALVES = ("float16", "bfloat16")

BLOCK_ENTRIES = 262_139  # a prime: it fits no plane and no row, so the features do not repeat each other
TOLERANCE = 1e-3         # of results, relative to the largest number of the right answer
LONG_CHAIN = 50_000      # additions, from which on the tolerance grows with their number
HALF_UNITS = {"float16": 2**-10, "bfloat16": 2**-7}  # in the last place, relative
SAMPLE_ENTRIES = 2**19   # that the answer is computed for, or one feature where a feature has more
KINK = 1e-3              # nearer than this to relu's kink, rounding decides whether a gradient passes

# One read of every input and one write of every output: what no implementation can go below. A residual is one read
# more; so is, in backward, what tells where its relu let pass, and the residual's gradient is one write more.
_ARRAYS_MOVED = {"inference": 2, "training": 2, "backward": 3, "moments": 1, "call": 2, "inference_relu": 2,
                 "training_relu": 2, "inference_add_relu": 3, "training_add_relu": 3, "backward_relu": 3,
                 "backward_add_relu": 5}


def plain(operation):
    """The operation without what is fused to it."""
    return operation.split("_")[0]


def has_residual(operation):
    return operation.endswith("_add_relu")


def arrays_moved(operation):
    return _ARRAYS_MOVED[operation]


def data_type(name):
    """NumPy's dtype of this name; bfloat16 is that of ml_dtypes."""
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes
    return np.dtype(ml_dtypes.bfloat16)


def has_bfloat16():
    return find_spec("ml_dtypes") is not None


@dataclass(frozen=True)
class Case:
    operation: str
    shape: tuple
    layout: str
    dtype: str = "float32"
    alignment: str = "numpy"  # as NumPy allocates (a multiple of 16 bytes), or "64": the start of a cache line

    @property
    def features(self):
        return self.shape[1]

    @property
    def axis(self):
        return -1 if self.layout == "last" else 1

    @property
    def array_shape(self):
        if self.layout == "last":
            return (self.shape[0], *self.shape[2:], self.shape[1])
        return self.shape

    @property
    def is_half(self):
        return self.dtype in HALVES

    @property
    def param_dtype(self):
        """Parameters of half data are float32."""
        return "float32" if self.is_half else self.dtype

    @property
    def array_bytes(self):
        return math.prod(self.shape) * data_type(self.dtype).itemsize

    @property
    def bytes(self):
        return arrays_moved(self.operation) * self.array_bytes

    @property
    def plain(self):
        return plain(self.operation)

    @property
    def is_fused(self):
        return self.operation in FUSED

    @property
    def has_residual(self):
        return has_residual(self.operation)

    @property
    def outputs(self):
        """The ways to get the result: a fresh array, or into out=. Moments have no output array."""
        return ("fresh",) if self.operation == "moments" else ("fresh", "out=")

    @property
    def shape_text(self):
        return "x".join(map(str, self.shape))

    def __str__(self):
        words = [self.operation, self.shape_text, self.layout]
        words += [self.dtype] * (self.dtype != "float32") + [f"align{self.alignment}"] * (self.alignment != "numpy")
        return "-".join(words)


def layouts_of(shape):
    return ("table",) if len(shape) == 2 else ("first", "last")


class Data(SimpleNamespace):
    """x, dy (None unless backward), residual (None without), gamma, beta, mean, var.

    The slots stay out of vars(data): arrays alone.
    """
    __slots__ = ("alignment", "output")

    def empty(self):
        """An output array as the case wants it: a new one, or the one that all contenders of a cell share."""
        return allocate(self.x.shape, self.x.dtype, self.alignment) if self.output is None else self.output

    def for_operation(self, operation):
        data = Data(**{**vars(self), "dy": self.dy if plain(operation) == "backward" else None,
                       "residual": self.residual if has_residual(operation) else None})
        data.alignment, data.output = self.alignment, self.output
        return data


def allocate(shape, dtype, alignment):
    """An array with unset values. dtype: a name, or NumPy's."""
    dtype = data_type(dtype) if isinstance(dtype, str) else np.dtype(dtype)
    if alignment == "numpy":
        return np.empty(shape, dtype)
    size = math.prod(shape) * dtype.itemsize
    room = np.empty(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start:start + size].view(dtype).reshape(shape)


def make_data(case, seed=0, operations=None):
    """operations: the data are for all of these; None: for the case's own."""
    operations = [case.operation] if operations is None else operations
    rng = np.random.default_rng(seed)
    dtype, c = np.dtype(case.param_dtype), case.features
    data = Data(
        x=_make_array(case, rng),
        dy=_make_array(case, rng) if any(plain(operation) == "backward" for operation in operations) else None,
        residual=_make_array(case, rng) if any(map(has_residual, operations)) else None,
        gamma=rng.uniform(0.5, 1.5, c).astype(dtype),
        beta=rng.standard_normal(c, dtype=dtype),
        mean=rng.standard_normal(c, dtype=dtype),
        var=rng.uniform(0.5, 2.0, c).astype(dtype),
    )
    data.alignment, data.output = case.alignment, None
    return data


def _make_array(case, rng):
    """Normal numbers, each feature with a mean and a standard deviation of its own."""
    array = allocate(case.array_shape, case.dtype, case.alignment)
    if array.size == 0:
        return array
    samples = array[:max(1, BLOCK_ENTRIES * len(array) // array.size)]
    _repeat(samples.reshape(-1), rng.standard_normal(min(samples.size, BLOCK_ENTRIES), dtype=case.param_dtype))
    along = [1] * samples.ndim
    along[case.axis] = case.features
    samples *= rng.uniform(0.5, 2.0, along).astype(array.dtype)
    samples += rng.uniform(-1.0, 2.0, along).astype(array.dtype)
    _repeat(array.reshape(-1), samples.reshape(-1))
    return array


def _repeat(flat, block):
    """Fills `flat` with copies of `block`, which may be its own beginning."""
    for start in range(0, flat.size, block.size):
        part = flat[start:start + block.size]
        part[...] = block[:part.size]


def sample_features(case):
    """Indices of the features that the answer is computed for: spread evenly, with the first and the last."""
    count = min(case.features, max(1, SAMPLE_ENTRIES // max(1, _entries(case))))
    return np.unique(np.linspace(0, case.features - 1, count).astype(np.intp))


def _select(case, array, features):
    """The part of a result that belongs to some features; None is all of them."""
    return array if features is None else np.take(array, features, axis=case.axis if array.ndim > 1 else 0)


def _rows(case, array, features):
    """float64, features last, everything else in one axis."""
    part = np.moveaxis(_select(case, array, features), case.axis, -1)
    return part.reshape(-1, part.shape[-1]).astype(np.float64)


def _unrows(case, rows):
    moved = [size for i, size in enumerate(case.array_shape) if i != case.axis % len(case.array_shape)]
    return np.moveaxis(rows.reshape(*moved, rows.shape[-1]), -1, case.axis)


def reference(case, data, features=None):
    """The right answer in float64, of all features or some: (y,), (dx, dgamma, dbeta) or (mean, var).

    Backward through a residual gives dresidual too. NaN stands for "either": there z is too near to relu's kink.
    """
    x = _rows(case, data.x, features)
    gamma, beta, given_mean, given_var = (
        _select(case, a, features).astype(np.float64) for a in (data.gamma, data.beta, data.mean, data.var))
    of_batch = case.plain not in ("inference", "call")
    mean, var = (x.mean(axis=0), x.var(axis=0)) if of_batch else (given_mean, given_var)
    if case.operation == "moments":
        return mean, var
    rstd = 1 / np.sqrt(var + EPS)
    x_hat = (x - mean) * rstd
    z = x_hat * gamma + beta
    if case.has_residual:
        z += _rows(case, data.residual, features)
    if case.plain != "backward":
        return (_unrows(case, np.maximum(z, 0) if case.is_fused else z),)
    dy = _rows(case, data.dy, features)
    if case.is_fused:
        dy *= z > 0
    dgamma, dbeta = (dy * x_hat).sum(axis=0), dy.sum(axis=0)
    dx = gamma * rstd * (dy - dbeta / len(x) - x_hat * dgamma / len(x))
    if case.is_fused:
        dx[np.abs(z) < KINK] = dy[np.abs(z) < KINK] = np.nan
    return (_unrows(case, dx), dgamma, dbeta, *([_unrows(case, dy)] if case.has_residual else []))


def _entries(case):
    """The entries of one feature."""
    return math.prod(case.shape) // case.features


def _allowed(case):
    """Loose: it tells formulas apart, not last digits. Some peers sum a feature in one chain of float32 additions; that
    loses digits in proportion to its length, and they are to be timed all the same."""
    tolerance = TOLERANCE + HALF_UNITS.get(case.dtype, 0.0)
    if case.plain in ("inference", "call"):
        return tolerance
    return min(0.1, tolerance * max(1.0, _entries(case) / LONG_CHAIN))


def check(case, who, got, expected, features=None):
    """The largest error of the results, each relative to the largest number of the right answer.

    A gradient of gamma or beta is a sum of n terms of order one, and may be near zero by chance: its error is relative
    to the square root of n at least. Whoever computes something else must not be timed: AssertionError.
    """
    largest, allowed = 0.0, _allowed(case)
    for index, (a, b) in enumerate(zip(got, expected, strict=True)):
        shape = case.array_shape if b.ndim > 1 else (case.features,)
        if a.shape != shape:
            raise AssertionError(f"{who}, {case}, result {index}: shape {a.shape}, expected {shape}")
        least = math.sqrt(_entries(case)) if case.plain == "backward" and b.ndim == 1 else 1e-30
        error = _largest_error(_select(case, a, features), b, least)
        if not error <= allowed:
            raise AssertionError(f"{who}, {case}, result {index}: relative error {error:.2g}, allowed {allowed:.2g}")
        largest = max(largest, error)
    return largest


def _largest_error(a, b, least):
    """Relative to the largest number of b, or to `least`. Where b is NaN anything is right."""
    decided = ~np.isnan(b)
    a, b = a[decided].astype(np.float64), b[decided]
    return float(np.abs(a - b).max(initial=0.0) / np.abs(b).max(initial=least))
