"""Training in another way than by the plain statistics of the batch: ghost batches, renormalization, a NaN policy.

Statistics and y come from one call of the core (fused) wherever y needs nothing that only the statistics tell. Batch
renormalization needs them before y is written, to know r and d; and with out=x the input must outlive a refusal
(nan_policy="raise") or a look for what is missing ("omit"). There the moments are taken first and y is then computed
with them as given: two reads of x and one write, which is what the fused call comes to as well where the data of a
feature does not fit the cache. The bits of y are the fused call's.
"""
from typing import NamedTuple

import numpy as np

from .._engine import checks, fusion
from .._engine.run import is_in_place, normalize_by_batch, prepare, target_for, train_shortly
from .._engine.weights import factors_of, weights_of
from . import ghost_batches, nan_policies, renormalization
from .omit import moments_by, normalize_by_own_moments, normalize_without_nan


class Variant(NamedTuple):
    """Checked settings; running_mean and running_var, arrays of shape (C,), are there where renorm is."""

    ghost_batch_size: int | None = None
    renorm: tuple | None = None
    running_mean: np.ndarray | None = None
    running_var: np.ndarray | None = None
    nan_policy: str = "propagate"
    dtype: type = np.float64  # that of the running statistics, which "raise" keeps from overflowing, and their ddof
    ddof: int = 0


def variant_of(ghost_batch_size, renorm, running_mean, running_var, nan_policy):
    """The arguments of batch_norm_training, checked but for the arrays."""
    renorm = renormalization.check(renorm)
    for name, value in (("running_mean", running_mean), ("running_var", running_var)):
        if renorm is not None and value is None:
            raise ValueError(f"renorm is given and {name} is None, expected an array of shape (C,): renormalization is "
                             "towards the running statistics")
        if renorm is None and value is not None:
            raise ValueError(f"{name} is given without renorm, the only one that looks at it: running statistics are "
                             "updated by the layer, or with saved.mean and saved.var")
    nan_policy = nan_policies.check(nan_policy, nan_policies.OF_FUNCTIONS)
    return Variant(ghost_batches.check(ghost_batch_size), renorm, running_mean, running_var, nan_policy)


class More:
    """What a call has beyond normalization, slice by slice; see _engine/fusion.py."""

    def __init__(self, x, axes, activation, residual, mask, weights, lengths):
        self.axes, self.activation, self.act = axes, activation, fusion.extras_of(x, activation, residual)
        self.factors = factors_of(x, axes, mask, weights, lengths)

    def extras(self, x, s=...):
        """x: the slice s of the batch."""
        residual = self.act.residual
        extras = fusion.extras_of(x, self.activation, None if residual is None else residual[s])
        if not self.factors:
            return extras
        return extras._replace(weights=weights_of([factor[s] for factor in self.factors], x, self.axes))


def train_arguments(x, gamma, beta, eps, axis, out, num_threads, variant, more):
    """batch_norm_training, nothing of which is checked but the variant's settings. more: the other arguments, by name."""
    x, axes, _, p = prepare(x, axis, {"gamma": gamma, "beta": beta, "running_mean": variant.running_mean,
                                      "running_var": variant.running_var})
    variant = variant._replace(running_mean=p["running_mean"], running_var=p["running_var"])
    return train(x, axes, p["gamma"], p["beta"], checks.epsilon(eps), out, checks.threads(num_threads), variant, more)


