"""Batch renormalization: y towards the running statistics, r and d constants in the gradient."""
import copy
import pickle

import numpy as np
import pytest

import fastbn
from oracle import (FLOATS, GRAD_UNIT, WIDE, Y_UNIT, as_rows, assert_within, backward, central_differences, moving_average, parameters, reciprocal_std, sample, spacing, statistics, strided, unbiased, wide_parameters)

pytestmark = pytest.mark.filterwarnings("error")

SHAPES = [((12, 5), 1), ((4, 5, 6, 6), 1), ((4, 6, 6, 5), -1), ((6, 5, 40), 1)]
on_shapes = pytest.mark.parametrize("shape, axis", SHAPES, ids=str)
LIMITS = [(1.0, 0.0), (1.5, 0.5), (3.0, 5.0), (np.inf, np.inf)]


def running(rng, dtype=np.float32):
    """Running statistics that samples differ from, in some features by more than the smaller limits."""
    return rng.uniform(-2, 2, 5).astype(dtype), rng.uniform(0.2, 5, 5).astype(dtype)


def wide_correction(stats, mean, var, eps, limits):
    rmax, dmax = map(WIDE, limits)
    running_std = np.sqrt(np.asarray(var, WIDE) + WIDE(eps))
    r = np.clip(np.sqrt(stats.var + WIDE(eps)) / running_std, 1 / rmax, rmax)
    return r, np.clip((stats.mean - np.asarray(mean, WIDE)) / running_std, -dmax, dmax)


def check_renorm(y, gradients, x, dy, gamma, beta, mean, var, limits, axis, eps=1e-5, slack=1):
    """Against the formulas, wide; within the bounds of plain training with gamma * r and gamma * d + beta."""
    stats = statistics(x, axis)
    r, d = wide_correction(stats, mean, var, eps, limits)
    gamma, beta = wide_parameters(5, gamma, beta)
    rows, dy_rows = as_rows(x, axis), as_rows(dy, axis)
    h = (rows - stats.mean) * reciprocal_std(stats.var, eps)
    unit, grad_unit = slack * Y_UNIT[x.dtype], slack * GRAD_UNIT[x.dtype]
    shift = gamma * d + beta
    allowed = np.abs(gamma) * r * unit * np.maximum(1, np.abs(h) / 4) + 2 * spacing(shift, x.dtype)
    assert_within(as_rows(y, axis), (h * r + d) * gamma + beta, allowed, "y")
    if gradients is None:
        return
    dx, dgamma, dbeta = gradients
    expected = backward(x, dy, stats.mean, stats.var, gamma * r, eps=eps, axis=axis)
    sums, projected = np.abs(dy_rows).sum(axis=0), np.abs(dy_rows * h).sum(axis=0)
    each = np.abs(dy_rows) + (sums + np.abs(h) * projected) / len(rows)
    scale = np.abs(gamma) * r * reciprocal_std(stats.var, eps)
    assert_within(as_rows(dx, axis), as_rows(expected.dx, axis), 2 * grad_unit * scale * each, "dx")
    exact = (dy_rows * (h * r + d)).sum(axis=0)
    rounding = np.finfo(dgamma.dtype).eps
    allowed = 2 * grad_unit * (r * projected + np.abs(d) * sums) + np.abs(exact) * rounding
    assert_within(dgamma, exact, allowed, "dgamma")
    assert_within(dbeta, expected.dbeta, grad_unit * sums + np.abs(expected.dbeta) * rounding, "dbeta")


@on_shapes
@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("param_dtype", FLOATS)
def test_formulas(rng, shape, axis, limits, dtype, param_dtype):
    x, dy = (sample(rng, shape, axis=axis, dtype=dtype, ratio=1.0) for _ in range(2))
    gamma, beta = parameters(rng, 5, param_dtype)
    mean, var = running(rng, param_dtype)
    for g, b in ((gamma, beta), (None, beta), (gamma, None), (None, None)):
        y, saved = fastbn.batch_norm_training(x, g, b, axis=axis, renorm=limits, running_mean=mean, running_var=var)
        gradients = fastbn.batch_norm_backward(dy, saved)
        assert y.dtype == gradients[0].dtype == dtype
        assert gradients[1].dtype == gradients[2].dtype == (dtype if g is None else param_dtype)
        check_renorm(y, gradients, x, dy, g, b, mean, var, limits, axis)
    stats = statistics(x, axis)
    r, d = wide_correction(stats, mean, var, 1e-5, limits)
    np.testing.assert_allclose(saved.r, r.astype(float), rtol=1e-6)
    np.testing.assert_allclose(saved.d, d.astype(float), rtol=1e-5, atol=1e-6)
    assert saved.moments == fastbn.moments(x, axis=axis)


