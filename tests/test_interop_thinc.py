"""fastbn.interop.thinc in thinc's own networks, its registry, config and serialization."""
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

thinc = pytest.importorskip("thinc.api")

import fastbn
from fastbn.interop.thinc import BatchNorm
from oracle import steps_of_layer

pytestmark = pytest.mark.filterwarnings("error")

ROOT = Path(__file__).resolve().parents[1]
CONFIG = """
[model]
@layers = "chain.v1"

[model.*.hidden]
@layers = "Linear.v1"
nO = 7

[model.*.norm]
@layers = "fastbn.BatchNorm.v1"
momentum = 0.75
eps = 0.001

[model.*.output]
@layers = "Softmax.v1"
"""


@pytest.fixture(autouse=True)
def on_numpy():
    with thinc.use_ops("numpy"):
        yield


def normal(rng, *shape):
    return rng.normal(3, 2, shape).astype(np.float32)


def initialized(rng, width=5, **arguments):
    """A layer with a random state."""
    model = BatchNorm(width, **arguments).initialize()
    for name in ("gamma", "beta"):
        model.set_param(name, rng.uniform(0.5, 2, width).astype(np.float32))
    for name in ("running_mean", "running_var"):
        model.attrs[name] = rng.uniform(0.5, 2, width).astype(np.float32)
    return model


def layer_of(model):
    """A fastbn.BatchNorm in the same state."""
    bn = fastbn.BatchNorm(model.get_dim("nI"), axis=-1, eps=model.attrs["eps"], momentum=model.attrs["momentum"],
                          ddof=model.attrs["ddof"])
    bn.gamma, bn.beta = model.get_param("gamma").copy(), model.get_param("beta").copy()
    bn.running_mean, bn.running_var = model.attrs["running_mean"].copy(), model.attrs["running_var"].copy()
    return bn


def assert_same_statistics(model, bn):
    np.testing.assert_array_equal(model.attrs["running_mean"], bn.running_mean)
    np.testing.assert_array_equal(model.attrs["running_var"], bn.running_var)


