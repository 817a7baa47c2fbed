"""The short way of a call, which takes plain arrays as they are, against the general way: equal bytes, equal errors,
and the same left behind.
"""
import copy
import inspect
import itertools
import pickle
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from oracle import read_only, unaligned

import fastbn
from fastbn import _core

FLOATS = (np.float32, np.float64)
SHORT = ("plain_inference", "plain_frozen", "plain_training", "plain_backward", "plain_moments")
SHAPES = [((1, 64), 1), ((64, 64), 1), ((65, 64), -1), ((5, 3), 1), ((7, 1), 1), ((3, 2), 0), ((2, 3, 4, 5), 1),
          ((2, 4, 5, 3), -1), ((2, 3, 70), -2), ((2, 3, 4), 0), ((1, 1, 1), 2), ((40, 33, 30), 1)]


def general_only(patch):
    for name in SHORT:
        patch.setattr(_core, name, lambda *args: None)


def in_general(call):
    with pytest.MonkeyPatch.context() as patch:
        general_only(patch)
        return call()


def in_short(call):
    """The result of a call, all of whose operations must have gone the short way."""
    answers = []

    def watched(short):
        def ask(*args):
            answers.append(short(*args))
            return answers[-1]
        return ask

    with pytest.MonkeyPatch.context() as patch:
        for name in SHORT:
            patch.setattr(_core, name, watched(getattr(_core, name)))
        result = call()
    assert answers and all(answer is not None for answer in answers)
    return result


def digest(result):
    """What two results must have in common: types, shapes, strides, bytes."""
    if isinstance(result, np.ndarray):
        return result.dtype, result.shape, result.strides, result.flags.writeable, result.tobytes()
    if isinstance(result, (tuple, list)):
        return [digest(one) for one in result]
    if isinstance(result, fastbn.Moments):
        return [type(result.count), result.count, digest(result.mean), digest(result.M2)]
    if isinstance(result, _core.Saved):
        names = ("mean", "var", "rstd", "gamma", "beta", "x", "axes", "frozen", "holds_y", "rounds_gradients")
        return [digest(getattr(result, name)) for name in names]
    return result


def batch(rng, shape, dtype=np.float32):
    return (3 * rng.standard_normal(shape) + 1).astype(dtype)


def vectors(rng, c, dtype=np.float32):
    """gamma, beta, mean, var"""
    return [a.astype(dtype) for a in (*rng.standard_normal((3, c)), rng.uniform(0.1, 3, c))]


# ---- results ----

