"""Options with each other: ghost batches, renormalization and NaN policies together with activations, residuals, masks, weights
and lengths, in the functions and in the layer, against float64.
"""
import copy
import pickle

import numpy as np
import pytest
from fused_oracle import Layer

import fastbn

pytestmark = pytest.mark.filterwarnings("error")

EPS = 1e-5
OPTIONS = [{}, {"ghost_batch_size": 3}, {"renorm": (1.5, 0.5)}, {"ghost_batch_size": 3, "renorm": (1.5, 0.5)},
           {"nan_policy": "raise"}, {"nan_policy": "raise", "ghost_batch_size": 3}, {"nan_policy": "omit", "renorm": (1.5, 0.5)}]
on_options = pytest.mark.parametrize("options", OPTIONS, ids=str)
KINDS = [None, "mask", "weights", "lengths", "all"]
on_kinds = pytest.mark.parametrize("kind", KINDS)
on_activations = pytest.mark.parametrize("activation", [None, "relu", "gelu", ("leaky_relu", 0.2)], ids=str)
SHAPE = (8, 4, 6)
UNIT = {"float64": 1e-11, "float32": 2e-5, "float16": 6e-3, "bfloat16": 5e-2}


def type_named(name):
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else name)


def parameter_type(dtype):
    return np.float64 if dtype == np.float64 else np.float32


class Case:
    """Arrays of a call, and what it should give."""

    def __init__(self, rng, dtype=np.float64, activation=None, residual=False, kind=None, options=None, shape=SHAPE):
        self.dtype, self.activation, options = dtype, activation, options or {}
        self.x, self.dy = (2 * rng.normal(size=shape) + 1).astype(dtype), rng.normal(size=shape).astype(dtype)
        self.residual = rng.normal(size=shape).astype(dtype) if residual else None
        c, counted = shape[1], (shape[0], *shape[2:])
        self.gamma, self.beta = ((rng.random(c) + 0.5).astype(parameter_type(dtype)) for _ in range(2))
        self.running_mean, self.running_var = ((rng.random(c) + 0.5).astype(parameter_type(dtype)) for _ in range(2))
        self.weighing, self.w = self.weights(rng, kind, counted)
        self.options, self.renorm = options, options.get("renorm")
        size = options.get("ghost_batch_size") or shape[0]
        self.slices = [slice(i, i + size) for i in range(0, shape[0], size)]

    @staticmethod
    def weights(rng, kind, counted):
        given = {"mask": rng.random(counted) < 0.7, "weights": rng.random(counted).astype(np.float32) + np.float32(0.1),
                 "lengths": rng.integers(2, counted[1] + 1, counted[0])}
        given["mask"][:, :2] = True
        factors = {"mask": given["mask"], "weights": given["weights"],
                   "lengths": np.arange(counted[1]) < given["lengths"][:, None]}
        names = [] if kind is None else list(given) if kind == "all" else [kind]
        return {name: given[name] for name in names}, np.prod([factors[name] for name in names], axis=0) * np.ones(counted)

    def arguments(self, **more):
        running = {"running_mean": self.running_mean, "running_var": self.running_var} if self.renorm else {}
        return {"activation": self.activation, "residual": self.residual, **self.weighing, **self.options, **running, **more}

    def parts(self):
        """[(Layer, r, d), ...] of the slices."""
        wide, found = np.float64, []
        for s in self.slices:
            x, w, gamma, beta = self.x[s].astype(wide), self.w[s], self.gamma.astype(wide), self.beta.astype(wide)
            r, d = 1.0, 0.0
            if self.renorm is not None:
                rmax, dmax = self.renorm
                plain, std = Layer(x, gamma, beta, weights=w).forward(), np.sqrt(self.running_var.astype(wide) + EPS)
                r = np.clip(np.sqrt(plain.var + EPS) / std, 1 / rmax, rmax)
                d = np.clip((plain.mean - self.running_mean) / std, -dmax, dmax)
            residual = None if self.residual is None else self.residual[s].astype(wide)
            found.append((Layer(x, gamma * r, gamma * d + beta, weights=w, activation=self.activation, residual=residual), r, d))
        return found

    def expected(self):
        """y, [dx, dgamma, dbeta, and dresidual where there is a residual]"""
        parts = self.parts()
        back = [(layer.backward(self.dy[s].astype(float)), r, d) for (layer, r, d), s in zip(parts, self.slices)]
        gradients = [np.concatenate([b.dx for b, _, _ in back]), sum(r * b.dgamma + d * b.dbeta for b, r, d in back),
                     sum(b.dbeta for b, _, _ in back)]
        gradients += [] if self.residual is None else [np.concatenate([b.dresidual for b, _, _ in back])]
        return np.concatenate([layer.forward().y for layer, _, _ in parts]), gradients

    def statistics(self):
        """(total weight, mean, biased var, the factor that makes it unbiased) of the whole batch."""
        layer = Layer(self.x.astype(float), self.gamma, self.beta, weights=self.w)
        effective = self.w.sum() ** 2 / (self.w ** 2).sum()
        return self.w.sum(), layer.mean.ravel(), layer.var.ravel(), effective / (effective - 1)

    def away_from_kinks(self):
        """dy = 0 where a rounded z may lie on the other side of a kink."""
        near = np.concatenate([np.abs(layer.z) < 0.05 for layer, _, _ in self.parts()])
        self.dy = np.where(near, 0, self.dy).astype(self.dtype)


