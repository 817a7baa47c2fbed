"""Keras 3 on its NumPy backend. It has no gradients: forward passes of training, moving averages included."""
import os
from timeit import repeat

NAME = "Keras (NumPy backend)"
REPLACES = "layers.BatchNormalization, training's forward pass"


def version():
    os.environ.setdefault("KERAS_BACKEND", "numpy")
    import keras
    if keras.config.backend() != "numpy":
        raise ImportError(f"Keras runs on its {keras.config.backend()} backend: set KERAS_BACKEND=numpy")
    return keras.__version__


def pair(case):
    import keras
    from fastbn.interop.keras import BatchNormalization
    return tuple(_forward(kind, case) for kind in (keras.layers.BatchNormalization, BatchNormalization))


def _forward(kind, case):
    layer = kind(axis=case.axis, epsilon=case.eps)
    layer.build(case.x.shape)
    layer.gamma.assign(case.gamma)
    layer.beta.assign(case.beta)
    return lambda: layer(case.x, training=True)


def overhead():
    """What the layer's call() costs beyond fastbn's, in training: Keras's own way to call() is not in it."""
    import numpy as np

    import fastbn
    from fastbn.interop.keras import BatchNormalization
    x, layer = np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32), BatchNormalization()
    layer.build(x.shape)
    gamma, beta = layer.gamma.value, layer.beta.value
    return (_microseconds(lambda: layer.call(x, training=True))
            - _microseconds(lambda: fastbn.batch_norm_training(x, gamma, beta, eps=1e-3, axis=-1)))


def _microseconds(function):
    return min(repeat(function, number=1000, repeat=10)) * 1e3
