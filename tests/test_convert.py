"""State in and out of other frameworks: round trips of arrays everywhere; against a framework itself, in inference and in
further training, where it is installed. That nothing is imported on the way is seen in a process of its own.
"""
import copy
import importlib
import os
import subprocess
import sys
import types
import warnings

import numpy as np
import pytest

import fastbn
from oracle import FLOATS

# Keras's variables warn of an older form of __array__ where its own get_weights() reads them.
pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")]

ARRAYS = ("gamma", "beta", "running_mean", "running_var")
SWITCHES = [{}, {"center": False}, {"scale": False}, {"center": False, "scale": False}]
on_switches = pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: ",".join(s) or "both")
FRAMEWORKS = ("torch", "keras", "flax", "onnx", "chainer")


def framework(name, reason=None):
    """The module, or a skip with a line, also where it is there and does not run, as Chainer with a new NumPy."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        pytest.skip(f"{reason or name} is not installed, or does not run here ({type(error).__name__}: {error})")


@pytest.fixture(scope="module")
def torch():
    return framework("torch")


@pytest.fixture
def onnx():
    return framework("onnx")


@pytest.fixture
def keras():
    """Keras on whatever backend there is: it takes TensorFlow unless told otherwise."""
    if "KERAS_BACKEND" not in os.environ:
        found = [name for name in ("jax", "torch", "tensorflow") if importlib.util.find_spec(name)]
        os.environ["KERAS_BACKEND"] = found[0] if found else "numpy"
    return framework("keras")


@pytest.fixture
def nnx():
    return framework("flax.nnx", "flax")


@pytest.fixture
def chainer():
    return framework("chainer")


@pytest.fixture
def safetensors():
    return framework("safetensors.numpy", "safetensors")


def trained(rng, features=5, **keywords):
    """A layer with a state of its own in every entry."""
    bn = fastbn.BatchNorm(features, **keywords)
    for name in ARRAYS:
        if getattr(bn, name) is not None:
            getattr(bn, name)[:] = rng.uniform(0.5, 2.0, features)
    if bn.num_batches_tracked is not None:
        bn.num_batches_tracked = 7
    return bn


def assert_same(a, b, *, counter=True, axis=True):
    """Equal settings, and equal bits in every array."""
    assert (a.eps, a.momentum, a.ddof, a.dtype) == (b.eps, b.momentum, b.ddof, b.dtype)
    assert not axis or a.axis == b.axis
    assert not counter or a.num_batches_tracked == b.num_batches_tracked
    for name in ARRAYS:
        ours, other = getattr(a, name), getattr(b, name)
        assert (ours is None) == (other is None), name
        if ours is not None:
            np.testing.assert_array_equal(ours, other)
            assert not np.shares_memory(ours, other)


def settings(bn):
    return {"axis": bn.axis, "eps": bn.eps, "momentum": bn.momentum, "ddof": bn.ddof}


# --- Round trips without any framework: arrays and dicts --------------------------------------------------------------


def through_torch(bn):
    return fastbn.BatchNorm.from_torch(bn.to_torch(prefix="a.bn"), "a.bn", eps=bn.eps, momentum=bn.momentum)


def through_keras(bn):
    return fastbn.BatchNorm.from_keras(*bn.to_keras())


def through_flax(bn):
    return fastbn.BatchNorm.from_flax(bn.to_flax(prefix="a/bn"), prefix="a/bn", axis=bn.axis, eps=bn.eps,
                                      momentum=bn.momentum)


def through_onnx(bn):
    return fastbn.BatchNorm.from_onnx(*bn.to_onnx())


def through_chainer(bn):
    return fastbn.BatchNorm.from_chainer(bn.to_chainer(prefix="a/bn"), prefix="a/bn", eps=bn.eps, momentum=bn.momentum)


# The way, the framework's ddof, and whether it counts batches.
WAYS = {"torch": (through_torch, 1, True), "keras": (through_keras, 0, False), "flax": (through_flax, 0, False),
        "onnx": (through_onnx, 0, False), "chainer": (through_chainer, 1, False)}
on_ways = pytest.mark.parametrize("way, ddof, counts", WAYS.values(), ids=WAYS)


@on_ways
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("momentum, eps", [(0.9, 1e-5), (0.99, 1e-3), (0.3, 2e-5), (0.0, 0.5), (1.0, 1e-12)])
def test_round_trip(rng, way, ddof, counts, dtype, momentum, eps):
    with warnings.catch_warnings():  # a low momentum warns
        warnings.simplefilter("ignore")
        bn = trained(rng, dtype=dtype, momentum=momentum, eps=eps, ddof=ddof)
        assert_same(way(bn), bn, counter=counts)


@on_ways
@on_switches
def test_round_trip_of_the_switches(rng, way, ddof, counts, switches):
    bn = trained(rng, ddof=ddof, **switches)
    back = way(bn)
    if way is through_onnx:  # always has scale and B
        for name, neutral in (("gamma", 1), ("beta", 0)):
            assert (getattr(back, name) == neutral).all() or getattr(bn, name) is not None
    else:
        assert_same(back, bn, counter=counts)
    x = rng.standard_normal((9, 5)).astype(np.float32)
    np.testing.assert_array_equal(back.eval()(x), bn.eval()(x))


@on_ways
def test_what_comes_out_shares_no_memory(rng, way, ddof, counts):
    bn = trained(rng, ddof=ddof)
    before = {name: getattr(bn, name).copy() for name in ARRAYS}
    back = way(bn)
    for name in ARRAYS:
        getattr(back, name)[:] = 9
        np.testing.assert_array_equal(getattr(bn, name), before[name])


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_subclass_makes_itself(rng, name):
    class Named(fastbn.BatchNorm):
        pass

    bn = trained(rng)
    source = {"torch": lambda: (bn.to_torch(),), "keras": bn.to_keras, "flax": lambda: (bn.to_flax(),),
              "onnx": bn.to_onnx, "chainer": lambda: (bn.to_chainer(),)}[name]()
    assert type(getattr(Named, f"from_{name}")(*source)) is Named


# The framework's own defaults, in fastbn's terms, for arrays that say nothing: (axis, eps, momentum, ddof).
DEFAULTS = {
    "torch": (lambda a: ({"weight": a, "bias": a, "running_mean": a, "running_var": a},), (1, 1e-5, 0.9, 1)),
    "keras": (lambda a: ([a, a, a, a],), (-1, 1e-3, 0.99, 0)),
    "flax": (lambda a: ({"params": {"scale": a, "bias": a}, "batch_stats": {"mean": a, "var": a}},),
             (-1, 1e-5, 0.99, 0)),
    "onnx": (lambda a: ({}, {"scale": a, "B": a, "mean": a, "var": a}), (1, 1e-5, 0.9, 0)),
    "chainer": (lambda a: ({"gamma": a, "beta": a, "avg_mean": a, "avg_var": a},), (1, 2e-5, 0.9, 1)),
}
on_defaults = pytest.mark.parametrize("name, source, defaults", [(n, *v) for n, v in DEFAULTS.items()], ids=DEFAULTS)


@on_defaults
def test_the_frameworks_defaults(name, source, defaults):
    bn = getattr(fastbn.BatchNorm, f"from_{name}")(*source(np.arange(1, 4, dtype=np.float32)))
    assert tuple(settings(bn).values()) == defaults
    assert bn.dtype == np.float32 and bn.num_features == 3
    assert bn.training is (name != "onnx")


@on_defaults
def test_the_callers_settings_win(name, source, defaults):
    given = {"axis": 2, "eps": 0.25, "momentum": 0.75, "ddof": 1 - defaults[3], "dtype": np.float64}
    bn = getattr(fastbn.BatchNorm, f"from_{name}")(*source(np.ones(3, np.float32)), **given)
    assert settings(bn) | {"dtype": bn.dtype} == given


@on_defaults
def test_a_momentum_of_pytorchs_meaning_warns_where_the_caller_gives_it(name, source, defaults):
    with pytest.warns(UserWarning, match="PyTorch"):
        getattr(fastbn.BatchNorm, f"from_{name}")(*source(np.ones(3, np.float32)), momentum=0.1)


@on_defaults
def test_an_unknown_setting_is_refused(name, source, defaults):
    with pytest.raises(TypeError, match="epsilon.*eps"):
        getattr(fastbn.BatchNorm, f"from_{name}")(*source(np.ones(3, np.float32)), epsilon=0.1)


@on_defaults
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16", ">f4", ">f2"])
def test_types(name, source, defaults, dtype):
    """Half types widen to float32 without loss; one float64 array makes the layer float64."""
    dtype = pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    a = np.array([0.5, 1.25, 3], dtype)
    bn = getattr(fastbn.BatchNorm, f"from_{name}")(*source(a))
    assert bn.dtype == (np.float64 if dtype == np.float64 else np.float32)
    np.testing.assert_array_equal(bn.running_var, a.astype(np.float64))


@on_defaults
@pytest.mark.parametrize("bad, error, message", [
    (np.ones((3, 3, 3), np.float32), ValueError, r"\(3, 3, 3\)"), (np.float32(1), ValueError, r"\(\)"),
    (np.ones(3, int), TypeError, "int64"), (np.ma.masked_less(np.ones(3), 0), TypeError, "mask"),
    ("abc", TypeError, "dtype")], ids=["cube", "scalar", "int", "masked", "text"])
def test_arrays_that_are_none_are_refused(name, source, defaults, bad, error, message):
    if name == "chainer" and np.ndim(bad) == 3:  # a dict does not say its axis: there are three feature axes
        assert fastbn.BatchNorm.from_chainer(*source(bad)).num_features == 27
        return
    with pytest.raises(error, match=message):
        getattr(fastbn.BatchNorm, f"from_{name}")(*source(bad))


@pytest.mark.parametrize("name, entry", [("torch", "bias"), ("keras", "beta"), ("flax", "bias"), ("onnx", "B"),
                                         ("chainer", "beta")])
def test_an_array_of_another_shape_is_named_as_the_framework_names_it(name, entry):
    a, short = np.ones(3, np.float32), np.ones(2, np.float32)
    arrays = {"torch": lambda: ({"weight": a, "bias": short, "running_mean": a, "running_var": a},),
              "keras": lambda: ([a, short, a, a],), "chainer": lambda: ({"beta": short, "avg_mean": a, "avg_var": a},),
              "flax": lambda: ({"scale": a, "bias": short, "mean": a, "var": a},),
              "onnx": lambda: ({}, {"scale": a, "B": short, "mean": a, "var": a})}[name]()
    with pytest.raises(ValueError, match=rf"^{entry} has shape \(2,\), expected \(3,\)"):
        getattr(fastbn.BatchNorm, f"from_{name}")(*arrays)


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_something_else_is_refused(name):
    arguments = (object(), {}) if name == "onnx" else (object(),)
    with pytest.raises(TypeError, match="(source|node) is a object, expected (a|linen variables)"):
        getattr(fastbn.BatchNorm, f"from_{name}")(*arguments)


@pytest.mark.parametrize("name", ["torch", "keras", "flax", "chainer"])
def test_another_target_is_refused(rng, name):
    with pytest.raises(TypeError, match="target is a object, expected a"):
        getattr(trained(rng), f"to_{name}")(object())


@pytest.mark.parametrize("name", ["keras", "flax", "onnx", "chainer"])
def test_without_running_statistics_there_is_nothing_to_give(name):
    with pytest.raises(RuntimeError, match="running statistics"):
        getattr(fastbn.BatchNorm(3, track_running_stats=False), f"to_{name}")()


def test_a_cumulative_average_goes_where_there_is_one(rng):
    bn = trained(rng, momentum=None)
    assert through_torch(bn).momentum is None
    assert bn.to_chainer()["N"] == 7 and trained(rng).to_chainer()["N"] == 0
    assert fastbn.BatchNorm.from_chainer(bn.to_chainer(), momentum=None).num_batches_tracked == 7
    for refuse in (bn.to_keras, bn.to_onnx):
        with pytest.raises(ValueError, match="momentum is None"):
            refuse()
    attributes, _ = bn.eval().to_onnx()
    assert "momentum" not in attributes


def test_nothing_is_imported():
    """Not by importing fastbn, nor by a conversion of arrays."""
    script = ("import sys, numpy, fastbn\n"
              "bn = fastbn.BatchNorm(3)\n"
              "fastbn.BatchNorm.from_torch(bn.to_torch())\n"
              "fastbn.BatchNorm.from_keras(*bn.to_keras())\n"
              "fastbn.BatchNorm.from_flax(bn.to_flax())\n"
              "fastbn.BatchNorm.from_onnx(*bn.to_onnx())\n"
              "fastbn.BatchNorm.from_chainer(bn.to_chainer())\n"
              "roots = {name.partition('.')[0] for name in sys.modules}\n"
              "theirs = {'torch', 'keras', 'tensorflow', 'jax', 'flax', 'onnx', 'chainer', 'safetensors'}\n"
              "print(sorted(roots & theirs))\n")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


# --- PyTorch ----------------------------------------------------------------------------------------------------------


def test_state_dict_names(rng):
    bn = trained(rng)
    state = bn.to_torch(prefix="layer1.0.bn1.")
    assert list(state) == [f"layer1.0.bn1.{name}" for name in
                           ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]
    assert state["layer1.0.bn1.num_batches_tracked"].dtype == np.int64
    np.testing.assert_array_equal(state["layer1.0.bn1.weight"], bn.gamma)


def test_an_old_state_dict_has_no_counter(rng):
    state = trained(rng).to_torch()
    del state["num_batches_tracked"]
    assert fastbn.BatchNorm.from_torch(state).num_batches_tracked == 0


def test_a_wrong_prefix_names_the_right_ones(rng):
    state = {**trained(rng).to_torch(prefix="stem.bn"), **trained(rng).to_torch(prefix="head.norm")}
    for prefix in ("", "stem", "stem.b"):
        with pytest.raises(ValueError, match="(?s)running_mean.*'stem.bn.', 'head.norm.'"):
            fastbn.BatchNorm.from_torch(state, prefix)
    with pytest.raises(TypeError, match="prefix is 3"):
        fastbn.BatchNorm.from_torch(state, 3)


def test_a_state_without_statistics_is_taken_only_on_request(rng):
    a = np.ones(3, np.float32)
    with pytest.raises(ValueError, match="no running_mean"):
        fastbn.BatchNorm.from_torch({"weight": a, "bias": a})
    bn = fastbn.BatchNorm.from_torch({"weight": a, "bias": a}, track_running_stats=False)
    assert bn.running_mean is None and bn.num_batches_tracked is None
    with pytest.raises(ValueError, match="running_mean and no running_var"):
        fastbn.BatchNorm.from_torch({"weight": a, "running_mean": a})


def torch_module(torch, kind="BatchNorm2d", **keywords):
    module = getattr(torch.nn, kind)(5, **keywords)
    with torch.no_grad():
        for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
            if tensor is not None:
                tensor.copy_(torch.rand(5) + 0.5)
    return module


@pytest.mark.parametrize("kind", ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm"])
@pytest.mark.parametrize("keywords", [{}, {"affine": False}, {"momentum": None}, {"momentum": 0.9, "eps": 0.01},
                                      {"track_running_stats": False}], ids=str)
def test_torch_modules_there_and_back(torch, kind, keywords):
    module = torch_module(torch, kind, **keywords)
    bn = fastbn.BatchNorm.from_torch(module)
    back = bn.to_torch(torch_module(torch, kind, affine=module.affine, track_running_stats=module.track_running_stats))
    assert (back.eps, back.momentum) == (module.eps, module.momentum)
    assert bn.momentum == (None if module.momentum is None else round(1 - module.momentum, 10))
    for name, tensor in module.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name


@pytest.mark.parametrize("source", ["module", "state_dict", "arrays", "network's state_dict"])
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("momentum", [0.1, 0.25, None])
def test_torch_gives_the_same_before_and_after_training_on(torch, source, mode, momentum):
    """The outputs, and the running statistics after two more batches: eps, momentum and ddof."""
    torch.manual_seed(1)
    module = torch_module(torch, momentum=momentum, eps=1e-3)
    network = torch.nn.Sequential(torch.nn.Conv2d(5, 5, 1), module)
    own = {} if source == "module" else {"eps": 1e-3, "momentum": momentum and 1 - momentum}
    prefix = "1" if source.startswith("network") else ""
    state = network.state_dict() if prefix else module.state_dict()
    state = {key: value.numpy() for key, value in state.items()} if source == "arrays" else state
    bn = fastbn.BatchNorm.from_torch(module if source == "module" else state, prefix, **own)
    bn.train(mode == "train"), module.train(mode == "train")
    for _ in range(2):
        x = torch.randn(3, 5, 4, 4)
        with torch.no_grad():
            np.testing.assert_allclose(bn(x.numpy()), module(x).numpy(), rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(bn.running_mean, module.running_mean.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(bn.running_var, module.running_var.numpy(), rtol=1e-5)
    assert bn.num_batches_tracked == int(module.num_batches_tracked)


def test_torch_mode_and_types(torch):
    module = torch_module(torch).eval()
    assert not fastbn.BatchNorm.from_torch(module).training and fastbn.BatchNorm.from_torch(module.train()).training
    assert fastbn.BatchNorm.from_torch(module.double()).dtype == np.float64
    for half in (module.half(), module.bfloat16()):
        bn = fastbn.BatchNorm.from_torch(half)
        assert bn.dtype == np.float32
        np.testing.assert_array_equal(bn.gamma, half.weight.detach().float().numpy())
        assert bn.to_torch(half).weight.dtype == half.weight.dtype


def test_a_low_momentum_of_torch_is_taken_without_a_warning(torch):
    """0.9 there is 0.1 here: unusual, but nobody's mistake here. (Warnings are errors in this file.)"""
    assert fastbn.BatchNorm.from_torch(torch_module(torch, momentum=0.9)).momentum == 0.1


