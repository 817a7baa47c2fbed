"""Ghost batches: slices of the batch axis with statistics of their own; their gradients; one running update."""
import copy
import pickle

import numpy as np
import pytest
from oracle import (FLOATS, assert_within, central_differences, check_forward, check_gradients, parameters, sample, statistics, strided, unbiased)

import fastbn

pytestmark = pytest.mark.filterwarnings("error")

SHAPES = [((10, 5), 1), ((7, 5, 4, 3), 1), ((9, 4, 3, 5), -1), ((8, 3, 5, 40), 2)]
on_shapes = pytest.mark.parametrize("shape, axis", SHAPES, ids=str)
SIZES = [2, 3, 4, 100]


def slices(x, size):
    return [slice(i, i + size) for i in range(0, len(x), size)]


def orders(ndim):
    """In C order, in Fortran order, and with the batch axis in the middle of memory."""
    return {"C": range(ndim), "F": range(ndim)[::-1], "batch second": (1, 0, *range(2, ndim)),
            "batch inside": (*range(1, ndim - 1), 0, ndim - 1)}


def layouts(x):
    found = {name: strided(x, tuple(order), [1] * x.ndim) for name, order in orders(x.ndim).items()}
    found["every second"] = strided(x, range(x.ndim), [2] + [1] * (x.ndim - 1))
    found["backwards"] = strided(x, range(x.ndim), [-1] + [1] * (x.ndim - 1))
    return found


LAYOUTS = [*orders(2), "every second", "backwards"]


@on_shapes
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("param_dtype", [*FLOATS, None])
def test_each_slice_is_a_batch(rng, shape, axis, size, dtype, param_dtype):
    x, dy = (sample(rng, shape, axis=axis, dtype=dtype, ratio=3.0) for _ in range(2))
    gamma, beta = (None, None) if param_dtype is None else parameters(rng, 5, param_dtype)
    y, saved = fastbn.batch_norm_training(x, gamma, beta, axis=axis, ghost_batch_size=size)
    dx, dgamma, dbeta = fastbn.batch_norm_backward(dy, saved)
    assert y.dtype == dx.dtype == dtype and dgamma.dtype == dbeta.dtype == (param_dtype or dtype)
    assert saved.mean.shape == saved.var.shape == saved.rstd.shape == (len(slices(x, size)), 5)
    total = np.zeros(5), np.zeros(5)
    for i, s in enumerate(slices(x, size)):
        stats = statistics(x[s], axis)
        np.testing.assert_allclose(saved.mean[i], stats.mean.astype(float), rtol=1e-6, atol=1e-6)
        check_forward(y[s], x[s], stats.mean, stats.var, gamma, beta, axis=axis)
        wide = None if gamma is None else gamma.astype(float)
        own, part = fastbn.batch_norm_training(x[s], wide, beta, axis=axis)
        np.testing.assert_array_equal(y[s], own)
        found = fastbn.batch_norm_backward(dy[s], part)
        check_gradients((dx[s], None, None), x[s], dy[s], stats.mean, stats.var, gamma, axis=axis)
        total = [a + b for a, b in zip(total, found[1:])]
    rtol = 1e-6 if np.float32 in (dtype, param_dtype) else 1e-12
    np.testing.assert_allclose(dgamma, total[0], rtol=rtol, atol=rtol)
    np.testing.assert_allclose(dbeta, total[1], rtol=rtol, atol=rtol)


