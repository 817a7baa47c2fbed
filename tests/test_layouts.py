"""Where the input lies in memory does not matter: strides, order, alignment, byte order, lists, objects with __array__.

Every layout is a function that puts the same values elsewhere; every operation of it, and the layer's two modes, are
compared with the reference on a plain copy.
"""
import copy

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

import fastbn
from oracle import (FLOATS, check_every_operation, check_forward, check_gradients, native_copy, parameters, read_only,
                    sample, statistics, strided, unaligned)

pytestmark = pytest.mark.filterwarnings("error")

SHAPES = [
    ((7, 5), 1), ((7, 5), 0), ((40, 3), 1), ((6, 5, 7), 1), ((6, 7, 5), -1), ((4, 3, 5, 6), 1), ((4, 5, 6, 3), -1),
    ((4, 5, 3, 6), 2), ((3, 4, 2, 2), 1), ((2, 3, 4, 3, 5), 1),
]
on_shapes = pytest.mark.parametrize("shape, axis", SHAPES, ids=str)


class ArrayLike:
    """Nothing but __array__, as other libraries' tensors offer it."""

    def __init__(self, values):
        self._values = values

    def __array__(self, dtype=None, copy=None):
        return np.array(self._values, dtype=dtype)


def steps_on(axis, step):
    """A layout with that step along one axis, and none along the others."""
    def layout(x):
        steps = [1] * x.ndim
        steps[axis] = step
        return strided(x, range(x.ndim), steps)
    return layout


def inside_a_larger_array(x):
    """Padded on every side, as a crop is."""
    outer = np.full([size + 3 for size in x.shape], 7, x.dtype)
    view = outer[tuple(slice(1, -2) for _ in x.shape)]
    view[...] = x
    return view


LAYOUTS = {
    "c_order": np.array,
    "fortran_order": np.asfortranarray,
    "axes_rotated": lambda x: strided(x, np.roll(range(x.ndim), 1), [1] * x.ndim),
    "last_two_axes_swapped": lambda x: strided(x, [*range(x.ndim - 2), x.ndim - 1, x.ndim - 2], [1] * x.ndim),
    "every_other_sample": steps_on(0, 2),
    "samples_reversed": steps_on(0, -1),
    "every_third_on_axis_1": steps_on(1, 3),
    "axis_1_reversed": steps_on(1, -1),
    "every_other_innermost": steps_on(-1, 2),
    "innermost_reversed": steps_on(-1, -1),
    "all_reversed_and_stepped": lambda x: strided(x, range(x.ndim), [-2] * x.ndim),
    "fortran_order_reversed": lambda x: strided(x, range(x.ndim)[::-1], [-1] * x.ndim),
    "inside_a_larger_array": inside_a_larger_array,
    "read_only": read_only,
    "unaligned": unaligned,
    "other_byte_order": lambda x: x.astype(x.dtype.newbyteorder()),
    "unaligned_other_byte_order": lambda x: unaligned(x.astype(x.dtype.newbyteorder())),
    "array_like": ArrayLike,
    "subclass": lambda x: x.copy().view(type("Subclass", (np.ndarray,), {})),
}
on_layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def check_layer(x, dy, rng, axis, dtype):
    """Training, backward, inference and frozen backward of a layer."""
    plain, plain_dy = native_copy(x), native_copy(dy)
    layer = fastbn.BatchNorm(plain.shape[axis], axis=axis, dtype=dtype)
    layer.gamma, layer.beta = parameters(rng, plain.shape[axis], dtype)
    batch = statistics(plain, axis)
    check_forward(layer(x), plain, batch.mean, batch.var, layer.gamma, layer.beta, axis=axis)
    dx = layer.backward(dy)
    check_gradients((dx, layer.dgamma, layer.dbeta), plain, plain_dy, batch.mean, batch.var, layer.gamma, axis=axis)
    layer.eval()
    kept = copy.deepcopy(layer)
    check_forward(layer(x), plain, kept.running_mean, kept.running_var, layer.gamma, layer.beta, axis=axis)


@on_layouts
@on_shapes
@pytest.mark.parametrize("dtype", FLOATS)
def test_functions(rng, layout, shape, axis, dtype):
    x = layout(sample(rng, shape, axis=axis, dtype=dtype, ratio=2.0))
    dy = sample(rng, shape, axis=axis, dtype=dtype)
    check_every_operation(x, dy, rng, axis=axis)