@pytest.mark.parametrize("shape", [(9, 5), (3, 4, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("ddof", [0, 1])
def test_steps_are_those_of_the_layer(rng, shape, ddof):
    model = initialized(rng, momentum=0.8, eps=1e-3, ddof=ddof)
    bn = layer_of(model)
    for _ in range(3):
        x, dy = normal(rng, *shape), normal(rng, *shape)
        y, backprop = model.begin_update(x)
        np.testing.assert_array_equal(y, bn(x))
        np.testing.assert_array_equal(backprop(dy), bn.backward(dy))
        np.testing.assert_array_equal(model.get_grad("gamma"), bn.dgamma)
        np.testing.assert_array_equal(model.get_grad("beta"), bn.dbeta)
        for name in ("gamma", "beta"):
            model.set_grad(name, np.zeros(5, np.float32))
        assert_same_statistics(model, bn)
    np.testing.assert_array_equal(model.predict(x), bn.eval()(x))
    assert_same_statistics(model, bn)


@pytest.mark.parametrize("is_train", [False, True])
def test_gradients_are_those_of_differences(rng, is_train):
    """The gradients of sum(y * weights), in float64, with respect to x, gamma and beta."""
    model = initialized(rng)
    x, weights = rng.normal(3, 2, (6, 5)), rng.normal(size=(6, 5))
    parameters = {name: model.get_param(name).astype(np.float64) for name in ("gamma", "beta")}
    for name, value in parameters.items():
        model.set_param(name, value)
    statistics = dict(model.attrs)
    def loss():
        y, backprop = model(x, is_train)
        for name in ("running_mean", "running_var"):
            model.attrs[name] = statistics[name]
        return np.sum(y * weights), backprop
    gradients = [loss()[1](weights), model.get_grad("gamma"), model.get_grad("beta")]
    for array, gradient in zip((x, *parameters.values()), gradients):
        numeric = np.empty_like(array)
        for i in np.ndindex(array.shape):
            value, sides = array[i], []
            for step in (1e-5, -1e-5):
                array[i] = value + step
                for name, parameter in parameters.items():
                    model.set_param(name, parameter)
                sides.append(loss()[0])
            array[i], numeric[i] = value, (sides[0] - sides[1]) / 2e-5
        np.testing.assert_allclose(gradient, numeric, rtol=1e-5, atol=1e-6)


def test_gradients_add_up(rng):
    model = initialized(rng)
    x, dy = normal(rng, 9, 5), normal(rng, 9, 5)
    for _ in range(2):
        model.begin_update(x)[1](dy)
    once = initialized(rng)
    once.set_param("gamma", model.get_param("gamma"))
    once.begin_update(x)[1](dy)
    np.testing.assert_allclose(model.get_grad("gamma"), 2 * once.get_grad("gamma"), rtol=1e-6)


def trained(model, rng, steps=60):
    """The losses of a training on points of two classes, whose features have far means and other scales."""
    x = rng.normal(0, 1, (128, 6)).astype(np.float32)
    labels = (x[:, 0] * x[:, 1] > 0).astype(int)
    x = x * np.float32([1, 1, 10, 0.1, 1, 1]) + np.float32([5, -5, 50, 0, 0, 0])
    targets = np.eye(2, dtype=np.float32)[labels]
    model.initialize(X=x, Y=targets)
    optimizer, losses = thinc.Adam(0.02), []
    for _ in range(steps):
        y, backprop = model.begin_update(x)
        losses.append(float(np.mean((y - targets)**2)))
        backprop((y - targets) / len(x))
        model.finish_update(optimizer)
    return losses, x


def network():
    return thinc.chain(BatchNorm(), thinc.Relu(16), BatchNorm(), thinc.Softmax())


def test_a_network_learns_with_it(rng):
    model = network()
    losses, x = trained(model, rng)
    assert losses[0] > 0.2 and losses[-1] < losses[0] / 2
    first = model.layers[0]
    assert first.get_dim("nI") == first.get_dim("nO") == 6 and model.layers[2].get_dim("nI") == 16
    assert not np.array_equal(first.get_param("gamma"), np.ones(6)) and first.attrs["running_mean"][2] > 40
    assert np.mean(np.argmax(model.predict(x), 1) == np.argmax(model.begin_update(x)[0], 1)) > 0.9


def test_widths_come_from_either_side(rng):
    assert BatchNorm().initialize(X=normal(rng, 4, 3)).get_dim("nO") == 3
    assert BatchNorm().initialize(Y=normal(rng, 4, 3)).get_dim("nI") == 3
    assert BatchNorm(6).initialize().get_param("gamma").shape == (6,)
    assert thinc.chain(thinc.Linear(8), BatchNorm()).initialize(X=normal(rng, 4, 3)).get_dim("nO") == 8
    with pytest.raises(ValueError, match="nI"):
        BatchNorm().initialize()


@pytest.mark.parametrize("way", ["bytes", "disk", "dict", "copy"])
def test_serialization(rng, tmp_path, way):
    """The twin computes the same bits, and trains on."""
    model = network()
    _, x = trained(model, rng, steps=5)
    if way == "bytes":
        twin = network().from_bytes(model.to_bytes())
    elif way == "disk":
        model.to_disk(tmp_path / "model")
        twin = network().from_disk(tmp_path / "model")
    elif way == "dict":
        twin = network().from_dict(model.to_dict())
    else:
        twin = model.copy()
    expected = model.predict(x)
    np.testing.assert_array_equal(twin.predict(x), expected)
    twin.begin_update(x + 1)
    np.testing.assert_array_equal(model.predict(x), expected)
    model.begin_update(x + 1)
    for a, b in zip(twin.layers[::2], model.layers[::2]):
        for name in ("running_mean", "running_var"):
            if name in b.attrs:
                np.testing.assert_array_equal(a.attrs[name], b.attrs[name])


def test_from_a_config(rng):
    model = thinc.registry.resolve(thinc.Config().from_str(CONFIG))["model"]
    norm = model.layers[1]
    assert norm.name == "batchnorm" and norm.attrs["momentum"] == 0.75 and norm.attrs["eps"] == 0.001
    model.initialize(X=normal(rng, 8, 3), Y=np.eye(8, 2, dtype=np.float32))
    assert model.begin_update(normal(rng, 8, 3))[0].shape == (8, 2) and norm.get_dim("nI") == 7
    with pytest.raises(thinc.ConfigValidationError):
        thinc.registry.resolve(thinc.Config().from_str(CONFIG.replace("0.75", '"much"')))


def entry_points():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["entry-points"]["thinc_layers"]


def test_the_registry_finds_it_without_an_import(tmp_path):
    """As installed: a distribution with the entry points of pyproject.toml, in a process of its own."""
    for target in entry_points().values():
        module, name = target.split(":")
        assert getattr(importlib.import_module(module), name) is BatchNorm
    info = tmp_path / "anything-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: anything\nVersion: 1.0\n")
    lines = [f"{name} = {target}" for name, target in entry_points().items()]
    (info / "entry_points.txt").write_text("\n".join(["[thinc_layers]", *lines]))
    code = (f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n"
            "from thinc.api import registry\n"
            "assert 'fastbn' not in sys.modules\n"
            "print(registry.get('layers', 'fastbn.BatchNorm.v1')(4).name)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "batchnorm", done.stderr


def test_lists_and_ragged_by_with_array(rng):
    model, arrays = initialized(rng), [normal(rng, n, 5) for n in (3, 1, 6)]
    expected = layer_of(model)(np.concatenate(arrays))
    got, backprop = thinc.with_array(model).begin_update(arrays)
    np.testing.assert_array_equal(np.concatenate(got), expected)
    assert [a.shape for a in backprop(got)] == [a.shape for a in arrays]
    with pytest.raises(TypeError, match="X is a list, expected a NumPy array.*with_array"):
        model.predict(arrays)


@pytest.mark.parametrize("shape", [(1, 5), (0, 5)])
def test_one_row_and_none_leave_the_statistics_alone(rng, shape):
    model = initialized(rng)
    bn = layer_of(model)
    y, backprop = model.begin_update(normal(rng, *shape))
    np.testing.assert_array_equal(y, np.broadcast_to(model.get_param("beta"), shape))
    assert backprop(y).shape == shape
    assert_same_statistics(model, bn)


@pytest.mark.parametrize("arguments, message", [({"momentum": 1.5}, "momentum is 1.5"), ({"eps": 0}, "eps is 0"),
                                                ({"momentum": None}, "momentum is None"), ({"ddof": 2}, "ddof is 2")])
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        BatchNorm(3, **arguments)


def test_another_width(rng):
    with pytest.raises(ValueError, match="5 features"):
        initialized(rng).begin_update(normal(rng, 3, 4))


def test_without_thinc(monkeypatch):
    monkeypatch.setitem(sys.modules, "thinc.api", None)
    monkeypatch.delitem(sys.modules, "fastbn.interop.thinc")
    with pytest.raises(ImportError, match=r"pip install 'fastbn\[thinc\]'"):
        importlib.import_module("fastbn.interop.thinc")


@pytest.mark.parametrize("ddof", [0, 1])
def test_steps_have_the_bits_of_the_layers(rng, ddof):
    batches = [normal(rng, 7, 5) for _ in range(3)]
    model = BatchNorm(5, ddof=ddof).initialize()
    for x in batches:
        model.begin_update(x)
    for name, expected in zip(("running_mean", "running_var"), steps_of_layer(batches, ddof=ddof)):
        np.testing.assert_array_equal(model.attrs[name], expected)
