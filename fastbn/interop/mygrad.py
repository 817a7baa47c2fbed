"""MyGrad: batch normalization as an operation of its graph.

Inside a graph MyGrad makes the arrays of tensors read-only; fastbn only reads them. Running statistics are plain arrays
of the caller's, outside of the graph.
"""
import numpy as np

from .. import batch_norm_backward, batch_norm_inference, batch_norm_training
from .._engine import checks

try:
    from mygrad import Tensor
    from mygrad.operation_base import Operation
except ImportError as error:
    raise ImportError(f"MyGrad cannot be imported ({error}): pip install 'fastbn[mygrad]'") from error

__all__ = ["batch_norm"]

_GRADIENTS = {"x": "dx", "gamma": "dgamma", "beta": "dbeta"}


def batch_norm(x, gamma=None, beta=None, *, axis=1, eps=1e-5, running_mean=None, running_var=None, training=True,
               momentum=0.9, ddof=1, constant=None):
    """Normalize a tensor as one operation of MyGrad's graph.

    Parameters
    ----------
    x : tensor or array
        It has a feature axis of C entries, and at least 2 dimensions.
    gamma : tensor of shape (C,), or None
        The scale; None stands for ones.
    beta : tensor of shape (C,), or None
        The shift; None stands for zeros.
    axis : int or tuple of int, default 1
        As for fastbn.batch_norm_training.
    eps : float, default 1e-5
        As for fastbn.batch_norm_training.
    running_mean, running_var : array of float32 or float64, shape (C,), optional
        NumPy arrays, no tensors; both or neither.
    training : bool, default True
        True: mean and var (biased) are those of x, and running statistics that are given take a step, in place,
        unless there is one value per feature, or none. False: mean and var are running_mean and running_var,
        constants in the gradient.
    momentum : float, default 0.9
        The weight that the old average keeps, from 0 to 1.
    ddof : {0, 1}, default 1
        1, the unbiased running variance, or 0, the biased one.
    constant : bool, optional
        As MyGrad's operations take it: True leaves the result out of the graph.

    Returns
    -------
    tensor of x's shape and dtype
        The result, y, whose backward computes the gradients that are needed in one call.

    Raises
    ------
    TypeError, ValueError
        If arguments do not fit; then no statistics have changed.

    Notes
    -----
    y = (x - mean) / sqrt(var + eps) * gamma + beta.

    References
    ----------
    Ioffe and Szegedy 2015 (arXiv:1502.03167).

    Examples
    --------
    >>> import mygrad as mg
    >>> import numpy as np
    >>> from fastbn.interop.mygrad import batch_norm
    >>> x, beta = mg.tensor([[1.0], [2.0], [6.0]]), mg.tensor([0.0])
    >>> batch_norm(x, None, beta).sum().backward()
    >>> beta.grad
    array([3.])
    """
    given = {"x": x, "gamma": gamma, "beta": beta}
    given = {name: value for name, value in given.items() if value is not None or name == "x"}
    statistics = _statistics(running_mean, running_var, training)
    settings = {"names": tuple(given), "statistics": statistics, "axis": axis, "eps": eps}
    settings["step"] = checks.momentum(momentum), checks.ddof(ddof)
    kind = _Training if training else _Inference
    return Tensor._op(kind, *given.values(), op_kwargs=settings, constant=constant)


class _Fused(Operation):
    """Forward leaves self.saved; MyGrad asks for one gradient after the other, which are computed at once."""

    def _arrays(self, tensors, names):
        self.variables, self.names = tensors, names
        return {name: tensor.data for name, tensor in zip(names, tensors)}

    def backward(self, grad, **keywords):
        needs = [_GRADIENTS[name] for name, tensor in zip(self.names, self.variables) if not tensor.constant]
        gradients = dict(zip(_GRADIENTS, batch_norm_backward(grad, self.saved, needs=needs)))
        self.gradients = [gradients[name] for name in self.names]
        try:
            super().backward(grad, **keywords)
        finally:
            del self.gradients

    def backward_var(self, grad, index, **keywords):
        return self.gradients[index]


class _Training(_Fused):
    def __call__(self, *tensors, names, statistics, step, axis, eps):
        y, self.saved = batch_norm_training(**self._arrays(tensors, names), axis=axis, eps=eps)
        if statistics is not None:
            momentum, ddof = step
            self.saved.moments.step(statistics["mean"], statistics["var"], momentum=momentum, ddof=ddof)
        return y


class _Inference(_Fused):
    def __call__(self, *tensors, names, statistics, step, axis, eps):
        y, self.saved = batch_norm_inference(**self._arrays(tensors, names), **statistics, axis=axis, eps=eps,
                                             return_saved=True)
        return y


def _statistics(running_mean, running_var, training):
    """{"mean", "var": array}, or None where there are none. What training writes to is checked."""
    if (running_mean is None) != (running_var is None):
        raise ValueError("one of running_mean and running_var is None, expected both or neither")
    if running_mean is None:
        if not training:
            raise ValueError("running_mean and running_var are None, expected arrays: with training=False they "
                             "normalize")
        return None
    found = {"mean": running_mean, "var": running_var}
    for name, value in found.items():
        if not isinstance(value, np.ndarray):
            raise TypeError(f"running_{name} is a {type(value).__name__}, expected a NumPy array, outside of the "
                            "graph: of a tensor pass .data")
        if training and checks.as_data(value, f"running_{name}", halves=False) is not value:
            raise TypeError(f"running_{name} has an unaligned or foreign layout of {value.dtype}, which cannot be "
                            "updated in place: pass a copy")
        if training and not value.flags.writeable:
            raise ValueError(f"running_{name} is read-only, and training updates it: is it a tensor's array, which "
                             "MyGrad locks inside a graph?")
    return found
