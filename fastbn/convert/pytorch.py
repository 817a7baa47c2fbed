"""PyTorch: torch.nn.BatchNorm1d, 2d, 3d, SyncBatchNorm, their state dicts, and .safetensors files of such."""
import os
import sys

import numpy as np

from . import safetensors
from ._arrays import belongs, is_a
from ._common import build, check_layer, check_shapes, complement, missing, outgoing, pairs, prefixed

_NAMES = {"gamma": "weight", "beta": "bias", "running_mean": "running_mean", "running_var": "running_var"}
_MODULE = "_BatchNorm", "torch"
_COUNTER = "num_batches_tracked"
_DEFAULTS = {"axis": 1, "eps": 1e-5, "momentum": 0.9, "ddof": 1}


def from_torch(cls, source, prefix="", *, track_running_stats=True, **settings):
    """Make a layer with the state of a PyTorch batch norm.

    Parameters
    ----------
    source : module, dict or path
        A torch.nn.BatchNorm1d, 2d, 3d or SyncBatchNorm; or a dict as state_dict() gives, of tensors or of arrays; or
        the path of a .safetensors file (package safetensors). Any device; half types become float32.
    prefix : str, default ''
        The layer's name in a dict or file of a whole network: "layer1.0.bn1".
    track_running_stats : bool, default True
        False: without the running statistics. A dict or file without them, such as also a layer norm gives, is taken
        only so; a module says itself what it is.
    **settings : dict
        Keyword arguments of BatchNorm, where another value than the one found is wanted, and training, the layer's
        mode (False: ready for inference). A module brings its own eps and momentum; a dict or file has none, and
        PyTorch's defaults stand.

    Returns
    -------
    BatchNorm
        A new layer.

    Raises
    ------
    TypeError, ValueError
        If entries are missing or have other shapes, or a file is damaged or of types that NumPy lacks.
    OSError, ImportError
        If the file cannot be read, or safetensors is not installed.

    Notes
    -----
    What is translated: PyTorch's momentum is the weight of the NEW batch, momentum = 1 - theirs (0.1 -> 0.9); None is
    the cumulative average in both. eps is the same, default 1e-5. ddof=1: its running_var takes the unbiased
    variance. Exact, for inference and further training, but for rounding (and but for one value a feature, where
    PyTorch raises). A module's mode (train, eval) is taken over; elsewhere the layer starts in training mode.

    References
    ----------
    PyTorch, torch/nn/modules/batchnorm.py (class _BatchNorm; the notes of BatchNorm1d).

    Examples
    --------
    >>> import numpy as np
    >>> import fastbn
    >>> ones = np.ones(2, np.float32)
    >>> state = {"bn1.weight": 3 * ones, "bn1.bias": ones, "bn1.running_mean": ones, "bn1.running_var": ones}
    >>> fastbn.BatchNorm.from_torch(state, "bn1", training=False).gamma
    array([3., 3.], dtype=float32)
    """
    if isinstance(source, (str, os.PathLike)):
        arrays = safetensors.read(os.fspath(source), lambda keys: _keys(keys, prefix, track_running_stats),
                                  lambda shapes: _check_shapes(shapes, settings))
    elif hasattr(source, "keys") and not is_a(source, *_MODULE):
        arrays = {name: source[key] for name, key in _keys(source.keys(), prefix, track_running_stats).items()}
    else:
        return _from_module(cls, source, prefix, track_running_stats, settings)
    ours = {key: arrays.get(name) for key, name in _NAMES.items()}
    return build(cls, ours, _NAMES, _DEFAULTS, settings, batches=arrays.get(_COUNTER, 0))


def _keys(keys, prefix, tracks):
    """{name: key} of the layer's entries."""
    prefix, keys = prefixed(prefix, "."), list(keys)
    wanted = [*_NAMES.values(), _COUNTER] if tracks else ["weight", "bias"]
    found = {name: prefix + name for name in wanted if prefix + name in keys}
    needed = "running_mean" if tracks else "weight"
    if needed not in found:
        raise missing(needed, prefix, keys, needed)
    return found


def _check_shapes(shapes, settings):
    """Before arrays of them are read."""
    counter = shapes.get(_COUNTER, ())
    if counter:
        raise ValueError(f"{_COUNTER} has shape {counter}, expected a single number")
    ours = {key: shapes[name] for key, name in _NAMES.items() if name in shapes}
    check_shapes(ours, _NAMES, settings.get("axis", _DEFAULTS["axis"]))