def train(x, axes, gamma, beta, eps, out, threads, variant, more):
    """The same, once all but `out`, the axes of ghost batches and `more` is checked."""
    more = More(x, axes, **more)
    omits = variant.nan_policy == "omit"
    apart = not omits or out is None or more.act.residual is None or not is_in_place(out, more.act.residual)
    if apart and _leaves_input(variant, out, x):
        y, saved = _plainly(x, axes, gamma, beta, eps, out, threads, more.extras(x), omits)
        _refuse_nan(x, axes, [saved], variant)
        return y, saved
    slices = ghost_batches.slices_of(x, axes, variant.ghost_batch_size)
    inputs = {"x": x, "gamma": gamma, "beta": beta, "running_mean": variant.running_mean,
              "running_var": variant.running_var, "residual": more.act.residual}
    more.act.refuse_overwriting(out)
    y = target_for(out, x, axes, inputs)[1]
    narrow = (x if gamma is None else gamma).dtype != np.float64
    if variant.ghost_batch_size is not None:  # so that the slices' gradients are float64
        gamma = np.ones(_count_features(x, axes)) if gamma is None else gamma.astype(np.float64)
    watches_in_place = variant.nan_policy != "propagate" and is_in_place(out, x)
    first_the_moments = variant.renorm is not None or watches_in_place or not apart
    run = _after_moments if first_the_moments else _fused
    parts = run(x, axes, gamma, beta, eps, y, threads, slices, variant, more)
    if variant.ghost_batch_size is not None:
        return y, ghost_batches.GhostSaved(x, axes, slices, parts, narrow, omits)
    if variant.renorm is not None:
        parts[0].narrow = narrow
    return y, parts[0]


def _leaves_input(variant, out, x):
    """Whether a plain call does, and x outlives it: `out` and x, of which nothing is known, are certainly apart."""
    if variant.ghost_batch_size is not None or variant.renorm is not None:
        return False
    return out is None or (isinstance(out, np.ndarray) and isinstance(x, np.ndarray)
                           and not np.may_share_memory(out, x))


def _refuse_nan(x, axes, parts, variant):
    """parts: the Saved of x or its slices."""
    if variant.nan_policy == "raise":
        nan_policies.refuse(x, axes, [part.moments for part in parts], variant.dtype, variant.ddof)


def _count_features(x, axes):
    return int(np.prod([x.shape[i] for i in axes]))


def _plainly(x, axes, gamma, beta, eps, out, threads, extras, omits):
    """Statistics and y in one call of the core, or two where NaN entries are missing."""
    if omits:
        return normalize_without_nan(x, axes, gamma, beta, eps, out, threads, extras)
    result = train_shortly(x, gamma, beta, eps, axes[0], out, threads, extras) if len(axes) == 1 else None
    return result or normalize_by_batch(x, axes, gamma, beta, eps, out, threads, extras)


def _fused(x, axes, gamma, beta, eps, y, threads, slices, variant, more):
    parts, omits = [], variant.nan_policy == "omit"
    for s in slices:
        def compute(x, y):
            return _plainly(x, axes, gamma, beta, eps, y, threads, more.extras(x, s), omits)
        parts += ghost_batches.into(compute, ghost_batches.part_of(x, s), ghost_batches.part_of(y, s), axes)
    _refuse_nan(x, axes, parts, variant)
    return parts


def _after_moments(x, axes, gamma, beta, eps, y, threads, slices, variant, more):
    omits = variant.nan_policy == "omit"
    found = [moments_by(x[s], axes, more.extras(x[s], s), threads, omits) for s in slices]
    if variant.nan_policy == "raise":
        nan_policies.refuse(x, axes, [batch for batch, _ in found], variant.dtype, variant.ddof)
    parts = []
    for (batch, extras), s in zip(found, slices):
        def compute(x, y):
            return normalize_by_moments(x, axes, batch, gamma, beta, eps, y, threads, variant, extras)
        parts += ghost_batches.into(compute, ghost_batches.part_of(x, s), ghost_batches.part_of(y, s), axes)
    return parts


def normalize_by_moments(x, axes, batch, gamma, beta, eps, y, threads, variant, extras,
                         normalize=normalize_by_own_moments):
    """(y by the batch's moments, what backward needs), where all is checked. normalize: how, where they are not x's own."""
    if variant.renorm is None:
        return normalize(x, axes, batch, gamma, beta, eps, y, threads, extras)
    r, d = renormalization.correction(batch, variant.running_mean, variant.running_var, eps, variant.renorm)
    with np.errstate(all="ignore"):
        gamma_r = r if gamma is None else gamma * r
        beta_d = (d if gamma is None else gamma * d) + (0.0 if beta is None else beta)
    y, saved = normalize(x, axes, batch, gamma_r, beta_d, eps, y, threads, extras)
    return y, renormalization.RenormSaved(saved, batch, r, d, narrow=False)