def test_torch_module_that_does_not_fit_stays_as_it_was(rng, torch):
    bn, plain = trained(rng), torch_module(torch, affine=False)
    for module, error, message in ((plain, ValueError, "gamma.*no weight"),
                                   (torch.nn.BatchNorm2d(4), ValueError, r"weight has shape \(4,\), expected 5"),
                                   (torch.nn.LayerNorm(5), TypeError, "LayerNorm.*BatchNorm1d"),
                                   (torch.nn.LazyBatchNorm2d(), ValueError, "lazy.*batch first")):
        before = repr(module.state_dict())
        with pytest.raises(error, match=message):
            bn.to_torch(module)
        assert repr(module.state_dict()) == before
    with pytest.raises(RuntimeError, match="running_mean"):
        trained(rng, track_running_stats=False).to_torch(torch_module(torch))
    with pytest.raises(ValueError, match="lazy"):
        fastbn.BatchNorm.from_torch(torch.nn.LazyBatchNorm2d())
    with pytest.raises(TypeError, match="Sequential.*get_submodule"):
        fastbn.BatchNorm.from_torch(torch.nn.Sequential(plain))


def test_torch_gets_neutral_parameters_where_the_layer_has_none(rng, torch):
    module = trained(rng, center=False, scale=False).to_torch(torch_module(torch))
    assert torch.equal(module.weight, torch.ones(5)) and torch.equal(module.bias, torch.zeros(5))
    assert module.weight.requires_grad


