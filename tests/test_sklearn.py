"""fastbn.sklearn.StandardScaler beside scikit-learn's: the same numbers, types, errors; and its own tests."""
import copy
import os
import pickle
import re
import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sklearn = pytest.importorskip("sklearn", "1.6", reason="scikit-learn 1.6 is not installed: the extra 'sklearn' has it")

from scipy import sparse  # noqa: E402
from sklearn import preprocessing  # noqa: E402
from sklearn.base import clone  # noqa: E402
from sklearn.exceptions import NotFittedError  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

from fastbn.sklearn import StandardScaler, _inputs, _scaler  # noqa: E402

Theirs = preprocessing.StandardScaler
TESTS = Path(__file__).resolve().parent
DTYPES = (np.float32, np.float64)
PARAMETERS = [{}, {"with_mean": False}, {"with_std": False}, {"with_mean": False, "with_std": False}, {"copy": False}]
ATTRIBUTES = ("n_samples_seen_", "mean_", "var_", "scale_", "n_features_in_")
RTOL = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-12}


def draw(rng, shape=(50, 4), dtype=np.float64):
    return (rng.normal(3, 2, shape) * 10.0**np.arange(shape[1])).astype(dtype)


def assert_same(found, wanted, rtol=1e-12):
    """In type, shape and dtype, and up to rounding in value, of each column."""
    assert type(found) is type(wanted)
    if wanted is None:
        return
    assert np.shape(found) == np.shape(wanted) and np.asarray(found).dtype == np.asarray(wanted).dtype
    with np.errstate(invalid="ignore"):
        scale = np.fmax(np.fmax.reduce(np.abs(wanted), axis=0), 1e-300) if np.ndim(wanted) else 1
    np.testing.assert_allclose(found / scale, wanted / scale, rtol=0, atol=rtol)


def assert_same_state(ours, theirs):
    for name in ATTRIBUTES:
        assert_same(getattr(ours, name), getattr(theirs, name))


def outcome(function, *args, **kwargs):
    """(type, message) of what is raised, or None."""
    try:
        function(*args, **kwargs)
    except Exception as error:
        return type(error), str(error)


@pytest.fixture
def no_fallback(monkeypatch):
    """scikit-learn's own computations raise."""
    def refuse(*args, **kwargs):
        raise AssertionError("computed by scikit-learn")
    monkeypatch.setattr(preprocessing._data, "_incremental_mean_and_var", refuse)
    monkeypatch.setattr(_scaler, "_TRANSFORM", refuse)
    monkeypatch.setattr(_scaler, "_INVERSE_TRANSFORM", refuse)


@pytest.fixture
def small_blocks(monkeypatch):
    """Many blocks in little data, and moments to tell of infinities."""
    monkeypatch.setattr(_inputs, "BLOCK", 256)
    monkeypatch.setattr(_inputs, "_SMALL", 8)


# As an estimator of scikit-learn

def expected_to_fail(scaler):
    """What scikit-learn's own class fails too."""
    failing = {}
    if not scaler.copy:
        failing["check_methods_sample_order_invariance"] = "it reads an input that was overwritten"
    if sklearn.__version__.startswith("1.6.") and scaler.with_mean:
        failing["check_sample_weight_equivalence_on_sparse_data"] = "it centers sparse data (scikit-learn #30139)"
    return failing


@parametrize_with_checks([StandardScaler(**parameters) for parameters in PARAMETERS],
                         expected_failed_checks=expected_to_fail)
def test_check_estimator(estimator, check):
    check(estimator)


