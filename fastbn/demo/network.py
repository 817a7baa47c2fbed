"""The demo's network: fully connected layers in plain NumPy, with batch norm where a variant asks for it.

Every layer has ``forward(x)``, ``backward(dy)`` (the gradient by the input; it keeps the gradients of the layer's own
parameters) and ``parameters()``, triples of name, value and gradient. `fastbn.BatchNorm` has the same methods, so
it stands in the list of layers as it is.

The network is the one of section 4.1 of Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by
Reducing Internal Covariate Shift", 2015 (arXiv:1502.03167): three hidden layers of 100 sigmoid units. ReLU, under which
batch norm has less to gain, can take the sigmoid's place.
"""

import itertools

import numpy as np

BEFORE, AFTER = "before", "after"


class Linear:
    """y = x @ weight + bias, for x of shape (N, inputs) and weight of shape (inputs, outputs)."""

    def __init__(self, weight):
        self.weight = weight
        self.bias = np.zeros(weight.shape[1], weight.dtype)
        self.dweight = self.dbias = None
        self._x = None

    def forward(self, x):
        self._x = x
        return x @ self.weight + self.bias

    def backward(self, dy):
        self.dweight = self._x.T @ dy
        self.dbias = dy.sum(axis=0)
        return dy @ self.weight.T

    def parameters(self):
        return [("weight", self.weight, self.dweight), ("bias", self.bias, self.dbias)]


class Layer:
    """A layer without parameters."""

    def parameters(self):
        return []


class Sigmoid(Layer):
    """y = 1 / (1 + exp(-x)), computed through tanh, which cannot overflow."""

    def forward(self, x):
        y = np.tanh(0.5 * x)
        y += 1
        y *= 0.5
        self._y = y
        return y

    def backward(self, dy):
        return dy * self._y * (1 - self._y)


class ReLU(Layer):
    """y = max(x, 0)."""

    def forward(self, x):
        self._positive = x > 0
        return x * self._positive

    def backward(self, dy):
        return dy * self._positive


ACTIVATIONS = {"sigmoid": Sigmoid, "relu": ReLU}


class Network:
    """Layers in sequence. The layers that behave differently in training and inference have train and eval."""

    def __init__(self, layers):
        self.layers = layers

    def forward(self, x):
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def backward(self, dy):
        for layer in reversed(self.layers):
            dy = layer.backward(dy)
        return dy

    def norms(self):
        """The batch norm layers, first to last."""
        return [layer for layer in self.layers if hasattr(layer, "train")]

    def train(self):
        for layer in self.norms():
            layer.train()

    def eval(self):
        for layer in self.norms():
            layer.eval()

    def parameters(self):
        return [triple for layer in self.layers for triple in layer.parameters()]


class SGD:
    """Stochastic gradient descent with classical momentum: v = momentum * v - rate * gradient, value += v."""

    def __init__(self, network, learning_rate, momentum):
        self._network = network
        self._rate = learning_rate
        self._momentum = momentum
        self._velocities = [np.zeros_like(value) for _, value, _ in network.parameters()]

    def step(self):
        for velocity, (_, value, gradient) in zip(self._velocities, self._network.parameters()):
            velocity *= self._momentum
            velocity -= self._rate * gradient
            value += velocity


def softmax_cross_entropy(logits, labels):
    """The mean of -log(softmax(logits)[label]) over the rows, and its gradient by the logits."""
    rows = np.arange(len(labels))
    shifted = logits - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    sums = exponentials.sum(axis=1, keepdims=True)
    loss = float(np.mean(np.log(sums[:, 0]) - shifted[rows, labels]))
    gradient = exponentials / sums
    gradient[rows, labels] -= 1
    gradient /= len(labels)
    return loss, gradient


def initial_weights(sizes, seed, dtype=np.float32):
    """Weights uniform within +-sqrt(6 / (inputs + outputs)), after Glorot and Bengio, 2010."""
    rng = np.random.default_rng(seed)
    shapes = list(itertools.pairwise(sizes))
    bounds = [(6 / sum(shape)) ** 0.5 for shape in shapes]
    return [rng.uniform(-bound, bound, size=shape).astype(dtype) for bound, shape in zip(bounds, shapes)]


def build_network(weights, activation, position=None, make_norm=None):
    """A network on copies of the weights; position is None (no batch norm), BEFORE or AFTER the activation.

    activation is a name in ACTIVATIONS; make_norm(num_features) makes one batch norm layer. The linear layers keep
    their biases where batch norm makes them superfluous: nothing but batch norm shall differ between the variants.
    """
    layers = []
    for weight in weights[:-1]:
        layers.append(Linear(weight.copy()))
        if position == BEFORE:
            layers.append(make_norm(weight.shape[1]))
        layers.append(ACTIVATIONS[activation]())
        if position == AFTER:
            layers.append(make_norm(weight.shape[1]))
    layers.append(Linear(weights[-1].copy()))
    return Network(layers)