def test_a_prefix_is_for_dicts(rng, torch):
    module = torch_module(torch)
    for convert in (lambda: fastbn.BatchNorm.from_torch(module, "bn"), lambda: trained(rng).to_torch(module, "bn")):
        with pytest.raises(ValueError, match="prefix is 'bn'"):
            convert()


# --- .safetensors files -----------------------------------------------------------------------------------------------


def test_safetensors_there_and_back(rng, tmp_path, safetensors):
    bn, path = trained(rng), tmp_path / "layer.safetensors"
    bn.to_torch(path, "bn1")
    assert sorted(safetensors.load_file(path)) == sorted(bn.to_torch(prefix="bn1"))
    assert os.listdir(tmp_path) == ["layer.safetensors"]
    assert_same(fastbn.BatchNorm.from_torch(str(path), "bn1"), bn)


def test_safetensors_of_a_network(rng, tmp_path, safetensors):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    bn, path = trained(rng), tmp_path / "network.safetensors"
    half = {name: a.astype(ml_dtypes.bfloat16) if a.ndim else a for name, a in bn.to_torch(prefix="a.bn").items()}
    safetensors.save_file({**half, "a.conv.weight": np.ones((5, 3, 3, 3), np.int8)}, path)
    got = fastbn.BatchNorm.from_torch(path, "a.bn")
    np.testing.assert_array_equal(got.gamma, half["a.bn.weight"].astype(np.float32))
    with pytest.raises(ValueError, match="'a.bn.'"):
        fastbn.BatchNorm.from_torch(path)


