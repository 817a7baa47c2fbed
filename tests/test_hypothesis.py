"""Random shapes, axes, strides, types and switches, against the reference.

Sizes are drawn where algorithms break: nothing, one, around 16 (a vector's lanes), primes; features 1 to 40; any axis;
axes laid out in any order in memory, each stepped, reversed or broadcast.
"""
import math

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import fastbn
from oracle import (FLOATS, check_every_operation, check_forward, check_gradients, check_statistics, moving_average,
                    native_copy, parameters, sample, statistics, strided, unbiased)

MAX_ELEMENTS = 40_000
SIZES = (0, 1, 2, 3, 5, 7, 13, 15, 16, 17, 31, 33, 64, 97)

dtypes = st.sampled_from(FLOATS)
ratios = st.sampled_from([0.0, 1.0, 1e2, 1e4])
epsilons = st.sampled_from([1e-5, 1e-3, 1e-12, 1.0])
generators = st.integers(0, 2**32 - 1).map(np.random.default_rng)


@st.composite
def shapes(draw, sizes=SIZES):
    """A shape with its feature axis, the axis counted from either end."""
    others = draw(st.lists(st.sampled_from(sizes), min_size=1, max_size=4))
    features = draw(st.integers(1, 40))
    assume(math.prod(others) * features <= MAX_ELEMENTS)
    axis = draw(st.integers(0, len(others)))
    shape = (*others[:axis], features, *others[axis:])
    return shape, draw(st.sampled_from([axis, axis - len(shape)]))


@st.composite
def placements(draw, ndim):
    """A function that puts an array's values elsewhere in memory; step 0 repeats the first entry of an axis."""
    order = draw(st.permutations(range(ndim)))
    steps = draw(st.tuples(*[st.sampled_from([1, 1, 1, 2, -1, -3, 0])] * ndim))

    def place(values):
        first = tuple(slice(None, 1) if step == 0 else slice(None) for step in steps)
        view = strided(values[first], order, [step or 1 for step in steps])
        return np.broadcast_to(view, values.shape) if values.size else view
    return place


@settings(max_examples=250)
@given(st.data(), shapes(), dtypes, dtypes, ratios, epsilons, generators)
def test_every_operation_in_every_layout(data, case, dtype, param_dtype, ratio, eps, rng):
    shape, axis = case
    x = data.draw(placements(len(shape)))(sample(rng, shape, axis=axis, dtype=dtype, ratio=ratio))
    dy = data.draw(placements(len(shape)))(sample(rng, shape, axis=axis, dtype=dtype))
    assume(x.shape == shape and dy.shape == shape)
    check_every_operation(x, dy, rng, axis=axis, eps=eps, param_dtype=param_dtype)


switches = st.fixed_dictionaries({
    "center": st.booleans(), "scale": st.booleans(), "track_running_stats": st.booleans(),
    "momentum": st.sampled_from([0.5, 0.9, 1.0, None]), "ddof": st.sampled_from([0, 1]), "eps": epsilons,
    "dtype": dtypes,
})


def check_running(layer, mean, var, dtype):
    """float32 wherever it took part."""
    tolerance = 3e-6 if np.float32 in (dtype, layer.dtype) else 1e-11
    size = np.abs(mean).astype(float) + np.sqrt(var.astype(float))
    assert (np.abs(layer.running_mean - mean) <= tolerance * size).all()
    np.testing.assert_allclose(layer.running_var, var.astype(float), rtol=tolerance)


@settings(max_examples=150)
@given(st.data(), shapes(sizes=[s for s in SIZES if s > 1]), switches, dtypes, generators)
def test_a_layer_over_several_batches(data, case, switches, dtype, rng):
    shape, axis = case
    features, keywords = shape[axis], {"eps": switches["eps"], "axis": axis}
    layer = fastbn.BatchNorm(features, axis=axis, **switches)
    gamma, beta = parameters(rng, features, layer.dtype)
    if layer.gamma is not None:
        layer.gamma = gamma
    if layer.beta is not None:
        layer.beta = beta
    mean, var = np.zeros(features), np.ones(features)
    place = data.draw(placements(len(shape)))
    for k in range(2):
        x, dy = (place(sample(rng, shape, axis=axis, dtype=dtype, ratio=k)) for _ in range(2))
        plain, plain_dy = native_copy(x), native_copy(dy)
        batch = statistics(plain, axis)
        check_forward(layer(x), plain, batch.mean, batch.var, layer.gamma, layer.beta, **keywords)
        gradients = layer.backward(dy), layer.dgamma if switches["scale"] else None, None
        check_gradients(gradients, plain, plain_dy, batch.mean, batch.var, layer.gamma, **keywords)
        mean = moving_average(mean, batch.mean, switches["momentum"], k)
        var = moving_average(var, unbiased(batch, switches["ddof"]), switches["momentum"], k)
    layer.eval()
    if switches["track_running_stats"]:
        check_running(layer, mean, var, dtype)
        check_forward(layer(x), plain, layer.running_mean, layer.running_var, layer.gamma, layer.beta, **keywords)
    else:
        check_forward(layer(x), plain, batch.mean, batch.var, layer.gamma, layer.beta, **keywords)


