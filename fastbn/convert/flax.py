"""Flax: the variables of linen.BatchNorm, and nnx.BatchNorm."""
import sys

import numpy as np

from ._arrays import is_a
from ._common import build, check_layer, outgoing, pairs, require_momentum

_NAMES = {"gamma": "scale", "beta": "bias", "running_mean": "mean", "running_var": "var"}
_COLLECTIONS = {"scale": "params", "bias": "params", "mean": "batch_stats", "var": "batch_stats"}
_NNX = "BatchNorm", "flax.nnx"
_DEFAULTS = {"axis": -1, "eps": 1e-5, "momentum": 0.99, "ddof": 0}


def from_flax(cls, source, module=None, *, prefix="", **settings):
    """Make a layer with the state of a Flax batch norm.

    Parameters
    ----------
    source : dict or nnx.BatchNorm
        Variables of linen, {"params": {"scale", "bias"}, "batch_stats": {"mean", "var"}}, also of a whole network,
        with jax or NumPy arrays; or an nnx.BatchNorm; or the arrays alone, {"scale", "bias", "mean", "var"}, as
        nnx.state gives.
    module : linen module, optional
        With variables, the linen.BatchNorm that they are of, for its axis, momentum and epsilon; without it Flax's
        defaults stand (axis -1, momentum 0.99, epsilon 1e-5).
    prefix : str, default ''
        The layer's path in a network's variables: "BatchNorm_0", "encoder/BatchNorm_0".
    **settings : dict
        Keyword arguments of BatchNorm, where another value than the one found is wanted, and training, the layer's
        mode (False: ready for inference).

    Returns
    -------
    BatchNorm
        A new layer.

    Raises
    ------
    TypeError, ValueError
        If entries are missing or have other shapes.

    Notes
    -----
    What is translated: momentum is the weight of the old average in both; epsilon is eps; ddof=0: var takes the
    biased variance. Exact, for inference and further training, but for rounding (Flax's use_fast_variance=True, its
    default, loses digits of the variance where |mean| / std is large). Flax counts no batches: 0. A module with
    use_running_average=True gives a layer in inference mode; otherwise it starts in training mode.

    References
    ----------
    Flax, flax/linen/normalization.py (class BatchNorm, function _compute_stats), flax/nnx/nn/normalization.py.

    Examples
    --------
    >>> import numpy as np
    >>> import fastbn
    >>> ones = np.ones(2, np.float32)
    >>> variables = {"params": {"scale": 3 * ones, "bias": ones}, "batch_stats": {"mean": ones, "var": ones}}
    >>> fastbn.BatchNorm.from_flax(variables)
    BatchNorm(2, axis=-1, eps=1e-05, momentum=0.99, ddof=0, dtype=float32)
    """
    if is_a(source, *_NNX):
        if prefix or module is not None:
            raise ValueError("source is an nnx.BatchNorm, expected neither module nor prefix: they are for variables")
        arrays, module = {key: getattr(source, name) for key, name in _NAMES.items()}, source
    else:
        arrays = _of_variables(source, prefix)
    own, frozen = _settings_of(module)
    return build(cls, arrays, _NAMES, own, settings, training=not frozen)


def _settings_of(module):
    if module is None:
        return dict(_DEFAULTS), False
    if not is_a(module, *_NNX) and not is_a(module, "BatchNorm", "flax.linen"):
        raise TypeError(f"module is a {type(module).__name__}, expected a flax.linen.BatchNorm")
    axis = module.axis if isinstance(module.axis, int) else tuple(module.axis)
    own = {"axis": axis, "eps": module.epsilon, "momentum": module.momentum, "ddof": 0}
    return own, bool(module.use_running_average)


