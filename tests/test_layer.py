"""The layer: moving averages, training and inference mode, gradients, parameters, what it holds on to."""
import gc
import warnings
import weakref

import numpy as np
import pytest

import fastbn
from oracle import (FLOATS, central_differences, check_forward, check_gradients, moving_average, native_copy, parameters, sample, statistics, unbiased)

pytestmark = pytest.mark.filterwarnings("error")

SHAPES = [((12, 5), 1), ((60, 3), 1), ((4, 5, 6, 6), 1), ((4, 6, 6, 5), -1), ((5, 3, 4), 0), ((2, 3, 4, 5, 6), 1)]
on_shapes = pytest.mark.parametrize("shape, axis", SHAPES, ids=str)
RTOL = {np.float32: 2e-6, np.float64: 1e-12}


def make_layer(rng, features, **keywords):
    """A layer whose parameters and running statistics are not the initial ones."""
    layer = fastbn.BatchNorm(features, **keywords)
    gamma, beta = parameters(rng, features, layer.dtype)
    if layer.gamma is not None:
        layer.gamma[:] = gamma
    if layer.beta is not None:
        layer.beta[:] = beta
    if layer.running_mean is not None:
        layer.running_mean[:] = rng.standard_normal(features)
        layer.running_var[:] = rng.uniform(0.5, 2.0, features)
    return layer


# --- A fresh layer --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
def test_initial_state(dtype):
    layer = fastbn.BatchNorm(4, dtype=dtype)
    for values, initial in ((layer.gamma, 1), (layer.beta, 0), (layer.running_mean, 0), (layer.running_var, 1)):
        assert values.dtype == dtype and values.shape == (4,)
        np.testing.assert_array_equal(values, initial)
    assert layer.num_batches_tracked == 0
    assert layer.training is True
    assert layer.num_features == 4 and layer.dtype == dtype


def test_default_settings():
    layer = fastbn.BatchNorm(3)
    assert (layer.axis, layer.eps, layer.momentum, layer.ddof, layer.dtype) == (1, 1e-5, 0.9, 1, np.float32)


def test_train_and_eval_return_the_layer():
    layer = fastbn.BatchNorm(3)
    assert layer.eval() is layer and layer.training is False
    assert layer.train() is layer and layer.training is True
    assert layer.train(False) is layer and layer.training is False


def test_switched_off_parameters_are_none():
    layer = fastbn.BatchNorm(3, center=False, scale=False, track_running_stats=False)
    assert layer.gamma is None and layer.beta is None
    assert layer.running_mean is None and layer.running_var is None


def test_forward_is_the_call(rng):
    x = sample(rng, (6, 3))
    np.testing.assert_array_equal(fastbn.BatchNorm(3).forward(x), fastbn.BatchNorm(3)(x))


# --- Training and inference -----------------------------------------------------------------------------------------


@on_shapes
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("param_dtype", FLOATS)
@pytest.mark.parametrize("center, scale", [(True, True), (True, False), (False, True), (False, False)])
def test_training_then_inference(rng, shape, axis, dtype, param_dtype, center, scale):
    layer = make_layer(rng, shape[axis], axis=axis, dtype=param_dtype, center=center, scale=scale)
    x, dy = sample(rng, shape, axis=axis, dtype=dtype, ratio=3.0), sample(rng, shape, axis=axis, dtype=dtype)
    old_mean, old_var = layer.running_mean.copy(), layer.running_var.copy()
    stats = statistics(x, axis)

    y = layer(x)
    dx = layer.backward(dy)
    assert y.dtype == dx.dtype == dtype
    check_forward(y, x, stats.mean, stats.var, layer.gamma, layer.beta, axis=axis)
    dgamma, dbeta = layer.dgamma if scale else None, layer.dbeta if center else None
    check_gradients((dx, dgamma, dbeta), x, dy, stats.mean, stats.var, layer.gamma, axis=axis)
    for gradient in (dgamma, dbeta):
        assert gradient is None or gradient.dtype == param_dtype

    rtol = RTOL[np.float32 if np.float32 in (dtype, param_dtype) else np.float64]
    np.testing.assert_allclose(layer.running_mean, moving_average(old_mean, stats.mean, 0.9).astype(float), rtol=rtol,
                               atol=rtol)
    np.testing.assert_allclose(layer.running_var, moving_average(old_var, unbiased(stats, 1), 0.9).astype(float),
                               rtol=rtol)

    layer.eval()
    kept = layer.running_mean.copy(), layer.running_var.copy()
    y = layer(x)
    assert y.dtype == dtype
    check_forward(y, x, *kept, layer.gamma, layer.beta, axis=axis)


