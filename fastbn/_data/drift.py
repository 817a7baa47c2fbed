"""How far a batch's statistics lie from a layer's running ones."""
from typing import NamedTuple

import numpy as np

from .._engine.moments import Moments
from .calibration import layer_moments


class Drift(NamedTuple):
    """What BatchNorm.drift returns: float64 arrays of shape (C,)."""

    mean_shift: np.ndarray
    std_ratio: np.ndarray
    divergence: np.ndarray


def drift(self, x):
    """How far the statistics of x lie from the running ones, feature by feature. Changes nothing.

    x: an array as the layer takes it, or Moments of C features (batch_moments, say, those of many batches, or
        fastbn.moments(x, mask=mask)). With nan_policy "omit" NaN entries are missing.

    Returns a named tuple of float64 arrays of shape (C,). With std = sqrt(var + eps), var with the layer's ddof:
        mean_shift  d = (mean - running_mean) / running_std       0: no shift
        std_ratio   r = std / running_std                         1: the same spread
        divergence  J = ((r - 1/r)^2 + d^2 (1 + 1/r^2)) / 2       0: the same; in nats
    J is the symmetrized Kullback-Leibler divergence KL(p, q) + KL(q, p) of the two normal distributions. It grows with
    either difference; a mean off by one standard deviation alone, or a spread by a factor of 1.93, gives 1.
    NaN where a feature has a NaN or Inf, or, with counts by feature, not more than ddof entries.
    Raises TypeError, ValueError (shapes; not more than ddof entries), RuntimeError (no running statistics).
    Source: Kullback and Leibler, "On Information and Sufficiency", 1951, for the divergence of normal distributions.
    """
    if not self._tracks:
        raise RuntimeError("this layer has no running statistics: it was made with track_running_stats=False")
    batch = x if isinstance(x, Moments) else layer_moments(self, x)
    self._check_moments(batch)
    if np.isnan(batch.freedom(self.ddof)).all():
        raise ValueError(f"x has {batch.count} entries of each feature, expected more than ddof={self.ddof}")
    with np.errstate(all="ignore"):
        running_std = np.sqrt(self.running_var.astype(np.float64) + self.eps)
        shift = (batch.mean - self.running_mean) / running_std
        ratio = np.sqrt(batch.var(self.ddof) + self.eps) / running_std
        divergence = ((ratio - 1 / ratio) ** 2 + shift * shift * (1 + 1 / (ratio * ratio))) / 2
    return Drift(shift, ratio, divergence)
