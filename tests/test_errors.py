"""Bad input: each mistake has its error, the message names what is wrong, and nothing has changed afterwards."""
import contextlib
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import fastbn
from oracle import parameters, sample

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")]

SHAPE = (4, 3, 5, 6)


class Refused:
    """A mistake: how to make it, the error, and the patterns its message must contain."""

    def __init__(self, make, error, *patterns):
        self.make, self.error, self.patterns = make, error, patterns

    @contextlib.contextmanager
    def expected(self):
        with pytest.raises(self.error) as caught:
            yield
        for pattern in self.patterns:
            assert caught.match(f"(?is){pattern}")


def cases(table):
    return pytest.mark.parametrize("case", table.values(), ids=table)


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


# Arrays that are no activations, whatever the function; the first argument of each.
BAD_TYPES = {
    "int64": Refused(lambda: ones(*SHAPE, dtype=np.int64), TypeError, "int64", "float|astype"),
    "uint8": Refused(lambda: ones(*SHAPE, dtype=np.uint8), TypeError, "uint8", "float|astype"),
    "nested list of int": Refused(lambda: ones(*SHAPE, dtype=int).tolist(), TypeError, "int", "float|astype"),
    "bool": Refused(lambda: ones(*SHAPE, dtype=bool), TypeError, "bool"),
    "complex": Refused(lambda: ones(*SHAPE, dtype=complex), TypeError, "complex"),
    "object": Refused(lambda: ones(*SHAPE, dtype=object), TypeError, "object"),
    "text": Refused(lambda: "activations", TypeError),
    "None": Refused(lambda: None, TypeError),
    "masked array": Refused(lambda: np.ma.masked_less(ones(*SHAPE), 0), TypeError, "mask"),
    "matrix": Refused(lambda: np.matrix(np.ones((4, 3), np.float32)), TypeError, "matrix"),
    "ragged list": Refused(lambda: [[1.0, 2.0], [3.0]], (TypeError, ValueError)),
}
BAD_SHAPES = {
    "no axes": Refused(lambda: np.float32(1), ValueError, "axis", r"\(\)|0-d|0 dim|0 axes"),
    "one axis": Refused(lambda: ones(3), ValueError, "axis", r"\(3,\)"),
}
# For a layer of 3 features, axis=1.
BAD_FEATURES = {
    "channels last": Refused(lambda: ones(4, 5, 6, 3), ValueError, "axis 1", "5", r"\b3\b", r"\(4, 5, 6, 3\)",
                             "channels-last", "axis=-1"),
    "wrong count": Refused(lambda: ones(4, 7, 5, 6), ValueError, "axis 1", "7", r"\b3\b", r"\(4, 7, 5, 6\)"),
    "table": Refused(lambda: ones(8, 4), ValueError, "axis 1", "4", r"\b3\b", r"\(8, 4\)"),
    "empty, wrong count": Refused(lambda: ones(0, 4), ValueError, "axis 1", "4", r"\b3\b"),
}


# --- The layer ------------------------------------------------------------------------------------------------------


class AtWork:
    """A layer in the middle of its work: some steps done, one forward call waiting for its backward."""

    def __init__(self, rng):
        self.layer = fastbn.BatchNorm(3)
        self.layer.gamma, self.layer.beta = parameters(rng, 3)
        self.x, self.dy = sample(rng, SHAPE), sample(rng, SHAPE)
        for _ in range(2):
            self.layer(self.x)
            self.layer.backward(self.x)
        self.layer(self.x)
        _, saved = fastbn.batch_norm_training(self.x, self.layer.gamma, self.layer.beta)
        self.expected_gradients = fastbn.batch_norm_backward(self.dy, saved)

    def snapshot(self):
        state = {name: np.copy(value) for name, value in self.layer.state_dict().items()}
        for name in ("training", "axis", "eps", "momentum", "ddof", "dtype"):
            state[name] = getattr(self.layer, name)
        return {**state, "dgamma": np.copy(self.layer.dgamma), "dbeta": np.copy(self.layer.dbeta)}

    @contextlib.contextmanager
    def unchanged(self):
        """Neither state nor settings change, and the waiting backward still gives the right gradients."""
        before = self.snapshot()
        yield
        for name, value in self.snapshot().items():
            np.testing.assert_array_equal(value, before[name], err_msg=name)
        dx = self.layer.backward(self.dy)
        for actual, expected in zip((dx, self.layer.dgamma, self.layer.dbeta), self.expected_gradients, strict=True):
            np.testing.assert_array_equal(actual, expected)