@on_shapes
def test_training_does_not_use_the_running_statistics(rng, shape, axis):
    x = sample(rng, shape, axis=axis)
    layer = fastbn.BatchNorm(shape[axis], axis=axis)
    expected = layer(x)
    layer.running_mean[:], layer.running_var[:] = 1e3, 1e-3
    np.testing.assert_array_equal(layer(x), expected)


@pytest.mark.parametrize("eps", [1e-12, 1e-3, 10.0])
def test_eps_in_both_modes(rng, eps):
    layer = make_layer(rng, 4, eps=eps)
    x, dy = sample(rng, (20, 4)), sample(rng, (20, 4))
    stats = statistics(x)
    check_forward(layer(x), x, stats.mean, stats.var, layer.gamma, layer.beta, eps=eps)
    check_gradients((layer.backward(dy), layer.dgamma, layer.dbeta), x, dy, stats.mean, stats.var, layer.gamma, eps=eps)
    layer.eval()
    check_forward(layer(x), x, layer.running_mean, layer.running_var, layer.gamma, layer.beta, eps=eps)


@on_shapes
def test_inference_changes_no_state(rng, shape, axis):
    layer = make_layer(rng, shape[axis], axis=axis).eval()
    before = {name: np.copy(value) for name, value in layer.state_dict().items()}
    layer(sample(rng, shape, axis=axis))
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize("shape, axis", [case for case in SHAPES if case[1] != 0], ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
def test_single_sample_inference_equals_its_row_of_the_batch(rng, shape, axis, dtype):
    layer = make_layer(rng, shape[axis], axis=axis).eval()
    x = sample(rng, shape, axis=axis, dtype=dtype)
    np.testing.assert_array_equal(np.concatenate([layer(row[None]) for row in x]), layer(x))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(40, 6), (40, 3), (6, 4, 5, 5), (2, 64)], ids=str)
@pytest.mark.parametrize("place", ["fresh", "x", "view of x"])
def test_out_is_returned_itself(rng, training, shape, place):
    layer = make_layer(rng, shape[1]).train(training)
    x = sample(rng, shape)
    expected = layer(x)
    out = {"fresh": np.full_like(x, np.nan), "x": x, "view of x": x[:]}[place]
    assert layer(x, out=out) is out
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("shape", [(40, 6), (6, 4, 5, 5)], ids=str)
def test_backward_out_is_returned_itself(rng, shape):
    layer = make_layer(rng, shape[1])
    x, dy = sample(rng, shape), sample(rng, shape)
    layer(x)
    expected = layer.backward(dy)
    for out in (np.full_like(x, np.nan), dy):
        layer(x)
        assert layer.backward(dy, out=out) is out
        np.testing.assert_array_equal(out, expected)


def test_in_place_training_then_backward(rng):
    layer = make_layer(rng, 4)
    x, dy = sample(rng, (6, 4, 5, 5), ratio=3.0), sample(rng, (6, 4, 5, 5))
    original, stats = x.copy(), statistics(x)
    layer(x, out=x)
    dx = layer.backward(dy)
    check_gradients((dx, layer.dgamma, layer.dbeta), original, dy, stats.mean, stats.var, layer.gamma, slack=4)


# --- Moving averages ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.99, 1.0, None])
def test_moving_averages_over_batches(rng, momentum, ddof, dtype):
    layer = fastbn.BatchNorm(5, momentum=momentum, ddof=ddof, dtype=dtype)
    mean, var = np.zeros(5), np.ones(5)
    for k, size in enumerate((2, 7, 30, 11)):
        x = sample(rng, (size, 5, 3), dtype=dtype, ratio=float(k))
        layer(x)
        batch = statistics(x)
        mean = moving_average(mean, batch.mean, momentum, k)
        var = moving_average(var, unbiased(batch, ddof), momentum, k)
        assert layer.num_batches_tracked == k + 1
        np.testing.assert_allclose(layer.running_mean, mean.astype(float), rtol=RTOL[dtype], atol=RTOL[dtype])
        np.testing.assert_allclose(layer.running_var, var.astype(float), rtol=RTOL[dtype])


def test_momentum_one_keeps_the_old_average(rng):
    layer = make_layer(rng, 3, momentum=1.0)
    mean, var = layer.running_mean.copy(), layer.running_var.copy()
    layer(sample(rng, (20, 3)))
    np.testing.assert_array_equal(layer.running_mean, mean)
    np.testing.assert_array_equal(layer.running_var, var)


