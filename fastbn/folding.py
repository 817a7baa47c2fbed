"""A batch norm in inference is an affine map of each feature: folded into the weights of the linear layer beside it."""
import math

import numpy as np

from ._engine import checks
from ._layer import BatchNorm
from .convert._arrays import as_array


def fold_linear(weight, bias, bn, *, bn_first=False, activation=None):
    """Fold a batch norm into the linear layer beside it, for inference.

    Parameters
    ----------
    weight : array of float16, float32 or float64, shape (out, in)
        As PyTorch has it: y = weight @ x + bias. Pass kernel.T of Keras and Flax, with kernels (in, out). What
        becomes an array will do too, such as a torch Parameter.
    bias : array of shape (out,), or None
        None stands for none.
    bn : BatchNorm
        With running statistics; gamma or beta may be absent. It has `out` features, with bn_first `in`.
    bn_first : bool, default False
        False: x -> linear -> bn. True: x -> bn -> linear.
    activation : {None, "separate"}, optional
        What becomes of that of a layer with activation=, which no weights can hold. None: the layer is refused.
        "separate": it is left out of the result, for the caller to apply after the folded layer; not with bn_first,
        where it stands between the two.

    Returns
    -------
    weight, bias : array
        New arrays, computed in double, of the weight's dtype (of PyTorch's half types: float32).

    Raises
    ------
    TypeError, ValueError
        If a shape does not fit, the layer has an activation, or a result is too large for the dtype.
    RuntimeError
        If the layer has no running statistics.

    Notes
    -----
    With scale, shift = bn.as_affine(),

        after:   weight' = scale[:, None] * weight      bias' = scale * bias + shift
        before:  weight' = weight * scale[None, :]      bias' = bias + weight @ shift

    References
    ----------
    Jacob et al. 2018 (arXiv:1712.05877), section 3.2; PyTorch's torch/nn/utils/fusion.py, fuse_linear_bn_weights.

    Examples
    --------
    >>> import numpy as np
    >>> import fastbn
    >>> bn = fastbn.BatchNorm(2, eps=1e-12)
    >>> bn.gamma[:] = 3
    >>> weight, bias = fastbn.fold_linear(np.eye(2, dtype=np.float32), None, bn)
    >>> weight
    array([[3., 0.],
           [0., 3.]], dtype=float32)
    """
    _check_layer(bn, activation, bn_first)
    weight = _weight(weight)
    if weight.ndim != 2:
        cause = ": for a convolution call fold_conv" if weight.ndim > 2 else ""
        raise ValueError(f"weight has shape {weight.shape}, expected (out, in){cause}")
    return _fold(weight, bias, bn, bn_first, False, 1)