@pytest.mark.full
def test_scikit_learns_own_tests():
    """Those of its own file that concern scaling and centering, by whatever class: they are told by their names alone."""
    pytest.importorskip("sklearn.preprocessing.tests.test_data", reason="scikit-learn's tests are not installed")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "sklearn_plugin", "--pyargs",
               "sklearn.preprocessing.tests.test_data", "-k", "scale or center"]
    done = subprocess.run(command, env=environment, cwd=TESTS.anchor, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 100


def test_is_a_scaler_of_scikit_learn(rng):
    x = draw(rng)
    scaler = StandardScaler(with_mean=False, copy=False).fit(x)
    assert isinstance(scaler, Theirs) and repr(scaler) == "StandardScaler(copy=False, with_mean=False)"
    assert clone(scaler).get_params() == scaler.get_params() and not hasattr(clone(scaler), "mean_")
    for again in (pickle.loads(pickle.dumps(scaler)), copy.deepcopy(scaler)):
        np.testing.assert_array_equal(again.transform(x.copy()), scaler.transform(x.copy()))
    assert scaler.set_params(with_mean=True).transform(x).mean() == pytest.approx(0, abs=1e-12)
    assert list(scaler.get_feature_names_out()) == ["x0", "x1", "x2", "x3"]


def test_metadata_routing(rng):
    x, weights = draw(rng), rng.random(50)
    with sklearn.config_context(enable_metadata_routing=True):
        pipeline = make_pipeline(StandardScaler().set_fit_request(sample_weight=True))
        pipeline.fit(x, sample_weight=weights)
    assert_same_state(pipeline[0], Theirs().fit(x, sample_weight=weights))


def test_set_output_and_names(rng, no_fallback):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(draw(rng), columns=list("abcd"), index=range(7, 57))
    ours = StandardScaler().set_output(transform="pandas")
    pandas.testing.assert_frame_equal(ours.fit_transform(frame), ours.transform(frame))
    assert list(ours.feature_names_in_) == list("abcd") == list(ours.get_feature_names_out())
    kept = frame.copy()
    result = ours.transform(frame)
    assert list(result.columns) == list("abcd") and list(result.index) == list(frame.index)
    pandas.testing.assert_frame_equal(frame, kept)
    np.testing.assert_allclose(ours.inverse_transform(result), frame, rtol=1e-12)
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        ours.transform(frame.to_numpy())
    with pytest.raises(ValueError, match="feature names should match"):
        ours.transform(frame[list("dcba")])


def test_frames_of_polars(rng, no_fallback):
    polars = pytest.importorskip("polars", reason="polars is not installed")
    x = draw(rng)
    scaler = StandardScaler().set_output(transform="polars").fit(polars.DataFrame(x, schema=list("abcd")))
    result = scaler.transform(polars.DataFrame(x, schema=list("abcd")))
    assert isinstance(result, polars.DataFrame) and result.columns == list(scaler.get_feature_names_out())
    assert scaler.n_features_in_ == 4
    np.testing.assert_array_equal(result.to_numpy(), StandardScaler().fit_transform(x))


# The same numbers

LAYOUTS = {
    "C": lambda x: x, "Fortran": np.asfortranarray, "rows": lambda x: np.repeat(x, 2, axis=0)[::2],
    "columns": lambda x: np.hstack([x, x])[:, :x.shape[1]], "gaps": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "backwards": lambda x: x[::-1].copy()[::-1], "unaligned": lambda x: np.frombuffer(
        bytearray(b" " + x.tobytes()), x.dtype, offset=1).reshape(x.shape),
}


@given(n=st.integers(3, 40), c=st.integers(1, 6), dtype=st.sampled_from(DTYPES), parameters=st.sampled_from(PARAMETERS),
       layout=st.sampled_from(sorted(LAYOUTS)), missing=st.booleans(), weighted=st.booleans(), seed=st.integers(0, 99))
def test_like_scikit_learn(n, c, dtype, parameters, layout, missing, weighted, seed):
    rng = np.random.default_rng(seed)
    x = draw(rng, (n, c), dtype)
    x[3:][rng.random((n - 3, c)) < 0.3 * missing] = np.nan
    weights = rng.random(n) * (rng.random(n) < 0.8) + 1e-3 if weighted else None
    x = LAYOUTS[layout](x)
    ours, theirs = StandardScaler(**parameters).fit(x, None, weights), Theirs(**parameters).fit(x, None, weights)
    for name in ATTRIBUTES:
        assert_same(getattr(ours, name), getattr(theirs, name), 1e-6 if dtype == np.float32 else 1e-11)
    tolerance = 1e-4 if dtype == np.float32 else 1e-10
    y = theirs.transform(x.copy())
    assert_same(ours.transform(x.copy()), y, tolerance)
    assert_same(ours.inverse_transform(y.copy()), theirs.inverse_transform(y.copy()), tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int64, np.uint8, bool, ">f8", "longdouble"])
