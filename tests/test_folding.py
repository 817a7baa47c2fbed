"""Folding: one layer with the folded weights against the layer and the batch norm one after the other."""
import math
import re

import numpy as np
import pytest

import fastbn
from oracle import FLOATS

pytestmark = pytest.mark.filterwarnings("error")

SWITCHES = [{}, {"center": False}, {"scale": False}, {"center": False, "scale": False}]
on_switches = pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: ",".join(s) or "both")
on_bias = pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])


def trained(rng, features, **keywords):
    """A batch norm in inference mode, with parameters and statistics of its own."""
    bn = fastbn.BatchNorm(features, **keywords).eval()
    if bn.gamma is not None:
        bn.gamma[:] = rng.uniform(0.5, 2.0, features) * rng.choice([-1, 1], features)
    if bn.beta is not None:
        bn.beta[:] = rng.standard_normal(features)
    bn.running_mean[:] = rng.standard_normal(features)
    bn.running_var[:] = rng.uniform(0.2, 3.0, features)
    return bn


def normal(rng, *shape, dtype=np.float32):
    return rng.standard_normal(shape).astype(dtype)


def assert_close(y, expected, rtol=1e-5):
    """Relative to the largest entry: a sum may cancel to next to nothing."""
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, rtol=0, atol=rtol * np.abs(expected).max())


# --- Convolutions in NumPy, one tap of the kernel at a time, in double ------------------------------------------------


def per_axis(value, axes):
    return (value,) * axes if isinstance(value, int) else tuple(value)


def convolve(x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1, mode="constant"):
    """y[n, o, p] = bias[o] + sum of weight[o, i, k] * x[n, group's i, p * stride + k * dilation]."""
    kernel = weight.shape[2:]
    stride, dilation, padding = (per_axis(v, len(kernel)) for v in (stride, dilation, padding))
    x = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *((p, p) for p in padding)], mode=mode)
    sizes = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(x.shape[2:], kernel, stride, dilation)]
    y = np.zeros((x.shape[0], weight.shape[0], *sizes))
    for tap in np.ndindex(*kernel):
        at = tuple(slice(t * d, t * d + s * (size - 1) + 1, s) for t, d, s, size in zip(tap, dilation, stride, sizes))
        for one, part, out in zip(np.split(x, groups, 1), np.split(weight, groups), np.split(y, groups, 1)):
            out += np.einsum("ni...,oi->no...", one[(slice(None), slice(None), *at)], part[(..., *tap)])
    return y if bias is None else y + np.reshape(bias, (-1, *[1] * len(kernel)))


def convolve_transposed(x, weight, bias=None, *, stride=1, padding=0, groups=1):
    """The adjoint of convolve: each entry of x adds its share to every tap's output; then the padding is cut off."""
    kernel = weight.shape[2:]
    stride, padding = per_axis(stride, len(kernel)), per_axis(padding, len(kernel))
    sizes = [(n - 1) * s + k for n, k, s in zip(x.shape[2:], kernel, stride)]
    y = np.zeros((x.shape[0], weight.shape[1] * groups, *sizes))
    for tap in np.ndindex(*kernel):
        at = tuple(slice(t, t + s * (n - 1) + 1, s) for t, s, n in zip(tap, stride, x.shape[2:]))
        for one, part, out in zip(np.split(x, groups, 1), np.split(weight, groups), np.split(y, groups, 1)):
            out[(slice(None), slice(None), *at)] += np.einsum("ni...,io->no...", one.astype(float), part[(..., *tap)])
    y = y[(..., *(slice(p, size - p) for p, size in zip(padding, sizes)))]
    return y if bias is None else y + np.reshape(bias, (-1, *[1] * len(kernel)))


# --- as_affine --------------------------------------------------------------------------------------------------------


