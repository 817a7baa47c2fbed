"""Batch normalization as functions of arrays: inference, training, backward, moments.

Formulas: Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift", 2015
(arXiv:1502.03167), algorithms 1 and 2. How they are computed: csrc/fastbn.h.

Each function first tries the short way, which takes arrays that need no conversion as they are (_plain_calls.pxi): most
of a small call's time would go into the checks. Where it answers None, the general way converts, checks and explains.
"""
from . import _activation, _checks, _core, _dlpack, _extras, _nan_policy, _variants
from ._engine import (RESULTS, general_backward, like_input, moments_by, needed, normalize, normalize_by_given, prepare,
                      with_residual)
from ._moments import Moments
from ._saved import Composite, Saved

_OF_STATISTICS = ("dmean", "dvar")


def batch_norm_inference(x, mean, var, gamma=None, beta=None, *, eps=1e-5, axis=1, activation=None, residual=None,
                         out=None, num_threads=None, return_saved=False, like=None):
    """Normalizes x with given statistics: y = act((x - mean) / sqrt(var + eps) * gamma + beta + residual).

    x: array with a feature axis, at least 2 dimensions, float32, float64, float16 or bfloat16 (as of ml_dtypes); half types
        are computed as float32 and y rounded to nearest even. Arrays of other libraries on the CPU that have __dlpack__
        (PyTorch's, JAX's) are taken without a copy, here as in every argument; lists and what has __array__ are converted.
    mean, var: statistics of shape (C,), float32 or float64, for example the moving averages; var is used as it is.
    gamma, beta: scale and shift of shape (C,); None stands for ones and for zeros.
    eps: added to the variance; above 0.
    axis: the feature axis, or a tuple of them (then C is the product of their sizes, in ascending order of the axes).
    activation: act, in the same pass: None, "relu", "leaky_relu" (slope 0.01), "relu6", "sigmoid", "tanh", "silu", "gelu" (exact),
    "gelu_tanh", "hardswish", "elu" (alpha 1); ("leaky_relu", slope) and ("elu", alpha) set the parameter.
    residual: array of x's shape, converted to x's dtype; None stands for 0.
    out: array of x's shape and dtype to write to; it may be x or residual. It is returned. It may be another library's
        with NumPy 2.1 or later.
    num_threads: at most so many threads; it can only lower the settings.
    return_saved: also return what batch_norm_backward needs, with the statistics as constants.
    like: what kind of arrays to return: None: NumPy's; an array of another library, or that library: its kind, made by its
        from_dlpack, which shares memory where it can. What was written to `out` is returned as `out`.

    Returns y, of x's shape and dtype; with return_saved (y, saved).
    Raises TypeError (integers, masked arrays, matrices, like), ValueError (shapes, eps, axis, activation, out; arrays on a
    GPU or that require a gradient; overlapping memory: with return_saved, out may be the residual only where backward can do
    without it, see batch_norm_backward).
    Source: Ioffe and Szegedy 2015, algorithm 2; of the activations: csrc/fastbn.h.
    """
    if return_saved is False and like is None:
        act = None if activation is None else _extras.alone(_activation.parse(activation))
        y = _core.plain_inference(x, mean, var, gamma, beta, eps, axis, out, num_threads, act, residual)
        if y is not None:
            return y
    elif return_saved is True and residual is None and like is None:
        act = None if activation is None else _extras.alone(_activation.parse(activation))
        result = _core.plain_frozen(x, mean, var, gamma, beta, eps, axis, out, num_threads, act)
        if result is not None:
            return result
    if like is not None or _dlpack.concerns(x, out):
        given = {"x": x, "mean": mean, "var": var, "gamma": gamma, "beta": beta, "residual": residual}
        return _dlpack.calling(batch_norm_inference, given, like, out, eps=eps, axis=axis, activation=activation,
                               num_threads=num_threads, return_saved=return_saved)
    x, axes, c, p = prepare(x, axis, {"mean": mean, "var": var, "gamma": gamma, "beta": beta})
    for name in ("mean", "var"):
        if p[name] is None:
            raise ValueError(f"{name} is None, expected an array of shape ({c},)")
    eps, threads, extras = _checks.epsilon(eps), _checks.threads(num_threads), _extras.extras_of(x, activation, residual)
    y, saved = normalize_by_given(x, axes, p, eps, out, threads, extras, return_saved)
    return (y, saved) if return_saved else y


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
        act = None if activation is None else _extras.alone(_activation.parse(activation))
        result = _core.plain_training(x, gamma, beta, eps, axis, out, num_threads, act, residual)
        if result is not None:
            return result if residual is None else with_residual(result, act, residual)
    if like is not None or _dlpack.concerns(x, out):
        given = {"x": x, "gamma": gamma, "beta": beta, "residual": residual, "mask": mask, "weights": weights,
                 "lengths": lengths, "running_mean": running_mean, "running_var": running_var}
        return _dlpack.calling(batch_norm_training, given, like, out, eps=eps, axis=axis, activation=activation,
                               num_threads=num_threads, ghost_batch_size=ghost_batch_size, renorm=renorm,
                               nan_policy=nan_policy)
    if varies:
        variant = _variants.variant_of(ghost_batch_size, renorm, running_mean, running_var, nan_policy)
        more = {"activation": activation, "residual": residual, "mask": mask, "weights": weights, "lengths": lengths}
        return _variants.train_arguments(x, gamma, beta, eps, axis, out, num_threads, variant, more)
    x, axes, _, p = prepare(x, axis, {"gamma": gamma, "beta": beta})
    return normalize(x, axes, p["gamma"], p["beta"], _checks.epsilon(eps), out, _checks.threads(num_threads), activation,
                     residual, mask, weights, lengths)


