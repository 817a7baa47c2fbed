"""Frozen is three switches: which statistics normalize, whether the running ones move, whether gamma and beta learn."""
import copy
import itertools
import pickle

import numpy as np
import pytest

import fastbn
from fastbn import _core
from oracle import (FLOATS, central_differences, check_forward, check_gradients, moving_average, parameters, sample, statistics, unbiased)

pytestmark = pytest.mark.filterwarnings("error")

SHAPES = [((12, 5), 1), ((4, 5, 6, 6), 1), ((4, 6, 6, 5), -1)]
on_shapes = pytest.mark.parametrize("shape, axis", SHAPES, ids=str)
NAMES = ("use_batch_stats", "update_running_stats", "parameter_gradients")
RTOL = {np.float32: 2e-6, np.float64: 1e-12}


def make_layer(rng, **settings):
    layer = fastbn.BatchNorm(5, **settings)
    layer.gamma, layer.beta = parameters(rng, 5)
    layer.running_mean[:], layer.running_var[:] = rng.standard_normal(5), rng.uniform(0.5, 2, 5)
    return layer


def running(layer):
    return layer.running_mean.copy(), layer.running_var.copy(), layer.num_batches_tracked


def switch(layer, switches):
    for name, value in switches.items():
        setattr(layer, name, value)
    return layer


ALL = [dict(zip(NAMES, values))
       for values in itertools.product((None, True, False), (None, True, False), (True, False))]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("switches", ALL, ids=lambda switches: ",".join(map(str, switches.values())))
@pytest.mark.parametrize("shape, axis", SHAPES[1:], ids=str)
def test_each_switch_does_its_own(rng, shape, axis, switches, training):
    layer = switch(make_layer(rng, axis=axis), switches)
    layer.train() if training else layer.eval(backward=True)
    x, dy = (sample(rng, shape, axis=axis, ratio=1.0) for _ in range(2))
    mean, var, seen = running(layer)
    by_batch = training if switches["use_batch_stats"] is None else switches["use_batch_stats"]
    updates = switches["update_running_stats"]
    updates = training and by_batch if updates is None else updates
    stats = statistics(x, axis)
    used = (stats.mean, stats.var) if by_batch else (mean, var)

    check_forward(layer(x), x, *used, layer.gamma, layer.beta, axis=axis)
    expected = moving_average(mean, stats.mean, 0.9), moving_average(var, unbiased(stats, 1), 0.9)
    found = running(layer)
    assert found[2] == seen + updates
    for actual, old, new in zip(found, (mean, var), expected):
        np.testing.assert_allclose(actual, np.asarray(new if updates else old, float), rtol=2e-6 if updates else 0,
                                   atol=1e-6 if updates else 0)

    dx = layer.backward(dy)
    learns = switches["parameter_gradients"]
    assert (layer.dgamma is not None) == (layer.dbeta is not None) == learns
    assert len(layer.parameters()) == 2 * learns
    check_gradients((dx, layer.dgamma, layer.dbeta), x, dy, *used, layer.gamma, axis=axis, frozen=not by_batch)


def test_without_switches_nothing_is_different(rng):
    """True where the mode says so too: the same bits, the general way."""
    plain = make_layer(rng)
    switched = switch(copy.deepcopy(plain), {"use_batch_stats": True, "update_running_stats": True})
    x, dy = sample(rng, (12, 5)), sample(rng, (12, 5))
    for layer in (plain, switched):
        layer.found = [layer(x), layer.backward(dy), layer.dgamma, layer.dbeta, *running(layer)]
    for one, other in zip(plain.found, switched.found):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", FLOATS)
@on_shapes
def test_fine_tuning_through_running_statistics(rng, shape, axis, dtype):
    """train() and eval() in between, as training loops call them, leave the switch alone."""
    layer = make_layer(rng, axis=axis, dtype=dtype)
    layer.use_batch_stats = False
    before = running(layer)
    for _ in range(3):
        layer.eval()(sample(rng, shape, axis=axis, dtype=dtype))
        layer.train()
        x, dy = (sample(rng, shape, axis=axis, dtype=dtype) for _ in range(2))
        gamma = layer.gamma.copy()
        check_forward(layer(x), x, *before[:2], gamma, layer.beta, axis=axis)
        dx = layer.backward(dy)
        check_gradients((dx, layer.dgamma, layer.dbeta), x, dy, *before[:2], gamma, axis=axis, frozen=True)
        for _, value, gradient in layer.parameters():
            value -= 0.1 * gradient
    for old, new in zip(before, running(layer)):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("momentum", [0.9, None])
def test_running_statistics_normalize_as_they_were_before_the_step(rng, momentum, ddof):
    switches = {"use_batch_stats": False, "update_running_stats": True}
    layer = switch(make_layer(rng, momentum=momentum, ddof=ddof), switches)
    twin = make_layer(rng, momentum=momentum, ddof=ddof)
    twin.load_state_dict(layer.state_dict())
    for _ in range(3):
        x, (mean, var, _) = sample(rng, (12, 5), ratio=2.0), running(layer)
        in_place = x.copy()
        check_forward(layer(in_place, out=in_place), x, mean, var, layer.gamma, layer.beta)
        twin(x)
        for old, new in zip(running(twin), running(layer)):
            np.testing.assert_array_equal(old, new)
        assert layer.batch_moments == fastbn.moments(x)
        before = running(layer)
        layer(x, update=False)
        for old, new in zip(before, running(layer)):
            np.testing.assert_array_equal(old, new)


