"""fastbn.sklearn.StandardScaler beyond scikit-learn's: data in parts, known moments; who computes; memory, threads."""
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

sklearn = pytest.importorskip("sklearn", "1.6", reason="scikit-learn 1.6 is not installed: the extra 'sklearn' has it")

from sklearn import preprocessing  # noqa: E402
from sklearn.exceptions import NotFittedError  # noqa: E402

import fastbn  # noqa: E402
from fastbn.sklearn import StandardScaler, _sources  # noqa: E402

STATUS = Path("/proc/self/status")


class Parts:
    """A source as _sources.recognize makes them: a table that comes in chunks."""

    def __init__(self, chunks, feature_names=None):
        self.chunks, self.feature_names, self.n_features = chunks, feature_names, chunks[0].shape[1]

    def moments(self, sample_weight=None):
        sizes = np.cumsum([len(chunk) for chunk in self.chunks])[:-1]
        weights = [None] * len(self.chunks) if sample_weight is None else np.split(sample_weight, sizes)
        return sum(fastbn.moments(chunk, weights=w, nan_policy="omit") for chunk, w in zip(self.chunks, weights))

    def map(self, function):
        return (function(chunk) for chunk in self.chunks)


@pytest.fixture(autouse=True)
def parts_are_recognized(monkeypatch):
    recognize = _sources.recognize
    monkeypatch.setattr(_sources, "recognize", lambda X: X if isinstance(X, Parts) else recognize(X))


def draw(rng, n=300, dtype=np.float64):
    return rng.normal([1, 20, 300], [1, 2, 3], (n, 3)).astype(dtype)


def in_parts(x, feature_names=None):
    return Parts(np.array_split(x, 4), feature_names)


def assert_same_state(a, b):
    for name in ("mean_", "var_", "scale_"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-10)
    np.testing.assert_allclose(a.n_samples_seen_, b.n_samples_seen_, rtol=1e-12)
    assert a.n_features_in_ == b.n_features_in_
    assert np.asarray(a.n_samples_seen_).dtype == np.asarray(b.n_samples_seen_).dtype


# Sources

@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("missing", [False, True])
def test_a_source_is_fitted_as_its_table(weighted, missing, rng):
    x, weights = draw(rng), rng.random(300) if weighted else None
    x[::9, 1] = np.nan if missing else 1
    scaler, whole = (StandardScaler().fit(data, sample_weight=weights) for data in (in_parts(x), x))
    assert_same_state(scaler, whole)
    assert_same_state(scaler.partial_fit(in_parts(x), sample_weight=weights), whole.partial_fit(x, sample_weight=weights))


def test_a_source_is_transformed_in_its_own_manner(rng):
    x = draw(rng)
    scaler = StandardScaler().fit(in_parts(x))
    y = scaler.transform(in_parts(x))
    back = scaler.inverse_transform(in_parts(scaler.transform(x)))
    wanted = scaler.transform(x)
    scaler.fit(x * 7)  # what was asked for before does not change
    np.testing.assert_array_equal(np.concatenate(list(y)), wanted)
    np.testing.assert_allclose(np.concatenate(list(back)), x, rtol=1e-12)
    with pytest.raises(NotFittedError):
        StandardScaler().transform(in_parts(x))
    with pytest.raises(ValueError, match="3 features, but .* expecting 2"):
        list(StandardScaler().fit(x[:, :2]).transform(in_parts(x)))


def test_what_a_source_maps_can_be_pickled(rng):
    mapped = []
    source, scaler = in_parts(draw(rng)), StandardScaler().fit(draw(rng))
    source.map = mapped.append
    scaler.transform(source)
    x = draw(rng, 5)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(mapped[0]))(x), scaler.transform(x))


def test_chunks_stay_arrays_where_data_frames_are_asked_for(rng):
    """Chunks that scikit-learn's own code transforms, too."""
    pytest.importorskip("pandas", reason="pandas is not installed")
    x = draw(rng)
    scaler = StandardScaler().fit(x).set_output(transform="pandas")
    mapped = []
    source = in_parts(x)
    source.map = lambda function: mapped.append(function) or np.zeros((2, 3))
    assert list(scaler.transform(source).columns) == ["x0", "x1", "x2"]
    assert type(mapped[0](x)) is type(mapped[0](x.tolist())) is np.ndarray
    with pytest.raises(ValueError, match="the result is a generator"):
        scaler.transform(in_parts(x))