@pytest.mark.parametrize("layout", LAYOUTS)
@on_shapes
@pytest.mark.parametrize("dtype", FLOATS)
def test_layouts(rng, shape, axis, layout, dtype):
    values, gradient = (sample(rng, shape, axis=axis, dtype=dtype) for _ in range(2))
    x, dy = layouts(values)[layout], layouts(gradient)[layout]
    np.testing.assert_array_equal(x, values)
    gamma, beta = parameters(rng, 5, dtype)
    y, saved = fastbn.batch_norm_training(x, gamma, beta, axis=axis, ghost_batch_size=4)
    dx, dgamma, dbeta = fastbn.batch_norm_backward(dy, saved)
    for s in slices(values, 4):
        stats = statistics(values[s], axis)
        check_forward(y[s], values[s], stats.mean, stats.var, gamma, beta, axis=axis)
        check_gradients((dx[s], None, None), values[s], gradient[s], stats.mean, stats.var, gamma, axis=axis)
    _, plain = fastbn.batch_norm_training(values, gamma, beta, axis=axis, ghost_batch_size=4)
    expected = fastbn.batch_norm_backward(gradient, plain)
    np.testing.assert_allclose(dgamma, expected[1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dbeta, expected[2], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(x, values)


def error_of_plain_training(out, x, axis):
    """The error, or None."""
    try:
        fastbn.batch_norm_training(x, axis=axis, out=out)
    except ValueError as error:
        return error


@pytest.mark.parametrize("layout", LAYOUTS)
@on_shapes
def test_into_out_and_in_place(rng, shape, axis, layout):
    """Also where the memory of a slice is none that the core can write to, while that of the whole is."""
    values, gradient = (sample(rng, shape, axis=axis) for _ in range(2))
    gamma, beta = parameters(rng, 5)
    x, dy = layouts(values)[layout], layouts(gradient)[layout]
    if error_of_plain_training(layouts(values)[layout], x, axis):
        pytest.skip("no layout to write to, for a plain call either")
    expected, saved = fastbn.batch_norm_training(x, gamma, beta, axis=axis, ghost_batch_size=3)
    gradients = fastbn.batch_norm_backward(dy, saved)
    out = layouts(np.zeros_like(values))[layout]
    y, saved = fastbn.batch_norm_training(x, gamma, beta, axis=axis, ghost_batch_size=3, out=out)
    assert y is out
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)  # bits may depend on the layout
    dx, dgamma, dbeta = fastbn.batch_norm_backward(dy, saved, out=out)
    assert dx is out
    for actual, one in zip((dx, dgamma, dbeta), gradients):
        np.testing.assert_allclose(actual, one, rtol=1e-4, atol=1e-4)

    y, saved = fastbn.batch_norm_training(x, gamma, beta, axis=axis, ghost_batch_size=3, out=x)
    assert y is x
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)  # bits may depend on the layout
    dx, dgamma, dbeta = fastbn.batch_norm_backward(dy, saved, out=dy)
    assert dx is dy
    for s in slices(values, 3):
        stats = statistics(values[s], axis)
        check_gradients((dx[s], None, None), values[s], gradient[s], stats.mean, stats.var, gamma, axis=axis, slack=20)
    np.testing.assert_allclose(dgamma, gradients[1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dbeta, gradients[2], rtol=1e-4, atol=1e-4)


def test_nothing_is_copied(rng, monkeypatch):
    """Slices of planes, of a channels-last array and of a Fortran-ordered table are views for the core."""
    from fastbn._engine.layout import Arrangement
    monkeypatch.setattr(Arrangement, "contiguous", None)
    for shape, axis, order in (((9, 5, 4, 3), 1, "C"), ((9, 4, 3, 5), -1, "C"), ((900, 5), 1, "F")):
        x, dy = (layouts(sample(rng, shape, axis=axis))[order] for _ in range(2))
        y, saved = fastbn.batch_norm_training(x, axis=axis, ghost_batch_size=4 if order == "C" else 200)
        assert all(np.shares_memory(part.x, x) for part in saved.parts)
        fastbn.batch_norm_backward(dy, saved)


@on_shapes
@pytest.mark.parametrize("size", [1, 3, 4, 100])
def test_moments_are_the_whole_batch_s(rng, shape, axis, size):
    x = sample(rng, shape, axis=axis, ratio=100.0)
    _, saved = fastbn.batch_norm_training(x, axis=axis, ghost_batch_size=size)
    stats = statistics(x, axis)
    assert saved.moments.count == stats.count
    np.testing.assert_allclose(saved.moments.mean, stats.mean.astype(float), rtol=1e-7)
    np.testing.assert_allclose(saved.moments.var(), stats.var.astype(float), rtol=2e-6)


def test_merging_all_is_merging_one_by_one(rng):
    parts = [fastbn.moments(sample(rng, (n, 3), dtype=np.float64, ratio=5.0)) for n in (5, 1, 9, 40, 2, 3, 8)]
    for k in range(1, len(parts) + 1):
        all_at_once, one_by_one = fastbn.Moments.merge_all(parts[:k]), sum(parts[:k])
        assert all_at_once.count == one_by_one.count and type(all_at_once.count) is int
        np.testing.assert_allclose(all_at_once.mean, one_by_one.mean, rtol=1e-13)
        np.testing.assert_allclose(all_at_once.M2, one_by_one.M2, rtol=1e-13)


@pytest.mark.parametrize("needs", ["dx", "dgamma", "dbeta", ("dbeta", "dx"), ()], ids=str)
def test_no_more_than_what_is_needed(rng, needs):
    x, dy = sample(rng, (10, 5, 3)), sample(rng, (10, 5, 3))
    _, saved = fastbn.batch_norm_training(x, ghost_batch_size=4)
    everything = fastbn.batch_norm_backward(dy, saved)
    found = fastbn.batch_norm_backward(dy, saved, needs=needs)
    for name, one, other in zip(("dx", "dgamma", "dbeta"), found, everything):
        if name in needs:
            np.testing.assert_array_equal(one, other)
        else:
            assert one is None


@pytest.mark.parametrize("shape, axis", [((7, 3), 1), ((5, 3, 2), 1), ((5, 2, 3), -1)])
def test_central_differences(rng, shape, axis):
    x, dy = (sample(rng, shape, axis=axis, dtype=np.float64) for _ in range(2))
    gamma, beta = parameters(rng, 3, np.float64)

    def loss():
        return float((fastbn.batch_norm_training(x, gamma, beta, axis=axis, ghost_batch_size=3)[0] * dy).sum())

    _, saved = fastbn.batch_norm_training(x, gamma, beta, axis=axis, ghost_batch_size=3)
    for gradient, values in zip(fastbn.batch_norm_backward(dy, saved), (x, gamma, beta)):
        np.testing.assert_allclose(gradient, central_differences(loss, values), rtol=1e-5, atol=1e-7)


def test_the_sums_of_many_slices_are_taken_in_double(rng):
    """Rounding each slice's share to float32 would be seen."""
    x, dy = sample(rng, (4000, 3)), np.abs(sample(rng, (4000, 3)))
    for gamma in (None, np.ones(3, np.float32)):
        _, saved = fastbn.batch_norm_training(x, gamma, ghost_batch_size=4)
        dbeta = fastbn.batch_norm_backward(dy, saved)[2]
        exact = dy.astype(float).sum(axis=0)
        assert dbeta.dtype == np.float32
        assert_within(dbeta, exact, np.spacing(exact.astype(np.float32)).astype(float), "dbeta")


def test_torch_computes_the_same_slice_by_slice(rng):
    torch = pytest.importorskip("torch")
    x, dy = sample(rng, (10, 5, 6)), sample(rng, (10, 5, 6))
    gamma, beta = parameters(rng, 5)
    y, saved = fastbn.batch_norm_training(x, gamma, beta, ghost_batch_size=4)
    dx, dgamma, dbeta = fastbn.batch_norm_backward(dy, saved)
    given, weight, bias = (torch.tensor(a, requires_grad=True) for a in (x, gamma, beta))
    expected = torch.cat([torch.nn.functional.batch_norm(part, None, None, weight, bias, training=True)
                          for part in given.split(4)])
    expected.backward(torch.tensor(dy))
    for actual, tensor in ((y, expected.detach()), (dx, given.grad), (dgamma, weight.grad), (dbeta, bias.grad)):
        np.testing.assert_allclose(actual, tensor.numpy(), rtol=1e-4, atol=1e-5)


# --- Errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size, error", [(0, ValueError), (-3, ValueError), (2.0, TypeError), (True, TypeError),
                                         ("4", TypeError)], ids=repr)
