"""PyTorch: its batch normalization computed by fastbn, for CPU tensors, with gradients.

    model = convert(model)                       every nn.BatchNorm1d, 2d, 3d in it; revert(model) goes back
    bn = BatchNorm2d(64, activation="relu")      a module; batch_norm is the function behind it

Tensors are read and results handed over without a copy: channels_last ones as they lie in memory, bfloat16 as the type
of ml_dtypes (without that package, as float32 copies). float16, bfloat16, float32, float64; parameters and moving
averages may be of another of these.

Two ways lead to the same computation. Eager calls take an autograd.Function, which costs least, and where tensors are
contiguous the core reads them itself (_torch_eager.py). A call that is traced (torch.compile, torch.export,
torch.jit.trace, fake and meta tensors) takes operators of the library "fastbn" (_torch_operators.py).

momentum has PyTorch's meaning here, the weight of the new batch. At most torch.get_num_threads() threads compute. The
two have an OpenMP pool each, and PyTorch's threads spin for some milliseconds after their work: GOMP_SPINCOUNT=4000 in
the environment where that costs more than it gains.

Not offered: forward-mode derivatives, transforms of torch.func, a double backward through an activation or a residual,
SyncBatchNorm, eps=0. torch.fx.symbolic_trace needs a Tracer for which the modules here are leaves; ONNX has no such
operator, so revert(model) before exporting to it.
"""
from .._engine import activations
from ._torch_eager import _BatchNorm, _normalize
from ._torch_operators import _traced
from ._torch_tensors import Tensor, _check, torch

from torch import nn

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "batch_norm", "convert", "revert"]

# A call at (1, 64) feels each look-up.
_is_compiling, _is_grad_enabled, _is_tracing = torch.compiler.is_compiling, torch.is_grad_enabled, torch.jit.is_tracing
_PLAIN = {Tensor, nn.Parameter}  # no subclass, whose data may be elsewhere or not at all