def _check_module(module, argument):
    if not is_a(module, *_MODULE):
        raise TypeError(f"{argument} is a {type(module).__name__}, expected a torch.nn.BatchNorm1d, 2d, 3d or "
                        "SyncBatchNorm, a dict of its arrays, or the path of a .safetensors file; of a network pass "
                        "net.get_submodule(name), or net.state_dict() with a prefix")
    for name in (*_NAMES.values(), _COUNTER):
        if belongs(getattr(module, name), "torch") and type(getattr(module, name)).__name__.startswith("Uninitialized"):
            raise ValueError(f"{argument} is a lazy module without a number of features yet: call it on a batch first")


def _from_module(cls, module, prefix, tracks, settings):
    _check_module(module, "source")
    if prefix:
        raise ValueError(f"prefix is {prefix!r} and source a module, expected no prefix: it is for dicts and files")
    arrays = {key: getattr(module, name) for key, name in _NAMES.items()}
    if not tracks:
        arrays |= {"running_mean": None, "running_var": None}
    batches = 0 if module.num_batches_tracked is None else module.num_batches_tracked
    own = _DEFAULTS | {"eps": module.eps, "momentum": complement(module.momentum)}
    return build(cls, arrays, _NAMES, own, settings, batches=batches, training=module.training,
                 features=module.num_features)


def to_torch(self, target=None, prefix=""):
    """Give this layer's state in PyTorch's names and meaning.

    Parameters
    ----------
    target : path or module, optional
        None: returns a dict of arrays {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}, those
        that the layer has; torch.as_tensor makes tensors of them for load_state_dict. A path: writes that dict to a
        .safetensors file (package safetensors), replacing an older one whole. A torch.nn.BatchNorm1d, 2d, 3d or
        SyncBatchNorm: fills it, in its own dtype and on its device, sets its eps and momentum, and returns it; its
        mode stays. Where it has a weight or bias and this layer none, they become 1 and 0.
    prefix : str, default ''
        The layer's name in the network, put before each name of a dict or file: "layer1.0.bn1".

    Returns
    -------
    dict or module
        The dict where target is None, else the module; None for a path.

    Raises
    ------
    TypeError, ValueError
        If the layer has an activation or another setting that PyTorch lacks, or the target another shape. Then the
        target is as it was.
    RuntimeError
        If the layer has no running statistics, and the target some.
    OSError, ImportError
        If the file cannot be written, or safetensors is not installed.

    Notes
    -----
    momentum = 1 - ours (0.9 -> 0.1), None stays None. A dict and a file hold no eps and momentum: give them to the
    module. PyTorch always takes the unbiased variance, so a layer with ddof=0 is converted exactly for inference, but
    its running_var would grow on by N / (N - 1) larger batch variances there. A layer in training mode with ghost
    batches or renormalization warns: PyTorch has neither.

    References
    ----------
    PyTorch, torch/nn/modules/batchnorm.py.

    Examples
    --------
    >>> import fastbn
    >>> list(fastbn.BatchNorm(2).to_torch(prefix="bn1"))
    ['bn1.weight', 'bn1.bias', 'bn1.running_mean', 'bn1.running_var', 'bn1.num_batches_tracked']
    """
    check_layer(self, "PyTorch", statistics=False)
    if target is not None and not isinstance(target, (str, os.PathLike)):
        return _fill(self, target, prefix)
    prefix = prefixed(prefix, ".")
    state = {prefix + name: a for name, a in outgoing(self, _NAMES).items()}
    if self.num_batches_tracked is not None:
        state[prefix + _COUNTER] = np.array(self.num_batches_tracked, np.int64)
    if target is None:
        return state
    return safetensors.write(os.fspath(target), state)


def _fill(layer, module, prefix):
    _check_module(module, "target")
    if prefix:
        raise ValueError(f"prefix is {prefix!r} and target a module, expected no prefix: it is for dicts and files")
    torch = sys.modules["torch"]
    for tensor, value in pairs(layer, module, _NAMES):
        tensor.data.copy_(torch.tensor(value))
    if module.num_batches_tracked is not None:
        module.num_batches_tracked.fill_(layer.num_batches_tracked)
    module.eps, module.momentum = layer.eps, complement(layer.momentum)
    return module
