"""The statistics alone, which can be merged."""
from .. import _core
from .._engine import checks, fusion
from .._engine.moments import Moments
from .._engine.run import prepare
from .._training import nan_policies
from .._training.omit import moments_by


def moments(x, *, axis=1, mask=None, weights=None, lengths=None, nan_policy="propagate", num_threads=None):
    """Compute the statistics of each feature of x, in a form that can be merged.

    Parameters
    ----------
    x : array of float32, float64, float16 or bfloat16
        As for batch_norm_inference.
    axis : int or tuple of int, default 1
        The feature axis, or several.
    mask, weights, lengths : array, optional
        As for batch_norm_training; the count is then the sum of the weights, and `squares` that of their squares.
    nan_policy : {"propagate", "omit"}, default "propagate"
        "propagate": a feature with NaN has NaN for statistics. "omit": NaN entries are missing; the count is an array
        of shape (C,) then, each feature having its own.
    num_threads : int, optional
        The most threads; it can only lower the settings.

    Returns
    -------
    Moments
        Count, mean and sum of squared deviations. Those of nothing have count 0, mean 0 and variance NaN.

    Raises
    ------
    TypeError, ValueError
        As batch_norm_training does.

    Notes
    -----
    The mean is within 1 float32 ulp of max(|mean|, std), the variance within 1e-6 (relative), for mean / std up to
    1e6; csrc/fastbn.h names the one exception.

    Examples
    --------
    The statistics of a whole data set, batch by batch:

    >>> import numpy as np
    >>> import fastbn
    >>> batches = np.arange(12.0).reshape(3, 2, 2)
    >>> total = sum(fastbn.moments(batch) for batch in batches)
    >>> total.count, total.mean
    (6, array([5., 6.]))
    """
    omits = nan_policies.check(nan_policy, ("propagate", "omit")) == "omit"
    if not omits and mask is None and weights is None and lengths is None:
        found = _core.plain_moments(x, axis, num_threads)
        if found is not None:
            return Moments.of_arrays(*found)
    x, axes, _, _ = prepare(x, axis, {})
    extras = fusion.with_weights(fusion.NONE, x, axes, mask=mask, weights=weights, lengths=lengths)
    return moments_by(x, axes, extras, checks.threads(num_threads), omits)[0]
