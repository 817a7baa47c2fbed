"""The engine: what the public functions, the variants of training and the layer compute with.

`prepare`, `like_input` and `needed` check arguments, and the other functions take them checked. Arrays are brought into
the core's shape (_engine/layout.py), the core's general operations are run, and what backward needs is kept. Errors that
only the arrays show, of `out` and of what is added to a call, are raised here.
"""
import math

import numpy as np

from .. import _core
from . import checks, fusion
from .layout import arrange, normalize_axes
from .moments import Moments
from .saved import Composite, Saved, about_input

RESULTS = ("dx", "dgamma", "dbeta")

_FLOAT64 = np.dtype(np.float64)


def _wide(parameter):
    """A float64 copy."""
    return None if parameter is None else parameter.astype(_FLOAT64)


def prepare(x, axis, params):
    """Checks x and the parameters. Gives x as an array, its feature axes, the number of features, the parameters."""
    x = checks.batch(x)
    axes = normalize_axes(axis, x.ndim)
    c = x.shape[axes[0]] if len(axes) == 1 else math.prod(x.shape[i] for i in axes)
    checked = {}
    for name, value in params.items():
        if value is not None:
            value = checks.as_data(value, name, halves=False)
            if value.ndim == 1:
                checks.features(x, axes, value.size, name)
        checked[name] = checks.parameter(value, name, c)
    return x, axes, c, checked


def is_in_place(out, x):
    """Whether `out`, which was checked to be x or apart from it, is x."""
    return out is not None and x.size > 0 and np.may_share_memory(out, x) and checks.share_memory(out, x)


def target_for(out, x, axes, inputs):
    """(arrangement, the array to return, its (n, c, s) view)."""
    if out is None:
        arrangement = arrange(x, axes)
        return arrangement, *arrangement.empty(x.dtype)
    arrangement = _arrange_target(out, x, axes)
    return arrangement, out, checks.output(out, x, inputs, arrangement)


def _arrange_target(out, x, axes):
    """That of `out`; where it cannot be written so, that of x, which an array of our own for this x has.

    Strides do not tell the place of an axis of size 1, and a feature axis in another place is another arrangement.
    """
    if not isinstance(out, np.ndarray) or out.shape != x.shape:
        return arrange(x, axes)
    arrangement = arrange(out, axes)
    return arrange(x, axes) if arrangement.view(np.asarray(out)) is None else arrangement


# ---- by given statistics ----

def normalize_by_given(x, axes, parameters, eps, out, threads, extras, keeps):
    """(y, what backward needs if it `keeps` that, else None); parameters: mean, var, gamma, beta by name."""
    if keeps:
        extras.refuse_overwriting(out)
    arrangement, y, target = target_for(out, x, axes, {"x": x, "residual": extras.residual, **parameters})
    mean, var, gamma, beta = (_wide(parameters[name]) for name in ("mean", "var", "gamma", "beta"))
    if x.size:
        _core.inference(arrangement.readable(x), extras.for_core(arrangement), mean, var, gamma, beta, eps, target, threads)
    if not keeps:
        return y, None
    saved = _saved_by(x, axes, mean, var, parameters["gamma"], parameters["beta"], eps, out, frozen=True)
    saved.extras = None if extras is fusion.NONE else extras.kept(y)
    return y, saved


def _saved_by(x, axes, mean, var, gamma, beta, eps, out, *, frozen):
    """What a call by these statistics leaves for backward, but for the extras."""
    saved = Saved(x, axes, mean.size, gamma, beta, frozen=frozen, in_place=is_in_place(out, x))
    saved.mean[:], saved.var[:] = mean, var
    saved.set_rstd(eps)
    return saved


# ---- by the batch's statistics ----

def train_shortly(x, gamma, beta, eps, axis, out, threads, extras):
    """(y, what backward needs) in the core's short way, or None where it does not take the call."""
    if extras.weights is not None:
        return None
    act = fusion.alone(extras.activation)
    result = _core.plain_training(x, gamma, beta, eps, axis, out, threads or None, act, extras.residual)
    return result if result is None else with_residual(result, act, extras.residual)


def with_residual(result, act, residual):
    """The short way's result, with what backward needs of the residual. act: as the core takes it, or None."""
    if residual is not None:
        result[1].extras = (act or fusion.NONE)._replace(residual=residual).kept(result[0])
    return result


def normalize(x, axes, gamma, beta, eps, out, threads, activation, residual, mask, weights, lengths):
    """batch_norm_training after its checks, but for those of `out` and what follows."""
    extras = fusion.with_weights(fusion.extras_of(x, activation, residual), x, axes, mask, weights, lengths)
    return normalize_by_batch(x, axes, gamma, beta, eps, out, threads, extras)


def normalize_by_batch(x, axes, gamma, beta, eps, out, threads, extras=fusion.NONE):
    """batch_norm_training after its checks, but for those of `out`."""
    extras.refuse_overwriting(out)
    arrangement, y, target = target_for(out, x, axes, {"x": x, "residual": extras.residual, "gamma": gamma, "beta": beta})
    source = arrangement.readable(x)
    saved = Saved(x, axes, arrangement.packed[1], gamma, beta, frozen=False, in_place=is_in_place(out, x))
    if not x.size:
        saved.mean[:], saved.var[:], saved.rstd[:] = 0, np.nan, np.nan
    else:
        _core.training(source, extras.for_core(arrangement), saved.gamma, saved.beta, eps, target, saved.mean, saved.var,
                       saved.rstd, threads)
    saved.extras = None if extras is fusion.NONE else extras.kept(y)
    return y, saved