@on_switches
@pytest.mark.parametrize("dtype", FLOATS)
def test_as_affine_has_the_documented_formula(rng, switches, dtype):
    bn = trained(rng, 6, dtype=dtype, eps=0.01, **switches)
    scale, shift = bn.as_affine()
    gamma = 1.0 if bn.gamma is None else bn.gamma.astype(np.float64)
    beta = 0.0 if bn.beta is None else bn.beta.astype(np.float64)
    assert scale.dtype == shift.dtype == np.float64 and scale.shape == shift.shape == (6,)
    np.testing.assert_array_equal(scale, gamma * (1 / np.sqrt(bn.running_var.astype(np.float64) + 0.01)))
    np.testing.assert_array_equal(shift, beta - bn.running_mean.astype(np.float64) * scale)


@on_switches
def test_as_affine_has_the_numbers_of_inference(rng, switches):
    """In double with a mean of 0 nothing is rounded on the way: the same bits."""
    bn = trained(rng, 6, dtype=np.float64, **switches)
    bn.running_mean[:] = 0
    x = normal(rng, 50, 6, dtype=np.float64)
    scale, shift = bn.as_affine()
    np.testing.assert_array_equal(bn(x), x * scale + shift)


def test_as_affine_is_what_inference_does(rng):
    bn = trained(rng, 6)
    x = normal(rng, 50, 6)
    scale, shift = bn.as_affine()
    assert_close(bn(x), x.astype(np.float64) * scale + shift, 1e-6)


def test_as_affine_is_a_snapshot(rng):
    bn = trained(rng, 3)
    scale, shift = bn.as_affine()
    kept = scale.copy(), shift.copy()
    scale_too = bn.as_affine()[0]
    scale_too[:] = 0
    bn.gamma[:], bn.running_mean[:], bn.beta[:] = 9, 9, 9
    np.testing.assert_array_equal((scale, shift), kept)


def test_without_running_statistics_nothing_folds(rng):
    bn = fastbn.BatchNorm(4, track_running_stats=False)
    with pytest.raises(RuntimeError, match="running statistics"):
        bn.as_affine()
    with pytest.raises(RuntimeError, match="running statistics"):
        fastbn.fold_linear(normal(rng, 4, 3), None, bn)


# --- Linear layers ----------------------------------------------------------------------------------------------------


@on_switches
@on_bias
@pytest.mark.parametrize("bn_first", [False, True], ids=["after", "before"])
@pytest.mark.parametrize("dtype, rtol", [(np.float32, 1e-5), (np.float64, 1e-13)], ids=["f32", "f64"])
def test_linear(rng, switches, with_bias, bn_first, dtype, rtol):
    weight, bias = normal(rng, 7, 5, dtype=dtype), normal(rng, 7, dtype=dtype) if with_bias else None
    bn = trained(rng, 5 if bn_first else 7, dtype=np.float64, **switches)
    x = normal(rng, 20, 5, dtype=np.float64)
    plus = 0 if bias is None else bias
    expected = bn(x) @ weight.T + plus if bn_first else bn(x @ weight.T.astype(float) + plus)
    kept = weight.copy()
    w, b = fastbn.fold_linear(weight, bias, bn, bn_first=bn_first)
    assert w.dtype == b.dtype == dtype and w.shape == (7, 5) and b.shape == (7,)
    assert_close(x @ w.T.astype(float) + b, expected, rtol)
    np.testing.assert_array_equal(weight, kept)


def test_folding_is_computed_in_double(rng):
    """shift = beta - mean * scale cancels; rounded to float32 before the end it would have no digits left."""
    bn = fastbn.BatchNorm(1, dtype=np.float64, eps=1e-12).eval()
    bn.running_mean[:], bn.beta[:] = 1e6 + 0.125, 1e6
    bias = np.array([0.25], np.float32)
    _, b = fastbn.fold_linear(np.ones((1, 1), np.float32), bias, bn)
    np.testing.assert_allclose(b, 0.125, rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, "bfloat16"], ids=str)
