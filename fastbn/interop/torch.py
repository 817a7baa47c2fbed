"""PyTorch: its batch normalization computed by fastbn, for CPU tensors, with gradients.

    model = convert(model)                       every nn.BatchNorm1d, 2d, 3d in it; revert(model) goes back
    bn = BatchNorm2d(64, activation="relu")      a module; batch_norm is the function behind it

Tensors are read and results handed over without a copy: channels_last ones as they lie in memory, bfloat16 as the type
of ml_dtypes (without that package, as float32 copies). float16, bfloat16, float32, float64; parameters and moving
averages may be of another of these.

Two ways lead to the same computation. Eager calls take an autograd.Function, which costs least, and where tensors are
contiguous the core reads them itself (_exchange.pxi). A call that is traced (torch.compile, torch.export,
torch.jit.trace, fake and meta tensors) takes operators of the library "fastbn".

momentum has PyTorch's meaning here, the weight of the new batch. At most torch.get_num_threads() threads compute. The
two have an OpenMP pool each, and the threads of a pool spin for a while after their work: OMP_WAIT_POLICY=passive
where that costs more than it gains.

Not offered: forward-mode derivatives, transforms of torch.func, a double backward through an activation or a residual,
SyncBatchNorm, eps=0. torch.fx.symbolic_trace needs a Tracer for which the modules here are leaves; ONNX has no such
operator, so revert(model) before exporting to it.
"""
import numpy as np

from .. import _activation, _checks, _core, _extras
from .._double_backward import batch_norm_double_backward
from .._functional import batch_norm_backward, batch_norm_inference, batch_norm_training
from .._saved import Saved

try:
    import torch
except ImportError as error:
    raise ImportError("fastbn.interop.torch needs PyTorch: pip install 'fastbn[torch]' (on Linux pip's own choice "
                      "brings GPU libraries of gigabytes; PyTorch's index of CPU builds has one without)") from error
try:
    from ml_dtypes import bfloat16 as _bfloat16
except ImportError:
    _bfloat16 = None

from torch import Tensor, nn
from torch.autograd.function import once_differentiable

try:
    _exchange = _core.Exchange(Tensor, nn.Parameter)
except (AttributeError, ValueError) as error:
    raise ImportError(f"fastbn.interop.torch needs PyTorch 2.10 or later and this is {torch.__version__}: pip install "
                      "'fastbn[torch]'") from error

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "batch_norm", "convert", "revert"]

# A call at (1, 64) feels each look-up.
_from_numpy, _is_compiling, _is_grad_enabled = torch.from_numpy, torch.compiler.is_compiling, torch.is_grad_enabled
_get_num_threads, _is_tracing = torch.get_num_threads, torch.jit.is_tracing
_DTYPES = {torch.float32, torch.float64, torch.float16, torch.bfloat16}
_WIDE = {torch.float32, torch.float64}
_PLAIN = {Tensor, nn.Parameter}  # no subclass, whose data may be elsewhere or not at all
_GRADIENTS = ("dx", "dgamma", "dbeta", "dresidual")
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
        _checks.finite(momentum, "momentum")
        if not _checks.real(eps, "eps") > 0:
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


# ---- eager ----

def _normalize(x, weight, bias, residual, options, keeps=True):
    """(y, saved). options: what batch_norm has besides; keeps: whether a backward may come. saved holds no input."""
    running_mean, running_var, training, momentum, eps, activation = options
    found, threads = None, _get_num_threads()
    if residual is None:
        act = None if activation is None else _extras.alone(_activation.parse(activation))
        if training:
            found = _exchange.training(x, running_mean, running_var, weight, bias, eps, momentum, threads, act)
        else:
            found = _exchange.inference(x, running_mean, running_var, weight, bias, eps, threads, act, keeps)
    y, saved = _normalize_any(x, weight, bias, residual, options, threads) if found is None else found
    return _from_numpy(y) if x.dtype is not torch.bfloat16 else _tensor(y, x.dtype), saved