@settings(max_examples=100)
@given(shapes(), dtypes, ratios, st.lists(st.integers(0, 100), max_size=6), generators)
def test_moments_of_parts_merge_into_those_of_the_whole(case, dtype, ratio, cuts, rng):
    shape, axis = case
    axis %= len(shape)
    along = 0 if axis else 1
    x = sample(rng, shape, axis=axis, dtype=dtype, ratio=ratio)
    total = fastbn.moments(np.take(x, [], along), axis=axis)
    for part in np.split(x, sorted(min(c, shape[along]) for c in cuts), along):
        total = total + fastbn.moments(part, axis=axis)
    assert total.count == x.size // shape[axis]
    if total.count:
        check_statistics(total.mean, total.var(), x, axis)


@settings(max_examples=100)
@given(st.data(), shapes(), dtypes, generators)
def test_out_and_in_place_hold_what_a_fresh_result_holds(data, case, dtype, rng):
    shape, axis = case
    x = sample(rng, shape, axis=axis, dtype=dtype)
    gamma, beta = parameters(rng, shape[axis], dtype)
    y, _ = fastbn.batch_norm_training(x, gamma, beta, axis=axis)
    inferred = fastbn.batch_norm_inference(x, beta, gamma**2, gamma, beta, axis=axis)
    placed = data.draw(placements(len(shape)))(x)
    assume(np.array_equal(placed, x))
    for source, out in ((placed, np.empty(shape, dtype)), (x.copy(), None)):
        out = source if out is None else out
        again = source.copy()
        assert fastbn.batch_norm_training(source, gamma, beta, axis=axis, out=out)[0] is out
        np.testing.assert_allclose(out, y, rtol=1e-5, atol=1e-5)
        assert fastbn.batch_norm_inference(again, beta, gamma**2, gamma, beta, axis=axis, out=again) is again
        np.testing.assert_allclose(again, inferred, rtol=1e-5, atol=1e-5)


@settings(max_examples=100)
@given(shapes(sizes=[s for s in SIZES if s > 1]), dtypes, ratios, generators)
def test_the_gradient_of_x_has_no_part_along_a_shift_or_a_scaling(case, dtype, ratio, rng):
    """A shift leaves y alone, a scaling too but for eps: sum(dx) = 0, sum(dx * x) = dgamma * eps / (var + eps)."""
    shape, axis = case
    x = sample(rng, shape, axis=axis, dtype=dtype, ratio=ratio)
    dy = sample(rng, shape, axis=axis, dtype=dtype)
    eps = 1e-3
    _, saved = fastbn.batch_norm_training(x, axis=axis, eps=eps)
    dx, dgamma, _ = fastbn.batch_norm_backward(dy, saved)
    others = tuple(i for i in range(len(shape)) if i != axis % len(shape))
    size = np.abs(dy.astype(np.float64)).sum(axis=others)
    centred = x - x.mean(axis=others, dtype=np.float64, keepdims=True)
    tolerance = 1e-5 if dtype == np.float32 else 1e-9
    assert (np.abs(dx.sum(axis=others, dtype=np.float64)) <= tolerance * size * saved.rstd).all()
    along_x = (dx * centred).sum(axis=others) - dgamma * eps * saved.rstd**2
    assert (np.abs(along_x) <= tolerance * size * math.sqrt(x.size // shape[axis])).all()


@settings(max_examples=100)
@given(shapes(), dtypes, st.sampled_from([14.62, 1e7, 3.3e10, -1e-3]), generators)
def test_a_constant_feature_gives_exactly_beta(case, dtype, value, rng):
    shape, axis = case
    gamma, beta = parameters(rng, shape[axis], dtype)
    y, _ = fastbn.batch_norm_training(np.full(shape, value, dtype), 1000 * gamma, beta, axis=axis)
    np.testing.assert_array_equal(np.moveaxis(y, axis, -1), np.broadcast_to(beta, np.moveaxis(y, axis, -1).shape))
