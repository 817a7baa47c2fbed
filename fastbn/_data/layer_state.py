"""The state of a layer in and out: dicts, and .npz files, which hold the settings too."""
import numpy as np

from .._engine import activations, checks
from . import atomic_write, npz

# By the name under which the layer's base keeps it.
PUBLIC_NAMES = {"gamma": "gamma", "beta": "beta", "mean": "running_mean", "var": "running_var"}


def arrays(layer):
    """The layer's own arrays by internal name, those that it has. Raises RuntimeError (they were changed in place)."""
    layer._check_arrays()
    found = {name: getattr(layer, public) for name, public in PUBLIC_NAMES.items()}
    return {name: a for name, a in found.items() if a is not None}


def copies(layer):
    state = {PUBLIC_NAMES[name]: a.copy() for name, a in arrays(layer).items()}
    if layer.num_batches_tracked is not None:
        state["num_batches_tracked"] = np.array(layer.num_batches_tracked, np.int64)
    return state


def counter(value):
    a = np.asarray(value)
    if a.ndim != 0 or a.dtype.kind not in "iu" or not 0 <= int(a) < 2**63:  # it is saved as int64
        raise ValueError(f"num_batches_tracked is {value!r}, expected a whole number, 0 or more")
    return int(a)


def _check_names(layer, state):
    if not hasattr(state, "keys"):
        raise TypeError(f"state is a {type(state).__name__}, expected a dict as state_dict() gives")
    expected, found = set(copies(layer)), set(state.keys())
    if "gamma" not in found and ("weight" in found or any(str(name).endswith(".running_mean") for name in found)):
        raise ValueError(f"state has {', '.join(sorted(map(str, found))[:5])}, expected exactly {', '.join(sorted(expected))}: is "
                         "it PyTorch's? Make the layer with BatchNorm.from_torch(state, prefix)")
    for problem, names in (("lacks", expected - found), ("has unexpected", found - expected)):
        if names:
            raise ValueError(f"state {problem} {', '.join(sorted(map(str, names)))}; expected exactly "
                             f"{', '.join(sorted(expected))}: was it saved from a layer with other switches?")


def checked(value, name, num_features, dtype):
    """One of a layer's arrays, by its public name. Raises TypeError, ValueError; warns of what is not finite."""
    with np.errstate(over="ignore"):
        a = checks.parameter(value, name, num_features, dtype)
    if a is None:
        raise ValueError(f"{name} is None, expected an array of shape ({num_features},)")
    if name == "running_var" and (bad := np.flatnonzero(~(a >= 0))).size:
        raise ValueError(f"running_var is {a[bad[0]]} for feature {bad[0]}, expected variances, numbers of at least 0 "
                         f"({bad.size} of {num_features} are none): is it another array, or had a batch NaN?")
    if (bad := np.flatnonzero(~np.isfinite(a))).size:
        checks.warn(f"{name} is {a[bad[0]]} for feature {bad[0]} ({bad.size} of {num_features} features are not finite), "
                     "and so will be what it computes")
    return a if a.flags.writeable else a.copy()


def refuse_read_only(layer, names):
    """Before several arrays of a layer are written to, so that all are or none. names: internal ones."""
    for name, a in arrays(layer).items():
        if name in names and not a.flags.writeable:
            raise ValueError(f"{PUBLIC_NAMES[name]} is read-only: assign an array that can be written to first")


def fill(layer, state):
    """Everything is checked before the first array is written."""
    _check_names(layer, state)
    new = {}
    for name in arrays(layer):
        new[name] = checked(state[PUBLIC_NAMES[name]], PUBLIC_NAMES[name], layer.num_features, layer.dtype)
    batches = counter(state["num_batches_tracked"]) if "num_batches_tracked" in state else None
    refuse_read_only(layer, new)
    for name, a in arrays(layer).items():
        a[:] = new[name]
    layer.num_batches_tracked = batches


# ---- files ----

# A file has the settings as plain arrays beside the state's, under these names with a prefix.
_PREFIX = "settings."
_SETTINGS = ("num_features", "dtype", "eps", "axis", "activation", "momentum", "ddof", "ghost_batch_size", "renorm", "nan_policy",
             "use_batch_stats", "update_running_stats", "parameter_gradients")
_DECISIVE = ("eps", "axis", "activation")  # inference is another with another
_TRAINING = _SETTINGS[_SETTINGS.index("momentum"):]
_NOTHING = {"momentum": np.nan, "ghost_batch_size": 0, "renorm": (), "use_batch_stats": -1, "update_running_stats": -1}  # None


