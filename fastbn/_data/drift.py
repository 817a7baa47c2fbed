"""How far a batch's statistics lie from a layer's running ones."""
from typing import NamedTuple

import numpy as np

from .._engine.moments import Moments, short
from .calibration import layer_moments


class Drift(NamedTuple):
    """What BatchNorm.drift returns: float64 arrays of shape (C,).

    Parameters
    ----------
    mean_shift : array of float64, shape (C,)
        (mean - running_mean) / running_std; 0: no shift.
    std_ratio : array of float64, shape (C,)
        std / running_std; 1: the same spread.
    divergence : array of float64, shape (C,)
        The symmetrized Kullback-Leibler divergence in nats; 0: the same.

    Examples
    --------
    >>> import numpy as np
    >>> import fastbn
    >>> bn = fastbn.BatchNorm(1, eps=1e-12)
    >>> drift = bn.drift(np.array([[-2.0], [2.0], [0.0]], np.float32))
    >>> drift.mean_shift, drift.std_ratio
    (array([0.]), array([2.]))
    """

    mean_shift: np.ndarray
    std_ratio: np.ndarray
    divergence: np.ndarray

    def __repr__(self):
        return f"Drift({', '.join(f'{name}={short(value)}' for name, value in self._asdict().items())})"


def drift(self, x):
    """Tell how far the statistics of x lie from the running ones, feature by feature. Nothing changes.

    Parameters
    ----------
    x : array or Moments
        An array as the layer takes it, or Moments of C features (batch_moments, say, those of many batches, or
        fastbn.moments(x, mask=mask)). With nan_policy "omit" NaN entries are missing.

    Returns
    -------
    Drift
        A named tuple of float64 arrays of shape (C,): mean_shift, std_ratio, divergence.

    Raises
    ------
    TypeError, ValueError
        If x does not fit the layer, or has not more than ddof entries of a feature.
    RuntimeError
        If the layer has no running statistics.

    Notes
    -----
    With s = std / running_std, where std is the root of var(ddof) + eps, and running_std that of running_var + eps,

        mean_shift = (mean - running_mean) / running_std
        std_ratio  = s
        divergence = ((s - 1 / s)^2 + mean_shift^2 * (1 + 1 / s^2)) / 2

    References
    ----------
    Kullback and Leibler, "On Information and Sufficiency", 1951, for the divergence of normal distributions.

    Examples
    --------
    >>> import numpy as np
    >>> import fastbn
    >>> bn = fastbn.BatchNorm(2, eps=1e-12)
    >>> bn.drift(np.array([[4.0, -1.0], [6.0, 1.0]])).mean_shift
    array([5., 0.])
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
