"""thinc, which has no batch norm: a layer, "fastbn.BatchNorm.v1" in thinc's registry, found there without an import."""
from typing import Any, Callable, Optional, Tuple, TypeVar

import numpy as np

from .. import batch_norm_backward, batch_norm_inference, batch_norm_training
from .._engine import checks

try:
    from thinc.api import Model, get_width, registry
    from thinc.types import FloatsXd
except ImportError as error:
    raise ImportError(f"thinc cannot be imported ({error}): pip install 'fastbn[thinc]'") from error

__all__ = ["BatchNorm"]

Floats = TypeVar("Floats", bound=FloatsXd)
_STATISTICS = ("running_mean", "running_var")


@registry.layers("fastbn.BatchNorm.v1")
def BatchNorm(nI: Optional[int] = None, *, momentum: float = 0.9, eps: float = 1e-5,
              ddof: int = 1) -> Model[Any, Any]:
    """Batch normalization of Floats2d, Floats3d or Floats4d over the last axis (lists, Ragged: thinc.api.with_array).

    Parameters
    ----------
    nI : int, optional
        The width, C; where it is None, initialize(X=...) or (Y=...) finds it.
    momentum : float, default 0.9
        The weight that the old average keeps, from 0 to 1.
    eps : float, default 1e-5
        Above 0.
    ddof : {0, 1}, default 1
        1, the unbiased running variance, or 0, the biased one.

    Returns
    -------
    Model
        The layer.

    Raises
    ------
    TypeError
        If X is no NumPy array.
    ValueError
        If an argument is out of range, or X has another width.

    Notes
    -----
    Training (is_train=True) computes y = (x - mean) / sqrt(var + eps) * gamma + beta with the batch's mean and biased
    variance, and

        running_mean = momentum * running_mean + (1 - momentum) * mean
        running_var  = momentum * running_var  + (1 - momentum) * var * N / (N - ddof)

    Else it is the same formula with the running statistics, which are constants in the gradient. gamma and beta are
    parameters of shape (C,), float32 as all of thinc's; y and dX have the dtype of X. Running statistics are in
    model.attrs, which to_bytes and to_disk write; a training step with one value per feature, or none, leaves them
    alone.

    References
    ----------
    Ioffe and Szegedy 2015 (arXiv:1502.03167).

    Examples
    --------
    >>> import numpy as np
    >>> from fastbn.interop.thinc import BatchNorm
    >>> x = np.array([[1.0], [3.0]], np.float32)
    >>> model = BatchNorm(eps=1e-12).initialize(X=x)
    >>> y, backprop = model(x, is_train=True)
    >>> y
    array([[-1.],
           [ 1.]], dtype=float32)
    """
    attrs = {"momentum": checks.momentum(momentum), "eps": checks.epsilon(eps), "ddof": checks.ddof(ddof)}
    return Model("batchnorm", forward, init=init, dims={"nI": nI, "nO": nI}, params={"gamma": None, "beta": None},
                 attrs={**attrs, **dict.fromkeys(_STATISTICS)})


def init(model: Model[Floats, Floats], X: Optional[Floats] = None, Y: Optional[Floats] = None) -> None:
    """The width by X, Y or what is known, and first values: gamma 1, beta 0, running mean 0 and variance 1."""
    known = X if X is not None else Y
    for name in ("nI", "nO"):
        model.set_dim(name, get_width(known) if known is not None else model.get_dim("nI"))
    c = model.get_dim("nI")
    model.set_param("gamma", model.ops.alloc1f(c) + 1)
    model.set_param("beta", model.ops.alloc1f(c))
    model.attrs["running_mean"], model.attrs["running_var"] = np.zeros(c, np.float32), np.ones(c, np.float32)


def forward(model: Model[Floats, Floats], X: Floats, is_train: bool) -> Tuple[Floats, Callable[[Floats], Floats]]:
    """y, and the function from its gradient to that of X, which adds those of gamma and beta to the model's."""
    if not isinstance(X, np.ndarray):
        raise TypeError(f"X is a {type(X).__name__}, expected a NumPy array: fastbn computes on the CPU (for a model "
                        "on a GPU thinc.api.with_cpu; for lists, Ragged and Padded thinc.api.with_array)")
    affine = {"gamma": model.get_param("gamma"), "beta": model.get_param("beta"), "eps": model.attrs["eps"], "axis": -1}
    if is_train:
        Y, saved = batch_norm_training(X, **affine)
        running = {name: np.array(model.attrs[name]) for name in _STATISTICS}  # those of a loaded model are read-only
        saved.moments.step(**running, momentum=model.attrs["momentum"], ddof=model.attrs["ddof"])
        model.attrs.update(running)
    else:
        Y, saved = batch_norm_inference(X, *(model.attrs[name] for name in _STATISTICS), **affine, return_saved=True)

    def backprop(dY: Floats) -> Floats:
        dX, dgamma, dbeta = batch_norm_backward(dY, saved)
        model.inc_grad("gamma", dgamma)
        model.inc_grad("beta", dbeta)
        return dX

    return Y, backprop
