"""A small framework on NumPy arrays, and a convolutional network on handwritten digits in it, with fastbn for batch norm.

    pip install 'fastbn[demo]' && python numpy_network.py

A layer has forward(x), backward(dy) and parameters(), which gives (name, array, gradient) of each: fastbn.BatchNorm is one.
"""
import sys

import numpy as np
from sklearn.datasets import load_digits

import fastbn


class Conv:
    """A 3 x 3 convolution of channels-last images, padded by zeros. The batch norm after it has the bias."""

    def __init__(self, inputs, outputs, rng):
        self.weight = rng.normal(0, (2 / (9 * inputs)) ** 0.5, (9 * inputs, outputs)).astype(np.float32)

    def forward(self, x):
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))   # (n, h, w, channels, 3, 3)
        self.shape, self.columns = x.shape, windows.reshape(-1, self.weight.shape[0])
        return (self.columns @ self.weight).reshape(*x.shape[:3], -1)

    def backward(self, dy):
        n, h, w, channels = self.shape
        flat = dy.reshape(-1, dy.shape[-1])
        self.gradient = self.columns.T @ flat
        windows = (flat @ self.weight.T).reshape(n, h, w, channels, 3, 3)
        padded = np.zeros((n, h + 2, w + 2, channels), dy.dtype)
        for i in range(3):
            for j in range(3):
                padded[:, i:i + h, j:j + w] += windows[..., i, j]
        return padded[:, 1:-1, 1:-1]

    def parameters(self):
        yield "weight", self.weight, self.gradient


class Linear:
    """All entries of an image to `outputs` numbers."""

    def __init__(self, inputs, outputs, rng):
        self.weight = rng.normal(0, inputs ** -0.5, (inputs, outputs)).astype(np.float32)

    def forward(self, x):
        self.shape, self.flat = x.shape, x.reshape(len(x), -1)
        return self.flat @ self.weight

    def backward(self, dy):
        self.gradient = self.flat.T @ dy
        return (dy @ self.weight.T).reshape(self.shape)

    def parameters(self):
        yield "weight", self.weight, self.gradient


def loss_gradient(scores, labels):
    """The gradient of the mean cross entropy of softmax(scores)."""
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(labels)), labels] -= 1
    return p / len(labels)


def run(layers, x):
    for layer in layers:
        x = layer.forward(x)
    return x


def train(layers, images, labels, epochs, rng, rate=0.1, batch=64):
    for _ in range(epochs):
        for some in np.array_split(rng.permutation(len(labels)), len(labels) // batch):
            dy = loss_gradient(run(layers, images[some]), labels[some])
            for layer in reversed(layers):
                dy = layer.backward(dy)
                for _, value, gradient in layer.parameters():
                    value -= rate * gradient


def main(epochs):
    rng = np.random.default_rng(0)
    images, labels = load_digits(return_X_y=True)
    order = rng.permutation(len(labels))
    images, labels = (images.reshape(-1, 8, 8, 1)[order] / 16).astype(np.float32), labels[order]
    norms = [fastbn.BatchNorm(c, axis=-1, activation="relu") for c in (16, 32)]     # and relu, in the same pass
    layers = [Conv(1, 16, rng), norms[0], Conv(16, 32, rng), norms[1], Linear(8 * 8 * 32, 10, rng)]
    train(layers, images[:1500], labels[:1500], epochs, rng)
    for norm in norms:
        norm.eval()                                     # inference: the moving averages
    accuracy = np.mean(run(layers, images[1500:]).argmax(axis=1) == labels[1500:])
    print(f"test accuracy after {epochs} epochs: {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