def test_momentum_zero_takes_the_last_batch(rng):
    with pytest.warns(UserWarning, match="PyTorch"):
        layer = fastbn.BatchNorm(3, momentum=0.0, ddof=0, dtype=np.float64)
    for _ in range(2):
        x = sample(rng, (20, 3), dtype=np.float64)
        layer(x)
    np.testing.assert_allclose(layer.running_mean, statistics(x).mean.astype(float), rtol=1e-13)
    np.testing.assert_allclose(layer.running_var, statistics(x).var.astype(float), rtol=1e-13)


def test_momentum_may_change_between_batches(rng):
    layer = fastbn.BatchNorm(3, dtype=np.float64)
    x = sample(rng, (20, 3), dtype=np.float64, ratio=2.0)
    layer.momentum = 0.75
    layer(x)
    np.testing.assert_allclose(layer.running_mean, 0.25 * statistics(x).mean.astype(float), rtol=1e-13)


def test_running_arrays_are_updated_in_place(rng):
    """Whoever holds a reference (an exponential average of weights, a logger) sees the new values."""
    layer = fastbn.BatchNorm(3)
    mean, var = layer.running_mean, layer.running_var
    layer(sample(rng, (20, 3), ratio=2.0))
    assert layer.running_mean is mean and layer.running_var is var
    assert (mean != 0).all()


def test_reset_running_stats(rng):
    layer = make_layer(rng, 3)
    layer(sample(rng, (20, 3), ratio=2.0))
    gamma = layer.gamma.copy()
    layer.reset_running_stats()
    np.testing.assert_array_equal(layer.running_mean, 0)
    np.testing.assert_array_equal(layer.running_var, 1)
    assert layer.num_batches_tracked == 0
    np.testing.assert_array_equal(layer.gamma, gamma)


@on_shapes
def test_without_running_statistics_inference_uses_the_batch(rng, shape, axis):
    layer = make_layer(rng, shape[axis], axis=axis, track_running_stats=False)
    x = sample(rng, shape, axis=axis, ratio=5.0)
    y = layer(x)
    np.testing.assert_array_equal(layer.eval()(x), y)
    assert layer.running_mean is None and layer.running_var is None


def test_cumulative_average_of_equal_batches_is_the_population(rng):
    """Equal sizes and ddof=0: the mean of the batch means is the mean of everything."""
    x = sample(rng, (60, 3), dtype=np.float64, ratio=2.0)
    layer = fastbn.BatchNorm(3, momentum=None, dtype=np.float64)
    for batch in np.split(x, 6):
        layer(batch)
    np.testing.assert_allclose(layer.running_mean, statistics(x).mean.astype(float), rtol=1e-13)


# --- Degenerate batches ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("momentum", [0.9, None])
@pytest.mark.parametrize("shape", [(1, 5), (1, 5, 1, 1)], ids=str)
def test_one_value_per_feature(rng, shape, momentum, ddof):
    layer = make_layer(rng, 5, ddof=ddof, momentum=momentum)
    before = {name: np.copy(value) for name, value in layer.state_dict().items()}
    x, dy = sample(rng, shape, ratio=100.0), sample(rng, shape)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            np.testing.assert_array_equal(layer(x).ravel(), layer.beta)
    assert len(caught) == 1
    if ddof:
        for name, value in layer.state_dict().items():
            np.testing.assert_array_equal(value, before[name])
    else:  # the biased variance of one value is known: 0
        assert layer.num_batches_tracked == 3 + before["num_batches_tracked"]
        np.testing.assert_array_less(layer.running_var, before["running_var"])
    np.testing.assert_array_equal(layer.backward(dy), 0)
    np.testing.assert_array_equal(layer.dgamma, 0)
    np.testing.assert_array_equal(layer.dbeta, dy.ravel())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(0, 5), (4, 5, 0), (0, 5, 2, 2)], ids=str)
@pytest.mark.parametrize("momentum", [0.9, None])
def test_an_empty_batch_changes_nothing(rng, shape, training, momentum):
    layer = make_layer(rng, 5, momentum=momentum).train(training)
    before = {name: np.copy(value) for name, value in layer.state_dict().items()}
    x = np.empty(shape, np.float32)
    assert layer(x).shape == shape
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    out = np.empty(shape, np.float32)
    assert layer(x, out=out) is out


def test_backward_of_an_empty_batch(rng):
    layer = make_layer(rng, 5)
    x = np.empty((0, 5, 3), np.float32)
    layer(x)
    assert layer.backward(x).shape == x.shape
    np.testing.assert_array_equal(layer.dgamma, np.zeros(5))
    np.testing.assert_array_equal(layer.dbeta, np.zeros(5))


