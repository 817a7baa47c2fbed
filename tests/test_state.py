"""State in and out: state_dict, files, copies, pickles; and that a state which does not fit changes nothing."""
import copy
import io
import os
import pathlib
import pickle
import warnings
import zipfile

import numpy as np
import pytest

import fastbn
from oracle import FLOATS, parameters, sample

pytestmark = pytest.mark.filterwarnings("error")

ALL = {"gamma", "beta", "running_mean", "running_var", "num_batches_tracked"}
SWITCHES = [
    ({}, ALL),
    ({"center": False}, ALL - {"beta"}),
    ({"scale": False}, ALL - {"gamma"}),
    ({"track_running_stats": False}, {"gamma", "beta"}),
    ({"center": False, "scale": False, "track_running_stats": False}, set()),
]


def trained(rng, features=5, **keywords):
    """A layer after two batches, with parameters of its own."""
    layer = fastbn.BatchNorm(features, **keywords)
    gamma, beta = parameters(rng, features)
    if layer.gamma is not None:
        layer.gamma[:] = gamma
    if layer.beta is not None:
        layer.beta[:] = beta
    for _ in range(2):
        layer(sample(rng, (20, features), ratio=2.0))
    return layer


def snapshot(layer):
    return {name: np.copy(value) for name, value in layer.state_dict().items()}


def assert_state(layer, expected):
    state = layer.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(state[name], value)


# --- state_dict -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("switches, names", SWITCHES, ids=lambda v: ",".join(sorted(v)))
def test_state_dict_has_what_the_layer_has(rng, switches, names):
    layer = trained(rng, **switches)
    state = layer.state_dict()
    assert set(state) == names
    for name, value in state.items():
        np.testing.assert_array_equal(value, getattr(layer, name))


@pytest.mark.parametrize("switches, names", SWITCHES, ids=lambda v: ",".join(sorted(v)))
@pytest.mark.parametrize("dtype", FLOATS)
def test_load_state_dict_restores(rng, switches, names, dtype):
    layer = trained(rng, dtype=dtype, **switches)
    other = fastbn.BatchNorm(5, dtype=dtype, **switches)
    other.load_state_dict(layer.state_dict())
    assert_state(other, snapshot(layer))
    x = sample(rng, (20, 5))
    np.testing.assert_array_equal(other.eval()(x), layer.eval()(x))


def test_state_dict_is_a_snapshot(rng):
    layer = trained(rng)
    state, expected = layer.state_dict(), snapshot(layer)
    layer(sample(rng, (20, 5), ratio=5.0))
    layer.gamma[:] = 9
    for name, value in expected.items():
        np.testing.assert_array_equal(state[name], value)
    layer.load_state_dict(state)
    assert_state(layer, expected)


def test_loading_copies_the_values(rng):
    layer, state = fastbn.BatchNorm(5), snapshot(trained(rng))
    layer.load_state_dict(state)
    expected = snapshot(layer)
    state["gamma"][:] = 9
    assert_state(layer, expected)


def test_loading_fills_the_arrays_in_place(rng):
    """An optimizer holds on to gamma and beta."""
    layer = fastbn.BatchNorm(5)
    kept = {name: getattr(layer, name) for name in ALL - {"num_batches_tracked"}}
    layer.load_state_dict(trained(rng).state_dict())
    for name, array in kept.items():
        assert getattr(layer, name) is array


@pytest.mark.parametrize("dtype", FLOATS)
def test_loading_converts_to_the_type_of_the_layer(rng, dtype):
    source = trained(rng, dtype=np.float64 if dtype == np.float32 else np.float32)
    layer = fastbn.BatchNorm(5, dtype=dtype)
    layer.load_state_dict(source.state_dict())
    assert layer.gamma.dtype == layer.running_var.dtype == dtype
    np.testing.assert_allclose(layer.running_var, source.running_var, rtol=1e-7)
    layer.load_state_dict({name: np.asarray(value).tolist() for name, value in source.state_dict().items()})
    assert layer.gamma.dtype == dtype and layer.num_batches_tracked == 2


def without(state, name):
    return {k: v for k, v in state.items() if k != name}