@pytest.fixture
def at_work(rng):
    return AtWork(rng)


@pytest.mark.parametrize("training", [True, False])
@cases({**BAD_TYPES, **BAD_SHAPES, **BAD_FEATURES})
def test_layer_input(at_work, case, training):
    at_work.layer.train(training)
    with at_work.unchanged(), case.expected():
        at_work.layer(case.make())


@cases(BAD_FEATURES)
@pytest.mark.parametrize("training", [True, False])
def test_a_rejected_input_leaves_out_alone(at_work, case, training):
    at_work.layer.train(training)
    x = case.make()
    out = np.full(x.shape, 7, np.float32)
    with at_work.unchanged(), case.expected():
        at_work.layer(x, out=out)
    assert (out == 7).all()


def test_channels_last_is_not_suggested_where_it_would_not_help():
    with pytest.raises(ValueError) as caught:
        fastbn.BatchNorm(3)(ones(4, 7, 5, 6))
    assert "axis=-1" not in str(caught.value)


def test_a_channels_last_layer_names_its_own_axis():
    with pytest.raises(ValueError, match=r"(?s)axis.*\b6\b.*\b3\b"):
        fastbn.BatchNorm(3, axis=-1)(ones(*SHAPE))


BAD_GRADIENTS = {
    **BAD_TYPES,
    "other batch": Refused(lambda: ones(5, 3, 5, 6), ValueError, "dy", r"\(5, 3, 5, 6\)", r"\(4, 3, 5, 6\)"),
    "other rank": Refused(lambda: ones(4, 3), ValueError, "dy", r"\(4, 3\)", r"\(4, 3, 5, 6\)"),
    "channels last": Refused(lambda: ones(4, 5, 6, 3), ValueError, "dy", r"\(4, 5, 6, 3\)", r"\(4, 3, 5, 6\)"),
    "would broadcast": Refused(lambda: ones(1, 3, 1, 1), ValueError, "dy", r"\(1, 3, 1, 1\)"),
    "scalar": Refused(lambda: 1.0, ValueError, "dy"),
}


@cases(BAD_GRADIENTS)
def test_layer_gradient(at_work, case):
    with at_work.unchanged(), case.expected():
        at_work.layer.backward(case.make())


@pytest.mark.parametrize("training", [True, False])
def test_backward_before_forward(training):
    layer = fastbn.BatchNorm(3).train(training)
    with pytest.raises(RuntimeError, match="forward"):
        layer.backward(ones(4, 3))
    with pytest.raises(RuntimeError, match="forward"):
        fastbn.BatchNorm(3, track_running_stats=False).train(training).backward(ones(4, 3))


def test_update_wants_moments_of_the_same_features(at_work):
    with at_work.unchanged():
        with pytest.raises(ValueError, match="(?s)3.*4|4.*3"):
            at_work.layer.update(fastbn.moments(ones(5, 4)))
        with pytest.raises(TypeError, match="(?i)moments"):
            at_work.layer.update(ones(5, 3))


def test_update_without_running_statistics():
    layer = fastbn.BatchNorm(3, track_running_stats=False)
    with pytest.raises((ValueError, RuntimeError), match="track_running_stats"):
        layer.update(fastbn.moments(ones(5, 3)))


# --- Settings -------------------------------------------------------------------------------------------------------

