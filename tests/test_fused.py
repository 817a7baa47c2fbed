"""Activations and residuals in one pass with the normalization: against float64, against differences, against themselves."""
import itertools

import numpy as np
import pytest
from fused_oracle import ACTIVATIONS, Layer, assert_near

import fastbn
from fastbn import _core

NAMES = [name for name in ACTIVATIONS if name]
SHAPES = [((64, 64), 1), ((5, 3), 1), ((700, 3), 1), ((300, 63), 1), ((20, 600), 1), ((8, 16, 7, 7), 1),
          ((4, 5, 33, 31), 1), ((4, 33, 31, 5), -1), ((2, 7, 7, 129), -1), ((2, 3, 90, 90), 1), ((3, 4, 5), 0)]
FLOATS = (np.float32, np.float64)
ISAS = [name for name in _core.isa_names() if _core.isa_supported(name)]


def data(rng, shape, axis, dtype, residual=True):
    c = shape[axis]
    x = (2 * rng.normal(size=shape) + 3).astype(dtype)
    r = rng.normal(size=shape).astype(dtype) if residual else None
    return x, rng.normal(size=c).astype(dtype), rng.normal(size=c).astype(dtype), r, rng.normal(size=shape).astype(dtype)


def away_from_kinks(x, layer):
    """Where z lies on a kink of the activation to rounding, the derivative may be either one."""
    return np.all([np.abs(layer.z - kink) > 1e-4 for kink in (-3, 0, 3, 6)], axis=0)


@pytest.mark.parametrize("shape, axis", SHAPES)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("activation", [*NAMES, ("leaky_relu", 0.3), ("elu", 2.0)], ids=str)
def test_training_and_backward_against_float64(rng, activation, residual, shape, axis):
    for dtype in FLOATS:
        x, gamma, beta, r, dy = data(rng, shape, axis, dtype, residual)
        oracle = Layer(x, gamma, beta, axis=axis, activation=activation, residual=r)
        dy *= away_from_kinks(x, oracle)
        y, saved = fastbn.batch_norm_training(x, gamma, beta, axis=axis, activation=activation, residual=r)
        assert_near(y, oracle.forward().y, dtype)
        found, expected = fastbn.batch_norm_backward(dy, saved), oracle.backward(dy)
        assert len(found) == (4 if residual else 3)
        scale = np.abs(expected.dresidual).sum() / shape[axis] * 4
        assert_near(found[0], expected.dx, dtype, 20 * (1 + oracle.rstd.max()))
        assert_near(found[1], expected.dgamma, dtype, scale)
        assert_near(found[2], expected.dbeta, dtype, scale)
        if residual:
            assert_near(found[3], expected.dresidual, dtype, 4)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("activation", [None, *NAMES])
def test_inference_and_frozen_backward_against_float64(rng, activation, residual):
    for (shape, axis), dtype in itertools.product(SHAPES, FLOATS):
        x, gamma, beta, r, dy = data(rng, shape, axis, dtype, residual)
        mean, var = rng.normal(size=shape[axis]).astype(dtype), rng.random(shape[axis]).astype(dtype) + dtype(0.5)
        oracle = Layer(x, gamma, beta, axis=axis, activation=activation, residual=r, given=(mean, var))
        dy *= away_from_kinks(x, oracle)
        arguments = {"axis": axis, "activation": activation, "residual": r}
        y, saved = fastbn.batch_norm_inference(x, mean, var, gamma, beta, return_saved=True, **arguments)
        assert_near(y, oracle.forward().y, dtype, 4)
        assert fastbn.batch_norm_inference(x, mean, var, gamma, beta, **arguments).tobytes() == y.tobytes()
        found, expected = fastbn.batch_norm_backward(dy, saved), oracle.backward(dy)
        assert_near(found[0], expected.dx, dtype, 4)
        scale = np.abs(expected.dresidual).sum() / shape[axis] * 4
        assert_near(found[1], expected.dgamma, dtype, scale)
        assert_near(found[2], expected.dbeta, dtype, scale)
        only = fastbn.batch_norm_backward(dy, saved, needs="dx")
        assert only[0].tobytes() == found[0].tobytes() and only[1] is None and only[2] is None