def test_limits_take_effect_and_only_where_they_must(rng):
    x = sample(rng, (200, 5), ratio=2.0)
    mean, var = np.zeros(5), statistics(x).var.astype(float) * [0.1, 0.5, 1, 2, 10]
    _, free = fastbn.batch_norm_training(x, renorm=(np.inf, np.inf), running_mean=mean, running_var=var)
    _, kept = fastbn.batch_norm_training(x, renorm=(1.2, 0.7), running_mean=mean, running_var=var)
    assert (free.r < 1 / 1.2).any() and (free.r > 1.2).any() and (np.abs(free.d) > 0.7).any()
    np.testing.assert_array_equal(kept.r, np.clip(free.r, 1 / 1.2, 1.2))
    np.testing.assert_array_equal(kept.d, np.clip(free.d, -0.7, 0.7))


@on_shapes
@pytest.mark.parametrize("dtype", FLOATS)
def test_without_room_it_is_plain_training_bit_for_bit(rng, shape, axis, dtype):
    x, dy = (sample(rng, shape, axis=axis, dtype=dtype) for _ in range(2))
    gamma, beta = parameters(rng, 5, dtype)
    mean, var = running(rng)
    y, saved = fastbn.batch_norm_training(x, gamma, beta, axis=axis)
    z, renormed = fastbn.batch_norm_training(x, gamma, beta, axis=axis, renorm=(1, 0), running_mean=mean,
                                             running_var=var)
    np.testing.assert_array_equal(z, y)
    for name in ("mean", "var", "rstd"):
        np.testing.assert_array_equal(getattr(renormed, name), getattr(saved, name))
    for one, other in zip(fastbn.batch_norm_backward(dy, renormed), fastbn.batch_norm_backward(dy, saved)):
        np.testing.assert_array_equal(one, other)


def test_without_limits_it_is_inference(rng):
    x = sample(rng, (50, 5), dtype=np.float64)
    gamma, beta = parameters(rng, 5, np.float64)
    mean, var = running(rng, np.float64)
    y, _ = fastbn.batch_norm_training(x, gamma, beta, renorm=(np.inf, np.inf), running_mean=mean, running_var=var)
    np.testing.assert_allclose(y, fastbn.batch_norm_inference(x, mean, var, gamma, beta), rtol=1e-12, atol=1e-12)


LAYOUTS = {"Fortran": np.asfortranarray, "every second": lambda x: strided(x, range(x.ndim), [2] + [1] * (x.ndim - 1)),
           "backwards": lambda x: strided(x, range(x.ndim), [-1] + [1] * (x.ndim - 1)), "list": lambda x: x.tolist()}


@pytest.mark.parametrize("layout", LAYOUTS)
@on_shapes
def test_layouts(rng, shape, axis, layout):
    x, dy = (sample(rng, shape, axis=axis, dtype=np.float64) for _ in range(2))
    gamma, beta = parameters(rng, 5)
    mean, var = running(rng)
    y, saved = fastbn.batch_norm_training(LAYOUTS[layout](x), gamma, beta, axis=axis, renorm=(1.5, 0.5),
                                          running_mean=mean, running_var=var)
    gradients = fastbn.batch_norm_backward(LAYOUTS[layout](dy), saved)
    check_renorm(y, gradients, x, dy, gamma, beta, mean, var, (1.5, 0.5), axis)