@pytest.mark.parametrize("place", ["fresh", "out", "in place"])
@pytest.mark.parametrize("param_dtype", FLOATS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_functions_give_the_same_bytes(rng, shape, axis, dtype, param_dtype, place):
    gamma, beta, mean, var = vectors(rng, shape[axis], param_dtype)
    given, dy = batch(rng, shape, dtype), batch(rng, shape, dtype)

    def run(function, x, *args, **keywords):
        x = x.copy()
        out = {"fresh": None, "out": np.empty_like(x), "in place": x}[place]
        result = function(x, *args, out=out, **keywords)
        first = result[0] if isinstance(result, tuple) else result
        assert (first is out) == (out is not None)
        return digest(result)

    for g, b in itertools.product((gamma, None), (beta, None)):
        calls = [lambda: run(fastbn.batch_norm_inference, given, mean, var, g, b, axis=axis, eps=1e-3),
                 lambda: run(fastbn.batch_norm_inference, given, mean, var, g, b, axis=axis, eps=1e-3, return_saved=True),
                 lambda: run(fastbn.batch_norm_training, given, g, b, axis=axis, num_threads=1)]
        _, saved = in_general(lambda: fastbn.batch_norm_training(given, g, b, axis=axis))
        _, frozen = fastbn.batch_norm_inference(given, mean, var, g, b, axis=axis, return_saved=True)
        calls += [lambda: run(fastbn.batch_norm_backward, dy, saved),
                  lambda: run(fastbn.batch_norm_backward, dy, frozen)]
        for call in calls:
            assert in_short(call) == in_general(call)


@pytest.mark.parametrize("activation", [None, "relu", ("leaky_relu", -0.5), "gelu"], ids=str)
@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_residuals_give_the_same_bytes(rng, shape, axis, fresh, activation):
    x, residual, dy = batch(rng, shape), batch(rng, shape), batch(rng, shape)
    gamma, beta, mean, var = vectors(rng, shape[axis])
    bn = fastbn.BatchNorm(shape[axis], axis=axis, activation=activation).eval()

    def calls():
        more = {"axis": axis, "activation": activation, "residual": residual}
        out = {} if fresh else {"out": np.empty(shape, np.float32)}
        y, saved = fastbn.batch_norm_training(x, gamma, beta, **more, **out)
        inferred = fastbn.batch_norm_inference(x, mean, var, gamma, beta, **more)
        in_layer = bn(x, residual=residual)
        return y, saved, inferred, in_layer

    (y, saved, *short), (general_y, general_saved, *general) = in_short(calls), in_general(calls)
    assert digest((y, saved, *short)) == digest((general_y, general_saved, *general))
    with np.errstate(all="ignore"):
        assert digest(fastbn.batch_norm_backward(dy, saved)) == digest(fastbn.batch_norm_backward(dy, general_saved))


@pytest.mark.parametrize("wrong", [lambda x: x[:, :1], lambda x: x.astype(np.float64), lambda x: x.tolist(), np.asfortranarray,
                                   lambda x: x.astype(int)])
def test_other_residuals_go_the_general_way(rng, wrong):
    x = batch(rng, (6, 5))
    gamma, beta, mean, var = vectors(rng, 5)
    residual = wrong(batch(rng, (6, 5)))
    assert _core.plain_inference(x, mean, var, gamma, beta, 1e-5, 1, None, None, None, residual) is None
    assert _core.plain_training(x, gamma, beta, 1e-5, 1, None, None, None, residual) is None


def test_a_residual_that_overlaps_out_goes_the_general_way(rng):
    x, residual = batch(rng, (6, 5)), batch(rng, (6, 5))
    gamma, beta, mean, var = vectors(rng, 5)
    assert _core.plain_inference(x, mean, var, gamma, beta, 1e-5, 1, residual, None, None, residual) is None
    expected = fastbn.batch_norm_inference(x, mean, var, gamma, beta, residual=residual)
    assert fastbn.batch_norm_inference(x, mean, var, gamma, beta, residual=residual, out=residual) is residual
    np.testing.assert_array_equal(residual, expected)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_moments_are_the_same(rng, shape, axis, dtype):
    x = batch(rng, shape, dtype)
    call = lambda: digest(fastbn.moments(x, axis=axis))
    assert in_short(call) == in_general(call)
    found = fastbn.moments(x, axis=axis)
    assert found.mean.flags.owndata and found.M2.flags.owndata


def test_gamma_and_beta_may_differ_in_type(rng):
    x = batch(rng, (6, 5))
    gamma, beta, mean, var = vectors(rng, 5)
    wide = beta.astype(np.float64)
    call = lambda: digest(fastbn.batch_norm_training(x, gamma, wide))
    assert in_short(call) == in_general(call)
    assert _core.plain_inference(x, mean, var, gamma, wide, 1e-5, 1, None, None, None, None) is None
    call = lambda: digest(fastbn.batch_norm_inference(x, mean, var, gamma, wide))
    assert call() == in_general(call)


def test_forward_and_backward_mix_the_ways(rng):
    x, dy = batch(rng, (9, 4, 5)), batch(rng, (9, 4, 5))
    gamma, beta, _, _ = vectors(rng, 4)
    forward = lambda: fastbn.batch_norm_training(x, gamma, beta)[1]
    gradients = [digest(back(lambda: fastbn.batch_norm_backward(dy, saved)))
                 for saved in (in_short(forward), in_general(forward)) for back in (in_short, in_general)]
    assert gradients[1:] == gradients[:-1]


def test_values_that_are_not_finite(rng):
    x, dy = batch(rng, (40, 6)), batch(rng, (40, 6))
    x[3, 1], x[5, 2], dy[7, 3], x[:, 4] = np.nan, np.inf, -np.inf, 1e30
    gamma, beta, mean, var = vectors(rng, 6)
    var[5] = np.nan

    def places(way):
        y, saved = way(lambda: fastbn.batch_norm_training(x, gamma, beta))
        arrays = [y, saved.mean, saved.var, saved.rstd, *way(lambda: fastbn.batch_norm_backward(dy, saved)),
                  way(lambda: fastbn.batch_norm_inference(x, mean, var, gamma, beta))]
        return [np.where(np.isnan(a), 0, a).tobytes() + np.isnan(a).tobytes() for a in arrays]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert places(in_short) == places(in_general)


# ---- what the short way leaves alone ----

class Child(np.ndarray):
    pass


# Types of data and of parameters: none of them can be used as it is.
KINDS = {
    "list": lambda x: x.tolist(), "integers": lambda x: x.astype(np.int32), "half": lambda x: x.astype(np.float16),
    "long double": lambda x: x.astype(np.longdouble), "big-endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "unaligned": unaligned, "strided": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "backwards": lambda x: x[..., ::-1], "subclass": lambda x: x.view(Child), "masked": np.ma.array,
    "another shape": lambda x: x.ravel()[:-1], "scalar": lambda x: 1.0,
    "object": lambda x: object(),
}
# Half types are for data, and go the short way.
DATA = {**{name: make for name, make in KINDS.items() if name != "half"}, "Fortran order": np.asfortranarray,
        "empty": lambda x: x[:0], "matrix": np.matrix, "swapped half": lambda x: x.astype(">f2")}


def outcome(call):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return "result", digest(call())
    except Exception as error:
        return type(error), str(error).split(" object at ")[0]


@pytest.mark.parametrize("kind", DATA)
def test_other_data_goes_the_general_way(rng, kind):
    plain = batch(rng, (6, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)  # NumPy's, of its own matrix
        other = DATA[kind](plain)
    gamma, beta, mean, var = vectors(rng, 5)
    _, saved = fastbn.batch_norm_training(plain, gamma, beta)
    assert _core.plain_inference(other, mean, var, gamma, beta, 1e-5, 1, None, None, None, None) is None
    assert _core.plain_training(other, gamma, beta, 1e-5, 1, None, None, None, None) is None
    assert _core.plain_moments(other, 1, None) is None
    assert _core.plain_backward(other, saved, None, None) is None
    for call in (lambda: fastbn.batch_norm_inference(other, mean, var, gamma, beta),
                 lambda: fastbn.batch_norm_training(other, gamma, beta), lambda: fastbn.moments(other),
                 lambda: fastbn.batch_norm_backward(other, saved)):
        assert outcome(call) == outcome(lambda: in_general(call))


@pytest.mark.parametrize("kind", KINDS)
def test_other_parameters_go_the_general_way(rng, kind):
    x, plain = batch(rng, (6, 5)), vectors(rng, 5)
    for i in range(4):
        gamma, beta, mean, var = [KINDS[kind](a) if i == j else a for j, a in enumerate(plain)]
        inference = lambda: fastbn.batch_norm_inference(x, mean, var, gamma, beta)
        training = lambda: fastbn.batch_norm_training(x, gamma, beta)
        assert _core.plain_inference(x, mean, var, gamma, beta, 1e-5, 1, None, None, None, None) is None
        assert _core.plain_frozen(x, mean, var, gamma, beta, 1e-5, 1, None, None, None) is None
        assert outcome(inference) == outcome(lambda: in_general(inference))
        if i < 2:
            assert _core.plain_training(x, gamma, beta, 1e-5, 1, None, None, None, None) is None
            assert outcome(training) == outcome(lambda: in_general(training))


@pytest.mark.parametrize("missing", [0, 1])
def test_statistics_are_required(rng, missing):
    x, statistics = batch(rng, (6, 5)), vectors(rng, 5)[2:]
    statistics[missing] = None
    call = lambda: fastbn.batch_norm_inference(x, *statistics)
    assert outcome(call)[0] is ValueError
    assert outcome(call) == outcome(lambda: in_general(call))


SETTINGS = [*({"axis": axis} for axis in (2, -3, 2**40, -2**70, True, 1.0, None, (1,), (0, 1), np.int64(1))),
            *({"eps": eps} for eps in (0.0, -1.0, np.nan, np.inf, True, 1, np.float32(1e-3), np.float64(1e-3), None,
                                       "1e-5")),
            *({"num_threads": k} for k in (0, -1, 2**31, 2**80, True, 1.0, np.int64(1), "2"))]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_other_settings_go_the_general_way(rng, setting):
    x, (gamma, beta, mean, var) = batch(rng, (6, 5)), vectors(rng, 5)
    all_settings = {"eps": 1e-5, "axis": 1, "num_threads": None, **setting}
    eps, axis, threads = all_settings.values()
    assert _core.plain_inference(x, mean, var, gamma, beta, eps, axis, None, threads, None, None) is None
    assert _core.plain_training(x, gamma, beta, eps, axis, None, threads, None, None) is None
    calls = [lambda: fastbn.batch_norm_inference(x, mean, var, gamma, beta, **setting),
             lambda: fastbn.batch_norm_training(x, gamma, beta, **setting)]
    if "eps" not in setting:
        assert _core.plain_moments(x, axis, threads) is None
        calls.append(lambda: fastbn.moments(x, **setting))
    if "num_threads" in setting:
        _, saved = fastbn.batch_norm_training(x, gamma, beta)
        assert _core.plain_backward(x, saved, None, threads) is None
        calls.append(lambda: fastbn.batch_norm_backward(x, saved, **setting))
    for call in calls:
        assert outcome(call) == outcome(lambda: in_general(call))


def test_largest_number_of_threads(rng):
    x = batch(rng, (6, 5))
    for threads in (1, 2**31 - 1):
        assert _core.plain_moments(x, 1, threads) is not None


def test_saved_of_another_kind(rng):
    x = batch(rng, (6, 5))
    for saved in (None, (x,), x, _core.Saved):
        call = lambda: fastbn.batch_norm_backward(x, saved)
        assert _core.plain_backward(x, saved, None, None) is None
        assert outcome(call)[0] is TypeError


# ---- out ----

def memory_for(shape, overlap, dtype=np.float32):
    """Two arrays of that shape; the second starts `overlap` elements before the end of the first."""
    size = int(np.prod(shape))
    raw = np.zeros(2 * size - overlap, dtype)
    return raw[:size].reshape(shape), raw[size - overlap:].reshape(shape)


OUTS = {
    "another shape": lambda x: np.empty((*x.shape, 1), x.dtype), "one row less": lambda x: np.empty_like(x[1:]),
    "another type": lambda x: np.empty(x.shape, np.float64), "read-only": read_only,
    "strided": lambda x: np.empty((6, 10), x.dtype)[:, ::2],
    "Fortran order": np.asfortranarray, "subclass": lambda x: x.copy().view(Child), "list": lambda x: x.tolist(),
    "big-endian": lambda x: x.astype(">f4"), "unaligned": unaligned,
}


@pytest.mark.parametrize("kind", OUTS)
def test_other_outs_go_the_general_way(rng, kind):
    x, (gamma, beta, mean, var) = batch(rng, (6, 5)), vectors(rng, 5)
    _, saved = fastbn.batch_norm_training(x, gamma, beta)

    def run(function, *args):
        out = OUTS[kind](x)
        return outcome(lambda: function(*args, out=out)), np.asarray(out).tobytes() if out is not x else b""

    assert _core.plain_inference(x, mean, var, gamma, beta, 1e-5, 1, OUTS[kind](x), None, None, None) is None
    assert _core.plain_training(x, gamma, beta, 1e-5, 1, OUTS[kind](x), None, None, None) is None
    assert _core.plain_backward(x, saved, OUTS[kind](x), None) is None
    for args in ((fastbn.batch_norm_inference, x, mean, var, gamma, beta), (fastbn.batch_norm_training, x, gamma, beta),
                 (fastbn.batch_norm_backward, x, saved)):
        short, general = run(*args), in_general(lambda: run(*args))
        assert short[0] == general[0]
        if short[0][0] != "result":
            assert short[1] == general[1]


@pytest.mark.parametrize("overlap", [1, 7, 29])
def test_partial_overlap_is_refused_and_nothing_is_written(rng, overlap):
    (gamma, beta, mean, var), dy = vectors(rng, 5), batch(rng, (6, 5))
    for first in (0, 1):
        pair = memory_for((6, 5), overlap)
        x, out = pair[first], pair[1 - first]
        x[...] = batch(rng, (6, 5))
        before = x.copy(), out.copy()
        _, saved = fastbn.batch_norm_training(x, gamma, beta)
        _, other = fastbn.batch_norm_training(dy, gamma, beta)
        for call in (lambda: fastbn.batch_norm_inference(x, mean, var, gamma, beta, out=out),
                     lambda: fastbn.batch_norm_training(x, gamma, beta, out=out),
                     lambda: fastbn.batch_norm_backward(dy, saved, out=out),
                     lambda: fastbn.batch_norm_backward(x, other, out=out)):
            with pytest.raises(ValueError, match="overlap"):
                call()
            assert np.array_equal(x, before[0]) and np.array_equal(out, before[1])


def test_neighbours_do_not_overlap(rng):
    x, out = memory_for((6, 5), 0)
    x[...] = batch(rng, (6, 5))
    expected = fastbn.batch_norm_training(x)[0]
    assert in_short(lambda: fastbn.batch_norm_training(x, out=out))[0] is out
    assert np.array_equal(out, expected)


@pytest.mark.parametrize("which", range(4))
def test_out_over_a_parameter_is_refused(rng, which):
    x, plain = batch(rng, (6, 5)), vectors(rng, 5)
    raw = np.ones(40, np.float32)
    out = raw[:30].reshape(6, 5)
    plain[which] = raw[28:33]
    gamma, beta, mean, var = plain
    calls = [lambda: fastbn.batch_norm_inference(x, mean, var, gamma, beta, out=out),
             lambda: fastbn.batch_norm_training(x, gamma, beta, out=out)]
    for call in calls[:2 if which < 2 else 1]:
        with pytest.raises(ValueError, match="overlap"):
            call()
        assert (raw == 1).all()


def test_equal_memory_is_in_place(rng):
    """Another view of x counts as x."""
    x = batch(rng, (6, 5))
    expected = digest(fastbn.batch_norm_training(x.copy(), out=None)[0])
    y, saved = in_short(lambda: fastbn.batch_norm_training(x, out=x[:]))
    assert digest(y) == expected and saved.holds_y


def test_backward_in_place_of_either(rng):
    x, dy = batch(rng, (6, 5)), batch(rng, (6, 5))
    gamma, beta, _, _ = vectors(rng, 5)
    expected = digest(fastbn.batch_norm_backward(dy, fastbn.batch_norm_training(x, gamma, beta)[1]))
    for take_x in (True, False):
        own, own_dy = x.copy(), dy.copy()
        _, saved = fastbn.batch_norm_training(own, gamma, beta)
        out = own if take_x else own_dy
        assert digest(in_short(lambda: fastbn.batch_norm_backward(own_dy, saved, out=out))) == expected


# ---- saved ----

def test_saved_arrays_are_its_own(rng):
    """What is written to saved.rstd is what backward takes, as it always was."""
    x, dy = batch(rng, (6, 5)), batch(rng, (6, 5))
    gamma, _, _, _ = vectors(rng, 5)

    def gradient(way):
        _, saved = way(lambda: fastbn.batch_norm_training(x, gamma))
        saved.rstd[2] = 0
        return way(lambda: fastbn.batch_norm_backward(dy, saved))[0]

    assert (gradient(in_short)[:, 2] == 0).all()
    assert digest(gradient(in_short)) == digest(gradient(in_general))


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda saved: pickle.loads(pickle.dumps(saved))],
                         ids=["copy", "deepcopy", "pickle"])