BAD_SETTINGS = {
    "no features": ((0,), {}, ValueError, "num_features"),
    "negative features": ((-3,), {}, ValueError, "num_features"),
    "fraction of a feature": ((2.5,), {}, (TypeError, ValueError), "num_features"),
    "features as text": (("3",), {}, (TypeError, ValueError), "num_features"),
    "eps 0": ((3,), {"eps": 0}, ValueError, "eps"),
    "eps negative": ((3,), {"eps": -1e-5}, ValueError, "eps"),
    "eps NaN": ((3,), {"eps": float("nan")}, ValueError, "eps"),
    "eps text": ((3,), {"eps": "small"}, (TypeError, ValueError), "eps"),
    "momentum negative": ((3,), {"momentum": -0.1}, ValueError, "momentum"),
    "momentum above 1": ((3,), {"momentum": 1.1}, ValueError, "momentum"),
    "momentum NaN": ((3,), {"momentum": float("nan")}, ValueError, "momentum"),
    "momentum text": ((3,), {"momentum": "0.9"}, (TypeError, ValueError), "momentum"),
    "ddof negative": ((3,), {"ddof": -1}, ValueError, "ddof"),
    "ddof fraction": ((3,), {"ddof": 0.5}, (TypeError, ValueError), "ddof"),
    "dtype int": ((3,), {"dtype": np.int32}, TypeError, "dtype"),
    "dtype complex": ((3,), {"dtype": complex}, TypeError, "dtype"),
    "dtype text": ((3,), {"dtype": "floating"}, TypeError, None),
    "axis fraction": ((3,), {"axis": 1.5}, (TypeError, ValueError), "axis"),
    "axis text": ((3,), {"axis": "C"}, (TypeError, ValueError), "axis"),
    "axis None": ((3,), {"axis": None}, (TypeError, ValueError), "axis"),
    "the same axis twice": ((3,), {"axis": (1, 1)}, (TypeError, ValueError), "axis"),
    "unknown": ((3,), {"epsilon": 1e-5}, TypeError, "epsilon"),
}


