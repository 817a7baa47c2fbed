"""Random choices of one call, all from its seed and number: sizes, types, data, parameters, weights."""
import random

import numpy as np
from activations_reference import NAMES

try:
    import ml_dtypes
    BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
except ImportError:
    BFLOAT16 = None

FLOAT16, FLOAT32, FLOAT64 = map(np.dtype, (np.float16, np.float32, np.float64))
# The oracle's longdouble is more than a double, and so can tell how good doubles are: not everywhere.
_ORACLE_IS_WIDER = np.finfo(np.longdouble).eps < 1e-18
DTYPES = [FLOAT32] * 4 + [FLOAT64] * (2 if _ORACLE_IS_WIDER else 0) + [FLOAT16] + [BFLOAT16] * (BFLOAT16 is not None)
ACTIVATIONS = (None, None, None, "relu", *NAMES[1:], ("leaky_relu", 0.2), ("leaky_relu", -0.5), ("leaky_relu", 0.0),
               ("elu", 0.5), ("elu", -2.0))
SCALES = (1,) * 12 + (1e-30, 1e-15, 1e-3, 1e3, 1e15, 1e30)
RATIOS = (0, 0, 1, 3, 30, 1e3, 1e6)
LARGEST_LOG2, RARE_LOG2 = 12.5, 16.5  # of the number of entries, the latter for one call in a hundred


class Draw:
    def __init__(self, seed, number):
        self.one = random.Random(f"{seed} {number}")
        self.many = np.random.Generator(np.random.PCG64([seed, number]))

    def chance(self, p):
        return self.one.random() < p

    def choice(self, options):
        return options[int(self.one.random() * len(options))]

    def shuffle(self, items, unless=False):
        if not unless:
            self.one.shuffle(items)

    def int(self, low, high):
        return self.one.randint(low, high)

    # ---- shapes ----

    def shape(self):
        """2 to 5 axes of sizes that are mostly odd in one way or another; now and then an empty one."""
        log2 = self.one.uniform(0, RARE_LOG2 if self.chance(0.01) else LARGEST_LOG2)
        cuts = sorted(self.one.uniform(0, log2) for _ in range(self.choice((1, 1, 1, 2, 2, 3, 4))))
        sizes = [int(2 ** (b - a)) for a, b in zip([0, *cuts], [*cuts, log2])]
        self.shuffle(sizes)
        if self.chance(0.04):
            sizes[self.int(0, len(sizes) - 1)] = 0
        return tuple(sizes)

    def axes(self, ndim):
        """(the argument axis=, the feature axes in ascending order)"""
        several = 2 if ndim > 2 and self.chance(0.15) else 1
        axes = [1] if several == 1 and self.chance(0.4) else self.one.sample(range(ndim), several)
        given = [i - ndim if self.chance(0.3) else i for i in axes]
        return given[0] if several == 1 else tuple(given), tuple(sorted(axes))

    # ---- data ----

    def data(self, shape, axes, dtype, spoils=True):
        """Features of one scale, each with a mean and a kind of its own; some constant, some with NaN or Inf."""
        features = tuple(n if i in axes else 1 for i, n in enumerate(shape))
        half = dtype == FLOAT16
        scale, ratio = (self.choice((1, 1, 0.01, 50)), self.choice((0, 1, 30))) if half else \
            (self.choice(SCALES), self.choice(RATIOS))
        values = self._entries(shape, half) * self.many.uniform(0.5, 2, features)
        constant = self.many.random(features) < (0.3 if self.chance(0.15) else 0)
        values = np.where(constant, self.many.standard_normal(features), values)
        values = scale * (values + ratio * self.many.choice((-1.0, 1.0), features))
        if spoils and self.chance(0.15):
            self._spoil(values, axes)
        return values.astype(dtype)

    def _entries(self, shape, half):
        kind = self.choice(("normal",) * 5 + ("whole", "outliers", "ramp"))
        values = self.many.standard_normal(shape)
        if kind == "whole":
            return np.rint(2 * values)
        if kind == "outliers":
            return values * np.where(self.many.random(shape) < 0.05, 20.0 if half else 1e4, 1.0)
        if kind == "ramp" and values.size:
            return np.linspace(-1, 1, values.size).reshape(shape)
        return values

    def _spoil(self, values, axes):
        """NaN, Inf or both in some entries of about one feature in four."""
        features = tuple(n if i in axes else 1 for i, n in enumerate(values.shape))
        bad = self.many.random(features) < 0.25
        some = bad & (self.many.random(values.shape) < self.choice((0.02, 0.3, 1.0)))
        values[some] = self.many.choice(self.choice(((np.nan,), (np.inf,), (np.nan, np.inf, -np.inf))), int(some.sum()))

    # ---- parameters ----

    def parameter_type(self, dtype):
        return FLOAT64 if self.chance(0.8 if dtype == FLOAT64 else 0.2) else FLOAT32

    def gamma(self, c, dtype):
        if self.chance(0.2):
            return None
        scale = self.choice((1, 1, 1, 1, 1e-10, 1e10))
        values = scale * self.many.uniform(0.5, 2, c) * self.many.choice((-1.0, 1.0), c)
        if self.chance(0.08):
            values[self.many.random(c) < 0.3] = 0
        return values.astype(dtype)

    def beta(self, c, dtype):
        if self.chance(0.2):
            return None
        return (self.many.standard_normal(c) * self.choice((1, 1, 1, 0, 1e-6, 1e4))).astype(dtype)

    # ---- what counts ----

    def counting(self, shape, decades):
        """mask, weights, lengths by name, of a batch with these axes; mostly none. decades: that weights may span."""
        found = {}
        if not shape or self.chance(0.6):
            return found
        if self.chance(0.5):
            found["mask"] = self.many.random(self._part_of(shape)) < self.choice((0.7, 0.7, 0.1, 0.0, 1.0))
        if self.chance(0.5):
            found["weights"] = self._weights(self._part_of(shape), decades)
        if len(shape) > 1 and self.chance(0.4):
            found["lengths"] = self.many.integers(0, shape[1] + 1, shape[0])
        return found

    def _part_of(self, shape):
        """The shape of something that is broadcast from the left to this one."""
        first = shape[:self.int(1, len(shape))] if self.chance(0.4) else shape
        return tuple(1 if self.chance(0.1) else n for n in first)

    def _weights(self, shape, decades):
        kind = self.choice(("uniform", "uniform", "whole", "scaled", "spread", "none"))
        if kind == "whole":
            return self.many.integers(0, 5, shape)
        values = self.many.random(shape)
        values[self.many.random(shape) < 0.2] = 0
        if kind == "scaled":
            values = values * self.choice((1e-40, 1e40, 1e-20, 1e20))
        if kind == "spread":
            values = values * 10.0 ** self.many.uniform(-decades / 2, decades / 2, shape)
        return values * 0 if kind == "none" else values.astype(FLOAT64 if kind != "uniform" else FLOAT32)