def test_sizes_that_are_none(rng, size, error):
    with pytest.raises(error, match="ghost_batch_size"):
        fastbn.batch_norm_training(sample(rng, (9, 5)), ghost_batch_size=size)
    layer = fastbn.BatchNorm(5, ghost_batch_size=4)
    with pytest.raises(error, match="ghost_batch_size"):
        layer.ghost_batch_size = size
    assert layer.ghost_batch_size == 4


def test_a_size_may_be_a_numpy_integer(rng):
    assert fastbn.batch_norm_training(sample(rng, (9, 5)), ghost_batch_size=np.int64(4))[1].mean.shape == (3, 5)


@pytest.mark.parametrize("axis", [0, -2, (0, 1)], ids=str)
def test_features_on_the_batch_axis(rng, axis):
    with pytest.raises(ValueError, match="axis 0.*feature axis"):
        fastbn.batch_norm_training(sample(rng, (9, 5)), axis=axis, ghost_batch_size=4)


def test_a_refused_call_writes_nothing(rng):
    raw = sample(rng, (20, 5))
    before = raw.copy()
    wrong = np.zeros((9, 5), np.float64)
    for x, out, error in ((raw[:10], raw[4:14], ValueError), (raw[:9], wrong, TypeError),
                          (raw[:9], wrong[:4], ValueError)):
        with pytest.raises(error, match="out"):
            fastbn.batch_norm_training(x, out=out, ghost_batch_size=4)
        _, saved = fastbn.batch_norm_training(x, ghost_batch_size=4)
        with pytest.raises(error, match="out"):
            fastbn.batch_norm_backward(x, saved, out=out)
    np.testing.assert_array_equal(raw, before)
    assert not wrong.any()