def test_saved_can_be_copied(rng, duplicate):
    x, dy = batch(rng, (6, 5)), batch(rng, (6, 5))
    gamma, beta, _, _ = vectors(rng, 5)
    for axis in (1, (0, 1)):
        _, saved = fastbn.batch_norm_training(x) if axis != 1 else fastbn.batch_norm_training(x, gamma, beta)
        expected = digest(fastbn.batch_norm_backward(dy, saved))
        twin = duplicate(saved)
        assert digest(twin) == digest(saved)
        assert digest(fastbn.batch_norm_backward(dy, twin)) == expected


def test_nothing_is_kept_alive(rng):
    x, dy, out = batch(rng, (6, 5)), batch(rng, (6, 5)), batch(rng, (6, 5))
    gamma, beta, mean, var = vectors(rng, 5)
    layer = fastbn.BatchNorm(5)
    arrays = [x, dy, out, gamma, beta, mean, var, layer.gamma, layer.beta, layer.running_mean, layer.running_var]
    before = [sys.getrefcount(a) for a in arrays]
    for target in (None, out):
        fastbn.batch_norm_inference(x, mean, var, gamma, beta, out=target)
        saved = fastbn.batch_norm_training(x, gamma, beta, out=target)[1]
        assert saved.mean is not None and saved.gamma is not None
        fastbn.batch_norm_backward(dy, saved, out=target)
        del saved
        fastbn.moments(x)
        layer(x, out=target)
        layer.backward(dy, out=target)
    del target
    assert [sys.getrefcount(a) for a in arrays] == before