@on_shapes
def test_into_out_and_in_place(rng, shape, axis):
    x, dy = (sample(rng, shape, axis=axis) for _ in range(2))
    gamma, beta = parameters(rng, 5)
    mean, var = running(rng)
    keywords = {"axis": axis, "renorm": (1.5, 0.5), "running_mean": mean, "running_var": var}
    expected, saved = fastbn.batch_norm_training(x, gamma, beta, **keywords)
    gradients = fastbn.batch_norm_backward(dy, saved)
    out = np.empty_like(x)
    y, saved = fastbn.batch_norm_training(x, gamma, beta, out=out, **keywords)
    assert y is out
    np.testing.assert_array_equal(y, expected)
    own, own_dy = x.copy(), dy.copy()
    y, saved = fastbn.batch_norm_training(own, gamma, beta, out=own, **keywords)
    assert y is own
    np.testing.assert_array_equal(y, expected)
    dx, dgamma, dbeta = fastbn.batch_norm_backward(own_dy, saved, out=own_dy)
    assert dx is own_dy
    for one, other in zip((dx, dgamma, dbeta), gradients):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=2e-5 * np.abs(other).max())


@pytest.mark.parametrize("needs", ["dx", "dgamma", "dbeta", ("dgamma", "dx"), ()], ids=str)
def test_no_more_than_what_is_needed(rng, needs):
    x, dy = sample(rng, (10, 5)), sample(rng, (10, 5))
    mean, var = running(rng)
    _, saved = fastbn.batch_norm_training(x, renorm=(3, 5), running_mean=mean, running_var=var)
    everything = fastbn.batch_norm_backward(dy, saved)
    found = fastbn.batch_norm_backward(dy, saved, needs=needs)
    for name, one, other in zip(("dx", "dgamma", "dbeta"), found, everything):
        if name in needs:
            np.testing.assert_array_equal(one, other)
        else:
            assert one is None


@pytest.mark.parametrize("ghost_batch_size", [None, 3])
@pytest.mark.parametrize("limits", LIMITS[1:], ids=str)
def test_central_differences_with_r_and_d_held(rng, limits, ghost_batch_size):
    x, dy = sample(rng, (7, 5), dtype=np.float64), sample(rng, (7, 5), dtype=np.float64)
    gamma, beta = parameters(rng, 5, np.float64)
    mean, var = running(rng, np.float64)
    keywords = {"ghost_batch_size": ghost_batch_size, "renorm": limits, "running_mean": mean, "running_var": var}
    y, saved = fastbn.batch_norm_training(x, gamma, beta, **keywords)
    parts = saved.parts if ghost_batch_size else [saved]
    size = ghost_batch_size or len(x)

    def forward():
        pieces = []
        for i, part in enumerate(parts):
            piece = x[i * size:(i + 1) * size]
            h = (piece - piece.mean(axis=0)) / np.sqrt(piece.var(axis=0) + 1e-5)
            pieces.append((h * part.r + part.d) * gamma + beta)
        return np.concatenate(pieces)

    np.testing.assert_allclose(y, forward(), rtol=1e-10, atol=1e-10)
    for gradient, values in zip(fastbn.batch_norm_backward(dy, saved), (x, gamma, beta)):
        numeric = central_differences(lambda: float((forward() * dy).sum()), values)
        np.testing.assert_allclose(gradient, numeric, rtol=1e-5, atol=1e-6)


def test_torch_s_gradient_with_r_and_d_detached(rng):
    torch = pytest.importorskip("torch")
    x, dy = sample(rng, (10, 5, 6)), sample(rng, (10, 5, 6))
    gamma, beta = parameters(rng, 5)
    mean, var = running(rng)
    y, saved = fastbn.batch_norm_training(x, gamma, beta, renorm=(1.5, 0.5), running_mean=mean, running_var=var)
    given, weight, bias = (torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (x, gamma, beta))
    h = torch.nn.functional.batch_norm(given, None, None, training=True)
    r, d = (torch.tensor(a)[:, None] for a in (saved.r, saved.d))
    expected = (h * r + d) * weight[:, None] + bias[:, None]
    expected.backward(torch.tensor(dy, dtype=torch.float64))
    gradients = fastbn.batch_norm_backward(dy, saved)
    for actual, tensor in zip((y, *gradients), (expected.detach(), given.grad, weight.grad, bias.grad)):
        np.testing.assert_allclose(actual, tensor.numpy(), rtol=1e-4, atol=1e-5)