def _normalize_any(x, weight, bias, residual, options, threads):
    """The same for tensors of any kind, after all checks; y is an array."""
    running_mean, running_var, training, momentum, eps, activation = options
    _check(x, weight, bias, residual, *options)
    a, gamma, beta = _array(x), _vector(weight), _vector(bias)
    given = {"eps": eps, "activation": activation, "residual": _array(residual), "num_threads": threads}
    if training:
        y, saved = batch_norm_training(a, gamma, beta, **given)
        if running_mean is not None and x.numel():
            _update(running_mean, running_var, saved, _count(x), momentum)
    else:
        mean, var = _vector(running_mean), _vector(running_var)
        y, saved = batch_norm_inference(a, mean, var, gamma, beta, return_saved=True, **given)
    saved.x = None
    if saved.extras is not None:
        saved.extras = saved.extras._replace(written=None, residual=None)
    return y, saved


def _update(running_mean, running_var, saved, count, momentum):
    """One step of the moving averages, as fastbn.BatchNorm takes it."""
    both = running_mean, running_var
    wide = torch.float64 if running_mean.dtype is torch.float64 else torch.float32
    targets = [t if t.dtype is wide and t.is_contiguous() else t.to(wide).contiguous() for t in both]
    update = _core.update_running_f64 if wide is torch.float64 else _core.update_running_f32
    update(saved.mean, saved.var, 1.0 - momentum, count / (count - 1), *(t.numpy() for t in targets))
    for tensor, target in zip(both, targets):
        if target is not tensor:
            tensor.copy_(target)


def _gradients(dy, x, kept, saved, wanted):
    """(dx, dgamma, dbeta, dresidual, None), None for what is not wanted, the last for the options of the forward call.
    kept: see _choose_kept.
    """
    found = None
    if kept is None and wanted[0] and wanted[1] and wanted[2]:
        found = _exchange.backward(dy, x, saved, _get_num_threads())
    if found is None:
        found = _gradients_any(dy, x, kept, saved, wanted)
    elif x.dtype is not torch.bfloat16:
        dx, dgamma, dbeta = found
        return _from_numpy(dx), _from_numpy(dgamma), _from_numpy(dbeta), None, None
    dx, dgamma, dbeta, *dresidual = found
    dresidual = _tensor(dresidual[0], x.dtype) if dresidual else None
    return _tensor(dx, x.dtype), _tensor(dgamma, None), _tensor(dbeta, None), dresidual, None


def _gradients_any(dy, x, kept, saved, wanted):
    """The same for tensors of any kind, as arrays."""
    extras, saved.x = saved.extras, _array(x)
    if kept is not None:
        saved.extras = extras._replace(**{_kept(extras.activation): _array(kept)})
    try:
        needs = [name for name, one in zip(_GRADIENTS, wanted) if one]
        return batch_norm_backward(_array(dy), saved, needs=needs, num_threads=_get_num_threads())
    finally:
        saved.x, saved.extras = None, extras


def _kept(activation):
    """What the activation's gradient needs where there is a residual, as named in an Extras: y, that, or nothing."""
    return None if activation.name is None else "written" if activation.keeps_sign else "residual"


def _choose_kept(activation, y, residual):
    return None if residual is None else {"written": y, "residual": residual, None: None}[_kept(activation)]


class _BatchNorm(torch.autograd.Function):
    """Tensors are kept by autograd alone: it lets go of them after backward, and notices if they were overwritten."""

    @staticmethod
    def forward(ctx, x, weight, bias, residual, options):
        y, saved = _normalize(x, weight, bias, residual, options)
        kept = None if residual is None else _choose_kept(saved.extras.activation, y, residual)
        ctx.save_for_backward(x, weight, kept)
        ctx.saved = saved
        return y

    @staticmethod
    def backward(ctx, dy):
        x, weight, kept = ctx.saved_tensors
        if _is_grad_enabled():
            return _Backward.apply(dy, x, weight, kept, ctx.saved, ctx.needs_input_grad)
        return _gradients(dy, x, kept, ctx.saved, ctx.needs_input_grad)


class _Backward(torch.autograd.Function):
    """The backward where it may be differentiated itself."""

    @staticmethod
    def forward(ctx, dy, x, weight, kept, saved, wanted):
        ctx.save_for_backward(dy, x)
        ctx.saved, ctx.has_weight = saved, weight is not None
        ctx.set_materialize_grads(False)
        return _gradients(dy, x, kept, saved, wanted)

    @staticmethod
    @once_differentiable
    def backward(ctx, ddx, ddgamma, ddbeta, *_):
        saved, (dy, x) = ctx.saved, ctx.saved_tensors
        if saved.extras is not None:
            raise RuntimeError("the gradient of the backward of a batch norm with activation= or residual= is not "
                               "offered: leave them out and apply PyTorch's own after it")
        saved.x = _array(x)
        try:
            ddy, dx, dgamma = batch_norm_double_backward(_array(ddx), _vector(ddgamma), _vector(ddbeta), _array(dy),
                                                         saved, num_threads=_get_num_threads())
        finally:
            saved.x = None
        dgamma = _tensor(dgamma, None) if ctx.has_weight else None
        return _tensor(ddy, x.dtype), _tensor(dx, x.dtype), dgamma, None, None, None