def test_one_saved_serves_many_threads(rng):
    x = batch(rng, (64, 64))
    batches = [batch(rng, (64, 64)) for _ in range(16)]
    _, saved = fastbn.batch_norm_training(x, *vectors(rng, 64)[:2])
    expected = [digest(fastbn.batch_norm_backward(dy, saved)) for dy in batches]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            assert list(pool.map(lambda dy: digest(fastbn.batch_norm_backward(dy, saved)), batches)) == expected


def test_input_reshaped_after_the_forward_call(rng):
    x, dy = batch(rng, (6, 5)), batch(rng, (6, 5))
    _, saved = fastbn.batch_norm_training(x)
    x.resize((5, 6), refcheck=False)
    assert _core.plain_backward(dy, saved, None, None) is None
    assert _core.plain_backward(dy.reshape(5, 6), saved, None, None) is None


# ---- the layer ----

def layers(rng, **switches):
    """Two equal layers: one takes the short way, the other never does."""
    short = fastbn.BatchNorm(4, **switches)
    for name, value in zip(("gamma", "beta", "running_mean", "running_var"), vectors(rng, 4)):
        if getattr(short, name) is not None:
            setattr(short, name, value)
    general = copy.deepcopy(short)
    general._enable_fast_path(False)
    return short, general