@pytest.mark.parametrize("arguments, keywords, error, name", BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_settings(arguments, keywords, error, name):
    with pytest.raises(error, match=name):
        fastbn.BatchNorm(*arguments, **keywords)


@pytest.mark.parametrize("name, value", [("eps", 0), ("eps", -1.0), ("momentum", 1.5), ("momentum", float("nan"))])
def test_a_setting_changed_to_nonsense_is_refused(at_work, name, value):
    """When it is assigned; and the old value stays."""
    with at_work.unchanged(), pytest.raises(ValueError, match=name):
        setattr(at_work.layer, name, value)


@pytest.mark.parametrize("momentum", [0.0, 0.01, 0.1, 0.49])
def test_a_momentum_that_looks_like_pytorch_s_warns(momentum):
    with pytest.warns(UserWarning, match="(?s)momentum.*PyTorch"):
        layer = fastbn.BatchNorm(3, momentum=momentum)
    assert layer.momentum == momentum


@pytest.mark.parametrize("momentum", [0.5, 0.9, 1.0, None])
def test_other_momenta_do_not_warn(momentum):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastbn.BatchNorm(3, momentum=momentum)


# --- The axis -------------------------------------------------------------------------------------------------------

STATS = np.zeros(3, np.float32), np.ones(3, np.float32)
FUNCTIONS = {
    "training": fastbn.batch_norm_training,
    "inference": lambda x, **keywords: fastbn.batch_norm_inference(x, *STATS, **keywords),
    "moments": fastbn.moments,
    "layer": lambda x, axis: fastbn.BatchNorm(3, axis=axis)(x),
    "layer in inference": lambda x, axis: fastbn.BatchNorm(3, axis=axis).eval()(x),
}
on_functions = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


@on_functions
@pytest.mark.parametrize("axis", [4, -5, 100])
def test_an_axis_out_of_range_is_a_value_error(function, axis):
    with pytest.raises(ValueError, match=rf"(?s)axis.*{axis}"):
        function(ones(*SHAPE), axis=axis)


@on_functions
@pytest.mark.parametrize("axis", [1.0, "1", None, (1, 1), (1, 9)], ids=str)
def test_an_axis_that_is_none_is_refused(function, axis):
    with pytest.raises((TypeError, ValueError), match="axis"):
        function(ones(*SHAPE), axis=axis)


@on_functions
def test_an_axis_may_be_a_numpy_integer(function):
    function(ones(*SHAPE), axis=np.int64(1))


# --- The functions --------------------------------------------------------------------------------------------------


@cases({**BAD_TYPES, **BAD_SHAPES})
def test_function_input(case):
    mean, var = STATS
    for call in (fastbn.batch_norm_training, fastbn.moments, lambda x: fastbn.batch_norm_inference(x, mean, var)):
        with case.expected():
            call(case.make())


BAD_PARAMETERS = {
    "short": Refused(lambda: ones(2), ValueError, r"\b2\b", r"\b3\b"),
    "long": Refused(lambda: ones(5), ValueError, r"\b5\b", r"\b3\b"),
    "one": Refused(lambda: ones(1), ValueError, r"\b1\b", r"\b3\b"),
    "scalar": Refused(lambda: 1.0, ValueError),
    "broadcastable": Refused(lambda: ones(3, 1, 1), ValueError, r"\(3, 1, 1\)", r"\(3,\)|\b3\b"),
    "complex": Refused(lambda: ones(3, dtype=complex), TypeError, "complex"),
    "int": Refused(lambda: [1, 2, 3], TypeError, "int64", "asarray"),
    "text": Refused(lambda: "abc", TypeError),
}


@cases(BAD_PARAMETERS)
@pytest.mark.parametrize("name", ["gamma", "beta", "mean", "var"])
def test_parameters_of_a_wrong_shape_or_type(case, name):
    case = Refused(case.make, case.error, name, *case.patterns)
    out = np.full(SHAPE, 7, np.float32)
    with case.expected():
        good = dict(zip(("mean", "var"), STATS, strict=True))
        fastbn.batch_norm_inference(ones(*SHAPE), **{**good, name: case.make()}, out=out)
    if name in ("gamma", "beta"):
        with case.expected():
            fastbn.batch_norm_training(ones(*SHAPE), **{name: case.make()}, out=out)
    assert (out == 7).all()


@pytest.mark.parametrize("name", ["mean", "var"])
def test_inference_needs_statistics(name):
    good = dict(zip(("mean", "var"), STATS, strict=True))
    with pytest.raises((TypeError, ValueError), match=name):
        fastbn.batch_norm_inference(ones(*SHAPE), **{**good, name: None})


@pytest.mark.parametrize("eps", [0, -1e-5, float("nan")])
def test_eps_of_the_functions(eps):
    out = np.full(SHAPE, 7, np.float32)
    with pytest.raises(ValueError, match="eps"):
        fastbn.batch_norm_training(ones(*SHAPE), eps=eps, out=out)
    with pytest.raises(ValueError, match="eps"):
        fastbn.batch_norm_inference(ones(*SHAPE), *STATS, eps=eps, out=out)
    assert (out == 7).all()


@cases(BAD_GRADIENTS)
def test_gradient_of_the_functions(rng, case):
    x = sample(rng, SHAPE)
    for forward in (fastbn.batch_norm_training,
                    lambda x: fastbn.batch_norm_inference(x, *STATS, return_saved=True)):
        _, saved = forward(x)
        with case.expected():
            fastbn.batch_norm_backward(case.make(), saved)


@pytest.mark.parametrize("needs", [("dx", "dweight"), ("gamma",), (1,), ("dx", None)], ids=str)
def test_unknown_gradients_are_refused(needs):
    _, saved = fastbn.batch_norm_training(ones(*SHAPE))
    with pytest.raises((TypeError, ValueError), match="needs"):
        fastbn.batch_norm_backward(ones(*SHAPE), saved, needs=needs)


@pytest.mark.parametrize("saved", [None, (1, 2), ones(3), "saved"], ids=["None", "tuple", "array", "text"])
def test_saved_must_come_from_a_forward_call(saved):
    with pytest.raises(TypeError, match="saved"):
        fastbn.batch_norm_backward(ones(*SHAPE), saved)


# --- out= -----------------------------------------------------------------------------------------------------------


def read_only():
    out = np.full(SHAPE, 7, np.float32)
    out.flags.writeable = False
    return out


BAD_OUTS = {
    "shape": Refused(lambda: np.full((4, 3, 5, 7), 7, np.float32), ValueError, "out", r"\(4, 3, 5, 7\)",
                     r"\(4, 3, 5, 6\)"),
    "rank": Refused(lambda: np.full(360, 7, np.float32), ValueError, "out", r"\(360,\)", r"\(4, 3, 5, 6\)"),
    "would broadcast": Refused(lambda: np.full((2, *SHAPE), 7, np.float32), ValueError, "out"),
    "dtype": Refused(lambda: np.full(SHAPE, 7, np.float64), TypeError, "out", "float64", "float32"),
    "int": Refused(lambda: np.full(SHAPE, 7, np.int32), TypeError, "out", "int32", "float32"),
    "byte order": Refused(lambda: np.full(SHAPE, 7, np.dtype(np.float32).newbyteorder()), (TypeError, ValueError),
                          "out"),
    "inner stride": Refused(lambda: np.full((*SHAPE[:3], 12), 7, np.float32)[..., ::2], ValueError, "out"),
    "stride 0": Refused(lambda: np.lib.stride_tricks.as_strided(np.full(1, 7, np.float32), SHAPE, (0, 0, 0, 0)),
                        ValueError, "out"),
    "read only": Refused(read_only, ValueError, "out", "read-only|readonly|writ"),
    "list": Refused(lambda: np.full(SHAPE, 7.0).tolist(), TypeError, "out"),
    "masked array": Refused(lambda: np.ma.array(np.full(SHAPE, 7, np.float32)), TypeError, "out"),
}


def function_calls(x, gamma, beta):
    """Every function that takes out=, on the same data."""
    _, saved = fastbn.batch_norm_training(x, gamma, beta)
    _, frozen = fastbn.batch_norm_inference(x, *STATS, gamma, beta, return_saved=True)
    return [
        lambda out: fastbn.batch_norm_training(x, gamma, beta, out=out),
        lambda out: fastbn.batch_norm_inference(x, *STATS, gamma, beta, out=out),
        lambda out: fastbn.batch_norm_backward(x, saved, out=out),
        lambda out: fastbn.batch_norm_backward(x, frozen, out=out),
    ]


@cases(BAD_OUTS)
def test_out_of_the_functions(rng, case):
    for call in function_calls(sample(rng, SHAPE), *parameters(rng, 3)):
        out = case.make()
        with case.expected():
            call(out)
        assert (np.asarray(out) == 7).all()


@cases(BAD_OUTS)
@pytest.mark.parametrize("training", [True, False])
def test_out_of_the_layer(at_work, case, training):
    at_work.layer.train(training)
    out = case.make()
    with at_work.unchanged(), case.expected():
        at_work.layer(at_work.x, out=out)
    assert (np.asarray(out) == 7).all()


@cases(BAD_OUTS)
def test_out_of_the_layer_s_backward(at_work, case):
    out = case.make()
    with at_work.unchanged(), case.expected():
        at_work.layer.backward(at_work.dy, out=out)
    assert (np.asarray(out) == 7).all()


# Two views, of the same shape, of one buffer of 6 * 6 * 8 * 8 numbers, that share some but not all of their places.
OVERLAPS = {
    "next sample": lambda b: (b[:4], b[1:5]),
    "one number further": lambda b: (b.ravel()[:900].reshape(3, 6, 5, 10), b.ravel()[1:901].reshape(3, 6, 5, 10)),
    "the last number": lambda b: (b.ravel()[:900].reshape(3, 6, 5, 10), b.ravel()[899:1799].reshape(3, 6, 5, 10)),
    "samples reversed": lambda b: (b, b[::-1]),
    "other channels": lambda b: (b[:, :4], b[:, 2:]),
    "twice the step": lambda b: (b[:3], b[::2]),
}


@pytest.mark.parametrize("views", OVERLAPS.values(), ids=OVERLAPS)
def test_partly_overlapping_memory_is_refused(rng, views):
    buffer = sample(rng, (6, 6, 8, 8))
    x, out = views(buffer)
    kept = buffer.copy()
    features = x.shape[1]
    gamma, beta = parameters(rng, features)
    mean, var = np.zeros(features, np.float32), np.ones(features, np.float32)
    _, saved = fastbn.batch_norm_training(x.copy(), gamma, beta)
    layer = fastbn.BatchNorm(features)
    for call in (lambda: fastbn.batch_norm_training(x, gamma, beta, out=out),
                 lambda: fastbn.batch_norm_inference(x, mean, var, gamma, beta, out=out),
                 lambda: fastbn.batch_norm_backward(x, saved, out=out),
                 lambda: layer(x, out=out),
                 lambda: layer.eval()(x, out=out)):
        with pytest.raises(ValueError, match="(?i)overlap"):
            call()
        np.testing.assert_array_equal(buffer, kept)
    assert layer.num_batches_tracked == 0


def test_a_transposed_view_of_the_input_is_an_overlap(rng):
    x = sample(rng, (6, 6))
    kept = x.copy()
    with pytest.raises(ValueError, match="(?i)overlap"):
        fastbn.batch_norm_training(x, out=x.T)
    with pytest.raises(ValueError, match="(?i)overlap"):
        fastbn.batch_norm_inference(x, np.zeros(6), np.ones(6), out=x.T)
    np.testing.assert_array_equal(x, kept)


# --- Errors that led astray ----------------------------------------------------------------------------------------------


def test_sparse_matrices_and_nullable_tables_are_told_from_ragged_lists():
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError, match=r"sparse matrix\? pass x.toarray\(\)"):
        fastbn.batch_norm_training(sparse.csr_matrix(np.ones((3, 2))))