def test_ghost_batches_have_corrections_of_their_own(rng):
    x, dy = sample(rng, (10, 5, 3)), sample(rng, (10, 5, 3))
    gamma, beta = parameters(rng, 5)
    mean, var = running(rng)
    keywords = {"renorm": (1.5, 0.5), "running_mean": mean, "running_var": var}
    for out in (None, x.copy()):
        given = x if out is None else out
        y, saved = fastbn.batch_norm_training(given, gamma, beta, ghost_batch_size=4, out=out, **keywords)
        dx, dgamma, _ = fastbn.batch_norm_backward(dy, saved)
        total = 0
        for s in (slice(0, 4), slice(4, 8), slice(8, 10)):
            own, part = fastbn.batch_norm_training(x[s], gamma, beta, **keywords)
            np.testing.assert_array_equal(y[s], own)
            found = fastbn.batch_norm_backward(dy[s], part)
            np.testing.assert_allclose(dx[s], found[0], rtol=1e-3, atol=1e-4)
            total = total + found[1].astype(float)
        np.testing.assert_allclose(dgamma, total, rtol=1e-4)


def test_nan_stays_in_its_feature(rng):
    x, dy = sample(rng, (10, 5)), sample(rng, (10, 5))
    mean, var = running(rng)
    x[3, 1] = np.nan
    var[2] = np.nan
    y, saved = fastbn.batch_norm_training(x, renorm=(3, 5), running_mean=mean, running_var=var)
    dx, dgamma, _ = fastbn.batch_norm_backward(dy, saved)
    for nan in (np.isnan(y).all(axis=0), np.isnan(dx).all(axis=0), np.isnan(dgamma), np.isnan(y + dx).any(axis=0)):
        np.testing.assert_array_equal(nan, [False, True, True, False, False])


@pytest.mark.parametrize("shape", [(0, 5), (4, 5, 0)], ids=str)
def test_empty_batches(rng, shape):
    x = np.empty(shape, np.float32)
    mean, var = running(rng)
    y, saved = fastbn.batch_norm_training(x, renorm=(3, 5), running_mean=mean, running_var=var)
    assert y.shape == shape and saved.moments.count == 0
    assert fastbn.batch_norm_backward(x, saved)[0].shape == shape


# --- Errors ---------------------------------------------------------------------------------------------------------


BAD = [((0.5, 1), ValueError, "rmax"), ((2, -1), ValueError, "dmax"), ((np.nan, 1), ValueError, "rmax"),
       ((2, np.nan), ValueError, "dmax"), (3.0, TypeError, "rmax, dmax"), ((1, 2, 3), TypeError, "rmax, dmax"),
       (("2", 1), TypeError, "rmax"), (True, TypeError, "renorm"), ({"rmax": 2, "dmax": 1}, TypeError, "renorm")]


@pytest.mark.parametrize("value, error, message", BAD, ids=lambda v: str(v))
def test_limits_that_are_none(rng, value, error, message):
    mean, var = running(rng)
    with pytest.raises(error, match=message):
        fastbn.batch_norm_training(sample(rng, (9, 5)), renorm=value, running_mean=mean, running_var=var)
    with pytest.raises(error, match=message):
        fastbn.BatchNorm(5, renorm=value)
    layer = fastbn.BatchNorm(5, renorm=(2, 1))
    with pytest.raises(error, match=message):
        layer.renorm = value
    assert layer.renorm == (2.0, 1.0)


def test_running_statistics_come_with_renorm(rng):
    x, (mean, var) = sample(rng, (9, 5)), running(rng)
    for keywords, message in (({"renorm": (3, 5)}, "running_mean is None"),
                              ({"renorm": (3, 5), "running_mean": mean}, "running_var is None"),
                              ({"running_mean": mean, "running_var": var}, "running_mean is given without renorm"),
                              ({"running_var": var, "ghost_batch_size": 3}, "running_var is given without renorm"),
                              ({"renorm": (3, 5), "running_mean": mean[:4], "running_var": var}, r"running_mean.*4")):
        with pytest.raises(ValueError, match=f"(?s){message}"):
            fastbn.batch_norm_training(x, **keywords)
    with pytest.raises(ValueError, match="renorm.*track_running_stats=False"):
        fastbn.BatchNorm(5, renorm=(3, 5), track_running_stats=False)