def test_half_weights_stay_half(rng, dtype):
    dtype = getattr(pytest.importorskip("ml_dtypes"), dtype) if dtype == "bfloat16" else dtype
    weight, bn = normal(rng, 4, 3).astype(dtype), trained(rng, 4)
    w, b = fastbn.fold_linear(weight, None, bn)
    exact, _ = fastbn.fold_linear(weight.astype(np.float64), None, bn)
    assert w.dtype == b.dtype == dtype
    np.testing.assert_array_equal(w, exact.astype(dtype))


def test_a_half_weight_that_would_overflow_is_refused(rng):
    bn = trained(rng, 2)
    bn.gamma[:], bn.running_var[:] = 100, 1e-6
    with pytest.raises(ValueError, match="(?s)weight.*float16"):
        fastbn.fold_linear(np.full((2, 2), 1000, np.float16), None, bn)


# --- Convolutions -----------------------------------------------------------------------------------------------------

# weight's shape, groups, then the convolution's settings
CONVOLUTIONS = {
    "1d": ((6, 4, 3), 1, {"stride": 2, "padding": 1}),
    "2d": ((6, 4, 3, 3), 1, {"padding": 1, "dilation": 2}),
    "2d oblong": ((6, 4, 1, 3), 1, {"stride": (2, 1), "padding": (0, 2)}),
    "3d": ((3, 2, 2, 2, 2), 1, {"padding": 1}),
    "1x1": ((6, 4, 1, 1), 1, {}),
    "2 groups": ((6, 2, 3, 3), 2, {"padding": 1}),
    "3 groups 1d": ((6, 2, 3), 3, {"padding": 1}),
    "depthwise": ((4, 1, 3, 3), 4, {"padding": 1, "stride": 2}),
    "depthwise, 2 each": ((8, 1, 3, 3), 4, {}),
}
on_convolutions = pytest.mark.parametrize("shape, groups, settings", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
TRANSPOSED = {
    "1d": ((4, 6, 3), 1, {"stride": 2}),
    "2d": ((4, 6, 3, 3), 1, {"stride": 2, "padding": 1}),
    "3d": ((2, 3, 2, 2, 2), 1, {}),
    "2 groups": ((4, 3, 3, 3), 2, {"stride": 2, "padding": 1}),
    "depthwise": ((4, 1, 3, 3), 4, {"stride": 2}),
    "3 groups, more in than out": ((12, 2, 2, 2), 3, {}),
}
on_transposed = pytest.mark.parametrize("shape, groups, settings", TRANSPOSED.values(), ids=TRANSPOSED)


def images(rng, channels, axes, size=6):
    return normal(rng, 2, channels, *range(size, size + axes), dtype=np.float64)


@on_switches
@on_bias
@on_convolutions
def test_after_a_convolution(rng, shape, groups, settings, switches, with_bias):
    weight, bias = normal(rng, *shape), normal(rng, shape[0]) if with_bias else None
    bn, x = trained(rng, shape[0], **switches), images(rng, shape[1] * groups, len(shape) - 2)
    w, b = fastbn.fold_conv(weight, bias, bn, groups=groups)
    assert w.shape == shape and w.dtype == b.dtype == np.float32 and b.shape == (shape[0],)
    expected = bn(convolve(x, weight, bias, groups=groups, **settings))
    assert_close(convolve(x, w, b, groups=groups, **settings), expected)


@on_switches
@on_bias
@on_convolutions
def test_before_a_convolution_without_padding(rng, shape, groups, settings, switches, with_bias):
    weight, bias = normal(rng, *shape), normal(rng, shape[0]) if with_bias else None
    channels, settings = shape[1] * groups, {**settings, "padding": 0}
    bn, x = trained(rng, channels, **switches), images(rng, channels, len(shape) - 2)
    w, b = fastbn.fold_conv(weight, bias, bn, bn_first=True, groups=groups, padding=0)
    expected = convolve(bn(x), weight, bias, groups=groups, **settings)
    assert_close(convolve(x, w, b, groups=groups, **settings), expected)


@on_switches
@on_bias
@on_transposed
def test_after_a_transposed_convolution(rng, shape, groups, settings, switches, with_bias):
    outputs = shape[1] * groups
    weight, bias = normal(rng, *shape), normal(rng, outputs) if with_bias else None
    bn, x = trained(rng, outputs, **switches), images(rng, shape[0], len(shape) - 2)
    w, b = fastbn.fold_conv(weight, bias, bn, transposed=True, groups=groups)
    assert w.shape == shape and b.shape == (outputs,)
    expected = bn(convolve_transposed(x, weight, bias, groups=groups, **settings))
    assert_close(convolve_transposed(x, w, b, groups=groups, **settings), expected)


@pytest.mark.parametrize("ours, theirs", [("reflect", "reflect"), ("replicate", "edge"), ("circular", "wrap")])
def test_before_a_convolution_that_pads_with_entries_of_its_input(rng, ours, theirs):
    weight, bn, x = normal(rng, 5, 4, 3, 3), trained(rng, 4), images(rng, 4, 2)
    w, b = fastbn.fold_conv(weight, None, bn, bn_first=True, padding=1, padding_mode=ours)
    assert_close(convolve(x, w, b, padding=1, mode=theirs), convolve(bn(x), weight, padding=1, mode=theirs))


@pytest.mark.parametrize("padding", [1, (0, 1), [1, 1], "same", np.int64(2)], ids=repr)
def test_before_a_zero_padded_convolution_is_refused(rng, padding):
    weight, bn = normal(rng, 5, 4, 3, 3), trained(rng, 4)
    with pytest.raises(ValueError, match="(?s)zero padding.*fold.*shift.*border"):
        fastbn.fold_conv(weight, None, bn, bn_first=True, padding=padding)
    if padding == 1:  # and rightly so: inside, folding would be right, at the border not
        w, b = fastbn.fold_conv(weight, None, bn, bn_first=True, padding=0)
        x = images(rng, 4, 2)
        difference = np.abs(convolve(x, w, b, padding=1) - convolve(bn(x), weight, padding=1))
        assert difference[:, :, 1:-1, 1:-1].max() < 1e-5 < 0.1 < difference[:, :, 0].max()


@pytest.mark.parametrize("kernel", [(3, 1), (1, 3), (2, 2), (1, 5)], ids=str)
def test_before_a_same_convolution_of_any_kernel_that_pads_is_refused(rng, kernel):
    with pytest.raises(ValueError, match="zero padding"):
        fastbn.fold_conv(normal(rng, 5, 4, *kernel), None, trained(rng, 4), bn_first=True, padding="same")


def test_before_a_convolution_the_padding_must_be_named(rng):
    with pytest.raises(ValueError, match="(?s)padding is None.*padding=0"):
        fastbn.fold_conv(normal(rng, 5, 4, 3, 3), None, trained(rng, 4), bn_first=True)


@pytest.mark.parametrize("padding", ["valid", 0, (0, 0)], ids=repr)
def test_before_a_convolution_no_padding_has_many_names(rng, padding):
    weight, bn = normal(rng, 5, 4, 3, 3), trained(rng, 4)
    fastbn.fold_conv(weight, None, bn, bn_first=True, padding=padding)
    fastbn.fold_conv(weight[..., :1, :1], None, bn, bn_first=True, padding="same")


def test_before_with_a_shift_of_zero_zero_padding_is_exact(rng):
    weight, bn, x = normal(rng, 5, 4, 3, 3), trained(rng, 4, center=False), images(rng, 4, 2)
    bn.running_mean[:] = 0
    w, b = fastbn.fold_conv(weight, None, bn, bn_first=True, padding=1)
    assert_close(convolve(x, w, b, padding=1), convolve(bn(x), weight, padding=1))


def test_before_a_transposed_convolution(rng):
    weight, bn, x = normal(rng, 4, 3, 3, 3), trained(rng, 4, center=False), images(rng, 4, 2)
    with pytest.raises(ValueError, match="(?s)before a transposed convolution.*fold.*border"):
        fastbn.fold_conv(weight, None, bn, bn_first=True, transposed=True, padding=0)
    bn.running_mean[:] = 0
    bn_2 = trained(rng, 6, center=False)
    bn_2.running_mean[:] = 0
    w, b = fastbn.fold_conv(weight, None, bn, bn_first=True, transposed=True)
    assert_close(convolve_transposed(x, w, b, stride=2), convolve_transposed(bn(x), weight, stride=2))
    grouped, x = normal(rng, 6, 2, 3, 3), images(rng, 6, 2)
    w, b = fastbn.fold_conv(grouped, None, bn_2, bn_first=True, transposed=True, groups=2)
    assert_close(convolve_transposed(x, w, b, groups=2), convolve_transposed(bn_2(x), grouped, groups=2))


def test_keras_kernels_as_the_docstrings_say(rng):
    kernel, bn, x = normal(rng, 3, 3, 4, 5), trained(rng, 5), images(rng, 4, 2)
    w, b = fastbn.fold_conv(np.moveaxis(kernel, (-1, -2), (0, 1)), None, bn)
    direct = sum(x[:, :, i:i + 4, j:j + 5].transpose(0, 2, 3, 1) @ kernel[i, j] for i in range(3) for j in range(3))
    assert_close(convolve(x, w, b), bn(direct.transpose(0, 3, 1, 2)))
    depthwise, bn_8 = normal(rng, 3, 3, 4, 2), trained(rng, 8)  # output 2 * i + j is of input i
    direct = sum(x[:, :, None, i:i + 4, j:j + 5] * depthwise[i, j][:, :, None, None] for i in range(3) for j in range(3))
    w, b = fastbn.fold_conv(np.moveaxis(depthwise.reshape(3, 3, 1, -1), (-1, -2), (0, 1)), None, bn_8, groups=4)
    assert_close(convolve(x, w, b, groups=4), bn_8(direct.reshape(2, 8, 4, 5)))
    dense = normal(rng, 4, 5)
    w, b = fastbn.fold_linear(dense.T, None, bn)
    assert_close(x[:, :, 0, 0] @ w.T + b, bn(x[:, :, 0, 0] @ dense))


# --- Whole networks ---------------------------------------------------------------------------------------------------


def test_a_network_folds_to_one_without_batch_norm(rng):
    """conv, bn, relu, depthwise, bn, relu, bn, 1x1, relu, transposed and grouped, bn, flatten, bn, linear."""
    norms = [trained(rng, c) for c in (8, 8, 8, 6)] + [trained(rng, 6 * 11 * 11)]
    weights = [normal(rng, *s) / math.sqrt(math.prod(s[1:])) for s in
               ((8, 3, 3, 3), (8, 1, 3, 3), (12, 8, 1, 1), (12, 3, 3, 3), (10, 6 * 11 * 11))]
    x = normal(rng, 4, 3, 10, 10)

    def run(x, layers):
        a = np.maximum(layers[0](x), 0)
        a = np.maximum(layers[1](a), 0)
        a = np.maximum(layers[2](a), 0)
        return layers[4](layers[3](a).reshape(len(x), -1))

    plain = [lambda x: norms[0](convolve(x, weights[0], padding=1)),
             lambda x: norms[1](convolve(x, weights[1], groups=8, stride=2, padding=1)),
             lambda x: convolve(norms[2](x), weights[2]),
             lambda x: norms[3](convolve_transposed(x, weights[3], groups=2, stride=2)),
             lambda x: norms[4](x) @ weights[4].T]
    folded = [fastbn.fold_conv(weights[0], None, norms[0]), fastbn.fold_conv(weights[1], None, norms[1], groups=8),
              fastbn.fold_conv(weights[2], None, norms[2], bn_first=True, padding=0),
              fastbn.fold_conv(weights[3], None, norms[3], transposed=True, groups=2),
              fastbn.fold_linear(weights[4], None, norms[4], bn_first=True)]
    fast = [lambda x: convolve(x, *folded[0], padding=1),
            lambda x: convolve(x, *folded[1], groups=8, stride=2, padding=1), lambda x: convolve(x, *folded[2]),
            lambda x: convolve_transposed(x, *folded[3], groups=2, stride=2),
            lambda x: x @ folded[4][0].T + folded[4][1]]
    assert_close(run(x, fast), run(x, plain))


def torch_or_skip():
    return pytest.importorskip("torch", reason="PyTorch is not installed")


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True], ids=["", "transposed"])
@pytest.mark.parametrize("groups", [1, 2, 4])
@on_bias
def test_against_torch_modules(rng, axes, transposed, groups, with_bias):
    torch = torch_or_skip()
    torch.manual_seed(0)
    kind = getattr(torch.nn, f"Conv{'Transpose' * transposed}{axes}d")
    conv = kind(4, 8, 3, stride=2, padding=1, groups=groups, bias=with_bias)
    norm = getattr(torch.nn, f"BatchNorm{axes}d")(8)
    x = torch.randn(4, 4, *range(5, 5 + axes))
    norm(conv(x))
    torch.nn.init.uniform_(norm.weight, 0.5, 2.0)
    torch.nn.init.normal_(norm.bias)
    norm.eval()
    folded = kind(4, 8, 3, stride=2, padding=1, groups=groups)
    bn = fastbn.BatchNorm.from_torch(norm)
    w, b = fastbn.fold_conv(conv.weight, conv.bias, bn, transposed=transposed, groups=groups)
    folded.load_state_dict({"weight": torch.as_tensor(w), "bias": torch.as_tensor(b)})
    with torch.no_grad():
        assert_close(folded(x).numpy(), norm(conv(x)).numpy())


