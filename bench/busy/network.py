"""A training step in which NumPy's matrix products, which have threads of their own, and batch norms alternate."""
import numpy as np

import fastbn
from bench.busy.turns import Turn, take_turns, threads_session

SIZES = (64, 256, 256, 256, 10)
BATCHES = (64, 1024)


def make_step(batch):
    """A function that takes one step of gradient descent."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, SIZES[0])).astype(np.float32)
    target = np.eye(SIZES[-1], dtype=np.float32)[rng.integers(SIZES[-1], size=batch)]
    weights = [rng.normal(0, a**-0.5, (a, b)).astype(np.float32) for a, b in zip(SIZES, SIZES[1:])]
    norms = [fastbn.BatchNorm(size, activation="relu") for size in SIZES[1:-1]]

    def step():
        inputs = [x]
        for weight, norm in zip(weights, norms):
            inputs.append(norm(inputs[-1] @ weight))
        gradient = (inputs[-1] @ weights[-1] - target) / np.float32(batch)
        for k in range(len(weights) - 1, -1, -1):
            change = inputs[k].T @ gradient
            if k > 0:
                gradient = norms[k - 1].backward(gradient @ weights[k].T)
            weights[k] -= np.float32(1e-3) * change
    return step


def steps(seconds):
    """For each batch: (its size, its turns)."""
    for batch in BATCHES:
        step = make_step(batch)
        turns = [Turn("default", step, threads_session(None)), Turn("one thread", step, threads_session(1))]
        take_turns(turns, seconds)
        yield batch, turns
