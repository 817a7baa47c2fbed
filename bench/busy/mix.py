"""The work of the worker processes: inference, training and backward on shapes of several sizes, in turn."""
import numpy as np

import fastbn

SHAPES = ((1, 64, 56, 56), (64, 1024), (1, 256, 14, 14), (200_000, 4), (8, 128, 28, 28))


def make_mix(seed):
    """A list of functions without arguments."""
    rng, calls = np.random.default_rng(seed), []
    for shape in SHAPES:
        x, dy = (rng.normal(3, 2, shape).astype(np.float32) for _ in range(2))
        calls += _calls(x, dy, np.empty_like(x))
    return calls


def _calls(x, dy, out):
    bn = fastbn.BatchNorm(x.shape[1])
    bn(x)
    _, saved = fastbn.batch_norm_training(x, bn.gamma, bn.beta)
    bn.eval()
    return [lambda: bn(x, out=out), lambda: fastbn.batch_norm_training(x, bn.gamma, bn.beta, out=out),
            lambda: fastbn.batch_norm_backward(dy, saved, out=out)]
