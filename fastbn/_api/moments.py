"""The statistics alone, which can be merged."""
from .. import _core
from .._engine import checks, fusion
from .._engine.moments import Moments
from .._engine.run import prepare
from .._training import nan_policies
from .._training.omit import moments_by


def moments(x, *, axis=1, mask=None, weights=None, lengths=None, nan_policy="propagate", num_threads=None):
    """The statistics of each feature of x, in a form that can be merged: count, mean, sum of squared deviations.

    x, axis, num_threads: as for batch_norm_inference. mask, weights, lengths: as for batch_norm_training; the count is then
    the sum of the weights, and `squares` that of their squares.
    nan_policy: "propagate": a feature with NaN has NaN for statistics. "omit": NaN entries are missing; the count is an
        array of shape (C,) then, each feature having its own.

    Returns a Moments. Its mean is within 1 float32 ulp of max(|mean|, std), its variance within 1e-6 (relative), for mean / std
    up to 1e6. The moments of nothing have count 0, mean 0 and variance NaN.
    Raises TypeError, ValueError.

    The statistics of a whole data set, batch by batch:
        total = sum(fastbn.moments(x) for x in batches)
    """
    omits = nan_policies.check(nan_policy, ("propagate", "omit")) == "omit"
    if not omits and mask is None and weights is None and lengths is None:
        found = _core.plain_moments(x, axis, num_threads)
        if found is not None:
            return Moments.of_arrays(*found)
    x, axes, _, _ = prepare(x, axis, {})
    extras = fusion.with_weights(fusion.NONE, x, axes, mask=mask, weights=weights, lengths=lengths)
    return moments_by(x, axes, extras, checks.threads(num_threads), omits)[0]
