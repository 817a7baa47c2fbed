"""The engine: what the public functions, the variants of training and the layer compute with, once arguments are checked.

Arrays are brought into the core's shape (_canonical.py), its operations are run in the general way, and what a forward
call leaves for backward is kept. Nothing here looks at an argument twice; errors that only the arrays tell, of `out` and
of what is added to a call, are raised here.
"""
import math

import numpy as np

from . import _activation, _checks, _core, _extras, _omit
from ._canonical import arrange, normalize_axes
from ._moments import Moments, by_feature
from ._saved import Composite, Saved, about_input

RESULTS = ("dx", "dgamma", "dbeta")

_FLOAT64 = np.dtype(np.float64)


def _wide(parameter):
    """A float64 copy."""
    return None if parameter is None else parameter.astype(_FLOAT64)


def prepare(x, axis, params):
    """Checks x and the parameters. Gives x as an array, its feature axes, the number of features, the parameters."""
    x = _checks.batch(x)
    axes = normalize_axes(axis, x.ndim)
    c = x.shape[axes[0]] if len(axes) == 1 else math.prod(x.shape[i] for i in axes)
    checked = {}
    for name, value in params.items():
        if value is not None:
            value = _checks.as_data(value, name, halves=False)
            if value.ndim == 1:
                _checks.features(x, axes, value.size, name)
        checked[name] = _checks.parameter(value, name, c)
    return x, axes, c, checked


def is_in_place(out, x):
    """Of an `out` that was checked: it is x or apart from it."""
    return out is not None and x.size > 0 and np.may_share_memory(out, x) and _checks.share_memory(out, x)


def target_for(out, x, axes, inputs):
    """(arrangement, the array to return, its (n, c, s) view)."""
    if out is None:
        arrangement = arrange(x, axes)
        return arrangement, *arrangement.empty(x.dtype)
    like = out if isinstance(out, np.ndarray) and out.shape == x.shape else x
    arrangement = arrange(like, axes)
    return arrangement, out, _checks.output(out, x, inputs, arrangement)


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
    saved = Saved(x, axes, mean.size, parameters["gamma"], parameters["beta"], frozen=True, in_place=is_in_place(out, x))
    saved.mean[:], saved.var[:] = mean, var
    with np.errstate(all="ignore"):
        saved.rstd[:] = 1.0 / np.sqrt(var + eps)
    saved.extras = None if extras is _extras.NONE else extras.kept(y)
    return y, saved


# ---- by the batch's statistics ----

def train_shortly(x, gamma, beta, eps, axis, out, threads, extras):
    """(y, what backward needs) in the core's short way, or None where it does not take the call."""
    if extras.weights is not None:
        return None
    act = _extras.alone(extras.activation)
    result = _core.plain_training(x, gamma, beta, eps, axis, out, threads or None, act, extras.residual)
    return result if result is None else with_residual(result, act, extras.residual)


def with_residual(result, act, residual):
    """The short way's result, with what backward needs of the residual. act: as the core takes it, or None."""
    if residual is not None:
        result[1].extras = (act or _extras.NONE)._replace(residual=residual).kept(result[0])
    return result


def normalize(x, axes, gamma, beta, eps, out, threads, activation, residual, **weights):
    """batch_norm_training after its checks, but for those of `out` and of what has no default here."""
    extras = _extras.with_weights(_extras.extras_of(x, activation, residual), x, axes, **weights)
    return normalize_by_batch(x, axes, gamma, beta, eps, out, threads, extras)


def count_of(saved):
    """The entries of a feature that the batch statistics are of, or their weight."""
    return (saved.extras or _extras.NONE).count_of(saved.x, saved.mean.size)


def normalize_by_batch(x, axes, gamma, beta, eps, out, threads, extras=_extras.NONE):
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
    saved.extras = None if extras is _extras.NONE else extras.kept(y)
    return y, saved


def normalize_without_nan(x, axes, gamma, beta, eps, out, threads, extras):
    """The same where NaN entries are missing; `out` shares no memory with x and the residual."""
    def compute(extras):
        nonlocal out
        out, saved = normalize_by_batch(x, axes, gamma, beta, eps, out, threads, extras)
        return out, saved
    return _omit.omitting(x, axes, extras, compute, lambda found: found[1].var)[0]


# ---- backward ----

def backward_of(saved, dy, out, needs, num_threads):
    """batch_norm_backward after its checks, but for that of `out`. saved: of any call."""
    if needs is RESULTS:
        result = _core.plain_backward(dy, saved, out, num_threads)
        if result is not None:
            return result
    if isinstance(saved, Composite):
        return saved.backward(dy, out, needs, num_threads)
    return gradients(dy, saved, out, needs, _checks.threads(num_threads))


def gradients(dy, saved, out, needs, threads):
    """batch_norm_backward after its checks, but for that of `out`."""
    x, extras = saved.x, saved.extras or _extras.NONE
    extras.refuse_in_place(saved)
    wants_dgamma, wants_dbeta = "dgamma" in needs or "dvar" in needs, "dbeta" in needs or "dmean" in needs
    uses_x = wants_dgamma or not saved.frozen or extras.activation.name is not None
    factors = factors_of(saved, extras, uses_x)
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


def factors_of(saved, extras, uses_x=True):
    """(gamma, mean, rstd), by feature, of the gradient's formulas. Raises RuntimeError (x is needed and gone)."""
    gamma, mean, rstd = about_input(saved) if uses_x else (saved.gamma, saved.mean, saved.rstd)
    if extras.weights is not None and extras.weights.absent is not None:
        rstd = np.where(extras.weights.absent, 0.0, rstd)  # a sum over nothing is 0, whatever its factor
    return gamma, mean, rstd


def run_backward(x, dy, saved, extras, factors, arrangement, dx, dgamma, dbeta, dresidual, threads):
    """The core's backward; dx and dresidual as (n, c, s). None: x where nothing needs it, and what is not wanted."""
    source, dy = None if x is None else arrangement.readable(x), arrangement.readable(dy)
    gamma, mean, rstd = factors
    core = None
    if extras is not _extras.NONE or dresidual is not None:
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
    a = _checks.as_data(a, name)
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

def moments_by(x, axes, extras, threads, omits=False):
    """(moments, extras) after the checks, where the extras know what of x is missing."""
    if omits:
        found, extras = _omit.omitting(x, axes, extras, lambda extras: _moments_of(x, axes, extras, threads),
                                       lambda found: found.M2)
        return by_feature(found), extras
    return _moments_of(x, axes, extras, threads), extras


def _moments_of(x, axes, extras, threads):
    arrangement = arrange(x, axes)
    c = arrangement.packed[1]
    mean, m2 = np.zeros(c), np.zeros(c)
    if x.size:
        _core.moments(arrangement.readable(x), extras.for_core(arrangement), mean, m2, threads)
    return Moments.of_arrays(extras.count_of(x, c), mean, m2)
