"""The inputs of one call, in guarded memory and as tables, and which refusals are right for it."""
import math

import numpy as np

from .arena import LAYOUTS, Arena
from .bounds import arithmetic_of
from .draw import ACTIVATIONS, DTYPES
from .tables import as_table, batch_axes, product_of

REFUSALS = TypeError, ValueError, RuntimeError


class Case:
    """x and what nearly all calls have. `arguments`, by name, is also what a fault is told with."""

    def __init__(self, draw, spoils=True):
        self.draw, self.arena, self.arguments, self.kind = draw, Arena(draw), {}, ""
        self.dtype, self.shape = draw.choice(DTYPES), draw.shape()
        self.axis, self.axes = draw.axes(len(self.shape))
        self.batch_shape = tuple(self.shape[i] for i in batch_axes(len(self.shape), self.axes))
        self.c, self.entries = math.prod(self.shape[i] for i in self.axes), math.prod(self.batch_shape)
        self.x = self.data("x", spoils)
        self.x_table = as_table(self.x, self.axes)
        self.activation = self.residual = self.out = self.gamma = self.beta = None
        self.product, self.counting = None, {}
        self.keep(axis=self.axis, num_threads=draw.choice((None, None, 1, 2)))

    def keep(self, **arguments):
        self.arguments.update(arguments)

    # ---- drawing ----

    def data(self, name, spoils=True):
        values = self.draw.data(self.shape, self.axes, self.dtype, spoils)
        return self.arena.place(name, values, self.draw.choice(LAYOUTS))

    def vector(self, name, values):
        """A parameter; None stays None."""
        return None if values is None else self.arena.place(name, values, self.draw.choice(("C", "C", "C", "negative")))

    def draw_parameters(self, **types):
        self.parameter_type = self.draw.parameter_type(self.dtype)
        self.gamma = self.vector("gamma", self.draw.gamma(self.c, types.get("gamma", self.parameter_type)))
        self.beta = self.vector("beta", self.draw.beta(self.c, types.get("beta", self.parameter_type)))
        self.eps = self.draw.choice((1e-5, 1e-5, 1e-3, 1.0, 1e-12))
        self.keep(gamma=self.gamma, beta=self.beta, eps=self.eps)

    def draw_extras(self):
        self.activation = self.draw.choice(ACTIVATIONS)
        self.residual = self.data("residual", spoils=self.draw.chance(0.2)) if self.draw.chance(0.2) else None
        self.keep(activation=self.activation, residual=self.residual)

    def draw_counting(self):
        # By weights of 80 decades a mean is one entry's, to doubles' last digit: float64 has no promise there.
        found = self.draw.counting(self.batch_shape, 12 if self.dtype == np.float64 else 80)
        self.counting = {name: self.arena.place(name, a, self.draw.choice(("C", "C", "F", "strided")))
                         for name, a in found.items()}
        self.product = product_of(self.counting, self.batch_shape)
        self.keep(**self.counting)

    def draw_out(self, name="out", more=()):
        """A fresh array, one of `more`, which may be overwritten, or None."""
        if self.draw.chance(0.4):
            return None
        choices = [a for a in more if a is not None]
        if choices and self.draw.chance(0.5):
            return self.draw.choice(choices)
        return self.arena.place(name, np.full(self.shape, 7, self.dtype), self.draw.choice(LAYOUTS))

    # ---- what follows from the inputs ----

    @property
    def arithmetic(self):
        return arithmetic_of(self.dtype)

    @property
    def in_place(self):
        return self.out is self.x and self.x.size > 0

    def table(self, a):
        return None if a is None else as_table(a, self.axes)

    def described(self):
        """The arguments in a line; arrays by type, shape and strides."""
        def text(a):
            if not isinstance(a, np.ndarray):
                return repr(a)
            name = next((name for name, placed in self.arena.placed.items() if placed.view is a), "")
            return f"{name}<{a.dtype.name} {a.shape} {tuple(s // a.itemsize for s in a.strides)}>"
        end = "right" if self.arena.right else "left"
        arguments = ", ".join(f"{name}={text(a)}" for name, a in self.arguments.items() if a is not None)
        return f"{self.kind}(x={text(self.x)}, {arguments}), {end}-aligned"

    # ---- calling ----

    def attempt(self, call, may_refuse, out):
        """What the call returns, or None where it is refused, and rightly. `out` alone may have been written to."""
        try:
            result = call()
        except REFUSALS as error:
            if not (may_refuse(error) or self.is_unwritable(error, out)):
                raise AssertionError(f"refused: {type(error).__name__}: {error}") from error
            result = None
        self.arena.settle(out) if result is not None else None
        self.arena.assert_unchanged()
        return result

    def is_unwritable(self, error, out):
        """Some layouts of `out` cannot be seen as (n, c, s): never a C-ordered one with one feature axis."""
        plain = out is None or (out.flags.c_contiguous and len(self.axes) == 1)
        return not plain and isinstance(error, ValueError) and "a layout that cannot be written in place" in str(error)
