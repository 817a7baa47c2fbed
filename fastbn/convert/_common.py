"""What all conversions share: a layer out of a framework's arrays and settings, and a layer's arrays into a target."""
import decimal
import math

import numpy as np

from .._data import layer_state
from .._engine import checks
from ._arrays import as_array

# Keyword arguments of BatchNorm, but for those that the arrays tell.
_SETTINGS = ("axis", "eps", "momentum", "ddof", "dtype", "activation", "ghost_batch_size", "renorm", "nan_policy")
_NEUTRAL = {"gamma": 1.0, "beta": 0.0}


def build(cls, arrays, names, settings, given, *, batches=0, training=True, features=None):
    """A layer of class `cls`.

    arrays: {"gamma", "beta", "running_mean", "running_var": value or None}; names: the framework's names for them.
    settings: the framework's own, with fastbn's names and meanings; given: the caller's, which win, and `training`, the
    layer's mode.
    features: their number where there may be no array at all.
    """
    training = _mode(given.pop("training", None), training)
    settings = _merged(settings, given)
    arrays = _checked(arrays, names, settings["axis"])
    settings.setdefault("dtype", np.result_type(np.float32, *(a.dtype for a in arrays.values())))
    momentum = checks.momentum_or_none(settings["momentum"])
    if "momentum" not in given:
        settings["momentum"] = 0.9
    layer = cls(features if not arrays else next(iter(arrays.values())).size, scale="gamma" in arrays,
                center="beta" in arrays, track_running_stats="running_mean" in arrays, **settings)
    layer._momentum = momentum  # not through the property, which warns: a translated one is small on purpose
    counter = {"num_batches_tracked": as_array(batches)} if "running_mean" in arrays else {}
    layer_state.fill(layer, arrays | counter)
    return layer.train(training)


def _mode(given, own):
    if given is not None and not isinstance(given, bool):
        raise TypeError(f"training is {given!r}, expected True, False (for inference), or None")
    return own if given is None else given


def _merged(settings, given):
    unknown = sorted(set(given) - set(_SETTINGS))
    if unknown:
        raise TypeError(f"{unknown[0]} is no setting of the layer; expected {', '.join(_SETTINGS)}, training")
    return settings | given


def _checked(arrays, names, axis):
    """Those that are there, flat, of floats and of one shape: as many axes as there are feature axes, or one."""
    found = {key: checks.as_data(as_array(value), names[key]) for key, value in arrays.items() if value is not None}
    if ("running_mean" in found) != ("running_var" in found):
        have, lack = ("running_mean", "running_var") if "running_mean" in found else ("running_var", "running_mean")
        raise ValueError(f"there is a {names[have]} and no {names[lack]}, expected both or neither")
    check_shapes({key: a.shape for key, a in found.items()}, names, axis)
    return {key: a.reshape(-1) for key, a in found.items()}


def check_shapes(shapes, names, axis):
    """Raises ValueError where arrays of these shapes, by fastbn's names, are not of one layer."""
    ranks = {1, len(axis)} if isinstance(axis, (tuple, list)) else {1}
    reference = next((key for key in ("running_mean", "gamma", "beta") if key in shapes), None)
    for key, shape in shapes.items():
        if len(shape) not in ranks:
            raise ValueError(f"{names[key]} has shape {shape}, expected one dimension, (C,): is it another layer's? "
                             "(Several feature axes take a tuple as axis.)")
        if shape != shapes[reference]:
            raise ValueError(f"{names[key]} has shape {shape}, expected {shapes[reference]}, the shape of "
                             f"{names[reference]}: are they of one layer?")


def complement(momentum):
    """1 - momentum, in decimal, so that 0.1 gives 0.9 and 0.9 gives 0.1. None (a cumulative average) stays None."""
    return None if momentum is None else float(1 - decimal.Decimal(repr(float(momentum))))


def prefixed(prefix, separator):
    """A prefix that ends with the separator, or is empty."""
    if not isinstance(prefix, str):
        raise TypeError(f"prefix is {prefix!r}, expected a str")
    return prefix if not prefix or prefix.endswith(separator) else prefix + separator


def missing(name, prefix, keys, suffix):
    """The error for an entry that is not there, with the prefixes that have one."""
    others = [repr(key.removesuffix(suffix)) for key in map(str, keys) if key.endswith(suffix)]
    hint = f"those that have one: {', '.join(others[:8])}{', ...' * (len(others) > 8)}" if others else "none has one"
    return ValueError(f"there is no {name} under prefix {prefix!r}: is the prefix another ({hint}), or the layer no "
                      "batch norm with running statistics?")


def outgoing(layer, names):
    """Copies of the arrays that the layer has, by the framework's names."""
    layer._check_arrays()
    found = {their: getattr(layer, ours) for ours, their in names.items()}
    return {their: a.copy() for their, a in found.items() if a is not None}


def check_layer(layer, framework, *, renorm=False, statistics=True):
    """Refuses a layer whose inference would be another there; of one in training mode, warns of training that would.

    renorm: whether the framework's layer has renormalization too; statistics: whether it always has running ones.
    """
    if statistics and layer.running_mean is None:
        raise RuntimeError("this layer has no running statistics (track_running_stats=False), which a batch norm of "
                           f"{framework} always has")
    if layer.use_batch_stats and layer.running_mean is not None:
        raise ValueError("use_batch_stats is True: inference takes the batch's statistics, which would be lost; set it "
                         f"to None first, for the running statistics that a batch norm of {framework} takes")
    if layer.activation is not None:
        raise ValueError(f"activation is {layer.activation!r}, which would be lost: a batch norm of {framework} has none; "
                         "convert a copy (copy.copy) whose activation is set to None, and apply it after that layer there")
    lost = [f"ghost_batch_size={layer.ghost_batch_size}"] * (layer.ghost_batch_size is not None)
    lost += [f"renorm={layer.renorm}"] * (layer.renorm is not None and not renorm)
    if lost and layer.training:
        checks.warn(f"{' and '.join(lost)} is lost: {framework} has no such thing here, and would train on by the "
                     "statistics of whole batches; inference is the same")


def require_momentum(layer, framework):
    """The weight of the old average, where there must be one."""
    if layer.momentum is None:
        raise ValueError(f"momentum is None, a cumulative average, which {framework} does not have: set the layer's "
                         "momentum to the weight that the old average keeps, 0.99 for example")
    return layer.momentum


def pairs(layer, target, names):
    """[(variable, value), ...] for the arrays of a framework's layer, with every check made and nothing written.

    names: {"gamma", ...: the target's attribute, a variable or None}. What the target has and the layer lacks becomes
        1 or 0, which changes nothing.
    """
    result = []
    for key, name in names.items():
        value, variable = getattr(layer, key), getattr(target, name)
        if variable is None and value is not None:
            raise ValueError(f"this layer has a {key} and the target no {name}: it was made without, and would "
                             "compute something else")
        if variable is None:
            continue
        if value is None and key not in _NEUTRAL:
            raise RuntimeError(f"this layer has no {key} (track_running_stats=False) and the target a {name}")
        if math.prod(variable.shape) != layer.num_features:
            raise ValueError(f"the target's {name} has shape {tuple(variable.shape)}, expected "
                             f"{layer.num_features} entries, one for each feature of this layer")
        value = np.full(layer.num_features, _NEUTRAL[key], layer.dtype) if value is None else value
        result.append((variable, value.reshape(tuple(variable.shape))))
    return result
