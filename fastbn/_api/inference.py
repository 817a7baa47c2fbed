"""Inference: normalization by given statistics.

Formulas: Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift", 2015
(arXiv:1502.03167), algorithm 2. How they are computed: csrc/fastbn.h.

The core takes plain arrays as they are, since checks would be most of a small call's time. Where it answers None, the general
way converts, checks and explains.
"""
from .. import _core
from .._engine import activations, checks, foreign, fusion
from .._engine.run import normalize_by_given, prepare


def batch_norm_inference(x, mean, var, gamma=None, beta=None, *, eps=1e-5, axis=1, activation=None, residual=None,
                         out=None, num_threads=None, return_saved=False, like=None):
    """Normalizes x with given statistics: y = act((x - mean) / sqrt(var + eps) * gamma + beta + residual).

    x: array with a feature axis, at least 2 dimensions, float32, float64, float16 or bfloat16 (as of ml_dtypes); half types
        are computed as float32 and y rounded to nearest even. Arrays of other libraries on the CPU that have __dlpack__
        (PyTorch's, JAX's) are taken without a copy, here as in every argument; lists and what has __array__ are converted.
    mean, var: statistics of shape (C,), float32 or float64, for example the moving averages; var is used as it is.
    gamma, beta: scale and shift of shape (C,); None stands for ones and for zeros.
    eps: added to the variance; above 0.
    axis: the feature axis, or a tuple of them (then C is the product of their sizes, in ascending order of the axes).
    activation: act, in the same pass: None, "relu", "silu", "gelu" (exact), "gelu_tanh" or another that
        fastbn.h lists (see get_include), in lower case; ("leaky_relu", slope) and ("elu", alpha) set the parameter, which
        is 0.01 and 1 otherwise.
    residual: array of x's shape, converted to x's dtype; None stands for 0.
    out: array of x's shape and dtype to write to; it may be x or residual. It is returned. It may be another library's
        with NumPy 2.1 or later.
    num_threads: at most so many threads; it can only lower the settings.
    return_saved: also return what batch_norm_backward needs, with the statistics as constants.
    like: what kind of arrays to return: None: NumPy's; an array of another library, or that library: its kind, made by its
        from_dlpack, which shares memory where it can. What was written to `out` is returned as `out`.

    Returns y, of x's shape and dtype; with return_saved (y, saved).
    Raises TypeError (integers, masked arrays, matrices, like), ValueError (shapes, eps, axis, activation, out; arrays on a
    GPU or that require a gradient; overlapping memory: with return_saved, out may be the residual only where backward can do
    without it, see batch_norm_backward).
    Source: Ioffe and Szegedy 2015, algorithm 2; of the activations: csrc/fastbn.h.
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
    if like is not None or foreign.concerns(x, out):
        given = {"x": x, "mean": mean, "var": var, "gamma": gamma, "beta": beta, "residual": residual}
        return foreign.calling(batch_norm_inference, given, like, out, eps=eps, axis=axis, activation=activation,
                               num_threads=num_threads, return_saved=return_saved)
    x, axes, c, p = prepare(x, axis, {"mean": mean, "var": var, "gamma": gamma, "beta": beta})
    for name in ("mean", "var"):
        if p[name] is None:
            raise ValueError(f"{name} is None, expected an array of shape ({c},)")
    eps, threads, extras = checks.epsilon(eps), checks.threads(num_threads), fusion.extras_of(x, activation, residual)
    y, saved = normalize_by_given(x, axes, p, eps, out, threads, extras, return_saved)
    return (y, saved) if return_saved else y