def batch_norm_backward(dy, saved, *, out=None, needs=RESULTS, num_threads=None, like=None):
    """Gradients of a loss with respect to x, gamma and beta, from its gradient dy with respect to y.

    With N entries of each feature:
        dbeta  = sum(dy)
        dgamma = sum(dy * (x - mean)) * rstd
        dx     = gamma * rstd * (dy - dbeta / N - (x - mean) * rstd * dgamma / N)
    and where the statistics were constants (saved by batch_norm_inference) dx = gamma * rstd * dy. There mean and var have
    gradients of their own, as their places in y = (x - mean) * (var + eps)^(-1/2) * gamma + beta give them:
        dmean = -gamma * rstd * dbeta
        dvar  = -gamma * rstd^2 / 2 * dgamma
    With an activation dy * act'(z) takes the place of dy, z = bn(x) + residual being computed again; it is the residual's
    gradient too. With weights w of the sum W:
        dx     = gamma * rstd * (dy - w / W * dbeta - w / W * (x - mean) * rstd * dgamma)
    where an entry whose w and dy are 0 leaves no trace in the sums.

    dy: array of x's shape; converted to x's dtype.
    saved: what the forward call returned.
    out: array for dx, of x's shape and dtype; it may be dy. It is returned as dx.
    needs: which of "dx", "dgamma", "dbeta", "dmean", "dvar" to compute, and "dresidual" where there was a residual; the others are
    None. Without it the first three, and the last.
    num_threads: at most so many threads. like: of what kind the gradients are, as for batch_norm_inference.

    Returns (dx, dgamma, dbeta), or where needs names dmean or dvar (dx, dgamma, dbeta, dmean, dvar), and after these dresidual
    where there was a residual: dx and dresidual have x's dtype; the others, of shape (C,), that of gamma, or x's where gamma
    was None (float32 where that is a half type). Until then keep unchanged what is read: x; the residual; for relu and
    leaky_relu with a residual not that, but y.
    Raises TypeError, ValueError (a dy of another shape, unknown names in needs, dmean or dvar of batch statistics,
    out), RuntimeError (x was overwritten by the forward call and cannot be recovered).
    Source: Ioffe and Szegedy 2015, section 3.
    """
    if needs is RESULTS and like is None:
        result = _core.plain_backward(dy, saved, out, num_threads)
        if result is not None:
            return result
    if like is not None or _dlpack.concerns(dy, out):
        return _dlpack.calling(batch_norm_backward, {"dy": dy, "saved": saved}, like, out, needs=needs,
                               num_threads=num_threads, model=getattr(saved, "x", None))
    if not isinstance(saved, (Saved, Composite)):
        raise TypeError(f"saved is a {type(saved).__name__}, expected what batch_norm_training or "
                        "batch_norm_inference(..., return_saved=True) returned")
    results = (*RESULTS, "dresidual") if saved.extras is not None and saved.extras.has_residual else RESULTS
    needs = results if needs is RESULTS else needed(needs, results + _OF_STATISTICS)
    threads, dy = _checks.threads(num_threads), like_input(dy, "dy", saved.input())
    if out is not None and "dx" not in needs:
        raise ValueError(f"out is given, but needs is {tuple(needs)}: dx is not computed")
    _refuse_statistics(needs, saved)
    return general_backward(saved, dy, out, needs, threads or None)


def _refuse_statistics(needs, saved):
    """Where the statistics were those of the batch."""
    names = [name for name in _OF_STATISTICS if name in needs]
    if names and not saved.frozen:
        raise ValueError(f"needs contains {names[0]!r}, but the statistics were those of the batch, functions of x: "
                         f"{names[0]} is part of dx; only given statistics, of batch_norm_inference(..., "
                         "return_saved=True), have gradients")


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
    omits = _nan_policy.check(nan_policy, ("propagate", "omit")) == "omit"
    if not omits and mask is None and weights is None and lengths is None:
        found = _core.plain_moments(x, axis, num_threads)
        if found is not None:
            return Moments.of_arrays(*found)
    x, axes, _, _ = prepare(x, axis, {})
    extras = _extras.with_weights(_extras.NONE, x, axes, mask=mask, weights=weights, lengths=lengths)
    return moments_by(x, axes, extras, _checks.threads(num_threads), omits)[0]