def fold_conv(weight, bias, bn, *, bn_first=False, transposed=False, groups=1, padding=None, padding_mode="zeros",
              activation=None):
    """Fold a batch norm into the convolution beside it, for inference.

    Parameters
    ----------
    weight : array of float16, float32 or float64, shape ``(out, in / groups, *kernel)``
        As PyTorch has it, with 1, 2, 3 or more kernel axes; depthwise: groups = in. With transposed ``(in, out /
        groups, *kernel)``. Pass np.moveaxis(kernel, (-1, -2), (0, 1)) of Keras and Flax, whose kernels are
        ``(*kernel, in / groups, out)``; of depthwise ones of Keras, ``(*kernel, in, m)``, first
        ``kernel.reshape(*kernel, 1, -1)``.
    bias : array of shape (out,), or None
        None stands for none.
    bn : BatchNorm
        With running statistics; gamma or beta may be absent. It has `out` features, with bn_first `in`.
    bn_first : bool, default False
        False: x -> convolution -> bn. True: x -> bn -> convolution.
    transposed : bool, default False
        Whether the convolution is a transposed one.
    groups : int, default 1
        The convolution's groups.
    padding : int, tuple or str, optional
        The convolution's, as in PyTorch: a number, one an axis, "valid" or "same". With bn_first it must be given;
        otherwise it makes no difference.
    padding_mode : {"zeros", "reflect", "replicate", "circular"}, default "zeros"
        The convolution's, as in PyTorch.
    activation : {None, "separate"}, optional
        As for fold_linear.

    Returns
    -------
    weight, bias : array
        New arrays, computed in double, of the weight's dtype (of PyTorch's half types: float32).

    Raises
    ------
    TypeError, ValueError
        If the batch norm cannot be folded there, a shape does not fit, the layer has an activation, or a result is too
        large for the dtype.
    RuntimeError
        If the layer has no running statistics.

    Notes
    -----
    With scale, shift = bn.as_affine(), o an output, i an input feature of o's group,

        after:   weight'[o, i] = scale[o] * weight[o, i]      bias'[o] = scale[o] * bias[o] + shift[o]
        before:  weight'[o, i] = weight[o, i] * scale[i]
                 bias'[o] = bias[o] + the sum of weight[o, i] * shift[i] over i and the kernel's entries

    Stride and dilation make no difference. A batch norm before a convolution that pads with zeros is refused: the
    zeros come after the shift, so entries at the border lack it, and no one bias suits them and the inner ones. So is
    one before a transposed convolution, which sums other entries of its kernel at the border and between its strides.
    Where shift is 0 both are exact and allowed.

    References
    ----------
    Jacob et al. 2018 (arXiv:1712.05877), section 3.2; PyTorch's torch/nn/utils/fusion.py, fuse_conv_bn_weights.

    Examples
    --------
    >>> import numpy as np
    >>> import fastbn
    >>> kernel = np.ones((4, 3, 3, 3), np.float32)
    >>> weight, bias = fastbn.fold_conv(kernel, None, fastbn.BatchNorm(4))
    >>> weight.shape, bias.shape
    ((4, 3, 3, 3), (4,))
    """
    _check_layer(bn, activation, bn_first)
    weight = _weight(weight)
    if weight.ndim < 3:
        cause = ": for a linear layer call fold_linear" if weight.ndim == 2 else ""
        raise ValueError(f"weight has shape {weight.shape}, expected at least 3 axes, features and kernel{cause}")
    _check_groups(groups, weight, transposed)
    if bn_first:
        _refuse_border(bn.as_affine()[1], weight.shape[2:], transposed, padding, padding_mode)
    return _fold(weight, bias, bn, bn_first, transposed, groups)