@on_layouts
@on_shapes
def test_functions_with_that_layout_of_dy(rng, layout, shape, axis):
    x = sample(rng, shape, axis=axis, ratio=2.0)
    check_every_operation(x, layout(sample(rng, shape, axis=axis)), rng, axis=axis)


@on_layouts
@on_shapes
@pytest.mark.parametrize("dtype", FLOATS)
def test_layer(rng, layout, shape, axis, dtype):
    x = layout(sample(rng, shape, axis=axis, ratio=2.0))
    check_layer(x, layout(sample(rng, shape, axis=axis)), rng, axis, dtype)


@on_layouts
def test_the_input_keeps_its_values(rng, layout):
    x = layout(sample(rng, (6, 5, 4)))
    before = native_copy(x)
    layer = fastbn.BatchNorm(5)
    layer(x)
    layer.backward(x)
    layer.eval()(x)
    fastbn.moments(x)
    np.testing.assert_array_equal(np.asarray(x), before)


@pytest.mark.parametrize("name", ["other_byte_order", "unaligned", "array_like", "subclass", "fortran_order"])
def test_results_are_plain_native_arrays(rng, name):
    x = LAYOUTS[name](sample(rng, (6, 5, 4)))
    y, saved = fastbn.batch_norm_training(x)
    dx, dgamma, dbeta = fastbn.batch_norm_backward(x, saved)
    layer = fastbn.BatchNorm(5)
    for result in (y, dx, dgamma, dbeta, layer(x), layer.backward(x), layer.eval()(x)):
        assert type(result) is np.ndarray
        assert result.dtype == np.float32 and result.dtype.isnative
        assert result.flags.writeable and result.flags.aligned


@pytest.mark.parametrize("axes", [0, 1, 2, 3, (0, 2, 3), (2, 3), (0, 1, 2, 3)], ids=str)
@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("dtype", FLOATS)
def test_broadcast_input(rng, axes, axis, dtype):
    """Stride 0 along some axes; a whole gradient of one number is the usual case."""
    shape = (5, 4, 6, 3)
    axes = axes if isinstance(axes, tuple) else (axes,)
    small = [1 if i in axes else size for i, size in enumerate(shape)]
    x = sample(rng, shape, axis=axis, dtype=dtype)
    broadcast = np.broadcast_to(sample(rng, small, axis=axis, dtype=dtype), shape)
    check_every_operation(broadcast, x, rng, axis=axis)
    check_every_operation(x, broadcast, rng, axis=axis)
    check_layer(broadcast, broadcast, rng, axis, dtype)


@pytest.mark.parametrize("axis", [1, 0, -1])
@pytest.mark.parametrize("dtype", FLOATS)
def test_overlapping_windows_as_input(rng, axis, dtype):
    windows = sliding_window_view(sample(rng, (40, 3), dtype=dtype), 8, axis=0)  # (33, 3, 8), strides shared
    check_every_operation(windows, sample(rng, windows.shape, axis=axis, dtype=dtype), rng, axis=axis)


@pytest.mark.parametrize("dtype", FLOATS)
def test_memory_mapped_input(rng, tmp_path, dtype):
    x = np.memmap(tmp_path / "x", dtype, mode="w+", shape=(20, 3, 5))
    x[...] = sample(rng, x.shape, dtype=dtype)
    check_every_operation(x, sample(rng, x.shape, dtype=dtype), rng)
    assert type(fastbn.batch_norm_training(x)[0]) is np.ndarray


def test_nested_lists_are_float64(rng):
    x = sample(rng, (6, 3, 2), dtype=np.float64)
    dy = sample(rng, x.shape, dtype=np.float64)
    gamma, beta = parameters(rng, 3, np.float64)
    y, saved = fastbn.batch_norm_training(x.tolist(), gamma.tolist(), beta.tolist())
    expected, expected_saved = fastbn.batch_norm_training(x, gamma, beta)
    np.testing.assert_array_equal(y, expected)
    gradients = fastbn.batch_norm_backward(dy.tolist(), saved)
    for actual, wanted in zip(gradients, fastbn.batch_norm_backward(dy, expected_saved), strict=True):
        assert actual.dtype == np.float64
        np.testing.assert_array_equal(actual, wanted)
    np.testing.assert_array_equal(fastbn.batch_norm_inference(x.tolist(), beta.tolist(), [1.0, 2.0, 3.0]),
                                  fastbn.batch_norm_inference(x, beta, np.array([1.0, 2.0, 3.0])))
    np.testing.assert_array_equal(fastbn.moments(x.tolist()).mean, fastbn.moments(x).mean)