def test_names_and_numbers_of_a_sources_features(rng):
    x, names = draw(rng), np.array(["a", "b", "c"], object)
    scaler = StandardScaler().fit(in_parts(x, names))
    assert list(scaler.feature_names_in_) == list("abc") and scaler.n_features_in_ == 3
    scaler.partial_fit(in_parts(x, names))
    assert scaler.n_samples_seen_ == 600
    with pytest.raises(ValueError, match="feature names should match"):
        scaler.partial_fit(in_parts(x, names[::-1]))
    with pytest.warns(UserWarning, match="valid feature names"), pytest.raises(ValueError, match="2 features, but"):
        scaler.partial_fit(in_parts(x[:, :2]))
    assert scaler.n_samples_seen_ == 600
    assert not hasattr(scaler.fit(in_parts(x)), "feature_names_in_")


def test_names_of_what_is_transformed(rng):
    x, names = draw(rng), np.array(["a", "b", "c"], object)
    scaler = StandardScaler().fit(in_parts(x, names))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parts = list(scaler.transform(in_parts(x, names)))
    np.testing.assert_allclose(np.concatenate(parts), preprocessing.StandardScaler().fit_transform(x), atol=1e-12)
    with pytest.raises(ValueError, match="feature names should match"):
        scaler.transform(in_parts(x, names[::-1]))
    with pytest.warns(UserWarning, match="valid feature names") as told:
        list(scaler.transform(in_parts(x)))
    assert len(told) == 1 and list(scaler.feature_names_in_) == list("abc")
    assert next(scaler.inverse_transform(in_parts(x, names[::-1]))).shape == (75, 3)


def test_chunks_of_an_iterator_that_differ_in_their_names(rng):
    pandas = pytest.importorskip("pandas")
    x = draw(rng)
    a, b = pandas.DataFrame(x, columns=list("abc")), pandas.DataFrame(x, columns=list("cba"))
    scaler = StandardScaler().fit(iter([a, a, x]))
    assert scaler.n_samples_seen_ == 900
    for use in (scaler.partial_fit, lambda frames: list(scaler.transform(frames))):
        with pytest.raises(ValueError, match=r"chunk 1 of X .* \['c', 'b', 'a'\], expected \['a', 'b', 'c'\]"):
            use(iter([a, b]))
    with pytest.raises(ValueError, match="feature names should match"):
        scaler.transform(iter([b]))
    assert scaler.n_samples_seen_ == 900


def test_chunks_of_missing_values_alone(rng):
    """As a table of them is taken: they add nothing."""
    x = draw(rng)
    for parts in ([x, np.full((2, 3), np.nan)], [np.full((2, 3), np.nan), x]):
        ours, tables = StandardScaler(), StandardScaler()
        for part in parts:
            np.testing.assert_array_equal(ours.partial_fit(iter([part])).mean_, tables.partial_fit(part).mean_)
        assert_same_state(ours, tables)
    with pytest.raises(ValueError, match="sample_weight is 0 for every value"):
        ours.partial_fit(iter([x]), sample_weight=np.zeros(300))
    assert_same_state(ours, tables)


def test_with_std_left_out_for_a_while(rng):
    x = draw(rng)
    ours, theirs = StandardScaler(), preprocessing.StandardScaler()
    for scaler in (ours, theirs):
        for with_std, part in zip((True, False, True), np.array_split(x, 3)):
            scaler.set_params(with_std=with_std).partial_fit(part)
    assert_same_state(ours, theirs)


def test_chunks_without_rows_among_others(rng):
    x = draw(rng, dtype=np.float32)
    scaler = StandardScaler().fit(iter([x[:0], x, x[:0]]))
    for method in (scaler.transform, scaler.inverse_transform):
        parts = list(method(iter([x[:0], x, x[:0].astype(int)])))
        assert [part.shape for part in parts] == [(0, 3), (300, 3), (0, 3)]
        assert [part.dtype for part in parts] == [np.float32, np.float32, np.float64]