def state_of(layer):
    return [digest(value) if isinstance(value, np.ndarray) else value for value in
            (*layer.state_dict().values(), layer.dgamma, layer.dbeta, layer.num_batches_tracked, layer.training)]


SWITCHES = [{}, {"momentum": None}, {"ddof": 0}, {"center": False}, {"scale": False}, {"scale": False, "center": False},
            {"track_running_stats": False}, {"eps": 0.5}, {"axis": -1}, {"dtype": np.float64},
            {"dtype": np.float64, "scale": False}]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_layers_do_the_same(rng, switches, dtype):
    short, general = layers(rng, **switches)
    shape = (6, 3, 5, 4) if switches.get("axis") == -1 else (6, 4, 3, 5)
    for step, place in enumerate(["fresh", "out", "in place"] * 3):
        x, dy, found = batch(rng, shape, dtype), batch(rng, shape, dtype), []
        training = step < 6
        for layer in (short, general):
            layer.train() if training else layer.eval(backward=step == 8)
            own, own_dy = x.copy(), dy.copy()
            out = {"fresh": None, "out": np.empty_like(x), "in place": own}[place]
            y = layer(own, out=out)
            assert out is None or y is out
            found.append([digest(y), state_of(layer)])
            if training or step == 8:
                dx = layer.backward(own_dy, out=own_dy if place == "in place" else None)
                found[-1] += [digest(dx), state_of(layer)]
        assert found[0] == found[1]