def _fold(weight, bias, bn, bn_first, transposed, groups):
    """Every weight as (groups, out, in, kernel), where the two formulas are the same for all layers."""
    scale, shift = bn.as_affine()
    a = weight.astype(np.float64)
    a = a.reshape(groups, weight.shape[0] // groups, weight.shape[1], math.prod(weight.shape[2:]))
    a = a.swapaxes(1, 2) if transposed else a
    outputs, inputs = groups * a.shape[1], groups * a.shape[2]
    _check_features(bn, weight, inputs if bn_first else outputs, bn_first, transposed)
    b = _bias(bias, outputs)
    with np.errstate(all="ignore"):  # NaN and Inf of the batch norm go where inference would have put them
        if bn_first:
            b = b + (a * shift.reshape(groups, 1, -1, 1)).sum((2, 3)).reshape(-1)
            a = a * scale.reshape(groups, 1, -1, 1)
        else:
            b = b * scale + shift
            a = a * scale.reshape(groups, -1, 1, 1)
    a = (a.swapaxes(1, 2) if transposed else a).reshape(weight.shape)
    return _rounded(a, weight.dtype, "weight"), _rounded(b, weight.dtype, "bias")


def _check_layer(bn, activation, bn_first):
    """Weights hold no activation: whether the caller knows that bn's is not in them."""
    if not isinstance(bn, BatchNorm):
        raise TypeError(f"bn is a {type(bn).__name__}, expected a fastbn.BatchNorm: BatchNorm.from_torch makes one "
                        "of a PyTorch module")
    if activation not in (None, "separate"):
        raise ValueError(f"activation is {activation!r}, expected None or 'separate'")
    if bn.activation is None:
        return
    if bn_first:
        raise ValueError(f"bn has activation={bn.activation!r}, which stands between the batch norm and the layer after "
                         "it: the two do not fold; run one after the other")
    if activation is None:
        raise ValueError(f"bn has activation={bn.activation!r}, which weights cannot hold: pass activation='separate' "
                         "and apply it after the folded layer")


def _floats(value, name):
    return checks.as_data(value if isinstance(value, np.ndarray) else as_array(value), name)


def _weight(value):
    if value is None:
        raise TypeError("weight is None, expected an array")
    return _floats(value, "weight")


def _bias(value, outputs):
    if value is None:
        return np.zeros(outputs)
    bias = _floats(value, "bias")
    if bias.shape != (outputs,):
        raise ValueError(f"bias has shape {bias.shape}, expected ({outputs},): one entry for each output feature")
    return bias.astype(np.float64)


def _check_groups(groups, weight, transposed):
    if not checks.is_whole(groups):
        raise TypeError(f"groups is {groups!r}, expected an int")
    if groups < 1 or weight.shape[0] % groups:
        side = "input" if transposed else "output"
        raise ValueError(f"groups is {groups}, expected a divisor of the {weight.shape[0]} {side} features on axis 0 "
                         f"of weight (shape {weight.shape}, transposed={bool(transposed)})")


def _check_features(bn, weight, features, bn_first, transposed):
    if bn.num_features == features:
        return
    side, place = ("input", "before") if bn_first else ("output", "after")
    cause = ": does the batch norm stand on the other side (bn_first)?"
    if weight.ndim > 2:
        cause = ": is transposed, groups or bn_first another?"
    elif bn.num_features == weight.shape[bn_first - 1]:
        cause = ": is the weight (in, out), as in Keras and Flax? pass its transpose; or is bn_first another?"
    raise ValueError(f"bn has {bn.num_features} features, expected {features}, the {side} features of the layer, since "
                     f"it stands {place} it (weight has shape {weight.shape}){cause}")


def _refuse_border(shift, kernel, transposed, padding, mode):
    """Before a convolution: whether one bias can stand for the shift at every output."""
    if mode not in ("zeros", "reflect", "replicate", "circular"):
        raise ValueError(f"padding_mode is {mode!r}, expected 'zeros', 'reflect', 'replicate' or 'circular'")
    if not transposed and padding is None:
        raise ValueError("padding is None, expected the convolution's padding: a batch norm before a convolution that "
                         "pads with zeros does not fold, since the zeros lack its shift; without any pass padding=0")
    pads = not transposed and _pads(padding, kernel) and mode == "zeros"
    if not shift.any():
        return
    if transposed:
        raise ValueError("a batch norm before a transposed convolution does not fold: at the border and between "
                         "strides an output sums other kernel entries than elsewhere, so it takes another share of the "
                         "shift and no one bias suits all; run the two one after the other")
    if pads:
        raise ValueError(f"a batch norm before a convolution with zero padding (padding={padding!r}) does not fold: "
                         "the zeros come after the shift, so entries at the border lack it and no one bias suits all; "
                         "run one after the other, or pad the input with -shift / scale and fold with padding=0")


def _pads(padding, kernel):
    if isinstance(padding, str):
        if padding not in ("valid", "same"):
            raise ValueError(f"padding is {padding!r}, expected a number, one an axis, 'valid' or 'same'")
        return padding == "same" and any(size > 1 for size in kernel)
    widths = np.asarray(padding)
    if widths.dtype.kind not in "iu":
        raise TypeError(f"padding is {padding!r}, expected a number, one an axis, 'valid' or 'same'")
    return bool(widths.any())


def _rounded(a, dtype, name):
    with np.errstate(over="ignore"):
        rounded = a.astype(dtype)
    if (np.isinf(rounded) & np.isfinite(a)).any():
        largest = np.abs(a[np.isfinite(a)]).max()
        raise ValueError(f"the folded {name} reaches {largest:.3g}, too large for {dtype}: use a wider type")
    return rounded