def batch_norm(input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5, *,
               activation=None, residual=None):
    """Do as torch.nn.functional.batch_norm, and add a residual and apply an activation in the same pass.

    Parameters
    ----------
    input : tensor
        CPU tensor of shape (N, C) or (N, C, ...) and any strides, float16, bfloat16, float32 or float64.
    running_mean, running_var : tensor of shape (C,), or None
        Both or none; training updates them in place, else they are mean and var.
    weight, bias : tensor of shape (C,), or None
        None stands for ones and zeros. These four may be of another dtype than input.
    training : bool, default False
        True: mean and var are those of the batch (biased; the moving average of var gets the unbiased one).
    momentum : float, default 0.1
        The weight of the new batch in the moving averages.
    eps : float, default 1e-5
        It is added to the variance; above 0.
    activation : str or tuple, optional
        As for fastbn.batch_norm_inference, "relu" say.
    residual : tensor of input's shape and dtype, optional
        It is added before the activation.

    Returns
    -------
    tensor
        The result, y, like input in shape, dtype and order of memory.

    Raises
    ------
    TypeError
        If an argument is no tensor, or of another dtype.
    ValueError
        If a tensor is on another device than the CPU or does not fit, eps is not above 0, the activation is unknown, or
        training finds one value per channel.
    RuntimeError
        In PyTorch's words, if the number of channels is another, or running_mean is missing.

    Notes
    -----
    y = act((input - mean) / sqrt(var + eps) * weight + bias + residual). After an error nothing has changed.

    References
    ----------
    Ioffe and Szegedy 2015 (arXiv:1502.03167); torch/nn/functional.py.

    Examples
    --------
    >>> import torch
    >>> from fastbn.interop.torch import batch_norm
    >>> x, mean, var = torch.tensor([[1.0], [5.0]]), torch.ones(1), torch.full((1,), 4.0)
    >>> batch_norm(x, mean, var, eps=1e-12)
    tensor([[0.],
            [2.]])
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
        self.activation = activations.parse(activation).argument

    def forward(self, input, residual=None):
        """Normalize the input: act(bn(input) + residual).

        Parameters
        ----------
        input : tensor
            As PyTorch's module takes it.
        residual : tensor of input's shape, optional
            It is added before the activation.

        Returns
        -------
        tensor
            The result, like input in shape, dtype and order of memory.

        Examples
        --------
        >>> import torch
        >>> from fastbn.interop.torch import BatchNorm1d
        >>> bn = BatchNorm1d(2, activation="relu").eval()
        >>> bn(torch.tensor([[3.0, -3.0]]), torch.tensor([[-3.0, 5.0]])).detach().round()
        tensor([[0., 2.]])
        """
        self._check_input_dim(input)
        tracks, momentum = self.training and self.track_running_stats, self.momentum
        counter = self.num_batches_tracked if tracks else None
        if momentum is None:
            momentum = 0.0 if counter is None else 1.0 / (counter + 1).double()
            momentum = momentum if torch.compiler.is_compiling() else float(momentum)
        mean, var = (self.running_mean, self.running_var) if tracks or not self.training else (None, None)
        by_batch = self.training or (mean is None and var is None)
        y = batch_norm(input, mean, var, self.weight, self.bias, by_batch, momentum, self.eps,
                       activation=self.activation, residual=residual)
        if counter is not None:
            counter.add_(1)
        return y

    def extra_repr(self):
        """Tell the settings, for repr.

        Returns
        -------
        str
            What PyTorch's module tells, and the activation.

        Examples
        --------
        >>> from fastbn.interop.torch import BatchNorm1d
        >>> BatchNorm1d(2, activation="relu").extra_repr().endswith("activation='relu'")
        True
        """
        more = "" if self.activation is None else f", activation={self.activation!r}"
        return super().extra_repr() + more


class BatchNorm1d(_Module, nn.BatchNorm1d):
    """The module torch.nn.BatchNorm1d computed by fastbn: (N, C) and (N, C, L).

    Parameters
    ----------
    *args : object
        PyTorch's arguments. The attributes and state_dict are PyTorch's too.
    activation : str or tuple, optional
        As for batch_norm: bn(input, residual) gives act(bn(input) + residual).
    **keywords : object
        PyTorch's arguments; eps must be above 0.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As batch_norm does.

    Examples
    --------
    >>> import torch
    >>> from fastbn.interop.torch import BatchNorm1d
    >>> y = BatchNorm1d(2, activation="relu")(torch.ones(4, 2))
    >>> y.shape
    torch.Size([4, 2])
    """


class BatchNorm2d(_Module, nn.BatchNorm2d):
    """The module torch.nn.BatchNorm2d computed by fastbn: (N, C, H, W).

    Parameters
    ----------
    *args : object
        PyTorch's arguments. The attributes and state_dict are PyTorch's too.
    activation : str or tuple, optional
        As for batch_norm: bn(input, residual) gives act(bn(input) + residual).
    **keywords : object
        PyTorch's arguments; eps must be above 0.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As batch_norm does.

    Examples
    --------
    >>> import torch
    >>> from fastbn.interop.torch import BatchNorm2d
    >>> y = BatchNorm2d(2, activation="relu")(torch.ones(4, 2, 5, 5))
    >>> y.shape
    torch.Size([4, 2, 5, 5])
    """


class BatchNorm3d(_Module, nn.BatchNorm3d):
    """The module torch.nn.BatchNorm3d computed by fastbn: (N, C, D, H, W).

    Parameters
    ----------
    *args : object
        PyTorch's arguments. The attributes and state_dict are PyTorch's too.
    activation : str or tuple, optional
        As for batch_norm: bn(input, residual) gives act(bn(input) + residual).
    **keywords : object
        PyTorch's arguments; eps must be above 0.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As batch_norm does.

    Examples
    --------
    >>> import torch
    >>> from fastbn.interop.torch import BatchNorm3d
    >>> y = BatchNorm3d(2, activation="relu")(torch.ones(4, 2, 5, 5, 5))
    >>> y.shape
    torch.Size([4, 2, 5, 5, 5])
    """


_OURS = {nn.BatchNorm1d: BatchNorm1d, nn.BatchNorm2d: BatchNorm2d, nn.BatchNorm3d: BatchNorm3d}


def convert(model):
    """Let fastbn compute every torch.nn.BatchNorm1d, 2d, 3d in a model, itself included.

    Parameters
    ----------
    model : torch.nn.Module
        The model; it is changed in place.

    Returns
    -------
    torch.nn.Module
        The model.

    Raises
    ------
    TypeError
        If model is no module.
    ValueError
        If there is a lazy batch norm in it, which would become PyTorch's later. Nothing has changed then.

    Notes
    -----
    The modules change their class and nothing else: parameters, buffers, hooks, mode and the modules themselves stay
    the same objects, so optimizers and references to them go on. Classes derived from PyTorch's are left alone, as is
    SyncBatchNorm.

    Examples
    --------
    >>> import torch
    >>> from fastbn.interop.torch import convert
    >>> net = convert(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)))
    >>> type(net[1]).__module__
    'fastbn.interop.torch'
    """
    for name, module in _modules(model):
        if isinstance(module, nn.modules.batchnorm._LazyNormBase):
            raise ValueError(f"{name or 'model'} is a {type(module).__name__} without a number of channels yet: call "
                             "the model on a batch first")
    return _with_classes(model, _OURS)


def revert(model):
    """Undo convert: the modules of this file in a model become PyTorch's.

    Parameters
    ----------
    model : torch.nn.Module
        The model; it is changed in place.

    Returns
    -------
    torch.nn.Module
        The model.

    Raises
    ------
    TypeError
        If model is no module.
    ValueError
        If a module has an activation, which PyTorch's does not have. Nothing has changed then.

    Examples
    --------
    >>> import torch
    >>> from fastbn.interop.torch import BatchNorm1d, revert
    >>> type(revert(BatchNorm1d(2))).__module__
    'torch.nn.modules.batchnorm'
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
