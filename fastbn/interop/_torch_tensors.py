"""PyTorch's tensors as fastbn's arrays and back, and the checks of arguments: for fastbn.interop.torch."""
import numpy as np

from .._engine import checks

try:
    import torch
except ImportError as error:
    raise ImportError("fastbn.interop.torch needs PyTorch: pip install 'fastbn[torch]' (on Linux pip's own choice "
                      "brings GPU libraries of gigabytes; PyTorch's index of CPU builds has one without)") from error
try:
    from ml_dtypes import bfloat16 as _bfloat16
except ImportError:
    _bfloat16 = None

from torch import Tensor

_from_numpy, _is_compiling = torch.from_numpy, torch.compiler.is_compiling  # a call at (1, 64) feels each look-up
_DTYPES = {torch.float32, torch.float64, torch.float16, torch.bfloat16}
_WIDE = {torch.float32, torch.float64}
_NAMES = ("running_mean", "running_var", "weight", "bias")


# ---- tensors and arrays ----

def _array(tensor):
    """Data as an array on the same memory; None stays None."""
    if tensor is None:
        return None
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.dtype is not torch.bfloat16:
        return tensor.numpy()
    return tensor.float().numpy() if _bfloat16 is None else tensor.view(torch.int16).numpy().view(_bfloat16)


def _tensor(array, dtype):
    """A tensor on the array's memory; None stays None."""
    if array is None:
        return None
    if dtype is not torch.bfloat16:
        return _from_numpy(array)
    return _from_numpy(array.view(np.int16)).view(dtype) if array.itemsize == 2 else _from_numpy(array).to(dtype)


def _vector(tensor):
    """Parameters as an array, of half types a float32 copy."""
    if tensor is None or tensor.dtype in _WIDE:
        return _array(tensor)
    return tensor.detach().float().numpy()


# ---- checks ----

def _check(input, weight, bias, residual, running_mean, running_var, training, momentum, eps, *_):
    """The arguments as batch_norm and its helpers pass them on."""
    if not isinstance(input, Tensor):
        raise TypeError(f"input is a {type(input).__name__}, expected a torch.Tensor: fastbn.batch_norm_training takes "
                        "arrays")
    if input.dim() < 2:
        raise ValueError(f"input has shape {tuple(input.shape)}, expected at least 2 dimensions, (N, C, ...)")
    for name, tensor in zip(("input", "residual", *_NAMES), (input, residual, running_mean, running_var, weight, bias)):
        _check_tensor(name, tensor, input)
    _check_sizes(input, (running_mean, running_var, weight, bias), training)
    if not _is_compiling():  # where numbers may be symbols
        checks.finite(momentum, "momentum")
        if not checks.real(eps, "eps") > 0:
            raise ValueError(f"batch_norm eps must be positive, but got {eps}")
    if residual is not None and residual.shape != input.shape:
        raise ValueError(f"residual has shape {tuple(residual.shape)}, expected {tuple(input.shape)}, the shape of "
                         "input")
    if training and _count(input) == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {input.size()}")


def _count(x):
    """The entries of a channel."""
    count = x.shape[0]
    for size in x.shape[2:]:
        count *= size
    return count


def _check_tensor(name, tensor, input):
    if tensor is None:
        return
    if tensor.device.type not in ("cpu", "meta"):
        raise ValueError(f"{name} is on {tensor.device}, expected a CPU tensor, fastbn computes on the CPU: move the "
                         "model and its input with .cpu(), or go back to PyTorch's batch norm with revert(model)")
    if tensor.device != input.device:
        raise ValueError(f"{name} is on {tensor.device} and input on {input.device}, expected one device")
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} has layout {tensor.layout}, expected a dense tensor: convert with .to_dense()")
    if tensor.dtype not in _DTYPES:
        raise TypeError(f"{name} has dtype {tensor.dtype}, expected float32, float64, float16 or bfloat16: convert "
                        f"with {name}.float()")
    if name == "residual" and tensor.dtype is not input.dtype:
        raise TypeError(f"residual has dtype {tensor.dtype}, expected {input.dtype}, the dtype of input")
    if name.startswith("running") and tensor.requires_grad:
        raise ValueError(f"{name} requires grad, expected a buffer, which is a constant in the gradient: pass "
                         f"{name}.detach()")


def _check_sizes(input, tensors, training):
    """In PyTorch's words."""
    if (tensors[0] is None) != (tensors[1] is None):
        raise RuntimeError("Expected running_mean and running_var to be both there or both None")
    if tensors[0] is None and not training:
        raise RuntimeError("running_mean must be defined in evaluation mode")
    for name, tensor in zip(_NAMES, tensors):
        if tensor is not None and tensor.shape != (input.shape[1],):
            raise RuntimeError(f"{name} should contain {input.shape[1]} elements not {tensor.numel()}: input has shape "
                               f"{tuple(input.shape)}, of which axis 1 are the channels")
