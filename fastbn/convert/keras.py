"""Keras 3 (and Keras 2, tf.keras): keras.layers.BatchNormalization, or its weights and config."""
import math

import numpy as np

from .._engine import checks
from ._arrays import belongs
from ._common import build, check_layer, outgoing, pairs, require_momentum

_NAMES = {"gamma": "gamma", "beta": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
_DEFAULTS = {"axis": -1, "momentum": 0.99, "epsilon": 1e-3, "center": True, "scale": True, "renorm": False,
             "renorm_clipping": None, "renorm_momentum": 0.99}
# What a layer with renorm=True has besides, in the order of get_weights().
_RENORM_WEIGHTS = ("moving_stddev", "renorm_mean", "renorm_stddev")


def from_keras(cls, source, config=None, **settings):
    """Make a layer with the state of a Keras batch norm.

    Parameters
    ----------
    source : layer, list or dict of arrays
        A built keras.layers.BatchNormalization; or its weights: the list that layer.get_weights() gives (gamma, beta,
        moving_mean, moving_variance, the first two where it has them, with renorm also moving_stddev, renorm_mean,
        renorm_stddev), or a dict of arrays with these names.
    config : dict, optional
        With weights, what layer.get_config() gives: axis, momentum, epsilon, center, scale, renorm; Keras's defaults
        stand for what is missing (axis -1, momentum 0.99, epsilon 1e-3).
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
        If the layer is not built, weights are missing or have other shapes, or rmin is not 1 / rmax.

    Notes
    -----
    What is translated: momentum is the weight of the old average in both; epsilon is eps; ddof=0: the moving variance
    takes the biased variance. Exact, for inference and further training (but for rounding). Keras counts no batches:
    0. The layer starts in training mode. renorm=True gives renorm=(rmax, dmax), where renorm_clipping has rmin = 1 /
    rmax, or neither. Its inference is exact; trained further, the layer takes r and d from the averages that
    inference has, for which Keras keeps some of their own (the same where renorm_momentum is momentum; else this
    warns), and averages variances where Keras then averages standard deviations.

    References
    ----------
    Keras, keras/src/layers/normalization/batch_normalization.py (methods build and call).

    Examples
    --------
    >>> import numpy as np
    >>> import fastbn
    >>> ones = np.ones(2, np.float32)
    >>> weights = [3 * ones, ones, ones, ones]    # gamma, beta, moving_mean, moving_variance
    >>> fastbn.BatchNorm.from_keras(weights, {"momentum": 0.9})
    BatchNorm(2, axis=-1, eps=0.001, momentum=0.9, ddof=0, dtype=float32)
    """
    if _is_layer(source):
        config = _config_of(source, config)
        arrays = {key: getattr(source, name) for key, name in _NAMES.items()}
    else:
        config = _DEFAULTS | dict(config or {})
        arrays = _of_weights(source, config)
    axis = config["axis"]
    own = {"axis": axis[0] if isinstance(axis, (list, tuple)) and len(axis) == 1 else axis, "eps": config["epsilon"],
           "momentum": config["momentum"], "ddof": 0, "renorm": _renorm_of(config)}
    return build(cls, arrays, _NAMES, own, settings)


def _renorm_of(config):
    """(rmax, dmax) or None."""
    if not config["renorm"]:
        return None
    clipping = config["renorm_clipping"] or {}
    rmax, rmin, dmax = (default if clipping.get(name) is None else float(clipping[name])
                        for name, default in (("rmax", math.inf), ("rmin", 0.0), ("dmax", math.inf)))
    if not math.isclose(rmin, 1 / rmax, rel_tol=1e-6):
        raise ValueError(f"renorm_clipping has rmax {rmax:g} and rmin {rmin:g}, expected rmin = 1 / rmax, between "
                         "which and rmax r is kept here; for inference pass a dict of gamma, beta, moving_mean and "
                         "moving_variance")
    if config["renorm_momentum"] != config["momentum"]:
        checks.warn(f"renorm_momentum is {config['renorm_momentum']} and momentum {config['momentum']}: here r and d "
                     "come from the averages that inference takes, whose momentum is the latter")
    return rmax, dmax


def _is_layer(source):
    """keras, tf_keras and the Keras inside older TensorFlow releases have classes of this name."""
    named = any(cls.__name__.startswith("BatchNormalization") for cls in type(source).__mro__)
    return named and belongs(source, "keras", "tf_keras", "tensorflow")


def _check_built(layer, argument):
    if layer.moving_mean is None:
        raise ValueError(f"{argument} is a layer that is not built and has no weights: call it on a batch first")


def _config_of(layer, config):
    if config is not None:
        raise ValueError("config is given and source a layer, expected no config: a layer has its own")
    _check_built(layer, "source")
    return {"axis": layer.axis if isinstance(layer.axis, int) else list(layer.axis), "momentum": layer.momentum,
            "epsilon": layer.epsilon, "renorm": getattr(layer, "renorm", False),
            "renorm_clipping": getattr(layer, "renorm_clipping", None),
            "renorm_momentum": getattr(layer, "renorm_momentum", layer.momentum)}


def _of_weights(source, config):
    if hasattr(source, "keys"):
        unknown = sorted(set(source) - set(_NAMES.values()) - set(_RENORM_WEIGHTS))
        if unknown or not {"moving_mean", "moving_variance"} <= set(source):
            raise ValueError(f"source has {', '.join(map(str, source)) or 'no entries'}, expected moving_mean, "
                             "moving_variance and, where the layer has them, gamma and beta")
        return {key: source.get(name) for key, name in _NAMES.items()}
    if not isinstance(source, (list, tuple)):
        raise TypeError(f"source is a {type(source).__name__}, expected a keras.layers.BatchNormalization, the list "
                        "of its get_weights(), or a dict of arrays")
    keys = ["gamma"] * bool(config["scale"]) + ["beta"] * bool(config["center"]) + ["running_mean", "running_var"]
    extra = _RENORM_WEIGHTS if config["renorm"] else ()
    if len(source) != len(keys) + len(extra):
        names = ", ".join([*(_NAMES[key] for key in keys), *extra])
        raise ValueError(f"source has {len(source)} arrays, expected {len(keys) + len(extra)}, {names}: "
                         "pass config=layer.get_config() if the layer has no scale or center, or renorm")
    return dict.fromkeys(_NAMES) | dict(zip(keys, source))


def to_keras(self, target=None):
    """Give this layer's state in Keras's names and meaning.

    Parameters
    ----------
    target : layer, optional
        None: returns (weights, config): the list of arrays for layer.set_weights(), and the dict {"axis", "momentum",
        "epsilon", "center", "scale"}, with renorm also "renorm", "renorm_clipping", "renorm_momentum", to make the
        layer with: keras.layers.BatchNormalization(**config). A built keras.layers.BatchNormalization: fills it, sets
        its momentum and epsilon, and returns it; its axis stays. Where it has a gamma or beta and this layer none,
        they become 1 and 0. A train function that Keras has already compiled keeps the momentum and epsilon that it
        was compiled with.

    Returns
    -------
    tuple or layer
        The pair (weights, config) where target is None, else the layer.

    Raises
    ------
    TypeError, ValueError
        If momentum is None, there are several feature axes, the layer has an activation or another setting that Keras
        lacks, or the target another shape. Then the target is as it was.
    RuntimeError
        If the layer has no running statistics.

    Notes
    -----
    momentum and eps are the same in both. renorm is renorm_clipping = {"rmax": rmax, "rmin": 1 / rmax, "dmax": dmax},
    with the running statistics as its averages too; see from_keras for what differs in training. A target is not
    given another renorm than it has: where this layer trains with it and the target without, or the other way round,
    and of ghost batches, a layer in training mode warns. Keras always takes the biased variance, so a layer with
    ddof=1 is converted exactly for inference, but its moving variance would grow on by batch variances smaller by (N
    - 1) / N there.

    References
    ----------
    Keras, keras/src/layers/normalization/batch_normalization.py.

    Examples
    --------
    >>> import fastbn
    >>> weights, config = fastbn.BatchNorm(2, axis=-1).to_keras()
    >>> len(weights), config["epsilon"]
    (4, 1e-05)
    """
    check_layer(self, "Keras", renorm=target is None or getattr(target, "renorm", False))
    momentum = require_momentum(self, "Keras")
    if target is not None:
        return _fill(self, target, momentum)
    if not isinstance(self.axis, int):
        raise ValueError(f"axis is {self.axis}, expected one axis: Keras has no batch norm over several feature axes")
    arrays = outgoing(self, _NAMES)
    config = {"axis": self.axis, "momentum": momentum, "epsilon": self.eps, "center": "beta" in arrays,
              "scale": "gamma" in arrays}
    if self.renorm is None:
        return list(arrays.values()), config
    config |= {"renorm": True, "renorm_clipping": _clipping(self), "renorm_momentum": momentum}
    return [*arrays.values(), *_renorm_weights(self).values()], config


def _clipping(layer):
    """Infinite limits are left out, as a config is written to JSON."""
    rmax, dmax = layer.renorm
    limits = {"rmax": rmax, "rmin": 1 / rmax, "dmax": dmax}
    return {name: value for name, value in limits.items() if math.isfinite(value)}


def _renorm_weights(layer):
    with np.errstate(all="ignore"):
        std = np.sqrt(layer.running_var + layer.dtype.type(layer.eps))
    return dict(zip(_RENORM_WEIGHTS, (std, layer.running_mean.copy(), std.copy())))


def _fill(layer, target, momentum):
    if not _is_layer(target):
        raise TypeError(f"target is a {type(target).__name__}, expected a keras.layers.BatchNormalization")
    _check_built(target, "target")
    for variable, value in pairs(layer, target, _NAMES):
        variable.assign(np.array(value))
    if getattr(target, "renorm", False):
        for name, value in _renorm_weights(layer).items():
            getattr(target, name).assign(value)
        if layer.renorm is not None:
            target.renorm_clipping, target.renorm_momentum = _clipping(layer), momentum
        elif layer.training:
            checks.warn("the target has renorm and this layer none: trained further it renormalizes")
    target.momentum, target.epsilon = momentum, layer.eps
    return target
