"""nan_policy="omit": NaN entries are missing, by feature, against NumPy's nanmean and nanvar in float64."""
import copy
import pickle

import numpy as np
import pytest
from fused_oracle import parts_of

import fastbn
from fastbn._training import omit

pytestmark = pytest.mark.filterwarnings("error")

SHAPES = [((64, 64), 1), ((9, 3), 1), ((700, 3), 1), ((300, 63), 1), ((20, 600), 1), ((8, 16, 7, 7), 1),
          ((4, 5, 33, 31), 1), ((4, 33, 31, 5), -1), ((2, 3, 90, 90), 1), ((3, 4, 5), 0), ((50, 2), 1)]
on_shapes = pytest.mark.parametrize("shape, axis", SHAPES, ids=str)
FLOATS = (np.float32, np.float64)
OPTIONS = [{}, {"ghost_batch_size": 3}, {"renorm": (3, 5)}, {"ghost_batch_size": 3, "renorm": (3, 5)}]
on_options = pytest.mark.parametrize("options", OPTIONS, ids=str)
EPS = 1e-5


def data(rng, shape, axis, dtype, missing=0.2):
    """x with NaN, the first entries of each feature among them; gamma, beta, dy with NaN where x has."""
    x, dy = (2 * rng.normal(size=shape) + 3).astype(dtype), rng.normal(size=shape).astype(dtype)
    there = rng.random(shape) >= missing
    rows = np.moveaxis(there, axis, -1).reshape(-1, shape[axis]).copy()
    rows[:2], rows[2:5] = False, True
    there = np.moveaxis(rows.reshape(np.moveaxis(there, axis, -1).shape), -1, axis)
    x[~there] = np.nan
    dy[~there] = np.nan
    gamma, beta = (rng.normal(size=shape[axis]).astype(dtype) + dtype(0.1) for _ in range(2))
    return x, gamma, beta, dy


class Oracle:
    """One call in float64."""

    def __init__(self, x, gamma, beta, axis=1, *, weights=None, activation=None, residual=0.0):
        self.others = tuple(i for i in range(x.ndim) if i != axis % x.ndim)
        wide = [x.shape[i] if i == axis % x.ndim else 1 for i in range(x.ndim)]
        self.gamma, beta = gamma.astype(float).reshape(wide), beta.astype(float).reshape(wide)
        self.there, x = ~np.isnan(x), x.astype(float)
        if weights is None:
            self.w, self.mean = self.there.astype(float), np.nanmean(x, axis=self.others, keepdims=True)
            self.var = np.nanvar(x, axis=self.others, keepdims=True)
        else:
            self.w = np.where(self.there, np.expand_dims(np.asarray(weights, float), axis), 0.0)
            self.mean = np.nansum(self.w * x, axis=self.others, keepdims=True) / self.sum(self.w)
            self.var = np.nansum(self.w * (x - self.mean)**2, axis=self.others, keepdims=True) / self.sum(self.w)
        self.count = self.sum(self.w)
        self.rstd = 1 / np.sqrt(self.var + EPS)
        self.h = np.where(self.there, (x - self.mean) * self.rstd, 0.0)
        self.act, self.slope = parts_of(activation)
        self.z = self.h * self.gamma + beta + residual
        self.y = np.where(self.there, self.act(self.z), np.nan)

    def sum(self, a):
        return a.sum(axis=self.others, keepdims=True)

    def backward(self, dy):
        """dx, dgamma, dbeta, dresidual"""
        dz = np.where(self.there, dy, 0.0) * self.slope(self.z)
        dbeta, dgamma = self.sum(dz), self.sum(dz * self.h)
        dx = self.gamma * self.rstd * (dz - self.w / self.count * (dbeta + self.h * dgamma))
        return np.where(self.there, dx, 0.0), dgamma.ravel(), dbeta.ravel(), dz


def assert_near(got, expected, dtype, scale=1.0):
    unit = 4e-6 if dtype == np.float32 else 1e-12
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    bad = ~(np.abs(got - expected) <= unit * scale * (1 + np.abs(expected))) & ~np.isnan(expected)
    assert not bad.any(), (got[bad][:5], expected[bad][:5])