def test_a_source_without_mean_and_std(rng):
    x = draw(rng)
    ours, theirs = (kind(with_mean=False, with_std=False) for kind in (StandardScaler, preprocessing.StandardScaler))
    ours.fit(in_parts(x))
    assert ours.mean_ is ours.var_ is ours.scale_ is None
    seen = theirs.fit(x).n_samples_seen_
    assert ours.n_samples_seen_ == seen and type(ours.n_samples_seen_) is type(seen)
    ours.partial_fit(in_parts(x))
    assert ours.n_samples_seen_ == 2 * seen
    np.testing.assert_array_equal(np.concatenate(list(ours.transform(in_parts(x)))), x)


def test_an_iterator_cannot_be_fitted_and_transformed(rng):
    with pytest.raises(TypeError, match="uses up"):
        StandardScaler().fit_transform(iter([draw(rng)]))


# Moments that are known

def test_fit_moments(rng):
    x = draw(rng)
    scaler = StandardScaler().fit(np.zeros((5, 2)))
    assert scaler.fit_moments(sum(fastbn.moments(part) for part in np.array_split(x, 5)), list("abc")) is scaler
    assert_same_state(scaler, StandardScaler().fit(x))
    assert list(scaler.feature_names_in_) == list("abc")
    weights = rng.random(300)
    assert_same_state(scaler.fit_moments(fastbn.moments(x, weights=weights)), StandardScaler().fit(x, sample_weight=weights))
    assert not hasattr(scaler, "feature_names_in_")


@pytest.mark.parametrize("moments, names, error, text", [
    (np.zeros(3), None, TypeError, "expected fastbn.Moments"),
    (fastbn.Moments(0, [0, 0], [0, 0]), None, ValueError, "count 0"),
    (fastbn.Moments(5, [0, np.nan], [0, np.nan]), None, ValueError, "NaN.* in 1 of 2 features"),
    (fastbn.Moments(5, [0, 1], [0, 1]), ["a"], ValueError, "feature_names has shape"),
])
def test_errors_of_fit_moments(moments, names, error, text, rng):
    scaler = StandardScaler().fit(draw(rng))
    with pytest.raises(error, match=text):
        scaler.fit_moments(moments, names)
    assert scaler.n_samples_seen_ == 300


# Who computes

def test_callbacks_are_called_by_scikit_learn(rng):
    callback = pytest.importorskip("sklearn.callback.tests._utils", reason="scikit-learn has callbacks from 1.9")
    x, recorded = draw(rng), callback.RecordingCallback()
    scaler = StandardScaler().set_callbacks(recorded).fit(x)
    assert [recorded.count_hooks(hook) for hook in ("setup", "on_fit_task_begin", "on_fit_task_end", "teardown")] == [1] * 4
    assert_same_state(scaler, StandardScaler().fit(x))


STRICT = """
import array_api_strict as xp
import numpy as np
import sklearn
from fastbn.sklearn import StandardScaler

x = np.arange(12.0).reshape(4, 3)**2
with sklearn.config_context(array_api_dispatch=True):
    scaler = StandardScaler().fit(xp.asarray(x))
    y = scaler.transform(xp.asarray(x))
    back = scaler.inverse_transform(y)
    assert all(type(a) is type(xp.asarray(x)) for a in (scaler.mean_, scaler.var_, y, back))
    ours = StandardScaler().fit(x)
np.testing.assert_allclose(np.asarray(y), ours.transform(x), rtol=1e-12, atol=1e-12)
np.testing.assert_allclose(np.asarray(back), x, rtol=1e-12, atol=1e-12)
print("done")
"""


def test_other_array_libraries_are_left_to_scikit_learn():
    """In a process of its own: SciPy reads the variable when it is imported."""
    pytest.importorskip("array_api_strict", reason="array-api-strict is not installed")
    if not StandardScaler().__sklearn_tags__().array_api_support:
        pytest.skip("scikit-learn's StandardScaler takes NumPy's arrays alone before 1.8")
    done = subprocess.run([sys.executable, "-c", STRICT], env={**os.environ, "SCIPY_ARRAY_API": "1"}, capture_output=True,
                          text=True)
    assert done.stdout == "done\n", done.stderr


