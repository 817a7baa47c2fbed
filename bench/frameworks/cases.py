"""What is computed: an image batch channels-first, and a table."""
from dataclasses import dataclass

import numpy as np

SHAPES = ((32, 64, 56, 56), (4096, 512))


@dataclass
class Case:
    """dy is drawn apart from x, with a mean, so that no gradient is a sum that cancels out."""
    x: np.ndarray
    dy: np.ndarray
    gamma: np.ndarray
    beta: np.ndarray
    axis: int = 1
    eps: float = 1e-5

    def __str__(self):
        return "x".join(map(str, self.x.shape))


def make_case(shape):
    rng = np.random.default_rng(len(shape))
    def normal(mean, std, shape):
        return rng.normal(mean, std, shape).astype(np.float32)
    features = shape[1]
    return Case(x=normal(1, 2, shape), dy=normal(0.5, 1, shape), gamma=normal(1, 0.1, features),
                beta=normal(0, 0.1, features))
