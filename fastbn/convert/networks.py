"""All batch norms of a network at once."""
import os

from . import safetensors
from .methods import Conversions

_MEAN, _VAR = "running_mean", "running_var"


def from_state_dict(state, **settings):
    """Make the batch norms of a whole PyTorch network.

    Parameters
    ----------
    state : dict or path
        A dict as state_dict() gives, of tensors or of arrays, or the path of a .safetensors file (package
        safetensors). What has a running_mean and a running_var is taken for a batch norm; prefix is its name there,
        "layer1.0.bn1".
    **settings : dict
        As for BatchNorm.from_torch, the same for all of them: training=False for inference, eps, activation.

    Returns
    -------
    dict of str to BatchNorm
        {prefix: BatchNorm}, in the order of the state.

    Raises
    ------
    TypeError, ValueError
        If there is no batch norm in the state, or a file is damaged.
    OSError, ImportError
        If the file cannot be read, or safetensors is not installed.

    Notes
    -----
    Each layer is what BatchNorm.from_torch(state, prefix, **settings) gives.

    Examples
    --------
    >>> import numpy as np
    >>> import fastbn
    >>> state = {f"layer1.bn1.{name}": np.ones(2, np.float32) for name in ("running_mean", "running_var")}
    >>> norms = fastbn.convert.from_state_dict(state, training=False)
    >>> list(norms)
    ['layer1.bn1']
    """
    if "prefix" in settings:
        raise TypeError("prefix is given, and all batch norms of state are taken: for one of them BatchNorm.from_torch(state, "
                        "prefix)")
    if isinstance(state, (str, os.PathLike)):
        state = os.fspath(state)
        keys = safetensors.keys(state)
    elif hasattr(state, "keys"):
        keys = [key for key in state.keys() if isinstance(key, str)]
    else:
        raise TypeError(f"state is a {type(state).__name__}, expected a dict as state_dict() gives, or the path of a "
                        ".safetensors file; of a module pass module.state_dict()")
    prefixes = [key.removesuffix(_MEAN) for key in keys if key == _MEAN or key.endswith(f".{_MEAN}")]
    found = [prefix for prefix in prefixes if prefix + _VAR in set(keys)]
    if not found:
        raise ValueError(f"no entry of state is a {_MEAN} with a {_VAR} beside it, expected those of a batch norm at least: "
                         f"it has {', '.join(map(repr, keys[:8]))}{', ...' * (len(keys) > 8)}")
    return {prefix.removesuffix("."): Conversions._class.from_torch(state, prefix, **settings) for prefix in found}