# --- Gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape, axis", [((7, 3), 1), ((3, 2, 2, 3), 1), ((2, 3, 2, 3), -1)])
@pytest.mark.parametrize("training", [True, False], ids=["training", "frozen"])
def test_central_differences(rng, shape, axis, training):
    layer = make_layer(rng, shape[axis], axis=axis, dtype=np.float64, momentum=1.0)
    if not training:
        layer.eval(backward=True)
    x, dy = (sample(rng, shape, axis=axis, dtype=np.float64) for _ in range(2))

    def loss():
        return float((layer(x) * dy).sum())

    layer(x)
    dx = layer.backward(dy)
    dgamma, dbeta = layer.dgamma.copy(), layer.dbeta.copy()
    for gradient, values in ((dx, x), (dgamma, layer.gamma), (dbeta, layer.beta)):
        np.testing.assert_allclose(gradient, central_differences(loss, values), rtol=1e-6, atol=1e-8)


@on_shapes
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("param_dtype", FLOATS)
def test_frozen_backward_in_inference_mode(rng, shape, axis, dtype, param_dtype):
    layer = make_layer(rng, shape[axis], axis=axis, dtype=param_dtype).eval(backward=True)
    x, dy = (sample(rng, shape, axis=axis, dtype=dtype) for _ in range(2))
    layer(x)
    dx = layer.backward(dy)
    assert dx.dtype == dtype
    check_gradients((dx, layer.dgamma, layer.dbeta), x, dy, layer.running_mean, layer.running_var, layer.gamma,
                    axis=axis, frozen=True)


def test_backward_overwrites_the_gradients(rng):
    layer = make_layer(rng, 3)
    x, dy = sample(rng, (20, 3)), sample(rng, (20, 3))
    for scale in (1, 2):
        layer(x)
        layer.backward(scale * dy)
    stats = statistics(x)
    check_gradients((None, layer.dgamma, layer.dbeta), x, 2 * dy, stats.mean, stats.var, layer.gamma)


def test_backward_uses_the_gamma_of_the_forward_call(rng):
    layer = make_layer(rng, 3)
    x, dy = sample(rng, (20, 3)), sample(rng, (20, 3))
    gamma, stats = layer.gamma.copy(), statistics(x)
    layer(x)
    layer.gamma *= 10
    check_gradients((layer.backward(dy), None, None), x, dy, stats.mean, stats.var, gamma)


def test_backward_belongs_to_the_last_forward_call(rng):
    layer = make_layer(rng, 3)
    first, second, dy = (sample(rng, (size, 3)) for size in (20, 30, 30))
    layer(first)
    layer(second)
    stats = statistics(second)
    check_gradients((layer.backward(dy), layer.dgamma, layer.dbeta), second, dy, stats.mean, stats.var, layer.gamma)


def test_backward_needs_a_forward_call_each_time(rng):
    layer = make_layer(rng, 3)
    x = sample(rng, (20, 3))
    with pytest.raises(RuntimeError, match="forward"):
        layer.backward(x)
    layer(x)
    layer.backward(x)
    with pytest.raises(RuntimeError, match="forward"):
        layer.backward(x)


@pytest.mark.parametrize("frozen", [False, True])
def test_x_is_released_after_backward(rng, frozen):
    layer = make_layer(rng, 3)
    if frozen:
        layer.eval(backward=True)
    x = sample(rng, (20, 3))
    reference, dy = weakref.ref(x), x.copy()
    layer(x)
    layer.backward(dy)
    del x
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize("tracks", [True, False])
def test_plain_inference_keeps_nothing_for_backward(rng, tracks):
    layer = make_layer(rng, 3, track_running_stats=tracks).eval()
    x = sample(rng, (20, 3))
    reference, dy = weakref.ref(x), x.copy()
    layer(x)
    del x
    gc.collect()
    assert reference() is None
    with pytest.raises(RuntimeError, match="forward"):
        layer.backward(dy)


def test_inference_in_between_does_not_disturb_backward(rng):
    """A look at the validation loss between forward and backward."""
    layer = make_layer(rng, 3)
    x, dy = sample(rng, (20, 3)), sample(rng, (20, 3))
    layer(x)
    expected = layer.backward(dy)
    layer(x)
    layer.eval()(dy)
    np.testing.assert_array_equal(layer.train().backward(dy), expected)


# --- Parameters -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("center, scale", [(True, True), (True, False), (False, True), (False, False)])
def test_parameters_are_name_value_gradient(rng, center, scale):
    layer = make_layer(rng, 3, center=center, scale=scale)
    layer(sample(rng, (20, 3)))
    layer.backward(sample(rng, (20, 3)))
    found = {name: (value, gradient) for name, value, gradient in layer.parameters()}
    assert set(found) == {name for name, on in (("gamma", scale), ("beta", center)) if on}
    for name, (value, gradient) in found.items():
        assert value is getattr(layer, name)
        np.testing.assert_array_equal(gradient, getattr(layer, "d" + name))