@pytest.mark.parametrize("activation", [name for name in NAMES if name not in ("relu", "leaky_relu", "relu6", "hardswish")])
def test_gradients_against_central_differences(rng, activation):
    x, gamma, beta, r, dy = data(rng, (5, 4, 3), 1, np.float64)

    def loss(x, gamma, beta, r):
        return float((fastbn.batch_norm_training(x, gamma, beta, activation=activation, residual=r)[0] * dy).sum())

    inputs = [x, gamma, beta, r]
    _, saved = fastbn.batch_norm_training(x, gamma, beta, activation=activation, residual=r)
    for which, gradient in zip(range(4), fastbn.batch_norm_backward(dy, saved)):
        for at in list(np.ndindex(inputs[which].shape))[::3]:
            up, down = ([a.copy() for a in inputs] for _ in range(2))
            up[which][at] += 1e-6
            down[which][at] -= 1e-6
            assert abs((loss(*up) - loss(*down)) / 2e-6 - gradient[at]) < 1e-6 * (1 + abs(gradient[at]))


def with_gaps(a):
    """The same values in rows that lie apart."""
    room = np.full((*a.shape[:-1], a.shape[-1] + 16), np.nan, a.dtype)
    room[..., :a.shape[-1]] = a
    return room[..., :a.shape[-1]]


@pytest.mark.parametrize("apart", ["x", "residual", "dy", "out"])
@pytest.mark.parametrize("shape", [(37, 64), (300, 32), (9, 1024), (5, 3, 64)])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_gaps_in_one_array_change_no_bit(rng, shape, apart, activation):
    """Rows of whole cache lines, of which each array but one is packed."""
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name in ("x", "residual", "dy")}
    results = []
    for change in (lambda a: a, with_gaps):
        x, residual, dy = (change(a) if name == apart else a for name, a in arrays.items())
        out = (change if apart == "out" else np.array)(np.zeros(shape, np.float32))
        y, saved = fastbn.batch_norm_training(x, axis=-1, activation=activation, residual=residual, out=out)
        frozen = fastbn.batch_norm_inference(x, saved.mean, saved.var, axis=-1, activation=activation, residual=residual)
        results.append([a.tobytes() for a in (y, frozen, *fastbn.batch_norm_backward(dy, saved))])
    assert results[0] == results[1]


def test_layouts_of_memory_give_the_same_values(rng):
    x, gamma, beta, r, dy = data(rng, (6, 5, 8, 9), 1, np.float64)
    expected = None
    for change in (lambda a: a.copy(), lambda a: a.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2),
                   lambda a: np.repeat(a, 2, axis=0)[::2], lambda a: np.asfortranarray(a)):
        y, saved = fastbn.batch_norm_training(change(x), gamma, beta, activation="relu", residual=change(r))
        results = y, *fastbn.batch_norm_backward(change(dy), saved)
        expected = expected or results
        for got, want in zip(results, expected):
            np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


def test_nan_stays_nan_and_stays_in_its_feature(rng):
    x, gamma, beta, _, _ = data(rng, (40, 6), 1, np.float32)
    x[3, 2] = np.nan
    for activation in NAMES:
        y, _ = fastbn.batch_norm_training(x, gamma, beta, activation=activation)
        assert np.isnan(y[:, 2]).all() and not np.isnan(np.delete(y, 2, axis=1)).any()


# ---- in place ----


