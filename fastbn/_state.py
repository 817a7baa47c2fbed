"""The state of a layer in and out: dicts and .npz files."""
import numpy as np

from . import _checks, _files, _npz

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


def _counter(value):
    a = np.asarray(value)
    if a.ndim != 0 or a.dtype.kind not in "iu" or not 0 <= int(a) < 2**63:  # it is saved as int64
        raise ValueError(f"num_batches_tracked is {value!r}, expected a whole number, 0 or more")
    return int(a)


def _check_names(layer, state):
    if not hasattr(state, "keys"):
        raise TypeError(f"state is a {type(state).__name__}, expected a dict as state_dict() gives")
    expected, found = set(copies(layer)), set(state.keys())
    for problem, names in (("lacks", expected - found), ("has unexpected", found - expected)):
        if names:
            raise ValueError(f"state {problem} {', '.join(sorted(map(str, names)))}; expected exactly "
                             f"{', '.join(sorted(expected))}: was it saved from a layer with other switches?")


def _entry(layer, name, state):
    if state[name] is None:
        raise ValueError(f"state has {name}=None, expected an array of shape ({layer.num_features},)")
    return _checks.parameter(state[name], name, layer.num_features)


def fill(layer, state):
    """Everything is checked before the first array is written."""
    _check_names(layer, state)
    checked = {name: _entry(layer, PUBLIC_NAMES[name], state) for name in arrays(layer)}
    counter = _counter(state["num_batches_tracked"]) if "num_batches_tracked" in state else None
    for name, a in arrays(layer).items():
        with np.errstate(over="ignore"):
            a[:] = checked[name]
    layer.num_batches_tracked = counter


def save(layer, path):
    """A failure leaves the old file as it was."""
    with _files.replacing(path) as file:
        np.savez(file, **copies(layer))


def load(layer, path):
    """Fills it from a file that save wrote. Raises OSError, ValueError."""
    state = _npz.read(path, layer.num_features)
    try:
        fill(layer, state)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} does not fit: {error}") from error