def assert_near(got, expected, dtype):
    assert got.shape == expected.shape
    unit = UNIT[np.dtype(dtype).name]
    np.testing.assert_allclose(got.astype(float), expected, rtol=unit, atol=unit * max(1, np.abs(expected).max()))


def assert_result(case, y, gradients):
    want_y, want = case.expected()
    assert y.dtype == case.x.dtype
    assert_near(y, want_y, case.dtype)
    for got, expected in zip(gradients, want, strict=True):
        assert_near(got, expected, case.dtype)


# --- The functions --------------------------------------------------------------------------------------------------


@on_options
@on_kinds
@on_activations
@pytest.mark.parametrize("residual", [False, True])
def test_training_and_backward(rng, options, kind, activation, residual):
    case = Case(rng, activation=activation, residual=residual, kind=kind, options=options)
    for out in (None, np.empty(SHAPE), np.asfortranarray(np.empty(SHAPE))):
        y, saved = fastbn.batch_norm_training(case.x, case.gamma, case.beta, out=out, **case.arguments())
        assert out is None or y is out
        assert_result(case, y, fastbn.batch_norm_backward(case.dy, saved))
    own = case.dy.copy()
    found = fastbn.batch_norm_backward(own, saved, out=own)
    assert found[0] is own
    assert_result(case, y, found)


@on_options
@on_kinds
@pytest.mark.parametrize("activation", [None, ("leaky_relu", 0.2)], ids=str)
def test_in_place(rng, options, kind, activation):
    case = Case(rng, activation=activation, kind=kind, options=options)
    for layout in (np.array, np.asfortranarray):
        own = layout(case.x)
        y, saved = fastbn.batch_norm_training(own, case.gamma, case.beta, out=own, **case.arguments())
        assert y is own
        assert_result(case, y, fastbn.batch_norm_backward(case.dy, saved))


@on_options
@pytest.mark.parametrize("residual, activation", [(True, None), (True, "relu"), (False, "gelu")])
def test_in_place_what_cannot_be_recovered(rng, options, residual, activation):
    case = Case(rng, activation=activation, residual=residual, kind="mask", options=options)
    own = case.x.copy()
    y, saved = fastbn.batch_norm_training(own, case.gamma, case.beta, out=own, **case.arguments())
    assert_near(y, case.expected()[0], np.float64)
    with pytest.raises(RuntimeError, match="cannot be recovered"):
        fastbn.batch_norm_backward(case.dy, saved)


@on_options
@on_kinds
@pytest.mark.parametrize("activation", [None, "relu"])
def test_y_in_place_of_the_residual(rng, options, kind, activation):
    case = Case(rng, activation=activation, residual=True, kind=kind, options=options)
    out = case.residual.copy()
    y, saved = fastbn.batch_norm_training(case.x, case.gamma, case.beta, out=out, **case.arguments(residual=out))
    assert y is out
    assert_result(case, y, fastbn.batch_norm_backward(case.dy, saved))


@on_options
def test_a_residual_that_backward_needs_is_not_overwritten(rng, options):
    case = Case(rng, activation="gelu", residual=True, options=options)
    before = case.residual.copy()
    with pytest.raises(ValueError, match="out and residual overlap, and the gradient of gelu needs the residual"):
        fastbn.batch_norm_training(case.x, case.gamma, case.beta, out=case.residual, **case.arguments())
    np.testing.assert_array_equal(case.residual, before)


@on_options
@on_kinds
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("activation, residual", [(None, False), ("relu", True), ("gelu", True), (("leaky_relu", 0.2), False)],
                         ids=str)