@pytest.mark.parametrize("activation", [None, ("leaky_relu", 0.2)], ids=str)
def test_training_in_place_finds_x_again(rng, activation):
    x, gamma, beta, _, dy = data(rng, (30, 7, 4), 1, np.float64)
    y, saved = fastbn.batch_norm_training(x, gamma, beta, activation=activation)
    expected = fastbn.batch_norm_backward(dy, saved)
    own = x.copy()
    y_in_place, saved = fastbn.batch_norm_training(own, gamma, beta, activation=activation, out=own)
    assert y_in_place is own and own.tobytes() == y.tobytes()
    gradient = dy.copy()
    found = fastbn.batch_norm_backward(gradient, saved, out=gradient)
    assert found[0] is gradient
    for got, want in zip(found, expected):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("activation, residual", [("relu", False), ("gelu", False), (("leaky_relu", 0.0), False), (None, True)])
def test_in_place_what_cannot_be_found_again_is_refused_backward(rng, activation, residual):
    x, gamma, beta, r, dy = data(rng, (9, 3), 1, np.float32, residual)
    _, saved = fastbn.batch_norm_training(x, gamma, beta, activation=activation, residual=r, out=x)
    with pytest.raises(RuntimeError, match="overwritten"):
        fastbn.batch_norm_backward(dy, saved)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", None])
def test_y_may_take_the_residuals_place_where_its_sign_is_enough(rng, activation):
    x, gamma, beta, r, dy = data(rng, (30, 7, 4), 1, np.float32)
    y, saved = fastbn.batch_norm_training(x, gamma, beta, activation=activation, residual=r.copy())
    expected = fastbn.batch_norm_backward(dy, saved)
    found, saved = fastbn.batch_norm_training(x, gamma, beta, activation=activation, residual=r, out=r)
    assert found is r and r.tobytes() == y.tobytes()
    for got, want in zip(fastbn.batch_norm_backward(dy, saved), expected):
        assert got.tobytes() == want.tobytes()


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype, slope", [(np.float32, 0.0), (np.float32, 1e-50), (np.float64, 0.0), (np.float16, -0.0)])
def test_a_slope_of_0_is_relu(rng, dtype, slope, residual):
    """Where z overflows to -Inf too: 0 * -Inf would be NaN, and backward reads y in the residual's place."""
    x, gamma, beta, r, dy = (None if a is None else a.astype(dtype) for a in data(rng, (70, 3), 1, np.float32, residual))
    gamma, beta = gamma.astype(np.float32), beta.astype(np.float32)
    x[:4, 0], dy[1, 0], dy[2, 0] = -np.inf, np.inf, np.nan
    mean, var = np.zeros(3, np.float32), np.ones(3, np.float32)
    results = []
    for activation in ("relu", ("leaky_relu", slope)):
        arguments = {"activation": activation, "residual": r, "return_saved": True}
        y, saved = fastbn.batch_norm_inference(x, mean, var, abs(gamma), beta, **arguments)
        results.append((y, *fastbn.batch_norm_backward(dy, saved)))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(*results))
    assert (results[0][0][:4, 0] == 0).all() and (results[0][1][:4, 0] == 0).all()


def test_a_slope_that_float32_does_not_hold_is_not_inverted(rng):
    x, _, _, _, dy = data(rng, (20, 3), 1, np.float32)
    _, saved = fastbn.batch_norm_training(x, activation=("leaky_relu", 1e-50), out=x)
    with pytest.raises(RuntimeError, match="x was overwritten .* through leaky_relu"):
        fastbn.batch_norm_backward(dy, saved)


def test_other_activations_keep_their_residual(rng):
    x, gamma, beta, r, _ = data(rng, (9, 3), 1, np.float32)
    kept = r.copy()
    with pytest.raises(ValueError, match="overlap.*gelu"):
        fastbn.batch_norm_training(x, gamma, beta, activation="gelu", residual=r, out=r)
    assert r.tobytes() == kept.tobytes()
    y = fastbn.batch_norm_inference(x, gamma, abs(beta), activation="gelu", residual=r, out=r)
    assert y is r