def test_safetensors_that_are_none(rng, tmp_path, safetensors):
    path = tmp_path / "layer.safetensors"
    with pytest.raises(FileNotFoundError):
        fastbn.BatchNorm.from_torch(path)
    for content in (b"", b"no safetensors " * 9):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="layer.safetensors is no .safetensors file"):
            fastbn.BatchNorm.from_torch(path)
    with pytest.raises(OSError):
        trained(rng).to_torch(tmp_path / "absent" / "layer.safetensors")


def test_without_the_package_the_error_says_what_to_install(rng, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for use in (lambda: fastbn.BatchNorm.from_torch("a.safetensors"), lambda: trained(rng).to_torch(tmp_path / "a")):
        with pytest.raises(ImportError, match=r"pip install 'fastbn\[convert\]'"):
            use()


# --- Keras ------------------------------------------------------------------------------------------------------------


def keras_layer(keras, shape=(None, 4, 4, 5), **keywords):
    layer = keras.layers.BatchNormalization(**keywords)
    layer.build(shape)
    layer.set_weights([np.random.default_rng(i).uniform(0.5, 2, 5) for i in range(len(layer.weights))])
    return layer


@on_switches
@pytest.mark.parametrize("as_weights", [True, False], ids=["weights", "layer"])
def test_keras_there_and_back(keras, switches, as_weights):
    layer = keras_layer(keras, epsilon=0.01, momentum=0.8, **switches)
    source = (layer.get_weights(), layer.get_config()) if as_weights else (layer,)
    bn = fastbn.BatchNorm.from_keras(*source)
    assert settings(bn) == {"axis": -1, "eps": 0.01, "momentum": 0.8, "ddof": 0}
    back = bn.to_keras(keras_layer(keras, **switches))
    assert (back.epsilon, back.momentum) == (0.01, 0.8)
    for ours, theirs in zip(back.get_weights(), layer.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    weights, config = bn.to_keras()
    twin = keras.layers.BatchNormalization(**config)
    twin.build((None, 4, 4, 5))
    twin.set_weights(weights)
    x = np.random.default_rng(0).standard_normal((2, 4, 4, 5)).astype(np.float32)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(twin(x)), bn.eval()(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_keras_gives_the_same_before_and_after_training_on(keras, training):
    layer = keras_layer(keras, momentum=0.7)
    bn = fastbn.BatchNorm.from_keras(layer).train(training)
    for i in range(2):
        x = np.random.default_rng(i).standard_normal((2, 4, 4, 5)).astype(np.float32)
        theirs = keras.ops.convert_to_numpy(layer(x, training=training))
        np.testing.assert_allclose(bn(x), theirs, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(bn.running_mean, np.asarray(layer.moving_mean), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(bn.running_var, np.asarray(layer.moving_variance), rtol=1e-5)


def test_keras_layers_that_are_refused(rng, keras):
    unbuilt = keras.layers.BatchNormalization()
    for use in (lambda: fastbn.BatchNorm.from_keras(unbuilt), lambda: trained(rng).to_keras(unbuilt)):
        with pytest.raises(ValueError, match="not built"):
            use()
    plain = keras_layer(keras, scale=False)
    before = plain.get_weights()
    with pytest.raises(ValueError, match="gamma"):
        trained(rng).to_keras(plain)
    np.testing.assert_array_equal(plain.get_weights(), before)
    with pytest.raises(ValueError, match="config is given"):
        fastbn.BatchNorm.from_keras(plain, plain.get_config())


def test_keras_weights_that_are_refused(rng):
    a = np.ones(3, np.float32)
    for weights, config, message in (([a, a], None, "2 arrays, expected 4.*config"),
                                     ([a] * 4, {"scale": False}, "expected 3"),
                                     ({"gamma": a}, None, "expected moving_mean"),
                                     ([a] * 4, {"renorm": True}, "4 arrays, expected 7.*renorm_stddev"),
                                     ([a] * 7, {"renorm": True, "renorm_clipping": {"rmax": 3}}, "rmin 0.*1 / rmax")):
        with pytest.raises(ValueError, match=f"(?s){message}"):
            fastbn.BatchNorm.from_keras(weights, config)
    with pytest.raises(ValueError, match=r"axis is \(1, 2\)"):
        trained(rng, axis=(1, 2)).to_keras()
    weights = {"moving_mean": a, "moving_variance": a}
    bn = fastbn.BatchNorm.from_keras(weights, {"axis": [3]})
    assert bn.gamma is None and bn.beta is None and bn.axis == 3


KERAS_RENORM = {"renorm": True, "renorm_clipping": {"rmax": 3.0, "rmin": 1 / 3, "dmax": 5.0}}


@pytest.mark.parametrize("clipping, limits", [(KERAS_RENORM["renorm_clipping"], (3, 5)), (None, (np.inf, np.inf)),
                                              ({"rmin": 0.5, "rmax": 2.0}, (2, np.inf))])
def test_keras_renorm_by_weights(rng, clipping, limits):
    a = [rng.uniform(0.5, 2, 5).astype(np.float32) for _ in range(7)]
    config = {"renorm": True, "renorm_clipping": clipping}
    bn = fastbn.BatchNorm.from_keras(a, config)
    names = ("gamma", "beta", "moving_mean", "moving_variance", "moving_stddev", "renorm_mean", "renorm_stddev")
    for got in (bn, fastbn.BatchNorm.from_keras(dict(zip(names, a)), config)):
        assert got.renorm == limits
        for name, value in zip(ARRAYS, a):
            np.testing.assert_array_equal(getattr(got, name), value)
    weights, back = bn.to_keras()
    assert (back["renorm"], back["renorm_momentum"]) == (True, 0.99)
    assert fastbn.BatchNorm.from_keras(weights, back).renorm == limits
    std = np.sqrt(a[3] + np.float32(1e-3))
    for ours, theirs in zip(weights, [*a[:4], std, a[2], std], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_keras_averages_of_another_momentum_warn(rng):
    a = [np.ones(5, np.float32)] * 7
    with pytest.warns(UserWarning, match="renorm_momentum is 0.9 and momentum 0.99") as caught:
        fastbn.BatchNorm.from_keras(a, {**KERAS_RENORM, "renorm_momentum": 0.9})
    assert caught[0].filename == __file__


def keras_with_renorm(keras, **keywords):
    try:
        return keras_layer(keras, **KERAS_RENORM, **keywords)
    except (TypeError, ValueError):
        pytest.skip("this Keras has no renorm")


def test_keras_renorm_there_and_back(keras):
    """For one step r and d come from the same averages."""
    layer = keras_with_renorm(keras, momentum=0.8, renorm_momentum=0.8)
    bn = fastbn.BatchNorm.from_keras(layer)
    assert bn.renorm == fastbn.BatchNorm.from_keras(layer.get_weights(), layer.get_config()).renorm == (3, 5)
    filled = bn.to_keras(keras_with_renorm(keras))
    weights, config = bn.to_keras()
    made = keras.layers.BatchNormalization(**config)
    made.build((None, 4, 4, 5))
    made.set_weights(weights)
    x = np.random.default_rng(0).standard_normal((6, 4, 4, 5)).astype(np.float32)
    y = copy.copy(bn).eval()(x), bn(x)
    for target in (filled, made):
        assert target.renorm_clipping == KERAS_RENORM["renorm_clipping"] and target.renorm_momentum == 0.8
        for ours, training in zip(y, (False, True)):
            theirs = keras.ops.convert_to_numpy(target(x, training=training))
            np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(bn.running_mean, np.asarray(target.moving_mean), rtol=1e-5, atol=1e-5)


def test_keras_targets_with_another_renorm_warn(rng, keras):
    plain, renormed = keras_layer(keras), keras_with_renorm(keras)
    with pytest.warns(UserWarning, match="renorm=.* is lost.*Keras"):
        trained(rng, renorm=(3, 5)).to_keras(plain)
    bn = trained(rng)
    with pytest.warns(UserWarning, match="target has renorm"):
        bn.to_keras(renormed)
    np.testing.assert_allclose(renormed.moving_stddev, np.sqrt(bn.running_var + 1e-5), rtol=1e-5)


# --- What others do not have ------------------------------------------------------------------------------------------

OUT = {"PyTorch": lambda bn: bn.to_torch(), "Keras": lambda bn: bn.to_keras(), "Flax": lambda bn: bn.to_flax(),
       "ONNX": lambda bn: bn.to_onnx(), "Chainer": lambda bn: bn.to_chainer()}


@pytest.mark.parametrize("name", OUT)
def test_training_that_others_do_not_have_warns(rng, name):
    for options in ({"ghost_batch_size": 4}, {"renorm": (3, 5)}):
        bn = trained(rng, **options)
        if name == "Keras" and "renorm" in options:
            OUT[name](bn)  # it has that
        else:
            with pytest.warns(UserWarning, match=f"{[*options][0]}=.* is lost: {name}") as caught:
                OUT[name](bn)
            assert caught[0].filename == __file__
        OUT[name](bn.eval())  # inference is the same


@pytest.mark.parametrize("name", OUT)
def test_inference_by_the_batch_is_refused(rng, name):
    bn = trained(rng)
    bn.use_batch_stats = True
    with pytest.raises(ValueError, match=f"use_batch_stats is True.*{name}"):
        OUT[name](bn)


@pytest.mark.parametrize("name", OUT)
def test_an_activation_would_be_lost(rng, name):
    bn = trained(rng)
    expected = OUT[name](bn)
    bn.activation = "relu"
    with pytest.raises(ValueError, match=f"activation is 'relu', which would be lost: a batch norm of {name} has none"):
        OUT[name](bn)
    bn.activation = None
    assert repr(OUT[name](bn)) == repr(expected)


# --- Flax -------------------------------------------------------------------------------------------------------------


def test_flax_paths(rng):
    bn, other = trained(rng, 3, ddof=0, axis=-1, momentum=0.99), trained(rng, 4)
    variables = bn.to_flax(prefix="encoder/BatchNorm_0")
    variables["batch_stats"] |= other.to_flax(prefix="head")["batch_stats"]
    assert_same(fastbn.BatchNorm.from_flax(variables, prefix="encoder/BatchNorm_0"), bn, counter=False)
    with pytest.raises(ValueError, match="(?s)no mean under prefix 'encoder'.*'encoder/BatchNorm_0', 'head'"):
        fastbn.BatchNorm.from_flax(variables, prefix="encoder")
    assert fastbn.BatchNorm.from_flax(variables, prefix="head").gamma is None


def test_flax_arrays_over_several_axes(rng):
    a = rng.uniform(0.5, 2, (3, 4)).astype(np.float32)
    bn = fastbn.BatchNorm.from_flax({"batch_stats": {"mean": a, "var": a}}, axis=(1, 2))
    assert bn.num_features == 12
    np.testing.assert_array_equal(bn.running_mean, a.ravel())
    with pytest.raises(ValueError, match="tuple as axis"):
        fastbn.BatchNorm.from_flax({"batch_stats": {"mean": a, "var": a}})


@pytest.mark.parametrize("axis", [-1, 1, (1, 3)], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_linen_gives_the_same_before_and_after_training_on(nnx, axis, training):
    jax, linen = framework("jax"), framework("flax.linen")
    module = linen.BatchNorm(axis=axis, momentum=0.7, epsilon=0.01, use_running_average=not training)
    xs = np.random.default_rng(0).standard_normal((3, 4, 5, 6, 7)).astype(np.float32)
    variables = module.init(jax.random.key(0), xs[0])
    bn = fastbn.BatchNorm.from_flax(variables, module)
    assert bn.training is training and bn.axis == axis
    for x in xs:
        y, new = module.apply(variables, x, mutable=["batch_stats"])
        np.testing.assert_allclose(bn(x), y, rtol=2e-5, atol=2e-5)
        variables = {**variables, **new}
    bn = fastbn.BatchNorm.from_flax(variables, module) if not training else bn
    np.testing.assert_allclose(bn.running_mean, np.ravel(variables["batch_stats"]["mean"]), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(bn.running_var, np.ravel(variables["batch_stats"]["var"]), rtol=1e-5)
    if axis == -1:
        y = module.clone(use_running_average=True).apply(bn.to_flax(), xs[0])
        np.testing.assert_allclose(bn.eval()(xs[0]), y, rtol=2e-5, atol=2e-5)
    with pytest.raises(TypeError, match="module is a Dense"):
        fastbn.BatchNorm.from_flax(variables, linen.Dense(3))


@on_switches
def test_nnx_there_and_back(nnx, rng, switches):
    kept = {"use_bias": switches.get("center", True), "use_scale": switches.get("scale", True)}
    layer = nnx.BatchNorm(5, momentum=0.8, epsilon=0.01, rngs=nnx.Rngs(0), **kept)
    x = rng.standard_normal((9, 5)).astype(np.float32)
    layer(x)
    bn = fastbn.BatchNorm.from_flax(layer)
    assert settings(bn) == {"axis": -1, "eps": 0.01, "momentum": 0.8, "ddof": 0} and bn.training
    np.testing.assert_allclose(bn(x), layer(x), rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(bn.running_var, np.asarray(layer.var), rtol=1e-5)
    twin = bn.to_flax(nnx.BatchNorm(5, rngs=nnx.Rngs(0), **kept))
    twin.eval()
    assert (twin.momentum, twin.epsilon) == (0.8, 0.01)
    assert_same(fastbn.BatchNorm.from_flax(twin), bn, counter=False)
    assert not fastbn.BatchNorm.from_flax(twin).training
    np.testing.assert_allclose(bn.eval()(x), twin(x), rtol=2e-5, atol=2e-5)
    with pytest.raises(ValueError, match="momentum is None"):
        trained(rng, momentum=None).to_flax(twin)
    with pytest.raises(ValueError, match="prefix"):
        fastbn.BatchNorm.from_flax(twin, prefix="a")


# --- ONNX -------------------------------------------------------------------------------------------------------------


def onnx_node(onnx, bn, opset, outputs=("y",), **attributes):
    """(node, initializers) for the layer, under names that are not the roles."""
    own, arrays = bn.to_onnx(opset=opset)
    node = onnx.helper.make_node("BatchNormalization", ["x", "s1", "b1", "m1", "v1"], outputs, **{**own, **attributes})
    names = {"scale": "s1", "B": "b1", "mean": "m1", "var": "v1"}
    return node, [onnx.numpy_helper.from_array(a, names[role]) for role, a in arrays.items()]


def onnx_model(onnx, bn, opset, shape=("n", 5, "h", "w"), outputs=("y",)):
    node, tensors = onnx_node(onnx, bn, opset, outputs)
    float_ = onnx.TensorProto.FLOAT
    ins = [onnx.helper.make_tensor_value_info("x", float_, shape)]
    outs = [onnx.helper.make_tensor_value_info(name, float_, shape if name == "y" else [5]) for name in outputs]
    graph = onnx.helper.make_graph([node], "bn", ins, outs, tensors)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)


@pytest.mark.parametrize("opset", [7, 8, 9, 13, 14, 15, 17])
@pytest.mark.parametrize("where", ["model", "graph", "tensors", "dict of tensors", "dict of arrays"])
def test_onnx_nodes_there_and_back(rng, onnx, opset, where):
    bn = trained(rng, momentum=0.7, eps=2e-5, ddof=0).eval()
    model = onnx_model(onnx, bn, opset)
    onnx.checker.check_model(model)
    node, tensors = model.graph.node[0], list(model.graph.initializer)
    source = {"model": model, "graph": model.graph, "tensors": tensors, "dict of tensors": {t.name: t for t in tensors},
              "dict of arrays": {t.name: onnx.numpy_helper.to_array(t) for t in tensors}}[where]
    back = fastbn.BatchNorm.from_onnx(node, source, opset=None if where == "model" else opset)
    assert_same(back, bn, counter=False)
    assert not back.training


def test_onnx_without_attributes(rng, onnx):
    node, tensors = onnx_node(onnx, trained(rng), 15)
    del node.attribute[:]
    bn = fastbn.BatchNorm.from_onnx(node, tensors)
    assert settings(bn) == {"axis": 1, "eps": 1e-5, "momentum": 0.9, "ddof": 0} and not bn.training


@pytest.mark.parametrize("opset, outputs, mode, training", [
    (9, ("y",), None, False), (9, ("y", "m2", "v2"), None, True), (9, ("y", "", ""), None, False),
    (7, ("y", "m2"), None, True),
    (14, ("y",), 0, False), (14, ("y", "m2", "v2"), 1, True), (15, ("y", "m2", "v2"), 1, True)])
def test_onnx_training_mode(rng, onnx, opset, outputs, mode, training):
    attributes = {} if mode is None else {"training_mode": mode}
    node, tensors = onnx_node(onnx, trained(rng), opset, outputs, **attributes)
    assert fastbn.BatchNorm.from_onnx(node, tensors, opset=opset).training is training


@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 3, 4)], ids=str)
def test_onnx_statistics_for_each_activation(rng, onnx, shape):
    """spatial=0 of opsets 7 and 8: the features are all axes but the first."""
    arrays = {name: rng.uniform(0.5, 2, shape).astype(np.float32) for name in ("scale", "B", "mean", "var")}
    node = onnx.helper.make_node("BatchNormalization", ["x", *arrays], ["y"], spatial=0)
    bn = fastbn.BatchNorm.from_onnx(node, arrays, opset=7)
    x = rng.standard_normal((4, *shape)).astype(np.float32)
    expected = (x - arrays["mean"]) / np.sqrt(arrays["var"] + 1e-5) * arrays["scale"] + arrays["B"]
    np.testing.assert_allclose(bn(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_onnx_reference_gives_the_same(rng, onnx, training):
    reference = framework("onnx.reference", "onnx")
    bn = trained(rng, momentum=0.7, eps=1e-3, ddof=0).train(training)
    model = onnx_model(onnx, bn, 15, outputs=("y", "m2", "v2") if training else ("y",))
    x = rng.standard_normal((3, 5, 4, 4)).astype(np.float32)
    y, *running = reference.ReferenceEvaluator(model).run(None, {"x": x})
    bn = fastbn.BatchNorm.from_onnx(model.graph.node[0], model)
    assert bn.training is training
    np.testing.assert_allclose(bn(x), y, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip((bn.running_mean, bn.running_var), running):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_onnxruntime_gives_the_same(rng, onnx):
    ort = framework("onnxruntime")
    bn = trained(rng, eps=1e-3).eval()
    session = ort.InferenceSession(onnx_model(onnx, bn, 15).SerializeToString(), providers=["CPUExecutionProvider"])
    x = rng.standard_normal((3, 5, 4, 4)).astype(np.float32)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], bn(x), rtol=1e-5, atol=1e-5)


def test_onnx_that_is_refused(rng, onnx):
    bn = trained(rng)
    node, tensors = onnx_node(onnx, bn, 13)
    relu = onnx.helper.make_node("Relu", ["x"], ["y"])
    spatial = onnx.helper.make_node("BatchNormalization", ["x", "s1", "b1", "m1", "v1"], ["y"], spatial=1)
    for wrong, where, opset, error, message in (
            (node, tensors, 6, ValueError, "opset is 6, expected 7"), (node, tensors, "9", TypeError, "opset is '9'"),
            (relu, tensors, 9, ValueError, "node is a Relu"), (spatial, tensors, 9, ValueError, "spatial.*opset 9"),
            (onnx_node(onnx, bn, 14)[0], tensors, 9, ValueError, "training_mode.*opset 9"),
            (node, tensors[1:], 13, ValueError, "initializer 's1'.*scale"),
            (node, 3, 13, TypeError, "initializers is a int"), ("node", tensors, 13, TypeError, "node is a str")):
        with pytest.raises(error, match=f"(?s){message}"):
            fastbn.BatchNorm.from_onnx(wrong, where, opset=opset)


def test_layers_that_onnx_has_no_node_for(rng):
    with pytest.raises(ValueError, match="axis is -1, expected 1"):
        trained(rng, axis=-1).to_onnx()
    with pytest.raises(ValueError, match="opset is 6"):
        trained(rng).to_onnx(opset=6)
    assert trained(rng).to_onnx()[0]["training_mode"] == 1 and trained(rng).eval().to_onnx()[0]["training_mode"] == 0
    assert "training_mode" not in trained(rng).to_onnx(opset=13)[0]


# --- Chainer ----------------------------------------------------------------------------------------------------------


def test_chainer_names(rng, tmp_path):
    """As its serializer writes them, through a file of NumPy's."""
    bn = trained(rng, eps=2e-5)
    np.savez(tmp_path / "link.npz", **bn.to_chainer(prefix="conv/bn"))
    with np.load(tmp_path / "link.npz") as file:
        assert sorted(file.files) == [f"conv/bn/{name}" for name in ("N", "avg_mean", "avg_var", "beta", "gamma")]
        assert_same(fastbn.BatchNorm.from_chainer(file, prefix="conv/bn"), bn, counter=False)
        with pytest.raises(ValueError, match="(?s)no avg_mean.*'conv/bn/'"):
            fastbn.BatchNorm.from_chainer(file)


def test_chainer_arrays_over_several_axes(rng):
    a = rng.uniform(0.5, 2, (3, 4)).astype(np.float32)
    bn = fastbn.BatchNorm.from_chainer({"avg_mean": a, "avg_var": a})
    assert bn.axis == (1, 2) and bn.num_features == 12


def chainer_link(**keywords):
    """A stand-in with the attributes of Chainer's link, of a class that says it is from there."""
    kind = type("BatchNormalization", (types.SimpleNamespace,),
                {"__module__": "chainer.links.normalization.batch_normalization"})
    values = {"avg_mean": np.full(3, 1, "f"), "avg_var": np.full(3, 2, "f"), "gamma": None, "beta": None, "N": 4,
              "decay": 0.8, "eps": 0.01, "axis": None}
    return kind(**{**values, **keywords})


@pytest.mark.parametrize("shape, axis, expected", [
    ((3,), None, 1), ((3,), (0,), 1), ((3,), (0, 2, 3), 1), ((3,), (0, 1, 2), 3), ((3, 2), None, (1, 2)),
    ((3, 2), (0, 2), (1, 3))])
def test_chainer_axes_are_those_to_sum_over(shape, axis, expected):
    link = chainer_link(avg_mean=np.ones(shape, "f"), avg_var=np.ones(shape, "f"), axis=axis)
    bn = fastbn.BatchNorm.from_chainer(link)
    assert settings(bn) == {"axis": expected, "eps": 0.01, "momentum": 0.8, "ddof": 1} and bn.num_batches_tracked == 4


def test_chainer_link_is_filled(rng):
    bn = trained(rng, 6, center=False, scale=False, momentum=0.7, eps=0.5)
    link = bn.to_chainer(chainer_link(avg_mean=np.ones((3, 2), "f"), avg_var=np.ones((3, 2), "f")))
    np.testing.assert_array_equal(link.avg_var, bn.running_var.reshape(3, 2))
    assert (link.N, link.decay, link.eps) == (0, 0.7, 0.5)
    bn.momentum = None
    assert (bn.to_chainer(link).N, link.decay) == (7, 0.7)


def test_chainer_links_that_are_refused(rng):
    for link, error, message in ((chainer_link(avg_mean=None), ValueError, "not initialized"),
                                 (chainer_link(avg_mean=[1.0]), TypeError, "to_cpu")):
        for use in (lambda: fastbn.BatchNorm.from_chainer(link), lambda: trained(rng, 3).to_chainer(link)):
            with pytest.raises(error, match=message):
                use()
    link = chainer_link()
    with pytest.raises(ValueError, match="gamma"):
        trained(rng, 3).to_chainer(link)
    assert (link.avg_mean == 1).all() and link.N == 4


@pytest.mark.parametrize("axis", [None, (0, 1)])
@pytest.mark.parametrize("training", [True, False])
def test_chainer_gives_the_same_before_and_after_training_on(chainer, axis, training):
    link = chainer.links.BatchNormalization(None if axis else 5, axis=axis, decay=0.7, eps=0.01)
    xs = np.random.default_rng(0).standard_normal((3, 6, 5, 5)).astype(np.float32)
    with chainer.using_config("train", True):
        link(xs[0])
    bn = fastbn.BatchNorm.from_chainer(link).train(training)
    with chainer.using_config("train", training):
        for x in xs[1:]:
            np.testing.assert_allclose(bn(x), link(x).array, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(bn.running_mean, link.avg_mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(bn.running_var, link.avg_var, rtol=1e-5)
    bn.gamma[:] = 3
    assert_same(fastbn.BatchNorm.from_chainer(bn.to_chainer(link)), bn, counter=False)


# --- For inference, and whole networks ----------------------------------------------------------------------------------


def network(rng):
    """The state of a network as arrays, with its batch norms' prefixes."""
    sizes = {"stem.bn": 4, "layer1.0.bn1": 6, "layer1.0.downsample.1": 3}
    state = {"stem.conv.weight": rng.normal(size=(4, 3, 3, 3))}
    for prefix, c in sizes.items():
        state |= {f"{prefix}.weight": rng.normal(size=c), f"{prefix}.bias": rng.normal(size=c),
                  f"{prefix}.running_mean": rng.normal(size=c), f"{prefix}.running_var": rng.random(c),
                  f"{prefix}.num_batches_tracked": np.int64(9)}
    return state | {"norm.weight": np.ones(3), "norm.bias": np.zeros(3)}, sizes


@pytest.mark.parametrize("kind", ["arrays", "tensors", "safetensors"])
def test_a_whole_network(rng, tmp_path, kind):
    state, sizes = network(rng)
    given = state
    if kind == "tensors":
        torch = pytest.importorskip("torch")
        given = {name: torch.as_tensor(value) for name, value in state.items()}
    elif kind == "safetensors":
        given = tmp_path / "net.safetensors"
        pytest.importorskip("safetensors.numpy").save_file({name: np.asarray(value) for name, value in state.items()}, given)
    found = fastbn.convert.from_state_dict(given, training=False, eps=1e-3, activation="relu")
    assert {prefix: layer.num_features for prefix, layer in found.items()} == sizes
    for prefix, layer in found.items():
        assert not layer.training and layer.eps == 1e-3 and layer.activation == "relu" and layer.num_batches_tracked == 9
        np.testing.assert_array_equal(layer.running_var, state[f"{prefix}.running_var"])
    alone = fastbn.convert.from_state_dict({name.removeprefix("stem.bn."): value for name, value in state.items()
                                            if name.startswith("stem.bn.")})
    assert list(alone) == [""]


def test_a_network_without_batch_norms():
    with pytest.raises(ValueError, match="no entry of state is a running_mean .* it has 'norm.weight'"):
        fastbn.convert.from_state_dict({"norm.weight": np.ones(3)})
    with pytest.raises(TypeError, match="state is a list, expected a dict"):
        fastbn.convert.from_state_dict([1])
    with pytest.raises(TypeError, match="prefix is given, .*from_torch"):
        fastbn.convert.from_state_dict({}, prefix="norm")


def test_warnings_name_the_line_of_the_caller(tmp_path):
    state = {"running_mean": np.full(3, np.inf), "running_var": np.ones(3)}
    path, layer = tmp_path / "layer.npz", fastbn.BatchNorm(3)
    layer.running_mean[1] = np.inf
    layer.save(path)
    for call in (lambda: fastbn.BatchNorm(3).load(path), lambda: fastbn.BatchNorm.from_file(path),
                 lambda: fastbn.BatchNorm.from_torch(state), lambda: fastbn.convert.from_state_dict(state),
                 lambda: fastbn.BatchNorm(3)(np.ones((1, 3)), like=np)):
        with pytest.warns(UserWarning, match="not finite|one value") as caught:
            call()
        assert caught[0].filename == __file__


def test_loading_for_inference_is_one_call(rng):
    state, _ = network(rng)
    layer = fastbn.BatchNorm.from_torch(state, "stem.bn", training=False, activation=("leaky_relu", 0.2), nan_policy="raise")
    assert not layer.training and "training=False" in repr(layer) and layer.activation == ("leaky_relu", 0.2)
    assert layer.nan_policy == "raise"
    weights, config = layer_without_activation(layer).to_keras()
    assert not fastbn.BatchNorm.from_keras(weights, config, training=False).training
    with pytest.raises(TypeError, match="training is 'eval', expected True, False"):
        fastbn.BatchNorm.from_torch(state, "stem.bn", training="eval")
    with pytest.raises(TypeError, match="center is no setting"):
        fastbn.BatchNorm.from_torch(state, "stem.bn", center=False)


def layer_without_activation(layer):
    twin = copy.copy(layer)
    twin.activation = None
    return twin
