"""Batch norm for tables (N, C) in plain NumPy: what one writes without a library, to measure fastbn against.

It works in the data's own type, makes no copy that it does not need, and reuses its temporary arrays in place.
"""

import numpy as np


class NumpyBatchNorm:
    """y = (x - mean) / sqrt(var + eps) * gamma + beta; the interface and the defaults of `fastbn.BatchNorm`."""

    def __init__(self, num_features, *, eps=1e-5, momentum=0.9, dtype=np.float32):
        self.eps = np.dtype(dtype).type(eps)
        self.momentum = momentum
        self.training = True
        self.gamma = np.ones(num_features, dtype)
        self.beta = np.zeros(num_features, dtype)
        self.running_mean = np.zeros(num_features, dtype)
        self.running_var = np.ones(num_features, dtype)
        self.dgamma = np.zeros(num_features, dtype)
        self.dbeta = np.zeros(num_features, dtype)
        self._x_hat = self._rstd = None

    def train(self, mode=True):
        self.training = mode
        return self

    def eval(self):
        return self.train(False)

    def parameters(self):
        return [("gamma", self.gamma, self.dgamma), ("beta", self.beta, self.dbeta)]

    def forward(self, x):
        return self._forward_training(x) if self.training else self._forward_inference(x)

    def _forward_training(self, x):
        mean = x.mean(axis=0)
        x_hat = x - mean
        var = np.einsum("nc,nc->c", x_hat, x_hat) / len(x)
        rstd = 1 / np.sqrt(var + self.eps)
        x_hat *= rstd
        self._x_hat, self._rstd = x_hat, rstd
        self._update_running(mean, var, len(x))
        y = x_hat * self.gamma
        y += self.beta
        return y

    def _update_running(self, mean, var, count):
        """The running variance takes the unbiased estimate."""
        weight = 1 - self.momentum
        self.running_mean *= self.momentum
        self.running_mean += weight * mean
        self.running_var *= self.momentum
        self.running_var += weight * count / (count - 1) * var

    def _forward_inference(self, x):
        scale = self.gamma / np.sqrt(self.running_var + self.eps)
        y = x * scale
        y += self.beta - self.running_mean * scale
        return y

    def backward(self, dy):
        """dx, for the last x that forward saw in training; overwrites dgamma and dbeta."""
        count = len(dy)
        self.dbeta = dy.sum(axis=0)
        self.dgamma = np.einsum("nc,nc->c", dy, self._x_hat)
        dx = self._x_hat * (self.dgamma / -count)
        dx += dy
        dx -= self.dbeta / count
        dx *= self.gamma * self._rstd
        return dx
