"""Keras 3 (and Keras 2, tf.keras): keras.layers.BatchNormalization, or its weights and config."""
import numpy as np

from ._arrays import belongs
from ._common import build, outgoing, pairs, require_momentum, require_statistics

_NAMES = {"gamma": "gamma", "beta": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
_DEFAULTS = {"axis": -1, "momentum": 0.99, "epsilon": 1e-3, "center": True, "scale": True, "renorm": False}


def from_keras(cls, source, config=None, **settings):
    """A layer with the state of a Keras batch norm.

    source: a built keras.layers.BatchNormalization; or its weights: the list that layer.get_weights() gives (gamma,
        beta, moving_mean, moving_variance, the first two where it has them), or a dict of arrays with these names.
    config: with weights, what layer.get_config() gives: axis, momentum, epsilon, center, scale; Keras's defaults stand
        for what is missing (axis -1, momentum 0.99, epsilon 1e-3).
    settings: axis, eps, momentum, ddof, dtype of the layer, in fastbn's meaning, where another value is wanted.

    What is translated: momentum is the weight of the old average in both; epsilon is eps; ddof=0: the moving variance
    takes the biased variance. Exact, for inference and further training (but for rounding). Keras counts no batches: 0.
    The layer starts in training mode. A layer with renorm=True is refused, as it trains in another way; its inference
    is that of its four weights, passed as a dict.

    Raises TypeError, ValueError (not built, weights missing or misshapen).
    Source: Keras, keras/src/layers/normalization/batch_normalization.py (methods build and call).
    """
    if _is_layer(source):
        config = _config_of(source, config)
        arrays = {key: getattr(source, name) for key, name in _NAMES.items()}
    else:
        config = _DEFAULTS | dict(config or {})
        arrays = _of_weights(source, config)
    if config["renorm"]:
        raise ValueError("renorm is True, expected False: batch renormalization trains in another way; for inference "
                         "pass a dict of gamma, beta, moving_mean and moving_variance")
    axis = config["axis"]
    own = {"axis": axis[0] if isinstance(axis, (list, tuple)) and len(axis) == 1 else axis, "eps": config["epsilon"],
           "momentum": config["momentum"], "ddof": 0}
    return build(cls, arrays, _NAMES, own, settings)


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
            "epsilon": layer.epsilon, "renorm": getattr(layer, "renorm", False)}


def _of_weights(source, config):
    if hasattr(source, "keys"):
        unknown = sorted(set(source) - set(_NAMES.values()))
        if unknown or not {"moving_mean", "moving_variance"} <= set(source):
            raise ValueError(f"source has {', '.join(map(str, source)) or 'no entries'}, expected moving_mean, "
                             "moving_variance and, where the layer has them, gamma and beta")
        return {key: source.get(name) for key, name in _NAMES.items()}
    if not isinstance(source, (list, tuple)):
        raise TypeError(f"source is a {type(source).__name__}, expected a keras.layers.BatchNormalization, the list "
                        "of its get_weights(), or a dict of arrays")
    keys = ["gamma"] * bool(config["scale"]) + ["beta"] * bool(config["center"]) + ["running_mean", "running_var"]
    if len(source) != len(keys):
        names = ", ".join(_NAMES[key] for key in keys)
        raise ValueError(f"source has {len(source)} arrays, expected {len(keys)}, {names}: "
                         "pass config=layer.get_config() if the layer has no scale or center")
    return dict.fromkeys(_NAMES) | dict(zip(keys, source))


def to_keras(self, target=None):
    """This layer's state in Keras's names and meaning.

    target: None: returns (weights, config): the list of arrays for layer.set_weights(), and the dict {"axis",
        "momentum", "epsilon", "center", "scale"} to make the layer with: keras.layers.BatchNormalization(**config).
        A built keras.layers.BatchNormalization: fills it, sets its momentum and epsilon, and returns it; its axis
        stays. Where it has a gamma or beta and this layer none, they become 1 and 0. (A train function that Keras has
        already compiled keeps the momentum and epsilon that it was compiled with.)

    momentum and eps are the same in both. Keras always takes the biased variance, so a layer with ddof=1 is converted
    exactly for inference, but its moving variance would grow on by batch variances smaller by (N - 1) / N there.

    Raises TypeError, ValueError (momentum None; several axes; shapes, switches; the target is as it was), RuntimeError
    (no running statistics).
    Source: Keras, keras/src/layers/normalization/batch_normalization.py.
    """
    require_statistics(self, "Keras")
    momentum = require_momentum(self, "Keras")
    if target is not None:
        return _fill(self, target, momentum)
    if not isinstance(self.axis, int):
        raise ValueError(f"axis is {self.axis}, expected one axis: Keras has no batch norm over several feature axes")
    arrays = outgoing(self, _NAMES)
    config = {"axis": self.axis, "momentum": momentum, "epsilon": self.eps, "center": "beta" in arrays,
              "scale": "gamma" in arrays}
    return list(arrays.values()), config


def _fill(layer, target, momentum):
    if not _is_layer(target):
        raise TypeError(f"target is a {type(target).__name__}, expected a keras.layers.BatchNormalization")
    _check_built(target, "target")
    for variable, value in pairs(layer, {key: getattr(target, name) for key, name in _NAMES.items()}, _NAMES):
        variable.assign(np.array(value))
    target.momentum, target.epsilon = momentum, layer.eps
    return target
