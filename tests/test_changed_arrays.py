"""Arrays whose owner changes their size or type in place between two calls: refused by name, before memory is touched."""
import pickle

import numpy as np
import pytest

import fastbn
from fastbn import _core

C = 4
CHANGES = {"resize": lambda a: a.resize(a.size // 2, refcheck=False),
           "shape": lambda a: setattr(a, "shape", a.shape[::-1] if a.ndim > 1 else (a.size // 2, 2)),
           "dtype": lambda a: setattr(a, "dtype", np.int32 if a.dtype == np.float32 else np.int64)}
pytestmark = pytest.mark.filterwarnings("ignore:Setting the:DeprecationWarning")  # NumPy's, of these very attributes
on_changes = pytest.mark.parametrize("change", CHANGES)
FORWARDS = {"plain": {}, "general": {"axis": (1,)}, "activation": {"activation": "gelu"}, "mask": {"mask": np.ones(6, bool)},
            "residual": {"residual": np.ones((6, C), np.float32)}, "ghost": {"ghost_batch_size": 2},
            "renorm": {"renorm": (3.0, 5.0), "running_mean": np.zeros(C), "running_var": np.ones(C)},
            "omit": {"nan_policy": "omit"}}


@on_changes
@pytest.mark.parametrize("forward", FORWARDS)
def test_x_of_functions(rng, forward, change):
    x = rng.normal(size=(6, C)).astype(np.float32)
    _, saved = fastbn.batch_norm_training(x, **FORWARDS[forward])
    CHANGES[change](x)
    for dy in (np.ones((6, C), np.float32), np.ones_like(x)):
        with pytest.raises(RuntimeError, match="saved.x has shape"):
            fastbn.batch_norm_backward(dy, saved)
    if forward in ("plain", "general"):
        with pytest.raises(RuntimeError, match="saved.x has shape"):
            fastbn.batch_norm_double_backward(None, None, None, np.ones((6, C), np.float32), saved)


@pytest.mark.parametrize("return_saved", [{"axis": 1}, {"axis": (1,)}], ids=str)
def test_x_of_given_statistics(rng, return_saved):
    x = rng.normal(size=(1000, C)).astype(np.float32)
    _, saved = fastbn.batch_norm_inference(x, np.zeros(C), np.ones(C), return_saved=True, **return_saved)
    x.shape = C, 1000
    with pytest.raises(RuntimeError, match=r"saved.x has shape \(4, 1000\) and dtype float32, expected shape \(1000, 4\)"):
        fastbn.batch_norm_backward(np.ones_like(x), saved)
    saved.x = None
    with pytest.raises(RuntimeError, match="saved.x is None"):
        fastbn.batch_norm_backward(np.ones_like(x), saved)
    saved.x = np.ones((1000, C))
    with pytest.raises(RuntimeError, match="saved.x has shape .* and dtype float64"):
        fastbn.batch_norm_backward(np.ones_like(x), saved)


def test_a_residual(rng):
    x, residual = rng.normal(size=(2, 6, C)).astype(np.float32)
    _, saved = fastbn.batch_norm_training(x, activation="gelu", residual=residual)
    residual.shape = C, 6
    with pytest.raises(RuntimeError, match="the residual of the forward call has shape"):
        fastbn.batch_norm_backward(np.ones_like(x), saved)


@on_changes
@pytest.mark.parametrize("name", ["gamma", "beta", "running_mean", "running_var"])
@pytest.mark.parametrize("settings", [{}, {"activation": "relu"}, {"axis": (1,)}, {"ghost_batch_size": 2}, {"dtype": np.float64},
                                      {"renorm": (3.0, 5.0)}, {"nan_policy": "omit"}], ids=str)
def test_arrays_of_a_layer(rng, settings, name, change):
    x = rng.normal(size=(6, C)).astype(np.float32)
    bn = fastbn.BatchNorm(C, **settings)
    bn(x)
    CHANGES[change](getattr(bn, name))
    calls = [lambda: bn(x), lambda: bn.eval()(x), lambda: bn.eval(backward=True)(x), lambda: bn(x, mask=np.ones(6, bool)),
             bn.state_dict, lambda: pickle.dumps(bn), lambda: bn.train().update(fastbn.moments(x))]
    for call in calls:
        with pytest.raises(RuntimeError, match=f"{name} has shape .*, expected a contiguous array of shape .*assign another"):
            call()
    setattr(bn, name, np.ones(C))
    assert np.isfinite(bn.train()(x)).all()


def test_a_large_layer_whose_averages_shrink(rng):
    """A segmentation fault once."""
    bn = fastbn.BatchNorm(1000000)
    bn.running_mean.resize(10, refcheck=False)
    with pytest.raises(RuntimeError, match=r"running_mean has shape \(10,\)"):
        bn(rng.standard_normal((4, 1000000)).astype(np.float32))


def test_x_between_forward_and_backward_of_a_layer(rng):
    for settings in ({}, {"ghost_batch_size": 2}, {"renorm": (3.0, 5.0)}):
        x, bn = rng.normal(size=(6, C)).astype(np.float32), fastbn.BatchNorm(C, **settings)
        bn(x)
        x.shape = C, 6
        with pytest.raises(RuntimeError, match="saved.x has shape"):
            bn.backward(np.ones_like(x))


@pytest.mark.parametrize("name, value", [("M2", np.ones(1)), ("mean", np.zeros((C, 1))), ("count", np.ones(2)), ("squares", np.ones(2)),
                                         ("M2", np.ones(2 * C))])
def test_attributes_of_moments(rng, name, value):
    x, bn = rng.normal(size=(6, C)), fastbn.BatchNorm(C)
    moments = fastbn.moments(x)
    setattr(moments, name, value)
    whole = fastbn.moments(x)
    for call in (bn.update, bn.calibrate, bn.drift, whole.merge, lambda m: m.merge(whole), lambda m: whole + m,
                 lambda m: m.step(np.zeros(C), np.ones(C)), lambda m: fastbn.Moments.merge_all([whole, m])):
        before = bn.state_dict()
        with pytest.raises(ValueError):
            call(moments)
        for key, a in bn.state_dict().items():
            np.testing.assert_array_equal(a, before[key])


@pytest.mark.parametrize("arrays", [{"gamma": np.ones(1, np.float32)}, {"var": np.ones(2 * C)}, {"mean": np.zeros((C, 1), np.float32)},
                                    {"delta": np.ones(C, np.float32)}, {"beta": np.array(["a"] * C)}], ids=lambda a: next(iter(a)))
def test_a_pickled_state(arrays):
    bn = fastbn.BatchNorm(C)
    own, slots, keeps_input, good = bn.__getstate__()
    with pytest.raises((ValueError, TypeError), match=next(iter(arrays)).replace("var", "running_var").replace("mean", "running_mean")):
        fastbn.BatchNorm(C).__setstate__((own, slots, keeps_input, {**good, **arrays}))


def test_functions_of_the_core_check_lengths(rng):
    x, c = rng.normal(size=(6, C, 1)), np.zeros(C)
    extra = _core.Extra(weights=np.ones(5), total=5)
    for call in (lambda: _core.moments(x, extra, c, c.copy(), 0),
                 lambda: _core.moments(x, _core.Extra(weights=np.ones(6, np.float32), total=6), c, c.copy(), 0),
                 lambda: _core.moments(x, _core.Extra(weights=np.ones(6), total=6, counts=np.ones(3)), c, c.copy(), 0),
                 lambda: _core.training(x, extra, None, None, 1e-5, x.copy(), c, c.copy(), c.copy(), 0),
                 lambda: _core.moments(x, None, np.zeros(3), c, 0), lambda: _core.round_f32(np.zeros(9), np.zeros(3, np.float32)),
                 lambda: _core.update_running(c, c, 0.9, 1.0, np.zeros(3), np.zeros(C))):
        with pytest.raises(ValueError):
            call()
