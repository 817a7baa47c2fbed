"""What is computed: an operation on one shape in one layout, with its data and its reference answer.

A shape is always written (N, C, *spatial), whatever the layout; `array_shape` is how it lies in memory.
"""
import math
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

EPS = 1e-5
OPERATIONS = ("inference", "training", "backward", "moments", "call")
LAYOUTS = ("first", "last", "table")

IMAGES = ((32, 64, 56, 56), (32, 512, 7, 7), (1, 64, 112, 112))
TABLES = ((4096, 512), (64, 1024), (1000000, 3), (200000, 4))
SMALL = ((1, 64), (64, 64))
QUICK = ((32, 512, 7, 7), (64, 1024), (1, 64))

# One read of every input and one write of the output: what no implementation can go below.
_ARRAYS_MOVED = {"inference": 2, "training": 2, "backward": 3, "moments": 1, "call": 2}


@dataclass(frozen=True)
class Case:
    operation: str
    shape: tuple
    layout: str
    dtype: str = "float32"

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
    def bytes(self):
        return _ARRAYS_MOVED[self.operation] * math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def outputs(self):
        """The ways to get the result: a fresh array, or into out=. Moments have no output array."""
        return ("fresh",) if self.operation == "moments" else ("fresh", "out=")

    @property
    def shape_text(self):
        return "x".join(map(str, self.shape))

    def __str__(self):
        return f"{self.operation}-{self.shape_text}-{self.layout}"


def layouts_of(shape):
    return ("table",) if len(shape) == 2 else ("first", "last")


def default_shapes(operation):
    if operation == "call":
        return SMALL
    return IMAGES + TABLES + (SMALL if operation == "inference" else ())


def make_cases(operations=OPERATIONS, shapes=None, layouts=LAYOUTS):
    """All cases, or those of the shapes given; a shape given is taken for every operation that can run it."""
    cases = []
    for operation in operations:
        for shape in default_shapes(operation) if shapes is None else shapes:
            if operation == "call" and len(shape) != 2:
                continue
            cases += [Case(operation, shape, layout) for layout in layouts_of(shape) if layout in layouts]
    return cases


def make_data(case, seed=0):
    rng = np.random.default_rng(seed)
    dtype = np.dtype(case.dtype)
    x = rng.standard_normal(case.array_shape, dtype=dtype)
    x += dtype.type(0.5)
    return SimpleNamespace(
        x=x,
        dy=rng.standard_normal(case.array_shape, dtype=dtype) if case.operation == "backward" else None,
        gamma=rng.uniform(0.5, 1.5, case.features).astype(dtype),
        beta=rng.standard_normal(case.features, dtype=dtype),
        mean=rng.standard_normal(case.features, dtype=dtype),
        var=rng.uniform(0.5, 2.0, case.features).astype(dtype),
    )


def _rows(case, array):
    """float64, features last, everything else in one axis."""
    return np.moveaxis(array, case.axis, -1).reshape(-1, case.features).astype(np.float64)


def _unrows(case, rows):
    moved = [size for i, size in enumerate(case.array_shape) if i != case.axis % len(case.array_shape)]
    return np.moveaxis(rows.reshape(*moved, case.features), -1, case.axis)


def reference(case, data):
    """The right answer in float64: (y,), (dx, dgamma, dbeta) or (mean, var)."""
    x = _rows(case, data.x)
    gamma, beta = data.gamma.astype(np.float64), data.beta.astype(np.float64)
    if case.operation in ("inference", "call"):
        x_hat = (x - data.mean) / np.sqrt(data.var.astype(np.float64) + EPS)
        return (_unrows(case, x_hat * gamma + beta),)
    mean, var = x.mean(axis=0), x.var(axis=0)
    if case.operation == "moments":
        return mean, var
    rstd = 1 / np.sqrt(var + EPS)
    x_hat = (x - mean) * rstd
    if case.operation == "training":
        return (_unrows(case, x_hat * gamma + beta),)
    dy = _rows(case, data.dy)
    dgamma, dbeta = (dy * x_hat).sum(axis=0), dy.sum(axis=0)
    dx = gamma * rstd * (dy - dbeta / len(x) - x_hat * dgamma / len(x))
    return _unrows(case, dx), dgamma, dbeta


def check(case, who, got, expected, tolerance=1e-3):
    """Whoever computes something else must not be timed. Loose: it tells formulas apart, not last digits."""
    for index, (a, b) in enumerate(zip(got, expected, strict=True)):
        if a.shape != b.shape:
            raise AssertionError(f"{who}, {case}, result {index}: shape {a.shape}, expected {b.shape}")
        scale = np.abs(b).max(initial=1e-30)
        error = np.abs(a - b).max(initial=0.0) / scale
        if not error <= tolerance:
            raise AssertionError(f"{who}, {case}, result {index}: relative error {error:.2g}, allowed {tolerance:.2g}")
