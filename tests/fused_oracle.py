"""Activations and weighted batch normalization in float64: what the fused calls are compared with."""
import math
from typing import NamedTuple

import numpy as np

_PHI = np.vectorize(lambda z: 0.5 * math.erfc(-z / math.sqrt(2.0)), otypes=[float])


def _sigmoid(z):
    return np.where(z >= 0, 1 / (1 + np.exp(-np.abs(z))), np.exp(-np.abs(z)) / (1 + np.exp(-np.abs(z))))


def _gelu_tanh(z):
    return 0.5 * z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


def _gelu_tanh_slope(z):
    inner = math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)
    change = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * z**2)
    return 0.5 * (1 + np.tanh(inner)) + 0.5 * z * (1 - np.tanh(inner)**2) * change


# name: (act, its derivative), functions of z and the parameter.
ACTIVATIONS = {
    None: (lambda z, a: z, lambda z, a: np.ones_like(z)),
    "relu": (lambda z, a: np.where(z > 0, z, 0), lambda z, a: (z > 0).astype(float)),
    "leaky_relu": (lambda z, a: np.where(z > 0, z, a * z), lambda z, a: np.where(z > 0, 1, a)),
    "relu6": (lambda z, a: np.clip(z, 0, 6), lambda z, a: ((z > 0) & (z < 6)).astype(float)),
    "sigmoid": (lambda z, a: _sigmoid(z), lambda z, a: _sigmoid(z) * _sigmoid(-z)),
    "tanh": (lambda z, a: np.tanh(z), lambda z, a: 1 - np.tanh(z)**2),
    "silu": (lambda z, a: z * _sigmoid(z), lambda z, a: _sigmoid(z) * (1 + z * _sigmoid(-z))),
    "gelu": (lambda z, a: z * _PHI(z),
             lambda z, a: _PHI(z) + z * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)),
    "gelu_tanh": (lambda z, a: _gelu_tanh(z), lambda z, a: _gelu_tanh_slope(z)),
    "hardswish": (lambda z, a: z * np.clip(z + 3, 0, 6) / 6,
                  lambda z, a: np.where(z < -3, 0, np.where(z > 3, 1, (2 * z + 3) / 6))),
    "elu": (lambda z, a: np.where(z > 0, z, a * np.expm1(np.minimum(z, 0))),
            lambda z, a: np.where(z > 0, 1, a * np.exp(np.minimum(z, 0)))),
}
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


class Layer:
    """One call in float64: x, (C,) parameters, weights of x's shape without the axis (None: ones), statistics (None: of x)."""

    def __init__(self, x, gamma, beta, *, axis=1, eps=1e-5, activation=None, residual=None, weights=None, given=None):
        self.axis, self.others = axis % x.ndim, tuple(i for i in range(x.ndim) if i != axis % x.ndim)
        self.shape = [x.shape[i] if i == self.axis else 1 for i in range(x.ndim)]
        counted = [x.shape[i] for i in self.others]
        weights = np.broadcast_to(1.0 if weights is None else np.asarray(weights, float), counted)
        self.w = np.broadcast_to(np.expand_dims(weights, self.axis), x.shape)
        self.frozen, self.gamma = given is not None, self.wide(gamma)
        counted = np.where(self.w != 0, x.astype(float), 0.0)
        self.total = self.w.sum(axis=self.others, keepdims=True)
        if given is None:
            self.mean = (self.w * counted).sum(axis=self.others, keepdims=True) / self.total
            self.var = (self.w * (counted - self.mean)**2).sum(axis=self.others, keepdims=True) / self.total
        else:
            self.mean, self.var = map(self.wide, given)
        self.rstd = 1 / np.sqrt(self.var + eps)
        self.h = (x - self.mean) * self.rstd
        self.z = self.h * self.gamma + self.wide(beta) + (0 if residual is None else residual)
        self.act, self.slope = parts_of(activation)

    def wide(self, a):
        return np.asarray(a, float).reshape(self.shape)

    def forward(self):
        return Forward(self.act(self.z), self.mean.ravel(), self.var.ravel())

    def backward(self, dy):
        dz = dy * self.slope(self.z)
        terms = np.where((self.w == 0) & (dy == 0), 0.0, dz * self.h)
        dbeta, dgamma = dz.sum(axis=self.others, keepdims=True), terms.sum(axis=self.others, keepdims=True)
        through = 0 if self.frozen else np.where(self.w != 0, self.w / self.total * (dbeta + self.h * dgamma), 0.0)
        return Backward(self.gamma * self.rstd * (dz - through), dgamma.ravel(), dbeta.ravel(), dz)