@pytest.mark.parametrize("parameters", PARAMETERS, ids=str)
def test_types(dtype, parameters, rng):
    x = rng.integers(0, 2, (30, 3)).astype(dtype)
    ours, theirs = (kind(**parameters).fit(x) for kind in (StandardScaler, Theirs))
    assert_same_state(ours, theirs)
    y = ours.transform(x)
    assert_same(y, theirs.transform(x), 1e-2 if dtype == np.float16 else 1e-6)
    assert_same(ours.inverse_transform(y), theirs.inverse_transform(y), 1e-2 if dtype == np.float16 else 1e-6)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dense_arrays_are_computed_by_fastbn(dtype, weighted, rng, no_fallback, small_blocks):
    x, scaler = draw(rng, (400, 3), dtype), StandardScaler()
    x[7, 1] = np.nan
    for rows in (slice(0, 100), slice(100, None)):
        scaler.partial_fit(x[rows], sample_weight=rng.random(len(x[rows])) if weighted else None)
    y = scaler.transform(x)
    np.testing.assert_allclose(scaler.inverse_transform(y), x, rtol=RTOL[x.dtype], atol=1e-4)
    assert y.dtype == dtype and np.isnan(y).sum() == 1
    with pytest.raises(AssertionError, match="computed by scikit-learn"):
        scaler.transform(x.tolist())


@pytest.mark.parametrize("shape", [(3000, 5), (7, 300), (1, 40)])
@pytest.mark.parametrize("order", "CF")
def test_blocks(shape, order, rng, small_blocks):
    x = np.asarray(draw(rng, shape[:1] + (min(shape[1], 6),)), order=order)
    scaler = StandardScaler().fit(x)
    y = scaler.transform(x)
    assert y.flags.f_contiguous == x.flags.f_contiguous and y.flags.c_contiguous == x.flags.c_contiguous
    np.testing.assert_allclose(y, (x - scaler.mean_) / scaler.scale_, rtol=1e-14, atol=1e-14)
    with sklearn.config_context(assume_finite=True):
        np.testing.assert_array_equal(scaler.transform(x), y)


def test_constant_features_become_zero(rng):
    for dtype in DTYPES:
        x = np.tile(np.array([0, 0.1, -1e30, 12345.678], dtype), (333, 1))
        scaler = StandardScaler().fit(x)
        assert not scaler.transform(x).any() and (scaler.scale_ == 1).all() and not scaler.var_.any()
        scaler.partial_fit(x[:5])
        assert not scaler.transform(x).any()
        np.testing.assert_array_equal(scaler.inverse_transform(np.zeros_like(x)), x)


@pytest.mark.parametrize("dtype, magnitudes", [(np.float64, (1e-200, 1e-310, 1e-150, 1e150, 1e200, 1e307)),
                                               (np.float32, (1e-30, 1e-38, 1e-44, 1e18, 1e30, 1e38, 1e40))])
def test_any_magnitude(dtype, magnitudes, rng):
    """Scales that have no reciprocal, and variances that overflow, are scikit-learn's."""
    for magnitude in magnitudes:
        ours, theirs = (kind().fit(rng.normal(size=(9, 2))) for kind in (StandardScaler, Theirs))
        for scaler in (ours, theirs):
            scaler.scale_, scaler.mean_ = np.array([1.0, magnitude]), np.array([0, magnitude / 8])
        entry = min(magnitude, 1e38)
        x = np.array([[1, entry], [0, 0], [2, -entry / 4]], dtype)
        with np.errstate(all="ignore"):
            assert_same(ours.transform(x), theirs.transform(x), RTOL[x.dtype])
            assert_same(ours.inverse_transform(x), theirs.inverse_transform(x), RTOL[x.dtype])