# ---- traced: operators ----

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
    x, act = _array(input), _activation.parse(_activation_of(activation, slope))
    gamma, beta = (None if t is None else np.ascontiguousarray(_vector(t)) for t in (weight, bias))
    saved = Saved(x, (1,), x.shape[1], gamma, beta, frozen=frozen, in_place=False)
    saved.mean[:], saved.var[:], saved.rstd[:] = statistics.numpy()
    if act.name is not None or residual:
        saved.extras = _extras.Extras(act, has_residual=residual)
    dx, dgamma, dbeta, dresidual, _ = _gradients(dy, input, kept, saved, (True, True, True, residual))
    dresidual = _laid_out(dresidual, input) if residual else input.new_empty(0)
    return (_laid_out(dx, input), dgamma.to(_gradient_dtype(weight, input)), dbeta.to(_gradient_dtype(bias, input)),
            dresidual)


@_backward_op.register_fake
def _(dy, input, weight, bias, kept, statistics, frozen, activation, slope, residual):
    dgamma, dbeta = (input.new_empty(input.shape[1], dtype=_gradient_dtype(t, input)) for t in (weight, bias))
    return torch.empty_like(input), dgamma, dbeta, torch.empty_like(input) if residual else input.new_empty(0)


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
    kept = _choose_kept(_activation.parse(_activation_of(activation, slope)), output[0], residual)
    ctx.save_for_backward(x, weight, bias, kept, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.settings = mean is not None, activation, slope, residual is not None


def _backward_of_op(ctx, dy, _):
    gradients = _backward_op(dy, *ctx.saved_tensors, *ctx.settings)
    return *(g if needed else None for g, needed in zip(gradients, ctx.needs_input_grad)), *[None] * 5


_op.register_autograd(_backward_of_op, setup_context=_setup)


def _traced(input, weight, bias, residual, running_mean, running_var, training, momentum, eps, activation):
    _check(input, weight, bias, residual, running_mean, running_var, training, momentum, eps)
    act = _activation.parse(activation)
    mean, var = (None, None) if training else (running_mean, running_var)
    y, statistics = _op(input, weight, bias, residual, mean, var, eps, act.name or "", act.slope)
    count = _count(input)
    if training and running_mean is not None and count > 1:
        old, mean, var = 1.0 - momentum, statistics[0], statistics[1] * (count / (count - 1))
        running_mean.copy_(old * running_mean.double() + (1.0 - old) * mean)
        running_var.copy_(old * running_var.double() + (1.0 - old) * var)
    return y


# ---- what PyTorch has ----

def batch_norm(input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5, *,
               activation=None, residual=None):
    """torch.nn.functional.batch_norm, y = act((input - mean) / sqrt(var + eps) * weight + bias + residual).

    input: CPU tensor of shape (N, C) or (N, C, ...) and any strides, float16, bfloat16, float32 or float64.
    running_mean, running_var: (C,), both or none; training updates them, else they are mean and var.
    weight, bias: (C,), None stands for ones and zeros. These four may be of another dtype than input.
    training: takes mean and var of the batch (biased; the moving average of var gets the unbiased one).
    momentum: the weight of the new batch in the moving averages. eps: above 0.
    activation: None or as of fastbn.batch_norm_inference, "relu" say, in the same pass. residual: None or like input.

    Returns y, like input in shape, dtype and order of memory. Gradients go to input, weight, bias, residual;
    running_mean and running_var are constants. Without activation and residual the gradient can be differentiated once
    more.
    Raises TypeError (dtype, no tensor), ValueError (device, shape, eps, activation; one value per channel in training),
    RuntimeError in PyTorch's words (number of channels; running_mean missing). Nothing has changed then.
    Source: Ioffe and Szegedy 2015 (arXiv:1502.03167); torch/nn/functional.py.
    """
    options = running_mean, running_var, training, momentum, eps, activation
    if _is_compiling() or _is_tracing() or type(input) not in _PLAIN or input.is_meta:
        return _traced(input, weight, bias, residual, *options)
    if _is_grad_enabled():
        if ((running_mean is not None and running_mean.requires_grad)
                or (running_var is not None and running_var.requires_grad)):
            _check(input, weight, bias, residual, *options)
        if (input.requires_grad or (weight is not None and weight.requires_grad)
                or (bias is not None and bias.requires_grad) or (residual is not None and residual.requires_grad)):
            return _BatchNorm.apply(input, weight, bias, residual, options)
    return _normalize(input, weight, bias, residual, options, keeps=False)[0]


class _Module:
    """What the modules here have in place of PyTorch's: forward, and the activation."""

    activation = None

    def __init__(self, *args, activation=None, **keywords):
        super().__init__(*args, **keywords)
        self.activation = _activation.parse(activation).argument

    def forward(self, input, residual=None):
        self._check_input_dim(input)
        tracks, momentum = self.training and self.track_running_stats, self.momentum
        counter = self.num_batches_tracked if tracks else None
        if momentum is None:
            momentum = 0.0 if counter is None else 1.0 / (counter + 1)
            momentum = momentum if torch.compiler.is_compiling() else float(momentum)
        mean, var = (self.running_mean, self.running_var) if tracks or not self.training else (None, None)
        by_batch = self.training or (mean is None and var is None)
        y = batch_norm(input, mean, var, self.weight, self.bias, by_batch, momentum, self.eps,
                       activation=self.activation, residual=residual)
        if counter is not None:
            counter.add_(1)
        return y

    def extra_repr(self):
        more = "" if self.activation is None else f", activation={self.activation!r}"
        return super().extra_repr() + more


class BatchNorm1d(_Module, nn.BatchNorm1d):
    """torch.nn.BatchNorm1d computed by fastbn: (N, C) and (N, C, L).

    The arguments, attributes and state_dict are PyTorch's; eps must be above 0. activation: as of batch_norm.
    bn(input, residual) gives act(bn(input) + residual). Raises what batch_norm does.
    """


class BatchNorm2d(_Module, nn.BatchNorm2d):
    """torch.nn.BatchNorm2d computed by fastbn: (N, C, H, W). See BatchNorm1d."""


class BatchNorm3d(_Module, nn.BatchNorm3d):
    """torch.nn.BatchNorm3d computed by fastbn: (N, C, D, H, W). See BatchNorm1d."""


_OURS = {nn.BatchNorm1d: BatchNorm1d, nn.BatchNorm2d: BatchNorm2d, nn.BatchNorm3d: BatchNorm3d}


def convert(model):
    """Lets fastbn compute every torch.nn.BatchNorm1d, 2d, 3d in a model, itself included. Returns the model.

    The modules change their class and nothing else: parameters, buffers, hooks, mode and the modules themselves stay
    the same objects, so optimizers and references to them go on. Classes derived from PyTorch's are left alone, as is
    SyncBatchNorm.
    Raises TypeError (no module), ValueError (a lazy batch norm, which would become PyTorch's later); nothing has
    changed then.
    """
    for name, module in _modules(model):
        if isinstance(module, nn.modules.batchnorm._LazyNormBase):
            raise ValueError(f"{name or 'model'} is a {type(module).__name__} without a number of channels yet: call "
                             "the model on a batch first")
    return _with_classes(model, _OURS)


def revert(model):
    """Undoes convert: the modules of this file in a model become PyTorch's. Returns the model.

    Raises TypeError (no module), ValueError (a module with an activation, which PyTorch's does not have); nothing has
    changed then.
    """
    for name, module in _modules(model):
        if isinstance(module, _Module) and module.activation is not None:
            raise ValueError(f"{name or 'model'} has activation={module.activation!r}, expected None: PyTorch's batch "
                             "norm has no activation; set it to None and put a module after it")
    return _with_classes(model, {ours: theirs for theirs, ours in _OURS.items()})


def _modules(model):
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, expected a torch.nn.Module")
    return model.named_modules()


def _with_classes(model, classes):
    for module in model.modules():
        module.__class__ = classes.get(type(module), type(module))
    return model