def test_needs_of_the_residual(rng):
    x, gamma, beta, r, dy = data(rng, (20, 6), 1, np.float32)
    _, saved = fastbn.batch_norm_training(x, gamma, beta, activation="relu", residual=r)
    whole = fastbn.batch_norm_backward(dy, saved)
    for needs in (["dresidual"], ["dx"], ["dresidual", "dbeta"], ["dgamma"]):
        found = fastbn.batch_norm_backward(dy, saved, needs=needs)
        for name, got, want in zip(("dx", "dgamma", "dbeta", "dresidual"), found, whole):
            assert (got is None) == (name not in needs)
            assert got is None or got.tobytes() == want.tobytes()
    _, plain = fastbn.batch_norm_training(x, gamma, beta)
    with pytest.raises(ValueError, match="'dresidual'"):
        fastbn.batch_norm_backward(dy, plain, needs="dresidual")


@pytest.mark.parametrize("wrong, error, text", [
    ("swish", ValueError, "'swish'.*relu"), (3, TypeError, "activation is 3"), (("relu", 1.0), ValueError, "no parameter"),
    (("elu", np.inf), ValueError, "finite"), (("elu", 1, 2), ValueError, "name, parameter")])
def test_wrong_activations(wrong, error, text):
    with pytest.raises(error, match=text):
        fastbn.batch_norm_training(np.ones((4, 2), np.float32), activation=wrong)


def test_wrong_residuals():
    x = np.ones((4, 2), np.float32)
    with pytest.raises(ValueError, match=r"residual has shape \(2, 4\), expected \(4, 2\)"):
        fastbn.batch_norm_training(x, residual=np.ones((2, 4), np.float32))
    with pytest.raises(TypeError, match="residual has dtype int64"):
        fastbn.batch_norm_training(x, residual=np.ones((4, 2), np.int64))


def test_nothing_to_compute(rng):
    for shape in ((0, 3), (4, 0)):
        x = np.ones(shape, np.float32)
        y, saved = fastbn.batch_norm_training(x, activation="relu", residual=x)
        assert y.shape == shape and [a.shape for a in fastbn.batch_norm_backward(x, saved)] == [
            shape, shape[1:], shape[1:], shape]


# Channels last or a table: widths in registers, packed, in blocks of columns, odd, folded; planes: in stretches, in runs.
DIRECT = [((300, 64), 1), ((300, 48), 1), ((90, 256), 1), ((40, 3072), 1), ((300, 63), 1), ((60, 1025), 1), ((700, 3), 1),
          ((9, 16, 7, 7), 1), ((4, 5, 33, 31), 1), ((12, 40, 2, 3), 1), ((3, 9, 9, 128), -1), ((5, 100), 0)]


def with_special_values(rng, shape, axis, dtype):
    """x with NaN and Inf; a feature whose z is -0 where x is below its mean, also with the residual."""
    x, gamma, beta, r, _ = data(rng, shape, axis, dtype)
    x.flat[::31], x.flat[7::53], r.flat[3::17] = np.nan, np.inf, -0.0
    gamma[0], beta[0] = 0.0, -0.0
    np.moveaxis(r, axis, 0)[0] = -0.0
    mean, var = rng.normal(size=shape[axis]).astype(dtype), rng.uniform(0.5, 2, size=shape[axis]).astype(dtype)
    return x, mean, var, gamma, beta, r


def assert_relu_of_the_plain_result(x, mean, var, gamma, beta, r, axis, out=None):
    plain = fastbn.batch_norm_inference(x, mean, var, gamma, beta, axis=axis)
    sums = plain + r
    for residual, z in ((None, plain), (r, sums)):
        expected = _core.activate(np.ascontiguousarray(z), "relu")
        y = fastbn.batch_norm_inference(x, mean, var, gamma, beta, axis=axis, activation="relu", residual=residual, out=out)
        assert y.tobytes() == expected.tobytes()
    y = fastbn.batch_norm_inference(x, mean, var, gamma, beta, axis=axis, residual=r, out=out)
    assert y.tobytes() == sums.tobytes()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape, axis", DIRECT, ids=str)
