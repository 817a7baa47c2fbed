"""fastbn.interop.mygrad in MyGrad's graphs, against MyGrad's own batch norm, finite differences and fastbn's layer."""
import importlib
import sys

import numpy as np
import pytest

mg = pytest.importorskip("mygrad")

from mygrad.nnet import batchnorm

import fastbn
from fastbn.interop.mygrad import batch_norm
from oracle import steps_of_layer

pytestmark = pytest.mark.filterwarnings("error")
SHAPES = [(8, 5), (4, 5, 3), (4, 5, 3, 2)]


def tensors(rng, shape, dtype=np.float64, features=5):
    x, gamma, beta = rng.normal(3, 2, shape), rng.uniform(0.5, 2, features), rng.normal(size=features)
    return [mg.tensor(a.astype(dtype)) for a in (x, gamma, beta)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("affine", ["both", "gamma", "beta", "none"])
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-10), (np.float32, 2e-4)])
def test_as_mygrad_computes(rng, shape, affine, dtype, tolerance):
    x, gamma, beta = tensors(rng, shape, dtype)
    parameters = {"gamma": gamma, "beta": beta}
    if affine != "both":
        parameters = {name: value for name, value in parameters.items() if name == affine}
    weights = rng.normal(size=shape).astype(dtype)
    found = []
    for function in (batchnorm, batch_norm):
        y = function(x, eps=1e-3, **parameters)
        (weights * mg.sin(y)).sum().backward()
        found.append([y.data, *(tensor.grad for tensor in (x, *parameters.values()))])
    assert all(gradient is not None for gradient in found[1])
    for expected, got in zip(*found, strict=True):
        assert got.dtype == expected.dtype and got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape, axis", [((4, 5), 1), ((5, 4), 0), ((3, 2, 5), -1), ((2, 3, 4), (0, 2))])