def test_nullable_tables():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"a": pandas.array([1.5, None], "Float64"), "b": pandas.array([1, None], "Int64")})
    with pytest.raises(TypeError, match=r"nullable columns.*x.to_numpy\(np.float32, na_value=np.nan\)"):
        fastbn.moments(table)


@pytest.mark.parametrize("name", ["gamma", "mean"])
def test_a_list_of_ints_gets_advice_that_fits_lists(name):
    given = {"mean": [0.0, 0.0], "var": [1.0, 1.0]} | {name: [1, 2]}
    with pytest.raises(TypeError, match=rf"convert with np.asarray\({name}, np.float32\)"):
        fastbn.batch_norm_inference(ones(4, 2), **given)


@pytest.mark.parametrize("prefix", ["", "layer1.0.bn1."])
def test_a_state_of_pytorch_is_recognized(prefix):
    layer = fastbn.BatchNorm(3)
    state = {prefix + name: value for name, value in layer.to_torch().items()}
    with pytest.raises(ValueError, match=r"is it PyTorch's\? Make the layer with BatchNorm.from_torch"):
        layer.load_state_dict(state)


def test_eps_0_names_what_does_the_same():
    with pytest.raises(ValueError, match="1e-30 in place of 0"):
        fastbn.BatchNorm(3, eps=0)
    x, var = ones(4, 3), ones(3)
    np.testing.assert_array_equal(fastbn.batch_norm_inference(2 * x, var, var, eps=1e-30), x)


def test_a_layer_on_two_inputs_names_the_function():
    layer, x = fastbn.BatchNorm(3), np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    layer(x), layer(2 * x)
    layer.backward(x)
    with pytest.raises(RuntimeError, match="for two inputs at once take batch_norm_training"):
        layer.backward(x)


def test_a_checkout_that_is_not_built_says_so(tmp_path):
    package = Path(fastbn.__file__).parent
    shutil.copytree(package, tmp_path / "fastbn", ignore=shutil.ignore_patterns("_core*.so", "_core*.pyd", "__pycache__"))
    # An editable install would find the core elsewhere.
    script = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'ditable' not in repr(f)]; import fastbn"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode and "not built: install first" in done.stderr and "circular" not in done.stderr