def test_layers_go_the_short_way(rng, monkeypatch):
    """So that the tests of equality compare two things. What the general way starts from is taken away."""
    layer, _ = layers(rng)
    x = batch(rng, (6, 4))
    monkeypatch.setattr(fastbn.BatchNorm, "_normalize_by_batch", None)
    monkeypatch.setattr("fastbn._layer.layer.backward_of", None)
    for out in (None, x.copy()):
        layer(x, out=out)
        layer.forward(x, out=out)
        layer.backward(x, out=out)
    assert layer.num_batches_tracked == 4
    with pytest.raises(TypeError):
        layer(x.tolist())


def test_counter_goes_on_from_what_it_was_set_to(rng):
    short, general = layers(rng, momentum=None)
    x = batch(rng, (6, 4))
    for counter in (7, 2**40, np.int64(3)):
        for layer in (short, general):
            layer.num_batches_tracked = counter
            layer(x)
        assert type(short.num_batches_tracked) is type(general.num_batches_tracked)
        assert state_of(short) == state_of(general)
    for layer in (short, general):
        layer.num_batches_tracked = 2.5
        with pytest.raises(ValueError, match="num_batches_tracked is 2.5, expected a whole number"):
            layer(x)


def test_one_value_per_feature_warns_once_and_keeps_the_averages(rng):
    x = batch(rng, (1, 4))
    for layer in layers(rng):
        before = state_of(layer)
        with pytest.warns(UserWarning, match="one value per feature") as caught:
            layer(x)
            layer(x)
        assert len(caught) == 1 and caught[0].filename == __file__
        assert state_of(layer) == before


