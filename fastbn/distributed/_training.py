"""Forward in training: this rank's moments, those of all ranks, then y by them as by given statistics."""
import numpy as np

from fastbn._engine import fusion, run
from fastbn._engine.run import target_for
from fastbn._training.omit import moments_by
from fastbn._training import nan_policies
from fastbn._training.renormalization import RenormSaved
from fastbn._training.variants import normalize_by_moments

from ._gradient import SyncSaved


def train(x, axes, gamma, beta, eps, out, variant, more, of_all_ranks):
    """(y, what backward needs) once all but `out` and `more` is checked; these are, before of_all_ranks is called.

    variant: as for _variants.train. more: activation, residual, mask, weights, lengths, by name. of_all_ranks(moments): the
    Moments of the batches of all ranks, from this one's.
    """
    y, extras = _checked(x, axes, gamma, beta, out, variant, **more)
    local, extras = moments_by(x, axes, extras, 0, variant.nan_policy == "omit")
    if variant.nan_policy == "raise":
        nan_policies.refuse(x, axes, [local])
    whole = of_all_ranks(local)
    if variant.nan_policy == "raise":  # on all ranks, which have the same
        nan_policies.refuse(x, axes, [whole], variant.dtype, variant.ddof)
    y, saved = normalize_by_moments(x, axes, whole, gamma, beta, eps, y, 0, variant, extras, run.normalize_by_moments)
    if not isinstance(saved, RenormSaved):
        return y, SyncSaved(saved, whole)
    saved.core, saved.narrow = SyncSaved(saved.core, whole), (x if gamma is None else gamma).dtype != np.float64
    return y, saved


def _checked(x, axes, gamma, beta, out, variant, activation, residual, **weights):
    """(array for y, extras)"""
    extras = fusion.with_weights(fusion.extras_of(x, activation, residual), x, axes, **weights)
    extras.refuse_overwriting(out)
    inputs = {"x": x, "gamma": gamma, "beta": beta, "running_mean": variant.running_mean,
              "running_var": variant.running_var, "residual": extras.residual}
    return target_for(out, x, axes, inputs)[1], extras


def check_before_moments(x, axes, out, activation, residual, **parameters):
    """What could be refused of a call through the running statistics. parameters: arrays by name, or None."""
    extras = fusion.extras_of(x, activation, residual)
    extras.refuse_overwriting(out)
    if out is not None:
        target_for(out, x, axes, {"x": x, "residual": extras.residual, **parameters})