def assert_call(x, gamma, beta, dy, axis=1, weights=None, y_saved=None, **arguments):
    dtype, activation, residual = x.dtype, arguments.get("activation"), arguments.get("residual")
    oracle = Oracle(x, gamma, beta, axis, weights=weights, activation=activation,
                    residual=0.0 if residual is None else residual.astype(float))
    y, saved = y_saved or fastbn.batch_norm_training(x, gamma, beta, axis=axis, nan_policy="omit", **arguments)
    np.testing.assert_allclose(saved.var, oracle.var.ravel(), rtol=1e-6 if dtype == np.float32 else 1e-12)
    np.testing.assert_allclose(saved.mean, oracle.mean.ravel(), rtol=2.4e-7 if dtype == np.float32 else 1e-13, atol=2e-7)
    assert_near(y, oracle.y, dtype, 4 * (1 + oracle.rstd.max()))
    found, want = fastbn.batch_norm_backward(dy, saved), oracle.backward(dy)
    assert len(found) == (3 if residual is None else 4)
    scale = np.nansum(np.abs(dy)) / gamma.size * 4
    for got, expected, factor in zip(found, want, (40 * (1 + oracle.rstd.max()**2), scale, scale, 4)):
        assert_near(got, expected, dtype, factor)
    return y, saved


# --- One call -------------------------------------------------------------------------------------------------------


@on_shapes
@pytest.mark.parametrize("dtype", FLOATS)
def test_training_and_backward_against_float64(rng, shape, axis, dtype):
    x, gamma, beta, dy = data(rng, shape, axis, dtype)
    assert_call(x, gamma, beta, dy, axis)
    out = np.empty_like(x)
    y, saved = assert_call(x, gamma, beta, dy, axis, out=out)
    assert y is out


@pytest.mark.parametrize("layout", [np.asfortranarray, lambda x: np.repeat(x, 2, axis=0)[::2], lambda x: x[::-1].copy()[::-1],
                                    lambda x: x.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)])
def test_layouts(rng, layout):
    x, gamma, beta, dy = data(rng, (6, 5, 4, 7), 1, np.float64)
    weights = rng.random((6, 4, 7))
    assert_call(layout(x), gamma, beta, dy)
    assert_call(layout(x), gamma, beta, layout(dy), weights=weights, y_saved=fastbn.batch_norm_training(
        layout(x), gamma, beta, weights=weights, nan_policy="omit", out=np.asfortranarray(x)))


def test_several_feature_axes(rng):
    x, _, _, _ = data(rng, (6, 5, 4, 7), 1, np.float64)
    moments = fastbn.moments(x, axis=(1, 3), nan_policy="omit")
    np.testing.assert_array_equal(moments.count, (~np.isnan(x)).sum(axis=(0, 2)).ravel())
    np.testing.assert_allclose(moments.mean, np.nanmean(x, axis=(0, 2)).ravel(), rtol=1e-13)


@pytest.mark.parametrize("activation", ["relu", "gelu", ("leaky_relu", 0.2), "tanh", None], ids=str)
@on_shapes
def test_with_activation_and_residual(rng, shape, axis, activation):
    x, gamma, beta, dy = data(rng, shape, axis, np.float64)
    assert_call(x, gamma, beta, dy, axis, activation=activation)
    residual = rng.normal(size=shape)
    assert_call(x, gamma, beta, dy, axis, activation=activation, residual=residual)
    if activation in ("relu", None):
        out = residual.copy()
        y, saved = fastbn.batch_norm_training(x, gamma, beta, axis=axis, activation=activation, residual=out, out=out,
                                              nan_policy="omit")
        expected, _ = assert_call(x, gamma, beta, dy, axis, activation=activation, residual=residual)
        np.testing.assert_array_equal(y, expected)


@on_shapes
@pytest.mark.parametrize("dtype", FLOATS)
def test_with_masks_and_weights(rng, shape, axis, dtype):
    x, gamma, beta, dy = data(rng, shape, axis, dtype)
    counted = [size for i, size in enumerate(shape) if i != axis % len(shape)]
    mask = rng.random(counted) < 0.7
    mask.flat[2:5] = True
    weights = rng.random(counted).astype(np.float32) + np.float32(0.1)
    assert_call(x, gamma, beta, dy, axis, mask, y_saved=fastbn.batch_norm_training(
        x, gamma, beta, axis=axis, mask=mask, nan_policy="omit"))
    assert_call(x, gamma, beta, dy, axis, weights * mask, y_saved=fastbn.batch_norm_training(
        x, gamma, beta, axis=axis, mask=mask, weights=weights, nan_policy="omit"))