def normalize_by_moments(x, axes, batch, gamma, beta, eps, out, threads, extras):
    """(y by the batch's moments, what backward needs), where these are known before y is written."""
    extras.refuse_overwriting(out)
    saved = _saved_by(x, axes, batch.mean, batch.biased_var(), gamma, beta, eps, out, frozen=False)
    var = np.where(np.equal(batch.count, 0), np.inf, saved.var)  # y is beta where nothing counts
    given = {"mean": saved.mean, "var": var, "gamma": saved.gamma, "beta": saved.beta}
    act = fusion.NONE if extras is fusion.NONE else extras._replace(weights=None)
    y = normalize_by_given(x, axes, given, eps, out, threads, act, False)[0]
    saved.extras = None if extras is fusion.NONE else extras.kept(y)
    return y, saved


# ---- backward ----

def backward_of(saved, dy, out, needs, num_threads):
    """batch_norm_backward after its checks, except those of `out` and `num_threads`. saved: what any forward call returned."""
    if needs is RESULTS:
        result = _core.plain_backward(dy, saved, out, num_threads)
        if result is not None:
            return result
    return general_backward(saved, dy, out, needs, num_threads)


def general_backward(saved, dy, out, needs, num_threads):
    """The same, where the core's short way does not take the call."""
    if isinstance(saved, Composite):
        return saved.backward(dy, out, needs, num_threads)
    return gradients(dy, saved, out, needs, checks.threads(num_threads))


def refuse_unclear_input(saved):
    """Raises RuntimeError where backward needs an input that was overwritten and cannot be recovered."""
    saved = saved.core if isinstance(saved, Composite) else saved
    (saved.extras or fusion.NONE).refuse_in_place(saved)
    about_input(saved)


def gradients(dy, saved, out, needs, threads):
    """batch_norm_backward after its checks, but for that of `out`."""
    x, extras = saved.input(), saved.extras or fusion.NONE
    extras.refuse_changed(x)
    extras.refuse_in_place(saved)
    wants_dgamma, wants_dbeta = "dgamma" in needs or "dvar" in needs, "dbeta" in needs or "dmean" in needs
    uses_x = wants_dgamma or not saved.frozen or extras.activation.name is not None
    factors = about_input(saved) if uses_x else (saved.gamma, saved.mean, saved.rstd)
    arrangement, dx, target = arrange(x, saved.axes), None, None
    if "dx" in needs:
        read = {"dy": dy, "x": x, "residual": extras.residual, "y": extras.written}
        arrangement, dx, target = target_for(out, x, saved.axes, read)
    dresidual, dresidual_target = arrangement.empty(x.dtype) if "dresidual" in needs else (None, None)
    new = np.empty if x.size else np.zeros
    dgamma = new(saved.mean.shape) if wants_dgamma else None
    dbeta = new(saved.mean.shape) if wants_dbeta else None
    if x.size and needs:
        run_backward(x if uses_x else None, dy, saved, extras, factors, arrangement, target, dgamma, dbeta,
                     dresidual_target, threads)
    of_features = {"dgamma": dgamma, "dbeta": dbeta} | _of_statistics(dgamma, dbeta, saved, needs)
    return (dx, *(as_parameter(gradient if name in needs else None, saved.rounds_gradients)
                  for name, gradient in of_features.items()), *([dresidual] if extras.has_residual else []))


def run_backward(x, dy, saved, extras, factors, arrangement, dx, dgamma, dbeta, dresidual, threads):
    """The core's backward; dx and dresidual as (n, c, s). None: x where nothing needs it, and what is not wanted."""
    source, dy = None if x is None else arrangement.readable(x), arrangement.readable(dy)
    gamma, mean, rstd = factors
    core = None
    if extras is not fusion.NONE or dresidual is not None:
        core = extras.for_backward(arrangement, saved, dresidual)
    _core.backward(source, dy, core, gamma, saved.beta, mean, rstd, saved.frozen, dx, dgamma, dbeta, threads)


def _of_statistics(dgamma, dbeta, saved, needs):
    """dmean and dvar; None where what they are made of is."""
    if "dmean" not in needs and "dvar" not in needs:
        return {}
    with np.errstate(all="ignore"):
        scale = saved.rstd if saved.gamma is None else saved.gamma * saved.rstd
        return {"dmean": None if dbeta is None else -scale * dbeta,
                "dvar": None if dgamma is None else -0.5 * scale * saved.rstd * dgamma}


def as_parameter(gradient, rounds):
    """The gradient, rounded to float32 where that is asked for; None stays None."""
    if gradient is None or not rounds:
        return gradient
    rounded = np.empty(gradient.shape, np.float32)
    _core.round_f32(gradient, rounded)
    return rounded


def like_input(a, name, x):
    """An array of x's shape, converted to x's dtype."""
    a = checks.as_data(a, name)
    if a.shape != x.shape:
        raise ValueError(f"{name} has shape {a.shape}, expected {x.shape}, the shape of x in the forward call")
    return a if a.dtype == x.dtype else a.astype(x.dtype)


def needed(needs, known):
    """`needs` as a tuple of some of the names that are known."""
    names = (needs,) if isinstance(needs, str) else tuple(needs)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"needs contains {unknown[0]!r}, expected some of {', '.join(known)}")
    return names


# ---- moments ----

def moments_of(x, axes, extras, threads):
    arrangement = arrange(x, axes)
    c = arrangement.packed[1]
    mean, m2 = np.zeros(c), np.zeros(c)
    if x.size:
        _core.moments(arrangement.readable(x), extras.for_core(arrangement), mean, m2, threads)
    if extras.weights is not None:
        m2 *= extras.weights.unit
    return moments_from(extras, x.size // c if c else 0, mean, m2)


def moments_from(extras, entries, mean, M2):
    count, squares = extras.counted(entries)
    return Moments.of_arrays(count, mean, M2, squares)