BAD_STATES = {
    "missing gamma": (lambda s: without(s, "gamma"), "gamma"),
    "missing running_var": (lambda s: without(s, "running_var"), "running_var"),
    "missing counter": (lambda s: without(s, "num_batches_tracked"), "num_batches_tracked"),
    "empty": (lambda s: {}, "gamma"),
    "extra": (lambda s: {**s, "weight": np.ones(5)}, "weight"),
    "short beta": (lambda s: {**s, "beta": np.ones(4)}, r"beta.*\(4,\)|\(4,\).*beta"),
    "scalar beta": (lambda s: {**s, "beta": 1.0}, "beta"),
    "matrix running_mean": (lambda s: {**s, "running_mean": np.ones((1, 5))}, "running_mean"),
    "counter is an array": (lambda s: {**s, "num_batches_tracked": np.ones(5)}, "num_batches_tracked"),
    "negative counter": (lambda s: {**s, "num_batches_tracked": -1}, "num_batches_tracked"),
    "complex running_var": (lambda s: {**s, "running_var": np.ones(5) * 1j}, "running_var"),
    "text running_var": (lambda s: {**s, "running_var": "abcde"}, "running_var"),
    "None gamma": (lambda s: {**s, "gamma": None}, "gamma"),
}


@pytest.mark.parametrize("change, message", BAD_STATES.values(), ids=BAD_STATES)
def test_a_state_that_does_not_fit_changes_nothing(rng, change, message):
    layer = trained(rng)
    before = snapshot(layer)
    with pytest.raises((ValueError, TypeError), match=f"(?s){message}"):
        layer.load_state_dict(change(snapshot(trained(rng, momentum=0.5))))
    assert_state(layer, before)


@pytest.mark.parametrize("change", ["missing gamma", "extra", "short beta"])
def test_a_missing_extra_or_misshapen_entry_is_a_value_error(rng, change):
    with pytest.raises(ValueError):
        fastbn.BatchNorm(5).load_state_dict(BAD_STATES[change][0](snapshot(trained(rng))))


@pytest.mark.parametrize("state", [None, 3, "gamma", [1.0, 2.0]], ids=str)
def test_a_state_that_is_no_mapping_is_refused(state):
    with pytest.raises((TypeError, ValueError)):
        fastbn.BatchNorm(5).load_state_dict(state)


def test_a_state_of_a_layer_with_other_switches_is_refused(rng):
    with pytest.raises(ValueError, match="beta"):
        fastbn.BatchNorm(5, center=False).load_state_dict(trained(rng).state_dict())
    with pytest.raises(ValueError, match="beta"):
        fastbn.BatchNorm(5).load_state_dict(trained(rng, center=False).state_dict())


# --- Files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("switches, names", SWITCHES[:4], ids=lambda v: ",".join(sorted(v)))
@pytest.mark.parametrize("kind", [str, pathlib.Path])
@pytest.mark.parametrize("name", ["layer.npz", "layer", "layer.state"])
def test_save_and_load(rng, tmp_path, switches, names, kind, name):
    path = kind(tmp_path / name)
    layer = trained(rng, **switches)
    layer.save(path)
    other = fastbn.BatchNorm(5, **switches)
    assert other.load(path) is other
    assert_state(other, snapshot(layer))


def test_the_file_is_an_npz_without_pickle(rng, tmp_path):
    layer = trained(rng)
    layer.save(tmp_path / "layer.npz")
    assert os.listdir(tmp_path) == ["layer.npz"]
    with np.load(tmp_path / "layer.npz", allow_pickle=False) as file:
        assert {name for name in file.files if not name.startswith("settings.")} == ALL
        assert all(file[name].dtype.kind in "ifU" or name.endswith("gradients") for name in file.files)
        for name in ALL:
            np.testing.assert_array_equal(file[name], getattr(layer, name))


def test_saving_replaces_an_older_file(rng, tmp_path):
    path = tmp_path / "layer.npz"
    trained(rng).save(path)
    layer = trained(rng)
    layer.save(path)
    assert_state(fastbn.BatchNorm(5).load(path), snapshot(layer))


def saved_bytes(layer):
    """The file's content, as NumPy would write it."""
    buffer = io.BytesIO()
    np.savez(buffer, **layer.state_dict())
    return buffer.getvalue()


class Dangerous:
    """Unpickling it leaves a trace."""

    def __reduce__(self):
        return exec, ("import builtins; builtins.fastbn_was_fooled = True",)


def pickled_entry(layer):
    state = {**layer.state_dict(), "gamma": np.array([Dangerous()] * 5, dtype=object)}
    buffer = io.BytesIO()
    np.savez(buffer, **state)
    return buffer.getvalue()


def flipped_byte(layer):
    """One wrong bit in the stored numbers of gamma: the archive's checksum tells."""
    content = bytearray(saved_bytes(layer))
    at = content.find(np.asarray(layer.gamma).tobytes())
    assert at > 0
    content[at] ^= 1
    return bytes(content)


