"""fastbn: batch normalization for NumPy arrays on the CPU.

BatchNorm is the layer; batch_norm_inference, batch_norm_training, batch_norm_backward and moments are the functions it
is made of; batch_norm_double_backward is the gradient of the backward; fold_linear and fold_conv put it into the weights
beside it. See README.md, and csrc/fastbn.h for the numeric contract.
"""
import os as _os

try:
    from . import _openmp  # isort: skip - first, since it decides how the core is loaded
    from . import _core
except ImportError:
    if any(_name.startswith("_core.") and _name.endswith((".so", ".pyd")) for _name in _os.listdir(__path__[0])):
        raise
    raise ImportError(f"{__path__[0]} is a checkout that is not built: install first, with pip install . in the folder above it, "
                      "or leave that folder where fastbn is installed elsewhere") from None
from ._config import (get_backoff, get_config, get_num_threads, get_output_cache, rearm_threads, set_backoff,
                      set_num_threads, set_output_cache, show_config)
from ._api.double_backward import batch_norm_double_backward
from ._data.drift import Drift
from ._api.backward import batch_norm_backward
from ._api.inference import batch_norm_inference
from ._api.moments import moments
from ._api.training import batch_norm_training
from ._layer import BatchNorm
from ._engine.moments import Moments
from .folding import fold_conv, fold_linear

__version__ = _core.version()

__all__ = ["BatchNorm", "Drift", "Moments", "batch_norm_backward", "batch_norm_double_backward", "batch_norm_inference",
           "batch_norm_training", "fold_conv", "fold_linear", "get_backoff", "get_config", "get_include", "get_num_threads",
           "get_output_cache", "moments", "rearm_threads", "set_backoff", "set_num_threads", "set_output_cache",
           "show_config"]


def get_include():
    """Tell the folder that holds fastbn.h, for the include path of a C compiler.

    Returns
    -------
    str
        An absolute path.

    Examples
    --------
    >>> import os
    >>> import fastbn
    >>> os.path.exists(os.path.join(fastbn.get_include(), "fastbn.h"))
    True
    """
    return _os.path.join(_os.path.dirname(_os.path.abspath(__file__)), "include")