def test_relu_and_residual_have_the_bits_of_relu_over_the_plain_result(rng, small_work_threads, shape, axis, dtype, isa):
    _core.set_isa(isa)
    x, mean, var, gamma, beta, r = with_special_values(rng, shape, axis, dtype)
    assert_relu_of_the_plain_result(x, mean, var, gamma, beta, r, axis)
    room = np.empty(x.size + 3, dtype)
    assert_relu_of_the_plain_result(x, mean, var, gamma, beta, r, axis, out=room[3:].reshape(shape))
    gaps = (slice(None),) * (x.ndim - 1) + (slice(None, -1),)
    if axis == 1 and x.ndim == 2 and shape[1] > 3:
        assert_relu_of_the_plain_result(x[gaps], *(p[:-1] for p in (mean, var, gamma, beta)), r[gaps], axis)
    plain, saved = fastbn.batch_norm_training(x, gamma, beta, axis=axis)
    y, fused = fastbn.batch_norm_training(x, gamma, beta, axis=axis, activation="relu", residual=r)
    assert y.tobytes() == _core.activate(np.ascontiguousarray(plain + r), "relu").tobytes()
    assert fused.mean.tobytes() == saved.mean.tobytes() and fused.rstd.tobytes() == saved.rstd.tobytes()


@pytest.mark.parametrize("width, axis", [((64,), 1), ((48,), 1), ((256,), 1), ((3072,), 1), ((63,), 1), ((64, 28, 27), 1),
                                         ((28, 27, 64), -1)], ids=str)
def test_relu_and_residual_of_arrays_that_are_stored_past_the_caches(rng, width, axis):
    """More than the last-level cache holds, of x and y alone."""
    n = _core.cache_bytes(3) // (2 * 4 * int(np.prod(width))) + 1
    x, mean, var, gamma, beta, r = with_special_values(rng, (n, *width), axis, np.float32)
    assert_relu_of_the_plain_result(x, mean, var, gamma, beta, r, axis)


def test_relu_of_half_types_is_rounded_once(rng):
    for shape, axis in DIRECT:
        x, mean, var, gamma, beta, r = with_special_values(rng, shape, axis, np.float32)
        x, r = x.astype(np.float16), r.astype(np.float16)
        z = fastbn.batch_norm_inference(x.astype(np.float32), mean, var, gamma, beta, axis=axis)
        for residual, sums in ((None, z), (r, z + r.astype(np.float32))):
            y = fastbn.batch_norm_inference(x, mean, var, gamma, beta, axis=axis, activation="relu", residual=residual)
            np.testing.assert_array_equal(y, _core.activate(sums, "relu").astype(np.float16))


def with_a_feature_that_overflows(rng, shape, axis, dtype):
    """Feature 0: products of dy and x beyond the type's range of numbers, so that its sums are taken again in double. NaN in
    the last one.
    """
    x, gamma, beta, r, dy = data(rng, shape, axis, dtype)
    if dtype == np.float32:
        np.moveaxis(dy, axis, 0)[0] *= dtype(1e25)
        np.moveaxis(x, axis, 0)[0] *= dtype(1e18)
    np.moveaxis(x, axis, 0)[-1].flat[3] = np.nan
    return x, gamma, beta, r, dy


