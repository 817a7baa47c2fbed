"""PyTorch's traced calls (torch.compile, torch.export, torch.jit.trace, fake and meta tensors): operators of the library
"fastbn", for fastbn.interop.torch.
"""
import numpy as np

from .._engine import activations, fusion
from .._engine.moments import Moments
from .._engine.saved import Saved
from ._torch_eager import _choose_kept, _gradients, _normalize, _step
from ._torch_tensors import Tensor, _array, _check, _count, _vector, torch


@torch.library.custom_op("fastbn::batch_norm", mutates_args=(), device_types="cpu")
def _op(input: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, mean: Tensor | None,
        var: Tensor | None, eps: float, activation: str, slope: float) -> tuple[Tensor, Tensor]:
    """(y, statistics): mean, var and rstd as rows, float64; those of input where mean and var are None."""
    options = mean, var, mean is None, 0.0, eps, _activation_of(activation, slope)
    y, saved = _normalize(input, weight, bias, residual, options)
    return _laid_out(y, input), torch.from_numpy(np.stack([saved.mean, saved.var, saved.rstd]))


@_op.register_fake
def _(input, weight, bias, residual, mean, var, eps, activation, slope):
    return torch.empty_like(input), input.new_empty((3, input.shape[1]), dtype=torch.float64)


@torch.library.custom_op("fastbn::batch_norm_backward", mutates_args=(), device_types="cpu")
def _backward_op(dy: Tensor, input: Tensor, weight: Tensor | None, bias: Tensor | None, kept: Tensor | None,
                 statistics: Tensor, frozen: bool, activation: str, slope: float,
                 residual: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dx, dgamma, dbeta, dresidual); the last is empty where there was none."""
    x, act = _array(input), activations.parse(_activation_of(activation, slope))
    gamma, beta = (None if t is None else np.ascontiguousarray(_vector(t)) for t in (weight, bias))
    saved = Saved(x, (1,), x.shape[1], gamma, beta, frozen=frozen, in_place=False)
    saved.mean[:], saved.var[:], saved.rstd[:] = statistics.numpy()
    if act.name is not None or residual:
        saved.extras = fusion.Extras(act, has_residual=residual)
    dx, dgamma, dbeta, dresidual, _ = _gradients(dy, input, kept, saved, (True, True, True, residual))
    dresidual = _laid_out(dresidual, input) if residual else input.new_empty(0)
    return (_laid_out(dx, input), dgamma.to(_gradient_dtype(weight, input)), dbeta.to(_gradient_dtype(bias, input)),
            dresidual)


@_backward_op.register_fake
def _(dy, input, weight, bias, kept, statistics, frozen, activation, slope, residual):
    dgamma, dbeta = (input.new_empty(input.shape[1], dtype=_gradient_dtype(t, input)) for t in (weight, bias))
    return torch.empty_like(input), dgamma, dbeta, torch.empty_like(input) if residual else input.new_empty(0)


@torch.library.custom_op("fastbn::update_running", mutates_args=("running_mean", "running_var"), device_types="cpu")
def _step_op(running_mean: Tensor, running_var: Tensor, statistics: Tensor, count: int, momentum: Tensor) -> None:
    """One step of the moving averages, with what batch_norm gave. momentum: a number, which may depend on a counter."""
    mean, var, _ = statistics.numpy()
    _step(running_mean, running_var, Moments.of_variance(count, mean, var), momentum.item())


@_step_op.register_fake
def _(running_mean, running_var, statistics, count, momentum):
    return None


def _activation_of(name, slope):
    """As fastbn's argument, of the operators' two."""
    return None if not name else (name, slope) if name in ("leaky_relu", "elu") else name


def _gradient_dtype(parameter, input):
    if parameter is not None:
        return parameter.dtype
    return torch.float64 if input.dtype is torch.float64 else torch.float32


def _laid_out(tensor, like):
    """With the strides that the compiler was told of; a copy only where they are others."""
    expected = torch.empty_like(like)
    return tensor if tensor.stride() == expected.stride() else expected.copy_(tensor)


def _setup(ctx, inputs, output):
    x, weight, bias, residual, mean, _, _, activation, slope = inputs
    kept = _choose_kept(activations.parse(_activation_of(activation, slope)), output[0], residual)
    ctx.save_for_backward(x, weight, bias, kept, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.settings = mean is not None, activation, slope, residual is not None


def _backward_of_op(ctx, dy, _):
    gradients = _backward_op(dy, *ctx.saved_tensors, *ctx.settings)
    return *(g if needed else None for g, needed in zip(gradients, ctx.needs_input_grad)), *[None] * 5


_op.register_autograd(_backward_of_op, setup_context=_setup)


def _traced(input, weight, bias, residual, running_mean, running_var, training, momentum, eps, activation):
    _check(input, weight, bias, residual, running_mean, running_var, training, momentum, eps)
    act = activations.parse(activation)
    mean, var = (None, None) if training else (running_mean, running_var)
    y, statistics = _op(input, weight, bias, residual, mean, var, eps, act.name or "", act.slope)
    if training and running_mean is not None:
        _step_op(running_mean, running_var, statistics, _count(input), torch.as_tensor(momentum, dtype=torch.float64))
    return y