def test_out_over_the_running_statistics_is_refused(rng):
    raw = np.ones(60, np.float32)
    with pytest.raises(ValueError, match="running_var overlap"):
        fastbn.batch_norm_training(sample(rng, (9, 5)), renorm=(3, 5), running_mean=np.zeros(5, np.float32),
                                   running_var=raw[43:48], out=raw[:45].reshape(9, 5))
    assert (raw == 1).all()


# --- The layer ------------------------------------------------------------------------------------------------------


@on_shapes
@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("dtype", FLOATS)
def test_layer(rng, shape, axis, ddof, dtype):
    """The running statistics are those before the batch's step; limits that change take effect."""
    layer = fastbn.BatchNorm(5, axis=axis, ddof=ddof, dtype=dtype, renorm=(1, 0))
    layer.gamma, layer.beta = parameters(rng, 5, dtype)
    for limits in ((1, 0), (1.5, 0.5), (3, 5)):
        layer.renorm = limits
        x, dy = (sample(rng, shape, axis=axis, ratio=2.0) for _ in range(2))
        mean, var, stats = layer.running_mean.copy(), layer.running_var.copy(), statistics(x, axis)
        y = layer(x)
        np.testing.assert_allclose(layer.running_mean, moving_average(mean, stats.mean, 0.9).astype(float), rtol=3e-6)
        expected = moving_average(var, unbiased(stats, ddof), 0.9)
        np.testing.assert_allclose(layer.running_var, expected.astype(float), rtol=3e-6)
        gradients = layer.backward(dy), layer.dgamma, layer.dbeta
        assert layer.dgamma.dtype == dtype
        check_renorm(y, gradients, x, dy, layer.gamma, layer.beta, mean, var, limits, axis)
    layer.eval()
    np.testing.assert_array_equal(layer(x), fastbn.batch_norm_inference(x, layer.running_mean, layer.running_var,
                                                                        layer.gamma, layer.beta, axis=axis))


def test_the_first_steps_of_a_schedule_are_plain_training(rng):
    plain, layer = fastbn.BatchNorm(5), fastbn.BatchNorm(5, renorm=(1, 0))
    for _ in range(3):
        x, dy = sample(rng, (10, 5, 3)), sample(rng, (10, 5, 3))
        found = [(each(x), each.backward(dy), each.dgamma) for each in (plain, layer)]
        for one, other in zip(*found):
            np.testing.assert_array_equal(one, other)
        for name, value in plain.state_dict().items():
            np.testing.assert_array_equal(layer.state_dict()[name], value)


def test_one_value_per_feature(rng):
    layer = fastbn.BatchNorm(5, renorm=(np.inf, np.inf))
    layer.gamma, layer.beta = parameters(rng, 5)
    layer.running_mean[:], layer.running_var[:] = running(rng)
    x = sample(rng, (1, 5))
    with pytest.warns(UserWarning, match="gamma . d . beta"):
        y = layer(x)
    expected = fastbn.batch_norm_inference(x, layer.running_mean, layer.running_var, layer.gamma, layer.beta)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    assert layer.num_batches_tracked == 0


def test_the_setting_is_copied_and_may_change(rng, monkeypatch):
    layer = fastbn.BatchNorm(5, renorm=[3, 5])
    assert layer.renorm == (3.0, 5.0) and "renorm=(3.0, 5.0)" in repr(layer)
    x = sample(rng, (10, 5), ratio=1.0)
    expected = copy.copy(layer)(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.renorm == (3.0, 5.0)
        np.testing.assert_array_equal(twin(x), expected)
    layer.renorm = None
    assert "renorm" not in repr(layer)
    monkeypatch.setattr(fastbn.BatchNorm, "_normalize_by_batch", None)
    assert not np.array_equal(layer(x), expected)
