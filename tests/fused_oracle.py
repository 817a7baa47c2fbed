"""Activations and weighted batch normalization in float64: what the fused calls are compared with."""
from typing import NamedTuple

import numpy as np

from activations_reference import DERIVATIVES, NAMES, VALUES

# name: (act, its derivative), functions of z and the parameter.
ACTIVATIONS = {None if name == "identity" else name: (VALUES[name], DERIVATIVES[name]) for name in NAMES}
PARAMETERS = {"leaky_relu": 0.01, "elu": 1.0}


def assert_near(got, expected, dtype, scale=1.0):
    unit = 4e-6 if dtype == np.float32 else 1e-12
    assert np.all(np.abs(got - expected) <= unit * scale * (1 + np.abs(expected)))


class Forward(NamedTuple):
    y: np.ndarray
    mean: np.ndarray
    var: np.ndarray


class Backward(NamedTuple):
    dx: np.ndarray
    dgamma: np.ndarray
    dbeta: np.ndarray
    dresidual: np.ndarray


def parts_of(activation):
    name, parameter = activation if isinstance(activation, tuple) else (activation, PARAMETERS.get(activation, 0.0))
    act, slope = ACTIVATIONS[name]
    return (lambda z: act(z, parameter)), (lambda z: slope(z, parameter))


def statistics(x, w, axes):
    """(sum of the weights w, mean, biased variance) over the axes. Nothing has 0, 0, NaN.

    Entries of weight 0 leave no trace. The mean of what is left is taken once more: mean / std = 1e6 costs no digits.
    """
    counted = np.where(w != 0, x, 0)
    total = w.sum(axis=axes, keepdims=True)
    with np.errstate(all="ignore"):
        mean = np.where(total > 0, (w * counted).sum(axis=axes, keepdims=True) / total, 0)
        left = (w * (counted - mean)).sum(axis=axes, keepdims=True) / total
        mean = np.where(left == left, mean + left, mean)
        return total, mean, (w * (counted - mean)**2).sum(axis=axes, keepdims=True) / total


class Layer:
    """One call, in float64 or another type `wide`: x, (C,) parameters, weights (None: ones), statistics (None: of x).

    weights: of x's shape without the axis. given: (mean, var), constants unless frozen is False. missing: entries of x
    that count for nothing, in backward too.
    """

    def __init__(self, x, gamma, beta, *, axis=1, eps=1e-5, activation=None, residual=None, weights=None, given=None,
                 frozen=None, missing=None, wide=float):
        self.axis, self.others = axis % x.ndim, tuple(i for i in range(x.ndim) if i != axis % x.ndim)
        self.shape = [x.shape[i] if i == self.axis else 1 for i in range(x.ndim)]
        self.type, self.missing, x = wide, missing, x.astype(wide)
        weights = wide(1) if weights is None else np.asarray(weights, wide)
        weights = np.broadcast_to(weights, [x.shape[i] for i in self.others])
        self.w = np.broadcast_to(np.expand_dims(weights, self.axis), x.shape)
        self.w = self.w if missing is None else np.where(missing, 0, self.w)
        self.frozen = given is not None if frozen is None else frozen
        self.gamma, self.beta = self.wide(gamma), self.wide(beta)
        self.total, self.mean, self.var = statistics(x, self.w, self.others)
        if given is not None:
            self.mean, self.var = map(self.wide, given)
        self.nothing = (self.total == 0) & (not self.frozen)
        self.rstd = 1 / np.sqrt(self.var + wide(eps))
        self.centred = x - self.mean
        self.h = self.centred * np.where(self.nothing, 0, self.rstd)
        self.z = self.h * self.gamma + self.beta + (0 if residual is None else residual)
        self.name = activation[0] if isinstance(activation, tuple) else activation
        self.act, self.slope = parts_of(activation)

    def wide(self, a):
        return np.asarray(a, self.type).reshape(self.shape)

    def forward(self):
        y = self.act(self.z)
        y = np.where(np.isnan(y), 0, y)  # the limit of z * 0 at -Inf; leaky_relu of slope 0 is relu
        return Forward(np.where(np.isnan(self.z), np.nan, y), self.mean.ravel(), self.var.ravel())

    def backward(self, dy):
        dz = dy * self.slope(self.z)
        dz = dz if self.missing is None else np.where(self.missing, 0, dz)
        apart = (self.w == 0) & (dy == 0)
        terms = np.where(apart if self.missing is None else apart | self.missing, 0, dz * self.h)
        dbeta, dgamma = dz.sum(axis=self.others, keepdims=True), terms.sum(axis=self.others, keepdims=True)
        dgamma = np.where(self.nothing, 0, dgamma)
        through = 0 if self.frozen else np.where(self.w != 0, self.w / self.total * (dbeta + self.h * dgamma), 0)
        dx = np.where(self.nothing, 0, self.gamma * self.rstd * (dz - through))
        dx = dx if self.missing is None else np.where(self.missing, 0, dx)
        return Backward(dx, dgamma.ravel(), dbeta.ravel(), dz)