def same_gradients(found, expected, axis):
    """The same bits but in feature 0."""
    for a, b in zip(found, expected, strict=True):
        along = axis if a.ndim > 1 else 0
        np.testing.assert_array_equal(np.moveaxis(a, along, 0)[1:], np.moveaxis(b, along, 0)[1:])
        np.testing.assert_allclose(np.moveaxis(a, along, 0)[0], np.moveaxis(b, along, 0)[0], rtol=1e-5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape, axis", DIRECT, ids=str)
def test_gradients_through_relu_are_the_plain_ones_of_dz(rng, small_work_threads, shape, axis, dtype, isa):
    _core.set_isa(isa)
    x, gamma, beta, r, dy = with_a_feature_that_overflows(rng, shape, axis, dtype)
    _, plain = fastbn.batch_norm_training(x, gamma, beta, axis=axis)
    for residual in (None, r):
        y, saved = fastbn.batch_norm_training(x, gamma, beta, axis=axis, activation="relu", residual=residual)
        dz = np.where(np.isnan(y), dtype("nan"), np.where(y > 0, dy, dtype(0)))
        expected = fastbn.batch_norm_backward(dz, plain)
        dx, dgamma, dbeta, *dresidual = fastbn.batch_norm_backward(dy, saved)
        same_gradients((dx, dgamma, dbeta), expected, axis)
        if residual is not None:
            np.testing.assert_array_equal(dresidual[0], dz)
        alone = fastbn.batch_norm_backward(dy, saved, needs=("dgamma", "dbeta"))
        same_gradients(alone[1:3], expected[1:], axis)
        again = dy.copy()
        assert fastbn.batch_norm_backward(again, saved, out=again)[0] is again
        np.testing.assert_array_equal(again, dx)


@pytest.mark.parametrize("shape, axis", DIRECT, ids=str)
def test_gradients_of_half_types_through_relu_are_the_plain_ones_of_dz(rng, shape, axis):
    x, gamma, beta, r, dy = data(rng, shape, axis, np.float32)
    x, r, dy = x.astype(np.float16), r.astype(np.float16), dy.astype(np.float16)
    _, plain = fastbn.batch_norm_training(x, gamma, beta, axis=axis)
    for residual in (None, r):
        y, saved = fastbn.batch_norm_training(x, gamma, beta, axis=axis, activation="relu", residual=residual)
        z = fastbn.batch_norm_training(x.astype(np.float32), gamma, beta, axis=axis, residual=residual)[0]
        dz = np.where((y if residual is not None else z) > 0, dy, np.float16(0))
        expected = fastbn.batch_norm_backward(dz, plain)
        for found, right in zip(fastbn.batch_norm_backward(dy, saved), expected):
            np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize("activation", ["relu", "gelu", ("leaky_relu", 0.2)], ids=str)
def test_gradients_through_activations_of_arrays_beyond_the_caches(rng, activation):
    """In blocks and stored past the caches, against the gradient of act and the plain backward one after the other."""
    for shape, axis in (((_core.cache_bytes(3) // (4 * 64 * 784) + 1, 64, 28, 28), 1), ((_core.cache_bytes(3) // 240, 63), 1)):
        x, gamma, beta, r, dy = data(rng, shape, axis, np.float32)
        z, plain = fastbn.batch_norm_training(x, gamma, beta, axis=axis)
        _, saved = fastbn.batch_norm_training(x, gamma, beta, axis=axis, activation=activation)
        dz = _core.activate_gradient(z, dy, *([activation] if isinstance(activation, str) else activation))
        for found, right in zip(fastbn.batch_norm_backward(dy, saved), fastbn.batch_norm_backward(dz, plain)):
            np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize("shape, axis", [((64, 28, 27), 1), ((28, 27, 64), -1), ((9000,), 1), ((1023,), 1), ((63,), 1), ((3,), 1),
                                         ((9, 63, 60), 1)], ids=str)
def test_activations_of_arrays_beyond_the_caches(rng, shape, axis):
    """In blocks after the plain map: rows of less and of more entries than a block has, folded and not."""
    n = _core.cache_bytes(3) // (2 * 4 * int(np.prod(shape))) + 1
    x, mean, var, gamma, beta, r = with_special_values(rng, (n, *shape), axis, np.float32)
    for residual in (None, r):
        z = fastbn.batch_norm_inference(x, mean, var, gamma, beta, axis=axis, residual=residual)
        room = np.empty(x.size + 5, np.float32)[5:].reshape(x.shape)
        for out in (None, room):
            y = fastbn.batch_norm_inference(x, mean, var, gamma, beta, axis=axis, activation="silu", residual=residual, out=out)
            assert y.tobytes() == _core.activate(z, "silu").tobytes()


@pytest.mark.parametrize("activation", ["relu", "silu", ("leaky_relu", 0.2)], ids=str)
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("shape, axis", [((64, 3), 1), ((20, 4, 50), 1), ((70, 64), 1), ((6, 9, 9, 5), -1)], ids=str)
def test_dx_may_take_the_place_of_x_or_of_a_dy_that_is_x(rng, activation, frozen, shape, axis):
    for dtype in (np.float32, np.float64, np.float16):
        x, gamma, beta, _, dy = data(rng, shape, axis, np.float32)
        x, dy, given = x.astype(dtype), dy.astype(dtype), (x.mean(), x.var())

        def saved_of(x):
            if not frozen:
                return fastbn.batch_norm_training(x, gamma, beta, axis=axis, activation=activation)[1]
            mean, var = (np.full(shape[axis], value, np.float32) for value in given)
            more = {"axis": axis, "activation": activation, "return_saved": True}
            return fastbn.batch_norm_inference(x, mean, var, gamma, beta, **more)[1]

        for own in (False, True):
            saved = saved_of(x)
            expected = fastbn.batch_norm_backward(saved.x if own else dy, saved)
            copied = x.copy()
            saved = saved_of(copied)
            found = fastbn.batch_norm_backward(copied if own else dy, saved, out=copied)
            assert found[0] is copied
            for a, b in zip(found, expected):
                np.testing.assert_allclose(a, b, rtol=2e-3 if dtype == np.float16 else 1e-5, atol=1e-4)


def test_beta_of_another_type_than_gamma_has_the_same_z_in_backward():
    x = np.array([[-0.1 + 1e-10], [-0.1 - 1e-10], [1.0], [2.0]])
    gamma = np.ones(1, np.float32)
    _, plain = fastbn.batch_norm_training(x, gamma, None)
    beta = -(x[0] - plain.mean) * plain.rstd + 1e-10  # so that z is just above 0 there
    y, saved = fastbn.batch_norm_training(x, gamma, beta, activation="relu")
    assert y[0, 0] > 0 and fastbn.batch_norm_backward(np.ones_like(x), saved)[2] == np.count_nonzero(y)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("shape", [(64, 3, 1), (64, 4, 8), (64, 128, 1), (64, 1, 5)], ids=str)
@pytest.mark.parametrize("name", ["relu", "silu"])
def test_the_core_takes_residuals_with_gaps(rng, name, shape, dtype):
    n, c, s = shape
    x, dy, residual = (rng.normal(size=shape).astype(dtype) for _ in range(3))
    apart = np.zeros((n, c + 3, s), dtype)[:, :c]
    apart[...] = residual
    mean, gamma, beta = x.mean((0, 2), dtype=float), np.ones(c), np.zeros(c)
    rstd = 1 / np.sqrt(x.var((0, 2), dtype=float) + 1e-5)
    results = []
    for r in (residual, apart):
        dx, dresidual, dgamma, dbeta = np.empty_like(x), np.empty_like(x), np.empty(c), np.empty(c)
        extra = _core.Extra(_core.activation_names().index(name), residual=r, dresidual=dresidual)
        _core.backward(x, dy, extra, gamma, beta, mean, rstd, False, dx, dgamma, dbeta, 1)
        results.append((dx, dresidual, dgamma, dbeta))
    for a, b in zip(*results):
        np.testing.assert_allclose(a, b, rtol=2e-3 if dtype == np.float16 else 1e-5, atol=1e-4)


def test_the_core_refuses_to_compute_z_without_x():
    dy, c = np.ones((5, 3, 1), np.float32), 3
    arguments = np.ones(c), np.zeros(c), np.zeros(c), np.ones(c), True
    with pytest.raises((ValueError, RuntimeError)):
        _core.backward(None, dy, _core.Extra(1), *arguments, np.empty_like(dy), None, np.empty(c), 1)