def test_narrower_types(rng, options, kind, dtype, activation, residual):
    case = Case(rng, type_named(dtype), activation, residual, kind, options)
    case.away_from_kinks()
    y, saved = fastbn.batch_norm_training(case.x, case.gamma, case.beta, **case.arguments())
    gradients = fastbn.batch_norm_backward(case.dy, saved)
    assert gradients[1].dtype == gradients[2].dtype == np.float32
    assert_result(case, y, gradients)


@pytest.mark.parametrize("options", OPTIONS[1:4], ids=str)
@pytest.mark.parametrize("kind", [None, "weights"])
def test_needs(rng, options, kind):
    case = Case(rng, activation="relu", residual=True, kind=kind, options=options)
    _, saved = fastbn.batch_norm_training(case.x, case.gamma, case.beta, **case.arguments())
    whole = fastbn.batch_norm_backward(case.dy, saved)
    names = ("dx", "dgamma", "dbeta", "dresidual")
    for needs in (("dresidual",), ("dgamma",), ("dx", "dresidual"), ("dbeta", "dresidual"), ("dx", "dgamma")):
        found = fastbn.batch_norm_backward(case.dy, saved, needs=needs)
        for name, got, want in zip(names, found, whole, strict=True):
            assert (got is None) == (name not in needs)
            if got is not None:
                np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("options", OPTIONS[1:4], ids=str)
@pytest.mark.parametrize("kind", [None, "lengths"])
def test_gradients_against_central_differences(rng, options, kind):
    """The gradients of y alone. With renorm r and d are constants, which the differences do not keep: there only those of
    beta and the residual.
    """
    case = Case(rng, activation="gelu", residual=True, kind=kind, options=options, shape=(7, 2, 3))
    inputs = [case.x, case.gamma, case.beta, case.residual]

    def call(x, gamma, beta, residual):
        return fastbn.batch_norm_training(x, gamma, beta, **case.arguments(residual=residual))

    gradients = fastbn.batch_norm_backward(case.dy, call(*inputs)[1])
    for which in range(2 if "renorm" in options else 0, 4):
        for at in np.ndindex(inputs[which].shape):
            up, down = ([a.copy() for a in inputs] for _ in range(2))
            up[which][at] += 1e-6
            down[which][at] -= 1e-6
            slope = float(((call(*up)[0] - call(*down)[0]) * case.dy).sum()) / 2e-6
            assert abs(slope - gradients[which][at]) < 1e-6 * (1 + abs(slope))


@pytest.mark.parametrize("out_layout", [np.asfortranarray, lambda a: a.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)])
@pytest.mark.parametrize("options", OPTIONS[:4], ids=str)
def test_weights_where_out_lies_in_another_order(rng, out_layout, options):
    """They go with the entries, in the forward call as in the backward one."""
    case = Case(rng, kind="weights", options=options, shape=(8, 4, 6, 3))
    out = out_layout(np.empty(case.x.shape))
    y, saved = fastbn.batch_norm_training(case.x, case.gamma, case.beta, out=out, **case.arguments())
    assert_result(case, y, fastbn.batch_norm_backward(case.dy, saved))
    assert_result(case, y, fastbn.batch_norm_backward(case.dy, saved, out=out_layout(np.empty(case.x.shape))))


@pytest.mark.parametrize("options", OPTIONS[:4], ids=str)
@on_kinds
def test_moments_of_the_whole_batch(rng, options, kind):
    case = Case(rng, kind=kind, options=options)
    saved = fastbn.batch_norm_training(case.x, case.gamma, case.beta, **case.arguments())[1]
    total, mean, var, _ = case.statistics()
    if options:
        assert abs(saved.moments.count - total) < 1e-12 * total
        np.testing.assert_allclose(saved.moments.mean, mean, rtol=1e-12)
        np.testing.assert_allclose(saved.moments.var(), var, rtol=1e-11)


# --- The layer ------------------------------------------------------------------------------------------------------


def layer_of(case, **more):
    given = {name: value for name, value in case.options.items()}
    layer = fastbn.BatchNorm(case.x.shape[1], activation=case.activation, dtype=parameter_type(case.dtype), **given, **more)
    layer.gamma, layer.beta = case.gamma, case.beta
    layer.running_mean, layer.running_var = case.running_mean.copy(), case.running_var.copy()
    return layer