def test_with_lengths(rng):
    x, gamma, beta, dy = data(rng, (6, 5, 11), 1, np.float64)
    lengths = np.array([3, 11, 0, 7, 5, 1])
    mask = np.arange(11) < lengths[:, None]
    assert_call(x, gamma, beta, dy, 1, mask, y_saved=fastbn.batch_norm_training(
        x, gamma, beta, lengths=lengths, nan_policy="omit"))


def test_missing_behind_a_mask(rng):
    """Where the statistics alone do not show that something is missing."""
    x, gamma, beta, dy = data(rng, (12, 4), 1, np.float64, missing=0)
    mask = ~np.isnan(x).any(axis=1)
    assert mask.sum() == 10
    assert_call(x, gamma, beta, np.ones_like(dy), 1, mask, y_saved=fastbn.batch_norm_training(
        x, gamma, beta, mask=mask, nan_policy="omit"))


def test_gradients_against_central_differences(rng):
    x, gamma, beta, dy = data(rng, (7, 3, 2), 1, np.float64)
    weights, residual = rng.random((7, 2)), rng.normal(size=x.shape)
    there = ~np.isnan(x)

    def call(x, gamma, beta, residual):
        return fastbn.batch_norm_training(x, gamma, beta, weights=weights, activation="gelu", residual=residual,
                                          nan_policy="omit")

    inputs = [x, gamma, beta, residual]
    gradients = fastbn.batch_norm_backward(dy, call(*inputs)[1])
    for which, gradient in enumerate(gradients):
        for at in np.ndindex(inputs[which].shape):
            up, down = ([a.copy() for a in inputs] for _ in range(2))
            up[which][at] += 1e-6
            down[which][at] -= 1e-6
            slope = sum(sign * np.sum((call(*a)[0] * dy)[there]) for sign, a in ((1, up), (-1, down))) / 2e-6
            assert abs(slope - gradient[at]) < 1e-6 * (1 + abs(gradient[at]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types(rng, dtype):
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    x, gamma, beta, dy = data(rng, (40, 6, 5), 1, np.float32)
    x, dy = x.astype(dtype), dy.astype(dtype)
    oracle = Oracle(x.astype(np.float32), gamma, beta)
    y, saved = fastbn.batch_norm_training(x, gamma, beta, nan_policy="omit")
    assert y.dtype == x.dtype
    np.testing.assert_allclose(saved.var, oracle.var.ravel(), rtol=1e-6)
    np.testing.assert_allclose(y.astype(float), oracle.y, rtol=1e-2, atol=1e-2)
    for got, want in zip(fastbn.batch_norm_backward(dy, saved), oracle.backward(dy.astype(float))):
        np.testing.assert_allclose(got.astype(float), want, rtol=2e-2, atol=2e-2)


# --- Special features -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
def test_means_of_doubles_of_which_most_are_missing(rng, weighted):
    """What is missing has up to 500 times the weight of what is there."""
    x = rng.normal(-1e6, 1, (600, 20))
    x[rng.random(x.shape) < np.linspace(0.5, 0.99, 20)] = np.nan
    weights = np.where(np.arange(600) % 3, 1e-2, 5) if weighted else np.ones(600)
    x[::3] = np.nan if weighted else x[::3]
    saved = fastbn.batch_norm_training(x, nan_policy="omit", **({"weights": weights} if weighted else {}))[1]
    wide, w = x.astype(np.longdouble), np.where(np.isnan(x), 0, weights[:, None]).astype(np.longdouble)
    mean = np.nansum(wide * w, axis=0) / w.sum(axis=0)
    assert (np.abs(saved.mean - mean) <= 4 * np.spacing(1e6)).all()


def test_statistics_do_not_depend_on_the_mean(rng):
    for shape, axis in ((4000, 5), 1), ((40, 5, 10, 10), 1):
        x = (rng.normal(size=shape) + 1e6).astype(np.float32)
        x[rng.random(shape) < 0.3] = np.nan
        x[0] = np.nan
        others = tuple(i for i in range(x.ndim) if i != axis)
        moments = fastbn.moments(x, nan_policy="omit")
        wide = x.astype(np.longdouble)
        np.testing.assert_array_equal(moments.count, (~np.isnan(x)).sum(axis=others))
        np.testing.assert_allclose(moments.mean, np.nanmean(wide, axis=others).astype(float), rtol=1.2e-7)
        np.testing.assert_allclose(moments.var(), np.nanvar(wide, axis=others).astype(float), rtol=1e-6)


@on_options
def test_a_feature_all_of_which_is_missing(rng, options):
    x, gamma, beta, dy = data(rng, (12, 4), 1, np.float64)
    x[:, 2] = np.nan
    running = {"running_mean": np.zeros(4), "running_var": np.ones(4)} if "renorm" in options else {}
    for out in (None, x.copy()):
        source = x.copy() if out is None else out
        y, saved = fastbn.batch_norm_training(source, gamma, beta, nan_policy="omit", out=out, **options, **running)
        assert np.isnan(y[:, 2]).all() and not np.isnan(y[:, [0, 1, 3]][~np.isnan(x[:, [0, 1, 3]])]).any()
        assert np.all(saved.mean[..., 2] == 0) and np.isnan(saved.var[..., 2]).all()
        dx, dgamma, dbeta = fastbn.batch_norm_backward(dy, saved)
        assert np.isfinite(dx).all() and not dx[:, 2].any()
        assert np.isfinite(dgamma).all() and dgamma[2] == 0 == dbeta[2]


@pytest.mark.parametrize("shape, axis", [((30, 4), 1), ((5, 4, 3, 3), 1)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_inf_is_not_missing(rng, shape, axis, dtype):
    """Its feature has NaN or Inf for statistics, as without the policy, also where NaN entries are left out."""
    x, gamma, beta, dy = data(rng, shape, axis, dtype, missing=0)
    clean = np.where(np.isnan(x), 0, x).astype(dtype)
    clean[3:, 1] = np.inf  # no NaN at all
    assert_same_as_plainly(clean, gamma, beta, dy)
    x[:, 1], x[3, 2], x[0, 2] = np.inf, -np.inf, np.nan
    there = ~np.isnan(x)
    dy[there & np.isnan(dy)] = 1
    y, saved = fastbn.batch_norm_training(x, gamma, beta, nan_policy="omit")
    assert np.isnan(saved.var[1:3]).all() and np.isfinite(saved.var[[0, 3]]).all()
    assert np.isnan(y[:, 1:3]).all() and np.isfinite(y[there] [np.isin(np.nonzero(there)[1], (0, 3))]).all()
    dx, dgamma, dbeta = fastbn.batch_norm_backward(dy, saved)
    assert np.isnan(dgamma[1:3]).all() and np.isfinite(dgamma[[0, 3]]).all()
    np.testing.assert_allclose(dbeta, np.where(there, dy, 0).sum(axis=tuple(i for i in range(x.ndim) if i != 1)), rtol=1e-4)
    assert not dx[~there].any() and np.isnan(dx[:, 1]).any() and np.isfinite(dx[:, [0, 3]]).all()


def assert_same_as_plainly(x, gamma, beta, dy):
    dy = np.nan_to_num(dy)
    found = []
    for policy in ("propagate", "omit"):
        y, saved = fastbn.batch_norm_training(x, gamma, beta, nan_policy=policy)
        found.append([y, saved.mean, saved.var, *fastbn.batch_norm_backward(dy, saved)])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("place", ["fresh", "out", "in place"])
@pytest.mark.parametrize("dtype", FLOATS)
@on_options
def test_without_nan_the_bits_are_those_without_the_policy(rng, options, dtype, place):
    x, dy = (rng.normal(size=(12, 5, 6)).astype(dtype) for _ in range(2))
    running = {"running_mean": np.zeros(5), "running_var": np.ones(5)} if "renorm" in options else {}
    gamma, beta = (rng.random(5).astype(dtype) + dtype(0.5) for _ in range(2))
    found = []
    for policy in ("propagate", "omit"):
        own = x.copy()
        out = {"fresh": None, "out": np.empty_like(x), "in place": own}[place]
        y, saved = fastbn.batch_norm_training(own, gamma, beta, nan_policy=policy, out=out, **options, **running)
        found.append([y, saved.mean, saved.var, saved.rstd, *fastbn.batch_norm_backward(dy, saved)])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_batch_without_nan_is_not_looked_at_again(rng, monkeypatch):
    monkeypatch.setattr(omit, "present", None)
    x = rng.normal(size=(12, 5)).astype(np.float32)
    layer = fastbn.BatchNorm(5, nan_policy="omit")
    with monkeypatch.context() as patch:
        patch.setattr(omit, "moments_of", None)
        fastbn.batch_norm_training(x, nan_policy="omit")
        fastbn.batch_norm_training(x, nan_policy="omit", ghost_batch_size=5)
        layer(x)
    assert layer.num_batches_tracked == 1
    assert fastbn.moments(x, nan_policy="omit").count.tolist() == [12] * 5


@pytest.mark.parametrize("shape", [(0, 5), (4, 5, 0)], ids=str)
@on_options
def test_an_empty_batch(shape, options):
    x = np.empty(shape, np.float32)
    running = {"running_mean": np.zeros(5), "running_var": np.ones(5)} if "renorm" in options else {}
    for out in (None, x):
        y, saved = fastbn.batch_norm_training(x, nan_policy="omit", out=out, **options, **running)
        assert y.shape == shape and np.isnan(saved.var).all()
        assert not fastbn.batch_norm_backward(x, saved)[1].any()
    fastbn.BatchNorm(5, nan_policy="omit", **options)(x)
    assert fastbn.moments(x, nan_policy="omit").count.tolist() == [0] * 5


# --- In place -------------------------------------------------------------------------------------------------------


@on_shapes
@pytest.mark.parametrize("activation", [None, ("leaky_relu", 0.2)], ids=str)
def test_in_place(rng, shape, axis, activation):
    x, gamma, beta, dy = data(rng, shape, axis, np.float64)
    gamma = np.abs(gamma) + 0.5
    own = x.copy()
    y_saved = fastbn.batch_norm_training(own, gamma, beta, axis=axis, activation=activation, out=own, nan_policy="omit")
    assert y_saved[0] is own
    assert_call(x, gamma, beta, dy, axis, activation=activation, y_saved=y_saved)


def test_in_place_where_y_does_not_tell_what_was_missing(rng):
    x, gamma, beta, dy = data(rng, (12, 4), 1, np.float64)
    x[5, 2] = np.inf
    _, saved = fastbn.batch_norm_training(x, gamma, beta, out=x, nan_policy="omit")
    with pytest.raises(RuntimeError, match="does not tell which entries of feature 2 were missing"):
        fastbn.batch_norm_backward(dy, saved)
    x, gamma, beta, dy = data(rng, (12, 4), 1, np.float64)
    _, saved = fastbn.batch_norm_training(x, gamma, beta, out=x, nan_policy="omit", activation="relu")
    with pytest.raises(RuntimeError, match="cannot be recovered from y through relu"):
        fastbn.batch_norm_backward(dy, saved)


# --- Ghost batches, renormalization ----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["fresh", "out", "in place", "residual"])
def test_ghost_batches_are_calls_of_their_own(rng, place):
    x, gamma, beta, dy = data(rng, (8, 4, 6), 1, np.float64)
    weights, residual = rng.random((8, 6)) + 0.1, None if place == "in place" else rng.normal(size=x.shape)
    act = None if place == "in place" else "relu"
    slices = [slice(0, 3), slice(3, 6), slice(6, 8)]
    oracles = [Oracle(x[s], gamma, beta, weights=weights[s], activation=act,
                      residual=0.0 if residual is None else residual[s].copy()) for s in slices]
    own = x.copy()
    out = {"fresh": None, "out": np.empty_like(x), "in place": own, "residual": residual}[place]
    y, saved = fastbn.batch_norm_training(own, gamma, beta, weights=weights, activation=act, residual=residual, out=out,
                                          nan_policy="omit", ghost_batch_size=3)
    assert_near(y, np.concatenate([o.y for o in oracles]), np.float64, 100)
    found, want = fastbn.batch_norm_backward(dy, saved), [o.backward(dy[s]) for o, s in zip(oracles, slices)]
    assert_near(found[0], np.concatenate([w[0] for w in want]), np.float64, 1e4)
    assert_near(found[1], sum(w[1] for w in want), np.float64, 1e3)
    assert_near(found[2], sum(w[2] for w in want), np.float64, 1e3)
    if residual is not None:
        assert_near(found[3], np.concatenate([w[3] for w in want]), np.float64)
    whole = fastbn.moments(x, weights=weights, nan_policy="omit")
    np.testing.assert_allclose(saved.moments.count, whole.count, rtol=1e-13)
    np.testing.assert_allclose(saved.moments.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(saved.moments.M2, whole.M2, rtol=1e-12)


@pytest.mark.parametrize("place", ["fresh", "in place"])
def test_renorm(rng, place):
    x, gamma, beta, dy = data(rng, (12, 4), 1, np.float64)
    mean, var = rng.normal(size=4) + 3, rng.random(4) + 1
    plain = Oracle(x, gamma, beta)
    r = np.clip(np.sqrt(plain.var + EPS) / np.sqrt(var + EPS), 1 / 1.5, 1.5).ravel()
    d = np.clip((plain.mean - mean) / np.sqrt(var + EPS), -0.5, 0.5).ravel()
    oracle = Oracle(x, gamma * r, gamma * d + beta)
    own = x.copy()
    y, saved = fastbn.batch_norm_training(own, gamma, beta, renorm=(1.5, 0.5), running_mean=mean, running_var=var,
                                          nan_policy="omit", out=own if place == "in place" else None)
    assert_near(y, oracle.y, np.float64, 100)
    dx, dgamma, dbeta, _ = oracle.backward(dy)
    for got, want in zip(fastbn.batch_norm_backward(dy, saved), (dx, r * dgamma + d * dbeta, dbeta)):
        assert_near(got, want, np.float64, 1e4)
    assert saved.moments.count.tolist() == (~np.isnan(x)).sum(axis=0).tolist()


# --- Moments --------------------------------------------------------------------------------------------------------


@on_shapes
@pytest.mark.parametrize("weighted", [False, True])
def test_moments_merge(rng, shape, axis, weighted):
    x = data(rng, shape, axis, np.float64, missing=0.5)[0]
    moved = np.moveaxis(x, axis, 1)
    moved[:, 0][:len(moved) // 2] = np.nan  # a part without any entry of feature 0
    weights = rng.random(moved[:, 0].shape) if weighted else None
    whole = fastbn.moments(moved, weights=weights, nan_policy="omit")
    parts = [fastbn.moments(moved[s], weights=None if weights is None else weights[s], nan_policy="omit")
             for s in (slice(0, len(moved) // 2), slice(len(moved) // 2, None))]
    assert parts[0].count[0] == 0 and np.isnan(parts[0].var()[0])
    for merged in (sum(parts), parts[1] + parts[0], fastbn.Moments.merge_all(parts)):
        assert merged.count.dtype == (np.float64 if weighted else np.int64)
        np.testing.assert_allclose(merged.count, whole.count, rtol=1e-14)
        np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
        np.testing.assert_allclose(merged.M2, whole.M2, rtol=1e-12, atol=1e-14)
    assert merged.mean[0] == parts[1].mean[0] and merged.M2[0] == parts[1].M2[0]


def test_moments_merge_with_those_of_one_count(rng):
    x = rng.normal(size=(40, 3))
    x[3:30, 1] = np.nan
    merged = fastbn.moments(x[30:]) + fastbn.moments(x[:30], nan_policy="omit")
    assert merged.count.tolist() == [40, 13, 40]
    np.testing.assert_allclose(merged.var(1), np.nanvar(x, axis=0, ddof=1), rtol=1e-13)


def test_moments_with_counts_by_feature_are_values(rng):
    x = rng.normal(size=(9, 3))
    x[:, 2] = np.nan
    x[1:, 1] = np.nan
    one = fastbn.moments(x, nan_policy="omit")
    assert one.count.tolist() == [9, 1, 0]
    np.testing.assert_array_equal(np.isnan(one.var(1)), [False, True, True])
    np.testing.assert_array_equal(np.isnan(one.var()), [False, False, True])
    for twin in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one)),
                 fastbn.Moments(one.count, one.mean, one.M2)):
        assert twin == one and twin.count.dtype == np.int64
    assert one != fastbn.Moments([9, 1, 1] @ np.eye(3), one.mean, one.M2)
    assert one != fastbn.Moments(9, one.mean, one.M2)
    assert fastbn.Moments(np.full(3, 9), one.mean, one.M2) == fastbn.Moments(9, one.mean, one.M2)
    assert "count=array([9, 1, 0])" in repr(one)
    for count, text in ((np.array([1, -1, 0]), "expected 0 or more"), (np.ones(2), r"count has shape \(2,\)"),
                        (np.array([1, np.nan, 2]), "finite")):
        with pytest.raises(ValueError, match=text):
            fastbn.Moments(count, one.mean, one.M2)


# --- The layer ------------------------------------------------------------------------------------------------------


def stepped(layer, x, weights=None):
    """(running_mean, running_var) after a batch, in float64."""
    oracle = Oracle(x, np.ones(layer.num_features), np.ones(layer.num_features), weights=weights)
    there = ~np.isnan(x) * (1.0 if weights is None else weights[:, None])
    count = there.sum(axis=(0, 2)) ** 2 / (there ** 2).sum(axis=(0, 2))  # Kish's
    keep = count <= (1 + 1e-9 if layer.ddof else 0)
    with np.errstate(all="ignore"):
        var = np.where(keep, np.nan, oracle.var.ravel() * count / (count - layer.ddof))
    mean = oracle.mean.ravel()
    old_mean, old_var, m = layer.running_mean.copy(), layer.running_var.copy(), layer.momentum
    return np.where(keep, old_mean, m * old_mean + (1 - m) * mean), np.where(keep, old_var, m * old_var + (1 - m) * var)


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("weighted", [False, True])
@on_options
def test_the_layer_updates_each_feature_by_its_own_count(rng, options, weighted, ddof):
    x, _, _, dy = data(rng, (12, 4, 2), 1, np.float64)
    x[1:, 3] = np.nan
    x[0, 3, 0] = 7.0  # a lone entry
    x[0, 3, 1] = np.nan
    dy[0, 3, 0] = 2.0
    weights = rng.random((12, 2)) + 0.2 if weighted else None
    layer = fastbn.BatchNorm(4, nan_policy="omit", dtype=np.float64, ddof=ddof, **options)
    layer.running_mean, layer.running_var = rng.normal(size=4), rng.random(4) + 1
    mean, var = stepped(layer, x, weights)
    y = layer(x, weights=weights)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(x))
    np.testing.assert_allclose(layer.running_mean, mean, rtol=1e-12)
    np.testing.assert_allclose(layer.running_var, var, rtol=1e-12)
    assert layer.num_batches_tracked == 1
    dx = layer.backward(dy)
    assert np.isfinite(dx).all() and np.isfinite(layer.dgamma).all() and np.isfinite(layer.dbeta).all()
    np.testing.assert_allclose(layer.batch_moments.count, fastbn.moments(x, weights=weights, nan_policy="omit").count)


def test_one_step_by_update_has_the_same_bits(rng):
    x = data(rng, (12, 4, 2), 1, np.float32)[0]
    layer, twin = (fastbn.BatchNorm(4, nan_policy="omit") for _ in range(2))
    layer(x)
    twin(x, update=False)
    assert not twin.running_mean.any() and twin.batch_moments == layer.batch_moments
    twin.update(twin.batch_moments)
    np.testing.assert_array_equal(twin.running_mean, layer.running_mean)
    np.testing.assert_array_equal(twin.running_var, layer.running_var)
    frozen = fastbn.BatchNorm(4, nan_policy="omit")
    frozen.use_batch_stats, frozen.update_running_stats = False, True
    frozen(x)
    np.testing.assert_array_equal(frozen.running_var, layer.running_var)


def test_without_nan_a_step_has_the_bits_without_the_policy(rng):
    x = rng.normal(size=(12, 4)).astype(np.float32)
    layer, plain = fastbn.BatchNorm(4, nan_policy="omit"), fastbn.BatchNorm(4)
    np.testing.assert_array_equal(layer(x), plain(x))
    np.testing.assert_array_equal(layer.running_var, plain.running_var)
    assert layer.batch_moments.count.tolist() == [12] * 4 and plain.batch_moments.count == 12
    plain.update(layer.batch_moments)
    layer.update(fastbn.moments(x))
    np.testing.assert_array_equal(layer.running_var, plain.running_var)


def test_a_batch_of_which_everything_is_missing_changes_nothing(rng):
    layer = fastbn.BatchNorm(3, nan_policy="omit")
    layer(np.full((6, 3), np.nan, np.float32))
    assert not layer.running_mean.any() and np.all(layer.running_var == 1) and layer.num_batches_tracked == 0


def test_calibrate_and_drift(rng):
    x = data(rng, (40, 4, 3), 1, np.float64)[0]
    layer = fastbn.BatchNorm(4, nan_policy="omit", dtype=np.float64)
    layer.calibrate([x[:7], x[7:30], x[30:]])
    np.testing.assert_allclose(layer.running_mean, np.nanmean(x, axis=(0, 2)), rtol=1e-12)
    np.testing.assert_allclose(layer.running_var, np.nanvar(x, axis=(0, 2), ddof=1), rtol=1e-12)
    np.testing.assert_allclose(layer.drift(x).divergence, 0, atol=1e-20)
    other = fastbn.BatchNorm(4, dtype=np.float64).calibrate(fastbn.moments(x, nan_policy="omit"))
    np.testing.assert_allclose(other.running_var, layer.running_var, rtol=1e-12)
    before = layer.state_dict()
    x[:, 1] = np.nan
    with pytest.raises(ValueError, match="feature 1 has 0 entries that are not missing, expected more than ddof=1"):
        layer.calibrate([x])
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    assert np.isnan(layer.drift(x).std_ratio).tolist() == [False, True, False, False]
    with pytest.raises(ValueError, match="x has "):
        layer.drift(np.full_like(x, np.nan))


def test_copies_and_repr(rng):
    layer = fastbn.BatchNorm(4, nan_policy="omit", activation="relu")
    x = data(rng, (12, 4), 1, np.float32)[0]
    for twin in (copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.nan_policy == "omit" and "nan_policy='omit'" in repr(twin)
        np.testing.assert_array_equal(twin(x), copy.copy(layer)(x))


def test_policies_that_moments_do_not_have(rng):
    for policy in ("raise", "skip", "other", None):
        with pytest.raises(ValueError, match="nan_policy is .*, expected 'propagate' or 'omit'"):
            fastbn.moments(rng.normal(size=(4, 3)), nan_policy=policy)


def test_no_gradient_of_the_gradient(rng):
    x, gamma, beta, dy = data(rng, (12, 4), 1, np.float64)
    _, saved = fastbn.batch_norm_training(x, gamma, beta, nan_policy="omit")
    with pytest.raises(ValueError, match="missing entries"):
        fastbn.batch_norm_double_backward(dy, None, None, dy, saved)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("spread", [0, 10, 18])
def test_what_is_missing_may_have_nearly_all_the_weight(rng, dtype, spread):
    x, weights = rng.normal(3, 2, (27, 40)).astype(dtype), 10 ** rng.uniform(-spread, spread, 27)
    x[rng.random(x.shape) < 0.3] = np.nan
    x[np.argmax(weights), ::2] = np.nan
    x[1:, 7], x[0, 7] = np.nan, 5
    x[5, 3:9], weights[5] = np.inf, 0  # what has no weight leaves no trace
    found = fastbn.moments(x, weights=weights, nan_policy="omit")
    w = weights[:, None].astype(np.longdouble) * ~np.isnan(x)
    values = np.where(w > 0, x, 0).astype(np.longdouble)
    mean = (w * values).sum(axis=0) / w.sum(axis=0)
    var = (w * (values - mean) ** 2).sum(axis=0) / w.sum(axis=0)
    bound = 2e-7 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(found.mean, mean.astype(float), rtol=bound, atol=bound)
    np.testing.assert_allclose(found.var(), var.astype(float), rtol=1e-6 if dtype == np.float32 else 1e-9, atol=1e-14)


@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("dtype", FLOATS)
def test_what_has_no_weight_leaves_no_trace_beside_missing_entries(rng, value, dtype):
    """Whatever stands in for the missing entries, it is none that does not count, the first one of a feature say."""
    x = rng.normal(size=(40, 5)).astype(dtype)
    weights = np.ones(40)
    weights[:3] = 0
    x[10:20, 1:4] = np.nan
    changed = x.copy()
    changed[:3] = value
    results = [fastbn.batch_norm_training(a, nan_policy="omit", weights=weights)[1] for a in (x, changed)]
    assert np.isfinite(results[0].var).all()
    for name in ("mean", "var"):
        np.testing.assert_array_equal(*(getattr(saved, name) for saved in results))
