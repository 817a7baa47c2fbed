"""Inference: normalization by given statistics.

Formulas: Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift", 2015
(arXiv:1502.03167), algorithm 2. How they are computed: csrc/fastbn.h.

The core takes plain arrays as they are, since checks would be most of a small call's time. Where it answers None, the general
way converts, checks and explains.
"""
from .. import _core
from .._engine import activations, checks, dlpack, fusion
from .._engine.run import normalize_by_given, prepare


def batch_norm_inference(x, mean, var, gamma=None, beta=None, *, eps=1e-5, axis=1, activation=None, residual=None,
                         out=None, num_threads=None, return_saved=False, like=None):
    """Normalize x with given statistics.

    Parameters
    ----------
    x : array of float32, float64, float16 or bfloat16
        It has a feature axis and at least 2 dimensions. Half types (bfloat16 is that of ml_dtypes) are computed as
        float32, and y is rounded to nearest even. Arrays of other libraries on the CPU that have ``__dlpack__``
        (PyTorch's, JAX's) are taken without a copy, here as in every argument; lists and what has ``__array__`` are
        converted.
    mean, var : array of float32 or float64, shape (C,)
        The statistics, for example the moving averages; var is used as it is.
    gamma, beta : array of float32 or float64, shape (C,), optional
        Scale and shift; None stands for ones and for zeros.
    eps : float, default 1e-5
        It is added to the variance; above 0.
    axis : int or tuple of int, default 1
        The feature axis, or several: then C is the product of their sizes, in ascending order of the axes.
    activation : str or tuple, optional
        act, applied in the same pass: "relu", "silu", "gelu" (exact), "gelu_tanh" or another that fastbn.h lists, in
        lower case. ("leaky_relu", slope) and ("elu", alpha) set the parameter, which is 0.01 and 1 otherwise.
    residual : array of x's shape, optional
        It is converted to x's dtype and added before the activation; None stands for 0.
    out : array of x's shape and dtype, optional
        Where y is written; it may be x or residual. Another library's array takes NumPy 2.1 or later.
    num_threads : int, optional
        The most threads; it can only lower the settings.
    return_saved : bool, default False
        Also return what batch_norm_backward needs, the statistics being constants.
    like : array or module, optional
        What kind of arrays to return. None: NumPy's. An array of another library, or that library: its kind, made by
        its from_dlpack, which shares memory where it can. What was written to `out` is returned as `out`.

    Returns
    -------
    y : array of x's shape and dtype
        It is `out` where that was given.
    saved : object
        What batch_norm_backward takes; with return_saved alone.

    Raises
    ------
    TypeError
        If an array is of integers, masked or a matrix, or `like` is no array and no library of arrays.
    ValueError
        If a shape, eps, axis, activation or out does not fit, an array is on a GPU or requires a gradient, or out
        overlaps another argument in part. With return_saved, out may be the residual only where backward can do
        without it.

    See Also
    --------
    batch_norm_training : Normalize with the statistics of the batch.
    BatchNorm : The layer.

    Notes
    -----
    For each feature, y = act((x - mean) / sqrt(var + eps) * gamma + beta + residual).

    References
    ----------
    Ioffe and Szegedy 2015 (arXiv:1502.03167), algorithm 2. The activations' sources stand in csrc/fastbn.h.

    Examples
    --------
    >>> import numpy as np
    >>> import fastbn
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0]])
    >>> fastbn.batch_norm_inference(x, [2.0, 20.0], [1.0, 100.0], eps=1e-12)
    array([[-1., -1.],
           [ 1.,  1.]])
    """
    if return_saved is False and like is None:
        act = None if activation is None else fusion.alone(activations.parse(activation))
        y = _core.plain_inference(x, mean, var, gamma, beta, eps, axis, out, num_threads, act, residual)
        if y is not None:
            return y
    elif return_saved is True and residual is None and like is None:
        act = None if activation is None else fusion.alone(activations.parse(activation))
        result = _core.plain_frozen(x, mean, var, gamma, beta, eps, axis, out, num_threads, act)
        if result is not None:
            return result
    if like is not None or dlpack.concerns(x, out):
        given = {"x": x, "mean": mean, "var": var, "gamma": gamma, "beta": beta, "residual": residual}
        return dlpack.calling(batch_norm_inference, given, like, out, eps=eps, axis=axis, activation=activation,
                               num_threads=num_threads, return_saved=return_saved)
    x, axes, c, p = prepare(x, axis, {"mean": mean, "var": var, "gamma": gamma, "beta": beta})
    for name in ("mean", "var"):
        if p[name] is None:
            raise ValueError(f"{name} is None, expected an array of shape ({c},)")
    eps, threads, extras = checks.epsilon(eps), checks.threads(num_threads), fusion.extras_of(x, activation, residual)
    y, saved = normalize_by_given(x, axes, p, eps, out, threads, extras, return_saved)
    return (y, saved) if return_saved else y