def _of_variables(source, prefix):
    if not hasattr(source, "keys"):
        raise TypeError(f"source is a {type(source).__name__}, expected linen variables (a dict with params and "
                        "batch_stats) or an nnx.BatchNorm")
    path = [part for part in prefix.split("/") if part]
    nested = "batch_stats" in source
    places = {name: (_COLLECTIONS[name], *path) if nested else path for name in _NAMES.values()}
    arrays = {key: _at(source, (*places[name], name)) for key, name in _NAMES.items()}
    for key in ("running_mean", "running_var"):
        if arrays[key] is None:
            hint = ", ".join(_paths(source["batch_stats"] if nested else source)) or "none"
            raise ValueError(f"there is no {_NAMES[key]} under prefix {prefix!r} of batch_stats: is the prefix another "
                             f"(those that have one: {hint}), or batch_stats missing?")
    return arrays


def _at(tree, path):
    for name in path:
        tree = tree[name] if hasattr(tree, "keys") and name in tree else None
    return tree


def _paths(tree, path=""):
    """The prefixes under which there is a mean."""
    found = [repr(path)] if "mean" in tree else []
    for name in tree:
        if hasattr(tree[name], "keys"):
            found += _paths(tree[name], f"{path}/{name}".strip("/"))
    return found


def to_flax(self, target=None, *, prefix=""):
    """Give this layer's state in Flax's names and meaning.

    Parameters
    ----------
    target : nnx.BatchNorm, optional
        None: returns linen variables, {"params": {"scale", "bias"}, "batch_stats": {"mean", "var"}}, of NumPy arrays
        of shape (C,), those that the layer has. They hold no settings: make the module with momentum=bn.momentum,
        epsilon=bn.eps, axis=bn.axis, use_scale and use_bias. An nnx.BatchNorm: fills it, sets its momentum and
        epsilon, and returns it; its axis and mode stay. Where it has a scale or bias and this layer none, they become
        1 and 0.
    prefix : str, default ''
        The layer's path in the network's variables: "encoder/BatchNorm_0".

    Returns
    -------
    dict or nnx.BatchNorm
        The variables where target is None, else the module.

    Raises
    ------
    TypeError, ValueError
        If momentum is None and there is a target, the layer has an activation or another setting that Flax lacks, or
        the target another shape. Then the target is as it was.
    RuntimeError
        If the layer has no running statistics.

    Notes
    -----
    momentum and eps are the same in both. Flax always takes the biased variance, so a layer with ddof=1 is converted
    exactly for inference, but its var would grow on by batch variances smaller by (N - 1) / N there. A layer in
    training mode with ghost batches or renormalization warns: Flax has neither.

    References
    ----------
    Flax, flax/linen/normalization.py, flax/nnx/nn/normalization.py.

    Examples
    --------
    >>> import fastbn
    >>> variables = fastbn.BatchNorm(2).to_flax()
    >>> {collection: list(arrays) for collection, arrays in variables.items()}
    {'params': ['scale', 'bias'], 'batch_stats': ['mean', 'var']}
    """
    check_layer(self, "Flax")
    if target is not None:
        return _fill(self, target, prefix)
    variables = {"params": {}, "batch_stats": {}}
    for name, a in outgoing(self, _NAMES).items():
        leaf = variables[_COLLECTIONS[name]]
        for part in filter(None, prefix.split("/")):
            leaf = leaf.setdefault(part, {})
        leaf[name] = a
    return variables


def _fill(layer, target, prefix):
    if not is_a(target, *_NNX):
        raise TypeError(f"target is a {type(target).__name__}, expected an nnx.BatchNorm: linen modules hold no "
                        "arrays, call to_flax() for variables")
    if prefix:
        raise ValueError(f"prefix is {prefix!r} and target an nnx.BatchNorm, expected no prefix: it is for variables")
    momentum = require_momentum(layer, "Flax")
    jax = sys.modules["jax"]
    for variable, value in pairs(layer, target, _NAMES):
        variable[...] = jax.numpy.asarray(np.array(value), variable.dtype)
    target.momentum, target.epsilon = momentum, layer.eps
    return target