def test_gradients_that_do_not_fit(rng):
    x = sample(rng, (9, 5))
    _, saved = fastbn.batch_norm_training(x, ghost_batch_size=4)
    for dy, keywords, error in ((x[:8], {}, ValueError), (x.astype(int), {}, TypeError),
                                (x, {"needs": "dz"}, ValueError), (x, {"out": x, "needs": "dgamma"}, ValueError),
                                (x, {"num_threads": 0}, ValueError)):
        with pytest.raises(error):
            fastbn.batch_norm_backward(dy, saved, **keywords)


def test_in_place_with_a_gamma_of_zero_is_refused_before_dx_is_written(rng):
    x, dy = sample(rng, (9, 5)), sample(rng, (9, 5))
    _, saved = fastbn.batch_norm_training(x, np.array([1, 2, 0, 1, 1.0]), ghost_batch_size=4, out=x)
    before = dy.copy()
    with pytest.raises(RuntimeError, match="gamma is 0 for feature 2"):
        fastbn.batch_norm_backward(dy, saved, out=dy)
    np.testing.assert_array_equal(dy, before)


@pytest.mark.parametrize("shape", [(0, 5), (4, 5, 0)], ids=str)
def test_empty_batches(shape):
    x = np.empty(shape, np.float32)
    y, saved = fastbn.batch_norm_training(x, ghost_batch_size=3)
    dx, dgamma, dbeta = fastbn.batch_norm_backward(x, saved)
    assert y.shape == dx.shape == shape and saved.moments.count == 0
    assert not dgamma.any() and not dbeta.any() and dgamma.shape == (5,)


def test_the_last_slice_may_be_one_entry(rng):
    x = sample(rng, (9, 5))
    gamma, beta = parameters(rng, 5)
    y, _ = fastbn.batch_norm_training(x, gamma, beta, ghost_batch_size=4)
    np.testing.assert_array_equal(y[8], beta)


# --- The layer ------------------------------------------------------------------------------------------------------


@on_shapes
@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("dtype", FLOATS)
def test_layer(rng, shape, axis, ddof, dtype):
    layer = fastbn.BatchNorm(5, axis=axis, ddof=ddof, dtype=dtype, ghost_batch_size=3)
    layer.gamma, layer.beta = parameters(rng, 5, dtype)
    x, dy = (sample(rng, shape, axis=axis, ratio=2.0) for _ in range(2))
    expected, saved = fastbn.batch_norm_training(x, layer.gamma, layer.beta, axis=axis, ghost_batch_size=3)
    np.testing.assert_array_equal(layer(x), expected)
    stats = statistics(x, axis)
    assert layer.num_batches_tracked == 1 and layer.batch_moments == saved.moments
    np.testing.assert_allclose(layer.running_mean, 0.1 * stats.mean.astype(float), rtol=2e-6)
    np.testing.assert_allclose(layer.running_var, 0.9 + 0.1 * unbiased(stats, ddof).astype(float), rtol=2e-6)
    for actual, one in zip((layer.backward(dy), layer.dgamma, layer.dbeta), fastbn.batch_norm_backward(dy, saved)):
        np.testing.assert_array_equal(actual, one)
    layer.eval()
    check_forward(layer(x), x, layer.running_mean, layer.running_var, layer.gamma, layer.beta, axis=axis)