@pytest.mark.parametrize("lay", [lambda v: np.repeat(v, 2)[::2], lambda v: v[::-1].copy()[::-1], read_only, unaligned,
                                 lambda v: v.astype(v.dtype.newbyteorder()), ArrayLike],
                         ids=["stepped", "reversed", "read_only", "unaligned", "other_byte_order", "array_like"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_parameters_in_any_layout(rng, lay, dtype):
    x = sample(rng, (9, 5, 4))
    dy = sample(rng, x.shape)
    gamma, beta = parameters(rng, 5, dtype)
    mean, var = beta + 1, gamma**2
    y, saved = fastbn.batch_norm_training(x, gamma, beta)
    same, same_saved = fastbn.batch_norm_training(x, lay(gamma), lay(beta))
    np.testing.assert_array_equal(same, y)
    for actual, wanted in zip(fastbn.batch_norm_backward(dy, same_saved), fastbn.batch_norm_backward(dy, saved),
                              strict=True):
        assert actual.dtype == wanted.dtype and actual.dtype.isnative
        np.testing.assert_array_equal(actual, wanted)
    np.testing.assert_array_equal(
        fastbn.batch_norm_inference(x, lay(mean), lay(var), lay(gamma), lay(beta)),
        fastbn.batch_norm_inference(x, mean, var, gamma, beta))


# --- Several feature axes -------------------------------------------------------------------------------------------


def joined(a, axes):
    """The same values with the feature axes, in ascending order, made one, the last."""
    axes = sorted(axis % a.ndim for axis in axes)
    others = [i for i in range(a.ndim) if i not in axes]
    a = np.transpose(a, [*others, *axes])
    return a.reshape(*a.shape[:len(others)], -1)


@pytest.mark.parametrize("axes", [(1, 2), (1, 3), (2, 3), (3, 1), (0, 2), (-1, 1), (1, 2, 3), (1,)], ids=str)
@pytest.mark.parametrize("layout", ["c_order", "fortran_order", "axes_rotated", "every_other_innermost"])
def test_several_feature_axes(rng, axes, layout):
    x, dy = (LAYOUTS[layout](sample(rng, (5, 3, 4, 6))) for _ in range(2))
    plain, plain_dy = joined(x, axes), joined(dy, axes)
    features = plain.shape[-1]
    gamma, beta = parameters(rng, features)
    stats = statistics(plain, -1)

    y, saved = fastbn.batch_norm_training(x, gamma, beta, axis=axes)
    dx, dgamma, dbeta = fastbn.batch_norm_backward(dy, saved)
    assert y.shape == dx.shape == x.shape
    check_forward(joined(y, axes), plain, stats.mean, stats.var, gamma, beta, axis=-1)
    check_gradients((joined(dx, axes), dgamma, dbeta), plain, plain_dy, stats.mean, stats.var, gamma, axis=-1)
    np.testing.assert_allclose(fastbn.moments(x, axis=axes).mean, saved.mean, rtol=1e-6, atol=1e-6)

    layer = fastbn.BatchNorm(features, axis=axes)
    check_forward(joined(layer(x), axes), plain, stats.mean, stats.var, axis=-1)
    check_forward(joined(layer.eval()(x), axes), plain, layer.running_mean, layer.running_var, axis=-1)


@pytest.mark.parametrize("order", [(0, 2, 4, 1, 3), (0, 1, 2, 3, 4), (4, 3, 1, 0, 2)], ids=str)
@pytest.mark.parametrize("policy", ["propagate", "omit"])
def test_results_for_axes_of_size_1_can_be_written_again(rng, policy, order):
    """Strides do not tell where such an axis lies: y was taken for an array that cannot be written in place."""
    x = strided(rng.normal(size=(31, 4, 1, 4, 1)).astype(np.float32), order, [2, 3, 1, 1, 1])
    dy = rng.normal(size=x.shape).astype(np.float32)
    x[3, 1, 0, 2, 0] = np.nan
    y, saved = fastbn.batch_norm_training(x, axis=(1, 4), nan_policy=policy)
    dx = fastbn.batch_norm_backward(dy, saved)[0]
    again, saved = fastbn.batch_norm_training(x, axis=(1, 4), nan_policy=policy, out=np.full_like(y, 7))
    assert again.tobytes() == y.tobytes()
    assert fastbn.batch_norm_backward(dy, saved, out=np.full_like(dx, 7))[0].tobytes() == dx.tobytes()
