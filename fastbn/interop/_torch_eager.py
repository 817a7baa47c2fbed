"""PyTorch's eager calls: autograd.Functions around fastbn's, for fastbn.interop.torch. Where tensors are contiguous the
core reads them itself (fastbn/_binding/torch_exchange.pxi).
"""
from .. import _core
from .._engine import activations, fusion
from .._api.double_backward import batch_norm_double_backward
from .._api.backward import batch_norm_backward
from .._api.inference import batch_norm_inference
from .._api.training import batch_norm_training
from ._torch_tensors import Tensor, _array, _check, _tensor, _vector, torch

from torch import nn
from torch.autograd.function import once_differentiable

try:
    _exchange = _core.Exchange(Tensor, nn.Parameter)
except (AttributeError, ValueError) as error:
    raise ImportError(f"fastbn.interop.torch needs PyTorch 2.10 or later and this is {torch.__version__}: pip install "
                      "'fastbn[torch]'") from error

# A call at (1, 64) feels each look-up.
_from_numpy, _is_grad_enabled, _get_num_threads = torch.from_numpy, torch.is_grad_enabled, torch.get_num_threads
_GRADIENTS = ("dx", "dgamma", "dbeta", "dresidual")


def _normalize(x, weight, bias, residual, options, keeps=True):
    """(y, saved). options: what batch_norm has besides; keeps: whether a backward may come. saved holds no input."""
    running_mean, running_var, training, momentum, eps, activation = options
    found, threads = None, _get_num_threads()
    if residual is None:
        act = None if activation is None else fusion.alone(activations.parse(activation))
        if training:
            found = _exchange.training(x, running_mean, running_var, weight, bias, eps, momentum, threads, act)
        else:
            found = _exchange.inference(x, running_mean, running_var, weight, bias, eps, threads, act, keeps)
    y, saved = _normalize_any(x, weight, bias, residual, options, threads) if found is None else found
    if not x.numel():
        return torch.empty_like(x), saved  # in its memory format, of which an array without entries knows nothing
    return _from_numpy(y) if x.dtype is not torch.bfloat16 else _tensor(y, x.dtype), saved


def _normalize_any(x, weight, bias, residual, options, threads):
    """The same for tensors of any kind, after all checks; y is an array."""
    running_mean, running_var, training, momentum, eps, activation = options
    _check(x, weight, bias, residual, *options)
    a, gamma, beta = _array(x), _vector(weight), _vector(bias)
    given = {"eps": eps, "activation": activation, "residual": _array(residual), "num_threads": threads}
    if training:
        y, saved = batch_norm_training(a, gamma, beta, **given)
        if running_mean is not None:
            _step(running_mean, running_var, saved.moments, momentum)
    else:
        mean, var = _vector(running_mean), _vector(running_var)
        y, saved = batch_norm_inference(a, mean, var, gamma, beta, return_saved=True, **given)
    saved.x = None
    if saved.extras is not None:
        saved.extras = saved.extras._replace(written=None, residual=None)
    return y, saved


def _step(running_mean, running_var, moments, momentum):
    """One step of the moving averages, as fastbn.BatchNorm takes it."""
    both = running_mean, running_var
    wide = torch.float64 if running_mean.dtype is torch.float64 else torch.float32
    targets = [t if t.dtype is wide and t.is_contiguous() else t.to(wide).contiguous() for t in both]
    moments.step(*(t.numpy() for t in targets), momentum=1.0 - momentum)
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
    dx = _tensor(dx, x.dtype) if dx is None or x.numel() else torch.empty_like(x)
    return dx, _tensor(dgamma, None), _tensor(dbeta, None), dresidual, None


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