def test_one_ghost_batch_is_the_batch(rng):
    plain, layer = fastbn.BatchNorm(5), fastbn.BatchNorm(5, ghost_batch_size=100)
    for _ in range(3):
        x, dy = sample(rng, (10, 5, 3)), sample(rng, (10, 5, 3))
        found = [(each(x), each.backward(dy), each.dgamma) for each in (plain, layer)]
        for one, other in zip(*found):
            np.testing.assert_array_equal(one, other)
        for name, value in plain.state_dict().items():
            np.testing.assert_array_equal(layer.state_dict()[name], value)


def test_ghosts_are_for_training_alone(rng):
    layer = fastbn.BatchNorm(5, track_running_stats=False, ghost_batch_size=2).eval()
    x = sample(rng, (10, 5))
    np.testing.assert_array_equal(layer(x), fastbn.batch_norm_training(x, layer.gamma, layer.beta)[0])


def test_the_setting_may_change(rng, monkeypatch):
    layer = fastbn.BatchNorm(5, ghost_batch_size=4)
    assert "ghost_batch_size=4" in repr(layer)
    for twin in (copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.ghost_batch_size == 4
        x = sample(rng, (10, 5))
        np.testing.assert_array_equal(twin(x), fastbn.batch_norm_training(x, ghost_batch_size=4)[0])
    layer.ghost_batch_size = None
    assert "ghost" not in repr(layer)
    monkeypatch.setattr(fastbn.BatchNorm, "_normalize_by_batch", None)
    layer(x)


def test_saved_can_be_copied(rng):
    x, dy = sample(rng, (10, 5)), sample(rng, (10, 5))
    _, saved = fastbn.batch_norm_training(x, ghost_batch_size=4, renorm=(2, 1), running_mean=np.zeros(5),
                                          running_var=np.ones(5))
    expected = fastbn.batch_norm_backward(dy, saved)
    for twin in (copy.copy(saved), copy.deepcopy(saved), pickle.loads(pickle.dumps(saved))):
        for one, other in zip(fastbn.batch_norm_backward(dy, twin), expected):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("options", [{"ghost_batch_size": 1}, {"renorm": (3.0, 5.0), "running_mean": np.zeros(3), "running_var": np.ones(3)}],
                         ids=["ghost", "renorm"])
def test_feature_axes_of_size_1_in_any_order_of_memory(rng, options):
    """Such an axis may lie anywhere: y was made for one order and then refused for another."""
    x = rng.normal(size=(2, 3, 1, 4)).astype(np.float32).transpose(0, 1, 3, 2)[:, :, :2]
    y, saved = fastbn.batch_norm_training(x, axis=(1, 3), **options)
    want, _ = fastbn.batch_norm_training(np.ascontiguousarray(x[..., 0]), axis=1, **options)
    np.testing.assert_allclose(y[..., 0], want, rtol=1e-6, atol=1e-7)
    assert fastbn.batch_norm_backward(np.ones_like(x), saved)[0].shape == x.shape


def test_a_refused_backward_writes_nothing(rng):
    """The first slice was copied and could go back, the last could not."""
    x = rng.normal(size=(3, 5, 14)).astype(np.float32).transpose(1, 0, 2)
    y, saved = fastbn.batch_norm_training(x, activation="elu", out=x, ghost_batch_size=4, axis=2)
    dx = np.full_like(x, 7)
    with pytest.raises(RuntimeError, match="x was overwritten"):
        fastbn.batch_norm_backward(np.ones_like(x), saved, out=dx)
    assert (dx == 7).all()