@on_options
@on_kinds
@on_activations
@pytest.mark.parametrize("residual", [False, True])
def test_the_layer_trains(rng, options, kind, activation, residual):
    case = Case(rng, activation=activation, residual=residual, kind=kind, options=options)
    layer = layer_of(case)
    total, mean, var, bessel = case.statistics()
    y = layer(case.x, residual=case.residual, **case.weighing)
    dx = layer.backward(case.dy)
    dx, *dresidual = dx if residual else (dx,)
    assert_result(case, y, [dx, layer.dgamma, layer.dbeta, *dresidual])
    np.testing.assert_allclose(layer.running_mean, 0.9 * case.running_mean + 0.1 * mean, rtol=1e-11)
    np.testing.assert_allclose(layer.running_var, 0.9 * case.running_var + 0.1 * var * bessel, rtol=1e-10)
    assert layer.num_batches_tracked == 1
    np.testing.assert_allclose(layer.batch_moments.count, total, rtol=1e-12)


@on_activations
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("backward", [False, True])
def test_the_layer_infers(rng, activation, residual, backward):
    """A mask makes no difference there."""
    case = Case(rng, activation=activation, residual=residual, kind="mask")
    layer = layer_of(case).eval(backward=backward)
    oracle = Layer(case.x, case.gamma, case.beta, activation=activation, residual=case.residual,
                   given=(case.running_mean, case.running_var))
    for weighing in (case.weighing, {}):
        y = layer(case.x, residual=case.residual, **weighing)
        assert_near(y, oracle.forward().y, np.float64)
        if not backward:
            with pytest.raises(RuntimeError, match="backward without a forward call"):
                layer.backward(case.dy)
            continue
        found = layer.backward(case.dy)
        want = oracle.backward(case.dy)
        dx, *dresidual = found if residual else (found,)
        for got, expected in zip((dx, layer.dgamma, layer.dbeta, *dresidual), want):
            assert_near(got, expected, np.float64)
        assert len(dresidual) == residual
    assert layer.num_batches_tracked == 0


@on_activations
def test_the_layer_in_place(rng, activation):
    for options in OPTIONS[:4]:
        case = Case(rng, activation=activation, kind="weights", options=options)
        layer = layer_of(case)
        own = case.x.copy()
        y = layer(own, out=own, **case.weighing)
        assert y is own
        assert_near(y, case.expected()[0], np.float64)
        if activation in (None, ("leaky_relu", 0.2)):
            assert_near(layer.backward(case.dy), case.expected()[1][0], np.float64)
        else:
            with pytest.raises(RuntimeError, match=f"cannot be recovered from y through {activation}"):
                layer.backward(case.dy)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("options", OPTIONS[:5], ids=str)
@pytest.mark.parametrize("kind", [None, "weights"])
def test_the_layer_with_narrower_types(rng, dtype, options, kind):
    case = Case(rng, type_named(dtype), "relu", True, kind, options)
    case.away_from_kinks()
    layer = layer_of(case)
    y = layer(case.x, residual=case.residual, **case.weighing)
    dx, dresidual = layer.backward(case.dy)
    assert_result(case, y, [dx, layer.dgamma, layer.dbeta, dresidual])
    assert layer.dgamma.dtype == layer.running_var.dtype == np.float32