def test_a_mean_beyond_float32():
    ours, theirs = (kind().fit(np.zeros((3, 1))) for kind in (StandardScaler, Theirs))
    ours.mean_ = theirs.mean_ = np.array([1e40])
    x = np.ones((2, 1), np.float32)
    with np.errstate(over="ignore"):
        for y, method in ((-np.inf, "transform"), (np.inf, "inverse_transform")):
            assert getattr(ours, method)(x).tolist() == getattr(theirs, method)(x).tolist() == [[y], [y]]


def test_sums_that_overflow_are_left_to_scikit_learn():
    x = np.array([[1e200], [-1e200], [5e199]])
    with np.errstate(all="ignore"):
        assert_same_state(StandardScaler().fit(x), Theirs().fit(x))


def test_float32_is_centred_by_the_whole_mean(rng):
    """scikit-learn subtracts the mean rounded to float32."""
    x = (1e6 + rng.normal(size=(1000, 2))).astype(np.float32)
    y = StandardScaler().fit_transform(x)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(y, (wide - wide.mean(axis=0)) / wide.std(axis=0), rtol=0, atol=1e-6)


# Chunks, missing values, weights

@pytest.mark.parametrize("parameters", PARAMETERS, ids=str)
@pytest.mark.parametrize("missing", [False, True])
def test_partial_fit(parameters, missing, rng):
    x = draw(rng, (100, 3))
    if missing:
        x[3::7, 1] = np.nan
    ours, theirs, whole = StandardScaler(**parameters), Theirs(**parameters), StandardScaler(**parameters).fit(x)
    for stop in (1, 30, 31, 100):
        start = int(np.max(getattr(ours, "n_samples_seen_", 0)))
        ours.partial_fit(x[start:stop])
        theirs.partial_fit(x[start:stop])
        assert_same_state(ours, theirs)
    assert_same_state(whole, theirs)


def test_partial_fit_after_a_sparse_chunk_and_an_unpickled_scaler(rng):
    x = draw(rng, (60, 3))
    ours, theirs = (kind(with_mean=False).partial_fit(sparse.csr_array(x[:20])) for kind in (StandardScaler, Theirs))
    assert_same_state(ours.partial_fit(x[20:]), theirs.partial_fit(x[20:]))
    old = StandardScaler()
    old.__setstate__(Theirs().fit(x[:20]).__getstate__())
    assert_same_state(old.partial_fit(x[20:]), Theirs().fit(x))


def test_a_feature_whose_values_come_late(rng):
    x = draw(rng, (40, 2))
    x[:20, 1] = np.nan
    scaler = StandardScaler().partial_fit(x[:20])
    assert np.isnan([scaler.mean_[1], scaler.var_[1], scaler.scale_[1]]).all()
    np.testing.assert_array_equal(scaler.n_samples_seen_, [20, 0])
    assert np.isnan(scaler.transform(x[20:])[:, 1]).all()
    scaler.partial_fit(x[20:])
    np.testing.assert_allclose(scaler.mean_, [x[:, 0].mean(), x[20:, 1].mean()])
    np.testing.assert_allclose(scaler.var_, [x[:, 0].var(), x[20:, 1].var()])


