"""Training: normalization by the statistics of the batch.

Formulas: Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift", 2015
(arXiv:1502.03167), algorithm 1. How they are computed: csrc/fastbn.h.
"""
from .. import _core
from .._engine import activations, checks, dlpack, fusion
from .._engine.run import normalize, prepare, with_residual
from .._training import variants


def batch_norm_training(x, gamma=None, beta=None, *, eps=1e-5, axis=1, activation=None, residual=None, mask=None,
                        weights=None, lengths=None, out=None, num_threads=None, ghost_batch_size=None, renorm=None,
                        running_mean=None, running_var=None, nan_policy="propagate", like=None):
    """Normalize x with its own statistics.

    Parameters
    ----------
    x : array of float32, float64, float16 or bfloat16
        As for batch_norm_inference.
    gamma, beta : array of float32 or float64, shape (C,), optional
        Scale and shift; None stands for ones and for zeros.
    eps : float, default 1e-5
        It is added to the variance; above 0.
    axis : int or tuple of int, default 1
        The feature axis, or several.
    activation : str or tuple, optional
        As for batch_norm_inference.
    residual : array of x's shape, optional
        It is added before the activation.
    mask : array of bool, optional
        It has x's shape without the feature axes, or the first of these axes, with 1 for any size: (N,) is a value
        for each sample, (N, T) for each step of each sample. Where it is False an entry does not count in the
        statistics, and whatever it is (NaN, Inf) leaves no trace in them. Every entry is normalized.
    weights : array of numbers of at least 0, optional
        They have that shape too. Only their ratios matter.
    lengths : array of int, shape (batch,), optional
        The first lengths[i] steps of sequence i count; steps are the axis after the batch axis, the feature axis
        apart. mask, weights and lengths multiply.
    out : array of x's shape and dtype, optional
        With out=x the input is gone. batch_norm_backward then recovers what it needs from y, to y's rounding divided
        by gamma: keep y unchanged until then. It can do so where the activation is None or leaky_relu of a slope
        above 0, without residual, and where no gamma is 0; elsewhere it raises RuntimeError.
    num_threads : int, optional
        The most threads; it can only lower the settings.
    ghost_batch_size : int, optional
        So many entries of axis 0, one after the other, share statistics; the last of these ghost batches may be
        smaller (a lone entry of a table gives beta). saved.mean, saved.var, saved.rstd have shape (G, C) then, a row
        for each. The gradients are those of the ghost batches, dgamma and dbeta summed over them.
    renorm : tuple of float, optional
        (rmax, dmax) of batch renormalization. x is read for its moments, then once more to write y. With ghost
        batches each has its r and d.
    running_mean, running_var : array of shape (C,), optional
        The statistics that renormalization takes. Nothing updates them here; the layer does.
    nan_policy : {"propagate", "raise", "omit"}, default "propagate"
        "propagate": a feature with NaN or Inf becomes NaN. "raise": a ValueError names the features and how many they
        have; an `out` other than x may have been written to by then, x never. "omit": NaN entries are missing values,
        of each feature by itself: mean and var are those of the others, y is NaN where x is, and the gradients leave
        them out.
    like : array or module, optional
        What kind of arrays to return, as for batch_norm_inference.

    Returns
    -------
    y : array of x's shape and dtype
        It is `out` where that was given.
    saved : object
        What batch_norm_backward takes. saved.mean, saved.var (biased) and saved.rstd are float64 arrays of shape
        (C,); saved.moments is the batch's Moments, and ``saved.moments.step(running_mean, running_var)`` takes a step
        of moving averages as the layer does.

    Raises
    ------
    TypeError, ValueError
        As batch_norm_inference does, and where it is named above.

    See Also
    --------
    batch_norm_backward : The gradients.

    Notes
    -----
    With the mean and the biased variance of each feature over all other axes, sum(w * x) / sum(w) and sum(w * (x -
    mean)^2) / sum(w) with weights w,

        rstd = 1 / sqrt(var + eps),    y = act((x - mean) * rstd * gamma + beta + residual)

    and with renormalization, where std = sqrt(var + eps) and r and d are constants in the gradient,

        y = ((x - mean) * rstd * r + d) * gamma + beta
        r = clip(std / running_std, 1 / rmax, rmax)      d = clip((mean - running_mean) / running_std, -dmax, dmax)

    Where no entry counts, mean is 0, var and rstd are NaN, y is beta where x is finite, and dbeta alone of the
    gradients is not 0.

    With nan_policy "raise" the good case costs no pass over x; with out=x statistics and y are two calls of the core,
    as for renorm. "omit" costs no pass over x where there is no NaN; with some, statistics and y are computed twice
    (the last bits of features without may then be others). Inf is not missing. There dy is not looked at, dx is 0,
    and where W_f is the weight of feature f's entries that are there, dx_i = gamma * rstd * (dy_i - w_i / W_f *
    (dbeta + (x_i - mean) * rstd * dgamma)).

    References
    ----------
    Ioffe and Szegedy 2015 (arXiv:1502.03167), algorithm 1; ghost batches: Hoffer, Hubara and Soudry 2017
    (arXiv:1705.08741); renormalization: Ioffe 2017 (arXiv:1702.03275).

    Examples
    --------
    >>> import numpy as np
    >>> import fastbn
    >>> y, saved = fastbn.batch_norm_training(np.array([[1.0, 10.0], [3.0, 30.0]]), eps=1e-12)
    >>> y
    array([[-1., -1.],
           [ 1.,  1.]])
    >>> saved.mean, saved.var
    (array([ 2., 20.]), array([  1., 100.]))
    """
    varies = (ghost_batch_size is not None or renorm is not None or running_mean is not None or running_var is not None
              or nan_policy != "propagate")
    if not varies and mask is None and weights is None and lengths is None and like is None:
        act = None if activation is None else fusion.alone(activations.parse(activation))
        result = _core.plain_training(x, gamma, beta, eps, axis, out, num_threads, act, residual)
        if result is not None:
            return result if residual is None else with_residual(result, act, residual)
    if like is not None or dlpack.concerns(x, out):
        given = {"x": x, "gamma": gamma, "beta": beta, "residual": residual, "mask": mask, "weights": weights,
                 "lengths": lengths, "running_mean": running_mean, "running_var": running_var}
        return dlpack.calling(batch_norm_training, given, like, out, eps=eps, axis=axis, activation=activation,
                               num_threads=num_threads, ghost_batch_size=ghost_batch_size, renorm=renorm,
                               nan_policy=nan_policy)
    if varies:
        variant = variants.variant_of(ghost_batch_size, renorm, running_mean, running_var, nan_policy)
        more = {"activation": activation, "residual": residual, "mask": mask, "weights": weights, "lengths": lengths}
        return variants.train_arguments(x, gamma, beta, eps, axis, out, num_threads, variant, more)
    x, axes, _, p = prepare(x, axis, {"gamma": gamma, "beta": beta})
    return normalize(x, axes, p["gamma"], p["beta"], checks.epsilon(eps), out, checks.threads(num_threads), activation,
                     residual, mask, weights, lengths)