def test_no_sums_are_taken_that_dx_does_not_need(rng, monkeypatch):
    asked = []
    backward = _core.backward

    def watched(x, dy, extra, gamma, beta, mean, rstd, frozen, dx, dgamma, dbeta, threads):
        asked.append((x is not None, frozen, dgamma is not None, dbeta is not None))
        return backward(x, dy, extra, gamma, beta, mean, rstd, frozen, dx, dgamma, dbeta, threads)

    monkeypatch.setattr(_core, "backward", watched)
    layer = make_layer(rng)
    layer.parameter_gradients = False
    x, dy = sample(rng, (12, 5)), sample(rng, (12, 5))
    for use_batch_stats in (True, False):
        layer.use_batch_stats = use_batch_stats
        layer(x)
        layer.dgamma = layer.dbeta = np.zeros(5)
        layer.backward(dy)
        assert layer.dgamma is None and layer.dbeta is None
    assert asked == [(True, False, False, False), (False, True, False, False)]


@pytest.mark.parametrize("use_batch_stats", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_central_differences(rng, use_batch_stats, training):
    layer = make_layer(rng, dtype=np.float64)
    layer.use_batch_stats, layer.update_running_stats = use_batch_stats, False
    layer.train() if training else layer.eval(backward=True)
    x, dy = (sample(rng, (3, 5, 2), dtype=np.float64) for _ in range(2))

    def loss():
        return float((layer(x) * dy).sum())

    layer(x)
    dx = layer.backward(dy)
    for gradient, values in ((dx, x), (layer.dgamma.copy(), layer.gamma), (layer.dbeta.copy(), layer.beta)):
        np.testing.assert_allclose(gradient, central_differences(loss, values), rtol=1e-6, atol=1e-8)


def test_pytorch_freezes_alike(rng):
    """Its eval() within training: running statistics, weights that learn."""
    torch = pytest.importorskip("torch")
    layer = make_layer(rng)
    module = layer.to_torch(torch.nn.BatchNorm1d(5)).eval()
    layer.use_batch_stats = False
    x, dy = sample(rng, (12, 5, 3)), sample(rng, (12, 5, 3))
    given = torch.tensor(x, requires_grad=True)
    y = module(given)
    y.backward(torch.tensor(dy))
    np.testing.assert_allclose(layer(x), y.detach().numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(layer.backward(dy), given.grad.numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(layer.dgamma, module.weight.grad.numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(layer.dbeta, module.bias.grad.numpy(), rtol=1e-4, atol=1e-4)


# --- As settings ----------------------------------------------------------------------------------------------------


def test_defaults_follow_the_mode():
    layer = fastbn.BatchNorm(5)
    assert [getattr(layer, name) for name in NAMES] == [None, None, True]
    assert all(name not in repr(layer) for name in NAMES)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))],
                         ids=["copy", "deepcopy", "pickle"])
def test_switches_are_copied_and_take_effect(rng, duplicate):
    layer = switch(make_layer(rng), dict(zip(NAMES, (False, True, False))))
    twin = duplicate(layer)
    assert [getattr(twin, name) for name in NAMES] == [False, True, False]
    x = sample(rng, (12, 5))
    np.testing.assert_array_equal(twin(x), layer(x))
    for one, other in zip(running(twin), running(layer)):
        np.testing.assert_array_equal(one, other)
    twin.backward(x)
    assert twin.dgamma is None


@pytest.mark.parametrize("name, value", [("use_batch_stats", False), ("update_running_stats", False),
                                         ("update_running_stats", np.True_), ("parameter_gradients", False)])
def test_repr_shows_a_switch(name, value):
    layer = fastbn.BatchNorm(5)
    setattr(layer, name, value)
    assert type(getattr(layer, name)) is bool and f"{name}={bool(value)}" in repr(layer)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [1, "yes", 0.0, np.ones(2)], ids=str)
def test_a_switch_that_is_none_of_these_is_refused(name, value):
    layer = fastbn.BatchNorm(5)
    with pytest.raises(TypeError, match=f"{name}.*True"):
        setattr(layer, name, value)
    assert getattr(layer, name) is (True if name == "parameter_gradients" else None)


def test_parameter_gradients_is_on_or_off():
    with pytest.raises(TypeError, match="parameter_gradients"):
        fastbn.BatchNorm(5).parameter_gradients = None


@pytest.mark.parametrize("name, value", [("use_batch_stats", False), ("update_running_stats", True)])
def test_switches_that_need_running_statistics(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}.*track_running_stats=False"):
        setattr(fastbn.BatchNorm(5, track_running_stats=False), name, value)


def test_the_short_way_is_taken_again(rng, monkeypatch):
    layer = make_layer(rng)
    layer.use_batch_stats = False
    layer.use_batch_stats = None
    monkeypatch.setattr(fastbn.BatchNorm, "_normalize_by_batch", None)
    layer(sample(rng, (12, 5)))


def test_batch_statistics_in_inference_are_no_affine_map(rng):
    layer = make_layer(rng)
    layer.use_batch_stats = True
    with pytest.raises(RuntimeError, match="use_batch_stats"):
        layer.as_affine()
    with pytest.raises(RuntimeError, match="use_batch_stats"):
        fastbn.fold_linear(np.ones((5, 3)), None, layer)
