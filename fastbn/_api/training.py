"""Training: normalization by the statistics of the batch.

Formulas: Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift", 2015
(arXiv:1502.03167), algorithm 1. How they are computed: csrc/fastbn.h.
"""
from .. import _core
from .._engine import activations, checks, foreign, fusion
from .._engine.run import normalize, prepare, with_residual
from .._training import variants


def batch_norm_training(x, gamma=None, beta=None, *, eps=1e-5, axis=1, activation=None, residual=None, mask=None,
                        weights=None, lengths=None, out=None, num_threads=None, ghost_batch_size=None, renorm=None,
                        running_mean=None, running_var=None, nan_policy="propagate", like=None):
    """Normalizes x with its own statistics: y = act((x - mean) * rstd * gamma + beta + residual), rstd = 1 / sqrt(var + eps).

    mean and var (biased) are taken of each feature over all other axes. The arguments are those of batch_norm_inference, and
    mask: bool array of x's shape without the feature axes, or of the first of these axes, with 1 for any size: (N,) is a
        value for each sample, (N, T) for each step of each sample. Where it is False an entry does
    not count in the statistics, and whatever it is (NaN, Inf) leaves no trace in them. Every entry is normalized.
    weights: numbers of at least 0, of that shape too: mean = sum(w * x) / sum(w), var = sum(w * (x - mean)^2) / sum(w).
        Only their ratios matter.
    lengths: integers of shape (batch,): of sequence i the first lengths[i] steps count; steps are the axis after the batch axis,
    the feature axis apart. mask, weights and lengths multiply.
    With out=x the input is gone; batch_norm_backward then recovers what it needs from y (keep that unchanged until then), to y's
    rounding divided by gamma, where the activation is None or leaky_relu of a slope above 0, without residual; elsewhere, and
    where a gamma is 0, it raises RuntimeError.

    ghost_batch_size: so many entries of axis 0, one after the other, share statistics; the last of these ghost batches
        may be smaller (a lone entry of a table gives beta). saved.mean, saved.var, saved.rstd have shape (G, C) then, a
        row for each. The gradients are those of the ghost batches,
        dgamma and dbeta summed over them.
    renorm: (rmax, dmax), batch renormalization, with std = sqrt(var + eps) and running_mean, running_var of shape (C,):
            y = ((x - mean) * rstd * r + d) * gamma + beta
            r = clip(std / running_std, 1 / rmax, rmax)      d = clip((mean - running_mean) / running_std, -dmax, dmax)
        r and d are constants in the gradient. x is read for its moments, then once more to write y. With ghost batches
        each has its r and d. Nothing updates running_mean and running_var here; the layer does.
    nan_policy: "propagate": a feature with NaN or Inf becomes NaN. "raise": a ValueError that names the features and
        how many they have; an `out` other than x may have been written to by then, x never. In the good case that costs no
        pass over x; with out=x statistics and y are two calls of the core, as for renorm. "omit": NaN entries are missing
        values, of each feature by itself: mean and var are those of the others (of none: 0 and NaN), y is NaN where x
        is, and the gradients leave them out: dy is not looked at there, dx is 0, and where W_f is the weight of feature
        f's entries that are there, dx_i = gamma * rstd * (dy_i - w_i / W_f * (dbeta + (x_i - mean) * rstd * dgamma)).
        Inf is not missing. Without NaN that costs no pass over x either; with some, statistics and y are computed twice
        (the last bits of features without may then be others).

    Returns (y, saved): y of x's shape and dtype; saved.mean, saved.var, saved.rstd are float64 arrays of shape (C,), and
    batch_norm_backward takes it. saved.moments is the batch's Moments; saved.moments.step(running_mean, running_var) takes
    a step of moving averages as the layer does. Where no entry counts, mean is 0, var and rstd are NaN, y is beta where x
    is finite, and of the gradients only dbeta is not 0.
    Raises TypeError, ValueError as batch_norm_inference does, and of what is named above.
    Source: Ioffe and Szegedy 2015, algorithm 1; ghost batches: Hoffer, Hubara and Soudry 2017 (arXiv:1705.08741);
    renormalization: Ioffe 2017 (arXiv:1702.03275).
    """
    varies = (ghost_batch_size is not None or renorm is not None or running_mean is not None or running_var is not None
              or nan_policy != "propagate")
    if not varies and mask is None and weights is None and lengths is None and like is None:
        act = None if activation is None else fusion.alone(activations.parse(activation))
        result = _core.plain_training(x, gamma, beta, eps, axis, out, num_threads, act, residual)
        if result is not None:
            return result if residual is None else with_residual(result, act, residual)
    if like is not None or foreign.concerns(x, out):
        given = {"x": x, "gamma": gamma, "beta": beta, "residual": residual, "mask": mask, "weights": weights,
                 "lengths": lengths, "running_mean": running_mean, "running_var": running_var}
        return foreign.calling(batch_norm_training, given, like, out, eps=eps, axis=axis, activation=activation,
                               num_threads=num_threads, ghost_batch_size=ghost_batch_size, renorm=renorm,
                               nan_policy=nan_policy)
    if varies:
        variant = variants.variant_of(ghost_batch_size, renorm, running_mean, running_var, nan_policy)
        more = {"activation": activation, "residual": residual, "mask": mask, "weights": weights, "lengths": lengths}
        return variants.train_arguments(x, gamma, beta, eps, axis, out, num_threads, variant, more)
    x, axes, _, p = prepare(x, axis, {"gamma": gamma, "beta": beta})
    return normalize(x, axes, p["gamma"], p["beta"], checks.epsilon(eps), out, checks.threads(num_threads), activation,
                     residual, mask, weights, lengths)