@pytest.mark.parametrize("name", ["running_mean", "running_var"])
def test_read_only_averages(rng, name):
    x = batch(rng, (6, 4))
    outcomes = []
    for layer in layers(rng):
        getattr(layer, name).flags.writeable = False
        before = state_of(layer)
        outcomes.append(outcome(lambda: layer(x)))
        assert state_of(layer) == before
    assert outcomes[0] == outcomes[1] and outcomes[0][0] is ValueError


@pytest.mark.parametrize("name", ["gamma", "beta", "running_mean", "running_var"])
@pytest.mark.parametrize("training", [True, False])
def test_out_over_the_layer_is_refused(rng, name, training):
    x = batch(rng, (6, 4))
    for layer in layers(rng):
        layer.train(training)
        raw = np.ones(40, np.float32)
        setattr(layer, name, raw[22:26])
        assert np.shares_memory(getattr(layer, name), raw)
        with pytest.raises(ValueError, match="overlap"):
            layer(x, out=raw[:24].reshape(6, 4))
        assert (raw == 1).all() and layer.num_batches_tracked == 0


@pytest.mark.parametrize("bad", [lambda x: x[:, :3], lambda x: x.astype(int), lambda x: x[0],
                                 lambda x: x.astype(complex), lambda x: np.ma.array(x)],
                         ids=["features", "integers", "one sample", "complex", "masked"])
def test_a_rejected_call_keeps_the_layer_as_it_was(rng, bad):
    x, dy, outcomes = batch(rng, (6, 4)), batch(rng, (6, 4)), []
    for layer in layers(rng):
        layer(x)
        before = state_of(layer)
        outcomes.append([outcome(lambda: layer(bad(x))), outcome(lambda: layer.backward(bad(dy)))])
        assert state_of(layer) == before
        outcomes[-1] += [digest(layer.backward(dy)), outcome(lambda: layer.backward(dy))]
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][0][0] in (TypeError, ValueError) and outcomes[0][3][0] is RuntimeError


def test_empty_batch_changes_nothing(rng):
    outcomes = []
    for layer in layers(rng):
        before = state_of(layer)
        y = layer(np.empty((0, 4), np.float32))
        outcomes.append([digest(y), digest(layer.backward(y)), digest(layer.dgamma)])
        assert state_of(layer)[:4] == before[:4]
    assert outcomes[0] == outcomes[1]


def test_a_subclass_with_its_own_forward_is_called(rng):
    class Doubled(fastbn.BatchNorm):
        def forward(self, x, *, out=None):
            return 2 * super().forward(x, out=out)

    x = batch(rng, (6, 4))
    assert np.array_equal(Doubled(4)(x), 2 * fastbn.BatchNorm(4)(x))


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))],
                         ids=["copy", "deepcopy", "pickle"])
def test_a_copy_of_a_layer_has_all_of_it(rng, duplicate):
    layer, _ = layers(rng, momentum=None, ddof=0)
    layer.note = "mine"
    x = batch(rng, (6, 4))
    layer(x)
    layer.backward(x)
    twin = duplicate(layer.eval())
    assert state_of(twin) == state_of(layer) and (twin.note, twin.momentum, twin.ddof) == ("mine", None, 0)
    with pytest.raises(RuntimeError):
        twin.backward(x)
    layer.train()(x)
    assert twin.num_batches_tracked == 1 and twin.training is False


# ---- the face ----

@pytest.mark.parametrize("function", [fastbn.batch_norm_inference, fastbn.batch_norm_training,
                                      fastbn.batch_norm_backward, fastbn.moments, fastbn.BatchNorm.forward,
                                      fastbn.BatchNorm.backward],
                         ids=lambda function: function.__name__)
def test_functions_show_their_signature_and_their_text(function):
    keywords = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert keywords and len(function.__doc__) > 100
    assert function.__module__.startswith("fastbn.") and inspect.getsource(function)