def test_gradients_are_those_of_differences(rng, shape, axis, training):
    features = 8 if axis == (0, 2) else 5
    x, gamma, beta = tensors(rng, shape, features=features)
    weights = rng.normal(size=shape)
    def loss():
        statistics = {} if training else {"running_mean": np.full(features, 2.0), "running_var": np.full(features, 3.0)}
        y = batch_norm(x, gamma, beta, axis=axis, training=training, **statistics)
        return (weights * y**2).sum()
    loss().backward()
    for tensor in (x, gamma, beta):
        gradient, numeric = tensor.grad, np.empty(tensor.shape)
        for i in np.ndindex(tensor.shape):
            value, sides = tensor.data[i], []
            for step in (1e-5, -1e-5):
                tensor.data[i] = value + step
                with mg.no_autodiff:
                    sides.append(loss().item())
            tensor.data[i], numeric[i] = value, (sides[0] - sides[1]) / 2e-5
        np.testing.assert_allclose(gradient, numeric, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("ddof", [0, 1])
def test_running_statistics_are_those_of_the_layer(rng, dtype, ddof):
    bn = fastbn.BatchNorm(5, momentum=0.8, ddof=ddof, dtype=dtype)
    mean, var = np.zeros(5, dtype), np.ones(5, dtype)
    for _ in range(3):
        x = rng.normal(3, 2, (8, 5, 2)).astype(dtype)
        batch_norm(mg.tensor(x), running_mean=mean, running_var=var, momentum=0.8, ddof=ddof)
        bn(x)
        np.testing.assert_allclose(mean, bn.running_mean, rtol=1e-6)
        np.testing.assert_allclose(var, bn.running_var, rtol=1e-6)
    y = batch_norm(x, bn.gamma, bn.beta, running_mean=bn.running_mean, running_var=bn.running_var, training=False)
    np.testing.assert_array_equal(y, bn.eval()(x))


def test_one_value_and_none_leave_the_statistics_alone(rng):
    mean, var = np.zeros(5), np.ones(5)
    for rows in (1, 0):
        y = batch_norm(mg.tensor(rng.normal(size=(rows, 5))), running_mean=mean, running_var=var)
        y.sum().backward()
        assert y.shape == (rows, 5) and np.all(y.data == 0) and np.all(mean == 0) and np.all(var == 1)


def test_a_network_learns_with_it(rng):
    """Two classes by the sign of a product, of features with far means; arrays are writeable again after backward."""
    x = rng.normal(size=(128, 4))
    labels = (x[:, 0] * x[:, 1] > 0).astype(int)
    x = (x * [1, 1, 10, 0.1] + [5, -5, 50, 0]).astype(np.float32)
    mean, var = np.zeros(4, np.float32), np.ones(4, np.float32)
    shapes = {"gamma": 4, "beta": 4, "w": (4, 16), "b": 16, "v": (16, 2)}
    p = {name: mg.tensor(rng.normal(0, 0.5, shape).astype(np.float32)) for name, shape in shapes.items()}
    losses = []
    for _ in range(150):
        h = mg.nnet.relu(batch_norm(x, p["gamma"], p["beta"], running_mean=mean, running_var=var) @ p["w"] + p["b"])
        loss = mg.nnet.softmax_crossentropy(h @ p["v"], labels)
        loss.backward()
        losses.append(loss.item())
        for tensor in p.values():
            tensor.data -= 0.3 * tensor.grad
    assert losses[-1] < losses[0] / 3
    np.testing.assert_allclose(mean, x.mean(axis=0), rtol=1e-3, atol=1e-2)


def test_only_what_is_needed_is_computed(rng, monkeypatch):
    import fastbn.interop.mygrad as adapter
    asked = []
    def backward(grad, saved, needs):
        asked.append(list(needs))
        return fastbn.batch_norm_backward(grad, saved, needs=needs)
    monkeypatch.setattr(adapter, "batch_norm_backward", backward)
    x, gamma, beta = tensors(rng, (8, 5))
    batch_norm(x.data.copy(), gamma, beta).sum().backward()
    assert x.grad is None and asked == [["dgamma", "dbeta"]]
    batch_norm(x, mg.tensor(gamma.data.copy(), constant=True)).sum().backward()
    assert asked[1:] == [["dx"]] and x.grad is not None


def test_a_tensor_used_twice_gets_the_sum(rng):
    x, gamma, _ = tensors(rng, (8, 5))
    weights = rng.normal(size=(8, 5))
    (weights * batch_norm(x, gamma, gamma)).sum().backward()
    both = gamma.grad
    other = mg.tensor(gamma.data.copy())
    (weights * batch_norm(x, gamma, other)).sum().backward()
    np.testing.assert_allclose(both, gamma.grad + other.grad)
    (weights * batch_norm(x, gamma) + 2 * batch_norm(x, gamma)).sum().backward()
    assert np.all(np.isfinite(x.grad))


def test_constants_and_no_graph(rng):
    x, gamma, beta = tensors(rng, (8, 5))
    assert batch_norm(x, gamma, beta, constant=True).constant
    with mg.no_autodiff:
        y = batch_norm(x, gamma, beta)
    assert y.creator is None
    np.testing.assert_array_equal(y, batch_norm(x, gamma, beta))


def locked(a):
    a = np.array(a)
    a.flags.writeable = False
    return a


ONES = np.ones(5)


@pytest.mark.parametrize("arguments, error, message", [
    ({"running_mean": ONES}, ValueError, "both or neither"),
    ({"training": False}, ValueError, "running_mean and running_var are None"),
    ({"running_mean": mg.tensor(ONES), "running_var": ONES}, TypeError, "running_mean is a Tensor.*pass .data"),
    ({"running_mean": ONES.copy(), "running_var": locked(ONES)}, ValueError, "running_var is read-only"),
    ({"running_mean": ONES.copy(), "running_var": np.ones(5, int)}, TypeError, "running_var has dtype int64"),
    ({"running_mean": ONES.copy(), "running_var": np.ones(4)}, ValueError, r"running_var has shape \(4,\)"),
    ({"running_mean": ONES.copy(), "running_var": np.ones(5, ">f8")}, TypeError, "cannot be updated"),
    ({"momentum": 2}, ValueError, "momentum is 2"),
    ({"momentum": None}, ValueError, "momentum is None"),
    ({"ddof": 3}, ValueError, "ddof is 3"),
    ({"eps": 0}, ValueError, "eps is 0"),
    ({"gamma": np.ones(4)}, ValueError, "gamma"),
])
def test_errors_change_nothing(rng, arguments, error, message):
    x = mg.tensor(rng.normal(size=(8, 5)))
    with pytest.raises(error, match=message):
        batch_norm(x, **arguments)
    for name in ("running_mean", "running_var"):
        assert np.all(arguments.get(name, ONES) == 1)
    x.data[:] = 1  # no lock is left on it


def test_integers_are_refused():
    with pytest.raises(TypeError, match="x has dtype int64"):
        batch_norm(mg.tensor([[1, 2], [3, 4]]))


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_steps_have_the_bits_of_the_layers(rng, dtype, ddof):
    batches = [rng.normal(3, 2, (7, 5, 3)).astype(dtype) for _ in range(3)]
    mean, var = np.zeros(5, dtype), np.ones(5, dtype)
    for x in batches:
        batch_norm(mg.tensor(x), running_mean=mean, running_var=var, ddof=ddof)
    for found, expected in zip((mean, var), steps_of_layer(batches, ddof=ddof, dtype=dtype)):
        np.testing.assert_array_equal(found, expected)


def test_without_mygrad(monkeypatch):
    monkeypatch.setitem(sys.modules, "mygrad", None)
    monkeypatch.delitem(sys.modules, "fastbn.interop.mygrad")
    with pytest.raises(ImportError, match=r"pip install 'fastbn\[mygrad\]'"):
        importlib.import_module("fastbn.interop.mygrad")