@on_activations
def test_copies_keep_the_activation(rng, activation):
    case = Case(rng, activation=activation, residual=True, kind="weights")
    layer = layer_of(case)
    expected = copy.copy(layer).eval()(case.x, residual=case.residual)
    trained = copy.copy(layer)(case.x, **case.weighing)
    for twin in (copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.activation == layer.activation and repr(twin) == repr(layer)
        assert (f"activation={activation!r}" in repr(twin)) == (activation is not None)
        np.testing.assert_array_equal(twin(case.x, **case.weighing), trained)
        twin.load_state_dict(layer.state_dict())
        np.testing.assert_array_equal(twin.eval()(case.x, residual=case.residual), expected)
        assert twin.train().activation == layer.activation
    assert "activation" not in layer.state_dict()


def test_the_state_has_no_activation(rng, tmp_path):
    """A file fills a layer of any activation, which it keeps."""
    case = Case(rng, activation="relu")
    layer = layer_of(case)
    layer(case.x)
    layer.save(tmp_path / "bn.npz")
    other = fastbn.BatchNorm(4, dtype=np.float64, activation="tanh").load(tmp_path / "bn.npz", settings="ignore")
    assert other.activation == "tanh"
    np.testing.assert_allclose(other.eval()(case.x), np.tanh(_without_activation(layer)(case.x)), rtol=1e-12, atol=1e-13)


def _without_activation(layer):
    twin = copy.copy(layer).eval()
    twin.activation = None
    return twin


@pytest.mark.parametrize("weighing", [{"mask": np.eye(6, dtype=bool)[0]}, {"mask": np.zeros(6, bool)},
                                      {"weights": 0.1 * np.eye(6)[2]}, {"weights": np.eye(6)[0] + 1e-9},
                                      {"lengths": np.array([1, 0, 0, 0, 0, 0])}], ids=lambda w: next(iter(w)))
@pytest.mark.parametrize("options", OPTIONS[:2], ids=str)
def test_at_most_one_effective_entry_takes_no_step(rng, weighing, options):
    shape = (6, 3, 4) if "lengths" in weighing else (6, 3)
    x = rng.normal(size=shape)
    layer = fastbn.BatchNorm(3, dtype=np.float64, **options)
    layer._warned_single = True
    layer(x, **weighing)
    layer.update(layer.batch_moments)
    assert not layer.running_mean.any() and np.all(layer.running_var == 1) and layer.num_batches_tracked == 0


def test_what_is_masked_does_not_count_in_the_running_statistics(rng):
    x = rng.normal(size=(10, 3))
    mask = np.arange(10) < 6
    masked, few = (fastbn.BatchNorm(3, dtype=np.float64, momentum=None) for _ in range(2))
    x[6:] = np.nan
    for _ in range(2):
        masked(x, mask=mask)
        few(x[:6])
    np.testing.assert_allclose(masked.running_mean, few.running_mean, rtol=1e-13)
    np.testing.assert_allclose(masked.running_var, few.running_var, rtol=1e-13)
    assert masked.batch_moments.count == 6 and type(masked.batch_moments.count) is int


@pytest.mark.parametrize("options", OPTIONS[:4], ids=str)
def test_batch_moments_keep_a_weight_that_is_no_whole_number(rng, options):
    x, weights = rng.normal(size=(7, 3)), rng.random(7) + 0.3
    layer, twin = (fastbn.BatchNorm(3, dtype=np.float64, **options) for _ in range(2))
    layer(x, weights=weights)
    twin(x, weights=weights, update=False)
    assert isinstance(twin.batch_moments.count, float) and abs(twin.batch_moments.count - weights.sum()) < 1e-14
    np.testing.assert_allclose(twin.batch_moments.var(), fastbn.moments(x, weights=weights).var(), rtol=1e-12)
    twin.update(twin.batch_moments)
    np.testing.assert_array_equal(twin.running_var, layer.running_var)
    np.testing.assert_array_equal(twin.running_mean, layer.running_mean)
    layer(x)
    assert layer.batch_moments.count == 7 and type(layer.batch_moments.count) is int


def test_weighted_updates_apart_from_normalization(rng):
    """use_batch_stats=False with update_running_stats=True: the step is of the weighted batch."""
    case = Case(rng, activation="relu", residual=True, kind="weights")
    plain, frozen = layer_of(case), layer_of(case)
    frozen.use_batch_stats, frozen.update_running_stats = False, True
    plain(case.x, **case.weighing)
    y = frozen(case.x, residual=case.residual, **case.weighing)
    oracle = Layer(case.x, case.gamma, case.beta, activation="relu", residual=case.residual,
                   given=(case.running_mean, case.running_var))
    assert_near(y, oracle.forward().y, np.float64)
    np.testing.assert_allclose(frozen.running_var, plain.running_var, rtol=1e-13)
    assert frozen.batch_moments.count == plain.batch_moments.count


def test_calibrate_and_drift_by_masked_moments(rng):
    batches = [(rng.normal(size=(9, 3)), rng.random(9) < 0.6) for _ in range(3)]
    layer = fastbn.BatchNorm(3, dtype=np.float64, activation="relu")
    layer.calibrate(sum(fastbn.moments(x, mask=mask) for x, mask in batches))
    kept = np.concatenate([x[mask] for x, mask in batches])
    np.testing.assert_allclose(layer.running_mean, kept.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(layer.running_var, kept.var(axis=0, ddof=1), rtol=1e-12)
    np.testing.assert_allclose(layer.drift(kept).divergence, 0, atol=1e-20)
    mask = np.arange(len(kept)) < 5
    for got, want in zip(layer.drift(fastbn.moments(kept, mask=mask)), layer.drift(kept[:5])):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("activation, slope", [("relu", 0.0), (("leaky_relu", 0.2), 0.2)], ids=str)
def test_as_affine_has_no_activation(rng, activation, slope):
    case = Case(rng, activation=activation)
    layer = layer_of(case).eval()
    scale, shift = layer.as_affine()
    z = case.x * scale[:, None] + shift[:, None]
    np.testing.assert_allclose(layer(case.x), np.where(z > 0, z, slope * z), rtol=1e-12, atol=1e-13)