@pytest.mark.parametrize("weights", [2, np.r_[np.zeros(10), np.ones(30)], np.arange(40) / 3.0, np.full(40, 0.1)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights(weights, dtype, rng):
    x = draw(rng, (40, 3), dtype)
    x[:3, 1] = x[20, 1] = np.nan
    ours, theirs = (kind().fit(x, sample_weight=weights) for kind in (StandardScaler, Theirs))
    for name in ATTRIBUTES:
        assert_same(getattr(ours, name), getattr(theirs, name), 1e-6 if dtype == np.float32 else 1e-11)


@pytest.mark.parametrize("weighted", [False, True])
def test_an_infinity_of_weight_zero_is_refused(weighted, rng):
    x, weights = draw(rng), np.ones(50)
    x[3, 1], weights[3] = np.inf, 0
    with pytest.raises(ValueError, match="infinity"):
        StandardScaler().fit(x, sample_weight=weights if weighted else None)


# In place

@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place(layout, dtype, rng, small_blocks):
    x = LAYOUTS[layout](draw(rng, dtype=dtype))
    scaler = StandardScaler(copy=False).fit(x)
    wanted, back = scaler.transform(x, copy=True), x.copy()
    assert scaler.transform(x) is x
    np.testing.assert_array_equal(x, wanted)
    assert scaler.inverse_transform(x) is x
    assert_same(x, back, RTOL[x.dtype])
    x.flags.writeable = False
    y = scaler.transform(x)
    assert y is not x and not np.may_share_memory(x, y)


def test_copies_leave_the_input_alone(rng):
    for x in (draw(rng), rng.integers(0, 9, (20, 4))):
        kept = x.copy()
        scaler = StandardScaler().fit(x)
        y = scaler.transform(x, copy=not np.issubdtype(x.dtype, np.integer))
        scaler.inverse_transform(y)
        np.testing.assert_array_equal(x, kept)


def test_converted_integers_are_transformed_in_the_memory_of_their_conversion(rng):
    x = rng.integers(0, 9, (100_000, 4))
    scaler = StandardScaler().fit(x)
    tracemalloc.start()
    scaler.transform(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert x.nbytes <= peak < 1.5 * x.nbytes


# Errors

BAD = {
    "1-D": np.zeros(4), "3-D": np.zeros((2, 4, 2)), "0-D": np.float64(1), "no rows": np.zeros((0, 4)),
    "no columns": np.zeros((3, 0)), "complex": np.zeros((3, 4), complex), "text": np.array([["a"] * 4]),
    "objects": np.array([[{}] * 4], object), "Inf": np.array([[1, 2, np.inf, 4.0]]), 
    "-Inf": np.array([[1, 2, -np.inf, np.nan]]),
    "float32 Inf": np.array([[1, 2, np.inf, 4]], np.float32), "Inf list": [[1, 2, np.inf, 4.0]], "None": None,
    "5 columns": np.zeros((3, 5)), "sparse": sparse.csr_array(np.eye(4)),
    "masked": np.ma.masked_equal(np.eye(4), 0), "text list": [["a", "b", "c", "d"]], "Inf of ints": [[10**400] * 4],
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("method", ["fit", "partial_fit", "transform", "inverse_transform"])
def test_errors_are_those_of_scikit_learn(bad, method, rng):
    ours, theirs = (kind().fit(np.arange(20.0).reshape(5, 4)) for kind in (StandardScaler, Theirs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert outcome(getattr(ours, method), BAD[bad]) == outcome(getattr(theirs, method), BAD[bad])


@pytest.mark.parametrize("weights", [np.ones(4), np.ones((5, 1)), "text", np.full(5, np.nan), np.full(5, np.inf),
                                     np.zeros(5)])
def test_errors_of_weights_are_those_of_scikit_learn(weights):
    x = np.arange(20.0).reshape(5, 4)
    with np.errstate(all="ignore"):
        assert outcome(StandardScaler().fit, x, None, weights) == outcome(Theirs().fit, x, None, weights)


@pytest.mark.parametrize("method", ["transform", "inverse_transform"])
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("row", [0, 399])
def test_an_infinity_anywhere_leaves_the_input_alone(method, in_place, row, rng, small_blocks):
    x = draw(rng, (400, 3))
    scaler = StandardScaler().fit(x)
    x[row, 2], x[5, 0] = np.inf, np.nan
    kept = x.copy()
    with pytest.raises(ValueError, match="infinity"):
        getattr(scaler, method)(x, copy=not in_place)
    np.testing.assert_array_equal(x, kept)
    with pytest.raises(ValueError, match="infinity"):
        scaler.partial_fit(x)
    assert scaler.n_samples_seen_ == 400
    with sklearn.config_context(assume_finite=True):
        assert np.isinf(getattr(scaler, method)(x)[row, 2])


def test_a_fit_that_fails_leaves_it_unfitted():
    scaler = StandardScaler()
    with pytest.raises(ValueError, match="infinity"):
        scaler.fit(np.array([[np.inf, 1.0]]))
    for call in (scaler.transform, scaler.inverse_transform):
        with pytest.raises(NotFittedError):
            call(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="with_mean"):
        StandardScaler(with_mean="yes").fit(np.zeros((2, 2)))