def test_state_that_scikit_learn_cannot_go_on_with(rng):
    """with_std came after a fit without: its own error."""
    x = draw(rng)
    errors = []
    for kind in (StandardScaler, preprocessing.StandardScaler):
        with pytest.raises(Exception) as caught:
            kind(with_std=False).fit(x).set_params(with_std=True).partial_fit(x)
        errors.append((caught.type, str(caught.value)))
    assert errors[0] == errors[1]
    scaler = StandardScaler(with_std=False).fit(x).set_params(with_std=True)
    with pytest.raises(ValueError, match="var_ is None"):
        scaler.partial_fit(in_parts(x))
    assert scaler.n_samples_seen_ == 300


# Memory, threads, the extra

PEAK = """
import sys
import numpy as np
from fastbn.sklearn import StandardScaler

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

dtype, order, missing, weighted = sys.argv[1], sys.argv[2], sys.argv[3] == "True", sys.argv[4] == "True"
x = np.empty((1_000_000, 8), dtype, order=order)
x[:] = np.arange(8) + np.arange(1_000_000)[:, None] % 7
if missing:
    x[::5, 2] = np.nan
weights = np.ones(len(x), dtype) if weighted else None
def fit(x, weights):
    return StandardScaler().fit(x, None, weights)
fit(np.asarray(x[:1000], order=order), None if weights is None else weights[:1000])
before = peak()
fit(x, weights)
print(peak() - before)
"""


@pytest.mark.skipif(not STATUS.exists() or "VmHWM" not in STATUS.read_text(), reason="no VmHWM here")
@pytest.mark.parametrize("dtype, order, missing, weighted", [
    ("float32", "C", False, False), ("float64", "F", False, False), ("float32", "F", True, False),
    ("float64", "C", True, False), ("float32", "C", False, True), ("float64", "C", False, True)])
def test_fit_holds_no_copy_of_the_data(dtype, order, missing, weighted):
    """A million rows of 8 features: what is beyond them is less than a feature or two."""
    command = [sys.executable, "-c", PEAK, dtype, order, str(missing), str(weighted)]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)
    data = 8_000_000 * np.dtype(dtype).itemsize
    assert grown < data * (0.5 if weighted else 0.25), f"{grown / data:.2f} of the data's size"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_same_bits_for_any_number_of_threads(dtype, rng, small_work_threads):
    x = draw(rng, 20_000, dtype)
    results = []
    for threads in (1, 2, 3):
        fastbn.set_num_threads(threads)
        scaler = StandardScaler().fit(x)
        results.append([scaler.mean_, scaler.var_, scaler.transform(x), scaler.inverse_transform(x)])
    fastbn.set_num_threads(None)
    for other in results[1:]:
        for a, b in zip(results[0], other):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("missing, text", [("sklearn", "fastbn[sklearn]"), ("sklearn.utils.validation", "1.6 or later")])
def test_without_scikit_learn(missing, text):
    script = (f"import sys; sys.modules[{missing!r}] = None\n"
              "import fastbn\n"
              "try:\n    import fastbn.sklearn\nexcept ImportError as error:\n    print(error)")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert text in done.stdout


def test_fastbn_alone_imports_no_scikit_learn():
    script = "import sys, fastbn; print([name for name in sys.modules if name.partition('.')[0] in ('sklearn', 'scipy')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("weights", [np.array([1.0, -1, 1, 1]), [1, 2, -3, 4], -1.0], ids=str)
@pytest.mark.parametrize("kind", ["array", "float16", "list"])
def test_negative_sample_weights_are_refused(kind, weights):
    table = {"array": np.ones((4, 2)), "float16": np.ones((4, 2), np.float16), "list": [[1.0, 2]] * 4}[kind]
    scaler = StandardScaler()
    with pytest.raises(ValueError, match="sample_weight has a negative entry"):
        scaler.fit(table, sample_weight=weights)