def foreign_archive(layer):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "not an array")
    return buffer.getvalue()


def single_array(layer):
    buffer = io.BytesIO()
    np.save(buffer, layer.gamma)
    return buffer.getvalue()


def other_features(layer):
    return saved_bytes(fastbn.BatchNorm(7))


CORRUPT = {
    "empty": lambda layer: b"",
    "text": lambda layer: b"gamma = 1, beta = 0\n" * 10,
    "truncated": lambda layer: saved_bytes(layer)[:-200],
    "half": lambda layer: saved_bytes(layer)[:len(saved_bytes(layer)) // 2],
    "flipped byte": flipped_byte,
    "pickle": lambda layer: pickle.dumps(layer.state_dict()),
    "pickled entry": pickled_entry,
    "foreign archive": foreign_archive,
    "single array": single_array,
    "other features": other_features,
}


@pytest.mark.parametrize("content", CORRUPT.values(), ids=CORRUPT)
def test_a_corrupt_file_is_a_value_error_and_changes_nothing(rng, tmp_path, content):
    layer = trained(rng)
    before = snapshot(layer)
    path = tmp_path / "layer.npz"
    path.write_bytes(content(layer))
    with pytest.raises(ValueError):
        layer.load(path)
    assert_state(layer, before)
    import builtins
    assert not hasattr(builtins, "fastbn_was_fooled")


def test_a_missing_file_and_an_unwritable_place_are_os_errors(rng, tmp_path):
    layer = trained(rng)
    before = snapshot(layer)
    with pytest.raises(FileNotFoundError):
        layer.load(tmp_path / "absent.npz")
    with pytest.raises(OSError):
        layer.load(tmp_path)
    with pytest.raises(OSError):
        layer.save(tmp_path / "absent" / "layer.npz")
    assert_state(layer, before)


# --- Copies ---------------------------------------------------------------------------------------------------------

SETTINGS = [{}, {"axis": -1, "eps": 0.01, "momentum": None, "ddof": 0, "dtype": np.float64},
            {"center": False, "scale": False}, {"track_running_stats": False}]
DUPLICATES = {"deepcopy": copy.deepcopy, **{f"pickle{p}": lambda layer, p=p: pickle.loads(pickle.dumps(layer, p))
                                            for p in range(2, pickle.HIGHEST_PROTOCOL + 1)}}


def assert_same_layer(a, b):
    assert repr(a) == repr(b) and a.training == b.training
    for name in ("num_features", "axis", "eps", "momentum", "ddof", "dtype"):
        assert getattr(a, name) == getattr(b, name)
    assert_state(a, snapshot(b))


@pytest.mark.parametrize("duplicate", [copy.copy, *DUPLICATES.values()], ids=["copy", *DUPLICATES])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_a_copy_is_the_same_layer(rng, duplicate, settings, training):
    layer = trained(rng, **settings).train(training)
    twin = duplicate(layer)
    assert type(twin) is fastbn.BatchNorm and twin is not layer
    assert_same_layer(twin, layer)
    x = sample(rng, (20, 5))
    np.testing.assert_array_equal(twin.eval()(x), layer.eval()(x))


@pytest.mark.parametrize("duplicate", DUPLICATES.values(), ids=DUPLICATES)
def test_a_deep_copy_lives_its_own_life(rng, duplicate):
    layer = trained(rng)
    twin = duplicate(layer)
    expected = snapshot(layer)
    x = sample(rng, (20, 5), ratio=5.0)
    twin(x)
    twin.backward(x)
    twin.gamma[:] = 9
    twin.eval()
    assert_state(layer, expected)
    assert layer.training
    assert twin.num_batches_tracked == 3 and (twin.running_mean != layer.running_mean).all()


@pytest.mark.parametrize("duplicate", [copy.copy, *DUPLICATES.values()], ids=["copy", *DUPLICATES])
def test_the_original_can_still_go_backward(rng, duplicate):
    layer = trained(rng)
    x = sample(rng, (20, 5))
    layer(x)
    duplicate(layer)
    dx = layer.backward(x)
    layer(x)
    np.testing.assert_array_equal(dx, layer.backward(x))


def test_a_pickle_does_not_carry_the_last_batch(rng):
    layer = trained(rng)
    x = sample(rng, (10_000, 5))
    layer(x)
    assert len(pickle.dumps(layer)) < 5000


def test_a_subclass_keeps_its_class_and_attributes(rng):
    layer = Named(5)
    layer.name = "first"
    twin = copy.deepcopy(layer)
    assert type(twin) is Named and twin.name == "first"
    twin = pickle.loads(pickle.dumps(layer))
    assert type(twin) is Named and twin.name == "first"


class Named(fastbn.BatchNorm):
    """At the top level, since pickle finds classes by name."""

    name = ""


# --- Values that cannot be ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-1e-3, np.nan, -np.inf])
def test_a_variance_that_is_none_is_refused_wherever_it_is_given(rng, tmp_path, value):
    layer, bad = trained(rng), trained(rng)
    bad.running_var[2] = value  # in place, which nobody sees
    before = layer.state_dict()
    bad.save(tmp_path / "bad.npz")
    arrays = {name: a for name, a in bad.to_torch().items()}
    calls = [lambda: layer.load_state_dict(bad.state_dict()), lambda: layer.load(tmp_path / "bad.npz"),
             lambda: setattr(layer, "running_var", bad.running_var), lambda: pickle.loads(pickle.dumps(bad)),
             lambda: fastbn.BatchNorm.from_torch(arrays), lambda: fastbn.BatchNorm.from_file(tmp_path / "bad.npz")]
    for call in calls:
        with pytest.raises(ValueError, match="running_var is .* for feature 2"):
            call()
    for name, a in layer.state_dict().items():
        np.testing.assert_array_equal(a, before[name])
    np.testing.assert_array_equal(copy.deepcopy(bad).running_var, bad.running_var)  # a copy is what it is a copy of


@pytest.mark.parametrize("name", ["gamma", "beta", "running_mean", "running_var"])
def test_other_values_that_are_not_finite_warn(rng, name):
    layer = trained(rng)
    state = layer.state_dict()
    state[name][1] = np.inf
    with pytest.warns(UserWarning, match=f"{name} is inf for feature 1") as warned:
        layer.load_state_dict(state)
    assert warned[0].filename == __file__


@pytest.mark.parametrize("name", ["running_mean", "running_var"])
@pytest.mark.parametrize("settings", [{}, {"axis": (1,)}, {"nan_policy": "omit"}, {"ghost_batch_size": 2}], ids=str)
def test_a_step_changes_both_arrays_and_the_counter_or_none(rng, name, settings):
    layer = fastbn.BatchNorm(5, **settings)
    x = rng.normal(size=(6, 5)).astype(np.float32)
    if settings.get("nan_policy") == "omit":
        x[1:, 2] = np.nan
    before = layer.state_dict()
    getattr(layer, name).flags.writeable = False
    for call in (lambda: layer(x), lambda: layer.update(fastbn.moments(x, nan_policy="omit")), lambda: layer.calibrate([x]),
                 lambda: layer.load_state_dict(before | {"running_mean": np.ones(5)})):
        with pytest.raises(ValueError, match="read-only|more than ddof"):
            call()
        for key, a in layer.state_dict().items():
            np.testing.assert_array_equal(a, before[key])


@pytest.mark.parametrize("spoil", [lambda layer: setattr(layer.running_var.flags, "writeable", False),
                                   lambda layer: setattr(layer, "num_batches_tracked", "many")], ids=["read-only", "counter"])
@pytest.mark.parametrize("settings", [{}, {"axis": (1,)}, {"nan_policy": "omit"}, {"renorm": (3, 5)}], ids=str)
def test_a_step_that_cannot_be_taken_is_refused_before_y(rng, spoil, settings):
    layer, x = fastbn.BatchNorm(5, **settings), rng.normal(size=(6, 5)).astype(np.float32)
    layer(x)
    moments, out = layer.batch_moments, np.full_like(x, 7)
    spoil(layer)
    with pytest.raises(ValueError, match="running_var is read-only|num_batches_tracked is 'many'"):
        layer(x + 1, out=out)
    assert (out == 7).all() and layer.batch_moments == moments


def test_a_counter_of_another_integer_type_counts_on(rng):
    layer, x = fastbn.BatchNorm(5), rng.normal(size=(6, 5)).astype(np.float32)
    layer.num_batches_tracked = np.int64(3)
    layer(x)
    layer(x, mask=np.ones(6, bool))
    assert layer.num_batches_tracked == 5


def test_a_pickle_whose_buffers_are_read_only_trains_on(rng):
    layer, x, buffers = trained(rng), rng.normal(size=(6, 5)).astype(np.float32), []
    text = pickle.dumps(layer, protocol=5, buffer_callback=buffers.append)
    twin = pickle.loads(text, buffers=[bytes(buffer.raw()) for buffer in buffers])
    twin(x)
    layer(x)
    np.testing.assert_array_equal(twin.running_var, layer.running_var)


# --- Settings in files -------------------------------------------------------------------------------------------------


MADE = [{}, {"axis": -1, "eps": 1e-3}, {"axis": (1, 2)}, {"momentum": None, "ddof": 0}, {"activation": "relu"},
        {"activation": ("leaky_relu", 0.3), "dtype": np.float64}, {"center": False}, {"scale": False, "track_running_stats": False},
        {"ghost_batch_size": 8, "renorm": (3.0, 5.0)}, {"nan_policy": "omit", "momentum": 0.25}]


@pytest.mark.parametrize("settings", MADE, ids=str)
def test_a_file_makes_the_layer(rng, tmp_path, settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a small momentum, on purpose here
        layer, path = fastbn.BatchNorm(6, **settings), tmp_path / "layer.npz"
    layer.parameter_gradients = False
    if layer.running_mean is not None:
        layer.update_running_stats = True
        layer.running_mean[:], layer.running_var[:], layer.num_batches_tracked = rng.normal(size=6), rng.random(6), 7
    layer.save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = fastbn.BatchNorm.from_file(path)
        assert repr(made) == repr(layer) and made.training
        assert repr(fastbn.BatchNorm.from_file(path, training=False)) == repr(layer.eval())
        layer.train().load(path)
    for name, a in layer.state_dict().items():
        np.testing.assert_array_equal(made.state_dict()[name], a)
    assert set(layer.state_dict()) <= ALL  # which have no settings


@pytest.mark.parametrize("other", [{"eps": 1e-3}, {"axis": -1}, {"activation": "relu"}, {"activation": ("leaky_relu", 0.1)}], ids=str)
def test_a_file_of_a_layer_whose_inference_is_another_is_refused(rng, tmp_path, other):
    layer, path = fastbn.BatchNorm(5), tmp_path / "layer.npz"
    fastbn.BatchNorm(5, **other).save(path)
    before = layer.state_dict()
    with pytest.raises(ValueError, match=rf"was saved with {next(iter(other))}=.*from_file, or pass settings='ignore'"):
        layer.load(path)
    for name, a in layer.state_dict().items():
        np.testing.assert_array_equal(a, before[name])
    layer.load(path, settings="ignore")
    with pytest.raises(ValueError, match="settings is 'all'"):
        layer.load(path, settings="all")


@pytest.mark.parametrize("other", [{"momentum": 0.99}, {"momentum": None}, {"ddof": 0}, {"nan_policy": "skip"}, {"renorm": (3.0, 5.0)},
                                   {"ghost_batch_size": 4}], ids=str)
def test_a_file_of_a_layer_that_trains_in_another_way_warns(tmp_path, other):
    path = tmp_path / "layer.npz"
    fastbn.BatchNorm(5, **other).save(path)
    with pytest.warns(UserWarning, match=f"was saved with {next(iter(other))}=") as warned:
        fastbn.BatchNorm(5).load(path)
    assert warned[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastbn.BatchNorm(5).load(path, settings="ignore")
        fastbn.BatchNorm(5, **other).load(path)


def test_files_of_before_have_no_settings(rng, tmp_path):
    layer, path = trained(rng), tmp_path / "layer.npz"
    np.savez(path, **layer.state_dict())
    twin = fastbn.BatchNorm(layer.num_features, eps=1e-3).load(path)
    np.testing.assert_array_equal(twin.running_var, layer.running_var)
    with pytest.raises(ValueError, match="has no settings"):
        fastbn.BatchNorm.from_file(path)


@pytest.mark.parametrize("change", [{"settings.num_features": np.int64(10**12)}, {"settings.eps": None}, {"gamma": None},
                                    {"settings.num_features": np.int64(-1)}, {"settings.nan_policy": np.array("often")},
                                    {"settings.use_batch_stats": np.array(7)}], ids=str)
def test_a_file_whose_settings_do_not_fit_makes_no_layer(tmp_path, change):
    """Nor takes the memory of one."""
    path = tmp_path / "layer.npz"
    fastbn.BatchNorm(5).save(path)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files} | change
    np.savez(path, **{name: a for name, a in arrays.items() if a is not None})
    if "gamma" in change:  # a layer without
        assert fastbn.BatchNorm.from_file(path).gamma is None
        return
    with pytest.raises(ValueError):
        fastbn.BatchNorm.from_file(path)
