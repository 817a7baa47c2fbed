"""Checks that a sample gets the same result alone as in a batch: inference uses the moving averages, not the batch.

Batch norm must give the same bits. The logits of the whole network need not: NumPy's matrix product adds in another
order for one row than for many, which three layers and their batch norms can amplify.
"""

from dataclasses import dataclass

import numpy as np

LOGIT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class SingleSampleCheck:
    """The largest differences between samples alone and all at once; the logits' is relative to the largest logit."""

    samples: int
    norm_difference: float
    logit_difference: float

    @property
    def passed(self):
        """NaN does not pass."""
        return self.norm_difference == 0 and self.logit_difference <= LOGIT_TOLERANCE


def one_by_one(layer, x):
    """layer.forward of every row of x as a batch of its own."""
    return np.concatenate([layer.forward(x[i : i + 1]) for i in range(len(x))])


def norm_differences(network, x):
    """The largest difference that each batch norm layer makes, fed with what reaches it in the batch."""
    differences = []
    norms = network.norms()
    for layer in network.layers:
        y = layer.forward(x)
        if layer in norms:
            differences.append(np.abs(one_by_one(layer, x) - y).max())
        x = y
    return differences


def check_single_samples(network, images):
    """Compare inference on each image alone with inference on all at once."""
    network.eval()
    together = network.forward(images)
    difference = np.abs(one_by_one(network, images) - together).max()
    return SingleSampleCheck(
        samples=len(images),
        norm_difference=float(np.max(norm_differences(network, images))),
        logit_difference=float(difference / np.abs(together).max()),
    )