@pytest.mark.parametrize("training", [True, False])
def test_a_gradient_step_through_parameters_is_seen_by_the_next_call(rng, training):
    layer = make_layer(rng, 3).train()
    x = sample(rng, (20, 3))
    layer(x)
    layer.backward(sample(rng, (20, 3)))
    for _, value, gradient in layer.parameters():
        value -= 0.5 * gradient
    layer.train(training)
    stats = statistics(x)
    mean, var = (stats.mean, stats.var) if training else (layer.running_mean, layer.running_var)
    mean, var = np.copy(mean), np.copy(var)
    check_forward(layer(x), x, mean, var, layer.gamma, layer.beta)


@pytest.mark.parametrize("name", ["gamma", "beta", "running_mean", "running_var"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(1, 4), (20, 4), (3, 4, 5, 5)], ids=str)
def test_state_changed_in_place_is_seen_by_the_next_call(rng, name, dtype, shape):
    layer = make_layer(rng, 4, dtype=dtype).eval()
    x = sample(rng, shape)
    layer(x)
    for k in range(3):
        getattr(layer, name)[k] += 0.5
        check_forward(layer(x), x, layer.running_mean, layer.running_var, layer.gamma, layer.beta)


@pytest.mark.parametrize("name", ["gamma", "beta", "running_mean", "running_var"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("convert", [np.array, lambda v: np.repeat(v, 2)[::2], lambda v: v[::-1].copy()[::-1], list,
                                     lambda v: v.astype(np.float32), lambda v: v.astype(">f8")],
                         ids=["plain", "stepped", "reversed", "list", "float32", "big_endian"])
def test_state_may_be_assigned(rng, name, dtype, convert):
    layer = make_layer(rng, 4, dtype=dtype).eval()
    x = sample(rng, (9, 4, 3))
    layer(x)
    values = rng.uniform(0.5, 2.0, 4)
    setattr(layer, name, convert(values))
    stored = getattr(layer, name)
    assert stored.dtype == dtype and stored.dtype.isnative and stored.shape == (4,)
    np.testing.assert_allclose(stored, values, rtol=1e-7)
    check_forward(layer(x), x, layer.running_mean, layer.running_var, layer.gamma, layer.beta)
    stored[1] = 3.0
    check_forward(layer(x), x, layer.running_mean, layer.running_var, layer.gamma, layer.beta)


@pytest.mark.parametrize("name", ["gamma", "beta", "running_mean", "running_var"])
@pytest.mark.parametrize("value, error", [(np.ones(3), ValueError), (np.ones((1, 4)), ValueError), (1.0, ValueError),
                                          (np.ones(4, complex), TypeError), ("gamma", (TypeError, ValueError))],
                         ids=["short", "matrix", "scalar", "complex", "text"])
def test_assigned_state_of_a_wrong_shape_or_type_is_refused(rng, name, value, error):
    layer = make_layer(rng, 4)
    before = getattr(layer, name).copy()
    with pytest.raises(error, match=name):
        setattr(layer, name, value)
    np.testing.assert_array_equal(getattr(layer, name), before)


# --- repr -----------------------------------------------------------------------------------------------------------


def test_repr_names_the_class_and_the_features():
    assert repr(fastbn.BatchNorm(64)).startswith("BatchNorm(64")


@pytest.mark.parametrize("setting", [{"axis": -1}, {"eps": 0.001}, {"momentum": 0.75}, {"momentum": None}, {"ddof": 0},
                                     {"center": False}, {"scale": False}, {"track_running_stats": False}], ids=str)
def test_repr_shows_what_is_not_the_default(setting):
    (name, value), = setting.items()
    assert f"{name}={value!r}" in repr(fastbn.BatchNorm(8, **setting))


def test_repr_shows_the_type():
    assert "float64" in repr(fastbn.BatchNorm(8, dtype=np.float64))


# --- Both types of data through one layer ---------------------------------------------------------------------------


def test_data_of_another_type_may_follow(rng):
    layer = make_layer(rng, 3)
    for dtype in (np.float32, np.float64, np.float32):
        x = sample(rng, (20, 3), dtype=dtype)
        stats = statistics(x)
        y = layer(x)
        assert y.dtype == dtype
        check_forward(y, x, stats.mean, stats.var, layer.gamma, layer.beta)
        dx = layer.backward(native_copy(x))
        assert dx.dtype == dtype and layer.dgamma.dtype == np.float32