def test_against_torchs_own_fusion(rng):
    torch = torch_or_skip()
    linear, norm = torch.nn.Linear(5, 7), torch.nn.BatchNorm1d(7)
    norm(linear(torch.randn(30, 5)))
    expected = torch.nn.utils.fusion.fuse_linear_bn_eval(linear.eval(), norm.eval())
    w, b = fastbn.fold_linear(linear.weight, linear.bias, fastbn.BatchNorm.from_torch(norm))
    np.testing.assert_allclose(w, expected.weight.detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(b, expected.bias.detach().numpy(), rtol=1e-5, atol=1e-6)


# --- Bad input --------------------------------------------------------------------------------------------------------

W2, W4 = np.ones((5, 4), np.float32), np.ones((6, 2, 3, 3), np.float32)


def bn_of(features):
    return fastbn.BatchNorm(features)


REFUSED = {
    "another bn": (lambda: fastbn.fold_linear(W2, None, object()), TypeError, "bn is a object.*BatchNorm"),
    "no weight": (lambda: fastbn.fold_linear(None, None, bn_of(5)), TypeError, "weight is None"),
    "integer weight": (lambda: fastbn.fold_linear(W2.astype(int), None, bn_of(5)), TypeError, "weight.*int64"),
    "integer bias": (lambda: fastbn.fold_linear(W2, np.ones(5, int), bn_of(5)), TypeError, "bias.*int64"),
    "masked weight": (lambda: fastbn.fold_linear(np.ma.masked_less(W2, 0), None, bn_of(5)), TypeError, "weight.*mask"),
    "masked half weight": (lambda: fastbn.fold_linear(np.ma.masked_less(W2.astype("f2"), 0), None, bn_of(5)), TypeError,
                           "weight.*mask"),
    "conv weight to linear": (lambda: fastbn.fold_linear(W4, None, bn_of(6)), ValueError, "weight.*fold_conv"),
    "linear weight to conv": (lambda: fastbn.fold_conv(W2, None, bn_of(5)), ValueError, "weight.*fold_linear"),
    "short bias": (lambda: fastbn.fold_linear(W2, np.ones(4), bn_of(5)), ValueError, r"bias.*\(4,\).*\(5,\)"),
    "features of Keras": (lambda: fastbn.fold_linear(W2, None, bn_of(4)), ValueError, "4 features.*5.*Keras"),
    "features": (lambda: fastbn.fold_linear(W2, None, bn_of(7)), ValueError, "7 features.*5"),
    "features before": (lambda: fastbn.fold_linear(W2, None, bn_of(5), bn_first=True), ValueError, "5 features.*4"),
    "conv features": (lambda: fastbn.fold_conv(W4, None, bn_of(2)), ValueError, "2 features.*6.*transposed"),
    "transposed features": (lambda: fastbn.fold_conv(W4, None, bn_of(6), transposed=True), ValueError, "6 features.*2"),
    "groups": (lambda: fastbn.fold_conv(W4, None, bn_of(6), groups=4), ValueError, "groups is 4.*6 output"),
    "no groups": (lambda: fastbn.fold_conv(W4, None, bn_of(6), groups=0), ValueError, "groups is 0"),
    "half a group": (lambda: fastbn.fold_conv(W4, None, bn_of(6), groups=1.5), TypeError, "groups is 1.5"),
    "padding mode": (lambda: fastbn.fold_conv(W4, None, bn_of(2), bn_first=True, padding=0, padding_mode="mirror"),
                     ValueError, "padding_mode is 'mirror'.*reflect"),
}


@pytest.mark.parametrize("call, error, message", REFUSED.values(), ids=REFUSED)
def test_refused_with_the_reason(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert re.search(message, str(caught.value), re.DOTALL), caught.value


@pytest.mark.parametrize("activation", ["relu", ("leaky_relu", 0.2)], ids=str)
def test_an_activation_is_no_part_of_the_weights(rng, activation):
    """Refused, unless the caller says that it is applied elsewhere; between the two nothing can be."""
    bn, conv_bn = trained(rng, 5, activation=activation), trained(rng, 6, activation=activation)
    for call, weight, layer in ((fastbn.fold_linear, normal(rng, 5, 4), bn),
                                (fastbn.fold_conv, normal(rng, 6, 2, 3, 3), conv_bn)):
        with pytest.raises(ValueError, match=r"(?s)bn has activation=.*pass activation='separate'"):
            call(weight, None, layer)
        with pytest.raises(ValueError, match="activation is 'relu', expected None or 'separate'"):
            call(weight, None, layer, activation="relu")
        folded = call(weight, None, layer, activation="separate")
        layer.activation = None
        for got, want in zip(folded, call(weight, None, layer, activation="separate"), strict=True):
            np.testing.assert_array_equal(got, want)
    x, weight = normal(rng, 7, 4), normal(rng, 5, 4)
    bn.activation = activation
    z = x @ fastbn.fold_linear(weight, None, bn, activation="separate")[0].T
    z += fastbn.fold_linear(weight, None, bn, activation="separate")[1]
    assert_close(np.where(z > 0, z, (0.0 if activation == "relu" else 0.2) * z), bn(x @ weight.T))
    conv_bn.activation = activation
    for call in (lambda act: fastbn.fold_linear(normal(rng, 4, 5), None, bn, bn_first=True, activation=act),
                 lambda act: fastbn.fold_conv(normal(rng, 4, 6, 3), None, conv_bn, bn_first=True, padding=0, activation=act)):
        for act in (None, "separate"):
            with pytest.raises(ValueError, match="stands between the batch norm and the layer after it"):
                call(act)


@pytest.mark.parametrize("padding, error", [("full", ValueError), (0.5, TypeError)])
def test_a_padding_that_is_none_is_refused(rng, padding, error):
    with pytest.raises(error, match="padding is"):
        fastbn.fold_conv(normal(rng, 5, 4, 3, 3), None, trained(rng, 4), bn_first=True, padding=padding)