def _settings_of(layer):
    values = {name: getattr(layer, name) for name in _SETTINGS}
    return values | {"dtype": layer.dtype.name}


def _encoded(values):
    """{name: array}"""
    arrays = {name: np.array(_NOTHING[name] if value is None and name in _NOTHING else value) for name, value in values.items()}
    act = activations.parse(values["activation"])
    arrays |= {"activation": np.array(act.name or ""), "slope": np.array(act.slope)}
    return {_PREFIX + name: a for name, a in arrays.items()}


def _decoded(arrays):
    """The values again, of those that are there. Raises TypeError, ValueError, KeyError."""
    values = {name.removeprefix(_PREFIX): a.tolist() for name, a in arrays.items()}
    for name, nothing in _NOTHING.items():
        if name in values and (values[name] == nothing or values[name] == [] or values[name] != values[name]):
            values[name] = None
    for name in ("axis", "renorm"):
        values[name] = tuple(values[name]) if isinstance(values[name], list) else values[name]
    for name in ("use_batch_stats", "update_running_stats", "parameter_gradients"):
        if values[name] not in (None, 0, 1):
            raise ValueError(f"{name} is {values[name]!r}, expected 0 or 1")
        values[name] = None if values[name] is None else bool(values[name])
    name, slope = values["activation"] or None, values.pop("slope")
    values["activation"] = activations.parse(name)._replace(slope=slope).argument
    return values


def save(layer, path):
    """A failure leaves the old file as it was."""
    with atomic_write.replacing(path) as file:
        np.savez(file, **copies(layer), **_encoded(_settings_of(layer)))


def _split(found):
    """(state, settings or None) of a file's arrays."""
    own = {name: a for name, a in found.items() if name.startswith(_PREFIX)}
    return {name: a for name, a in found.items() if name not in own}, _decoded(own) if own else None


def load(layer, path, settings):
    """Fills it from a file that save wrote. settings: "check" or "ignore". Raises OSError, ValueError."""
    if settings not in ("check", "ignore"):
        raise ValueError(f"settings is {settings!r}, expected 'check' or 'ignore'")
    found = npz.read(path, layer.num_features)
    try:
        state, saved = _split(found)
        if settings == "check" and saved is not None:
            _compare(layer, saved)
        fill(layer, state)
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{path} does not fit: {error}") from error


def _compare(layer, saved):
    """Raises ValueError where inference would be another, and warns where training would."""
    own = _settings_of(layer)
    differ = [name for name in _DECISIVE + _TRAINING if saved[name] != own[name]]
    text = ", ".join(f"{name}={saved[name]!r} (this layer: {own[name]!r})" for name in differ)
    if any(name in _DECISIVE for name in differ):
        raise ValueError(f"it was saved with {text}: make the layer with these settings, or by BatchNorm.from_file, or pass "
                         "settings='ignore' for the arrays alone")
    if differ:
        checks.warn(f"the file was saved with {text}: this layer trains on in its own way (settings='ignore' says that "
                     "it should)")


def made(cls, path, training):
    """A layer of a class as a file tells it. Raises OSError, ValueError."""
    if not isinstance(training, bool):
        raise TypeError(f"training is {training!r}, expected True or False (for inference)")
    features = npz.read(path, 0, {_PREFIX + "num_features"}).get(_PREFIX + "num_features")
    if features is None:
        raise ValueError(f"{path} has no settings, as fastbn wrote it before it had them: make a layer and call load")
    try:
        state, saved = _split(npz.read(path, int(features)))
        for name in set(state) - {"num_batches_tracked"}:
            if np.shape(state[name]) != (int(features),):
                raise ValueError(f"{name} has shape {np.shape(state[name])} and num_features is {int(features)}")
        if not state:
            raise ValueError("it has settings and no arrays")
        layer = _layer_of(cls, state, saved)
        fill(layer, state)
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise ValueError(f"{path} is no file of a layer that fastbn wrote, or it is damaged ({error})") from error
    return layer.train(training)


def _layer_of(cls, state, settings):
    """The layer, without the state's values."""
    if missing := [name for name in _SETTINGS if name not in settings]:
        raise ValueError(f"it has no setting {missing[0]}")
    momentum = checks.momentum_or_none(settings.pop("momentum"))
    switches = {name: settings.pop(name) for name in _SETTINGS[-3:]}
    layer = cls(settings.pop("num_features"), center="beta" in state, scale="gamma" in state,
                track_running_stats="running_mean" in state, **settings)
    layer._momentum = momentum  # not through the property, which warns
    for name, value in switches.items():
        setattr(layer, name, value)
    return layer
