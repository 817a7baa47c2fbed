"""Dask arrays: lazily, chunk by chunk, with the same bits for every scheduler and any number of workers."""
import functools
import math
import pickle
import warnings

import numpy as np
import pytest

import fastbn

pytest.importorskip("sklearn", reason="fastbn.sklearn is for scikit-learn")
dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")

from fastbn.sklearn import StandardScaler, _dask, _sources  # noqa: E402

ROWS, COLUMNS = 5000, 6


@pytest.fixture
def x(rng):
    return rng.normal(30, 20, (ROWS, COLUMNS)).astype(np.float32)


def bits(moments):
    return np.asarray(moments.count).tobytes() + moments.mean.tobytes() + moments.M2.tobytes()


def assert_equal(found, whole):
    """As far as sums of float32 in another order go."""
    np.testing.assert_array_equal(found.count, whole.count)
    np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-7)
    np.testing.assert_allclose(found.M2, whole.M2, rtol=1e-6)


class Counting:
    """A chunk maker that counts its calls, in this process."""

    def __init__(self, x):
        self.x, self.calls = x, 0

    def __call__(self, block_info=None):
        (first, last), (left, right) = block_info[None]["array-location"]
        self.calls += 1
        return self.x[first:last, left:right]

    def array(self, rows, columns=COLUMNS):
        chunks = da.core.normalize_chunks((rows, columns), self.x.shape)
        return da.map_blocks(self, chunks=chunks, dtype=self.x.dtype, meta=np.empty((0, 0), self.x.dtype))


@pytest.fixture(scope="module")
def clusters():
    """{workers: client}, made where asked for."""
    distributed = pytest.importorskip("distributed")
    made = {}

    def client(workers, threads):
        if (workers, threads) not in made:
            cluster = distributed.LocalCluster(n_workers=workers, threads_per_worker=threads, dashboard_address=":0")
            made[workers, threads] = distributed.Client(cluster, set_as_default=False), cluster
        return made[workers, threads][0]
    yield client
    for one, cluster in made.values():
        one.close()
        cluster.close()


# --- moments ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows, columns", [(5000, 6), (100, 6), (300, 6), (700, 4), (1300, 1), (5000, 2)])
def test_moments_are_those_of_the_whole(x, rows, columns):
    source = _sources.recognize(da.from_array(x, (rows, columns)))
    found = source.moments()
    assert_equal(found, fastbn.moments(x))
    assert isinstance(found.count, int) and source.n_features == COLUMNS and source.dtype == np.float32


def test_nothing_is_computed_before_it_is_asked_for(x):
    counting = Counting(x)
    source = _sources.recognize(counting.array(400))
    lazy = source.lazy_moments()
    y = source.map(np.copy)
    assert counting.calls == 0
    lazy.compute(scheduler="sync")
    assert counting.calls == 13
    y[:400].compute(scheduler="sync")
    assert counting.calls == 14


def test_one_compute_serves_moments(x):
    counting = Counting(x)
    with dask.config.set(scheduler="sync"):
        _sources.recognize(counting.array(400, 2)).moments()
    assert counting.calls == 13 * 3


@pytest.mark.parametrize("rows, columns", [(170, 6), (170, 4)])
@pytest.mark.parametrize("missing", [False, True])
def test_same_bits_by_threads_and_processes(x, rows, columns, missing):
    if missing:
        x[::7, 2] = np.nan
    lazy = _sources.recognize(da.from_array(x, (rows, columns))).lazy_moments()
    one = bits(lazy.compute(scheduler="sync"))
    for workers in (1, 2, 4):
        assert bits(lazy.compute(scheduler="threads", num_workers=workers)) == one
    assert bits(lazy.compute(scheduler="processes", num_workers=2)) == one


@pytest.mark.full
@pytest.mark.parametrize("workers, threads", [(1, 1), (2, 1), (1, 2)])
def test_same_bits_on_a_cluster(x, clusters, workers, threads):
    client = clusters(workers, threads)
    array = da.from_array(x, (170, 4))
    source = _sources.recognize(array)
    lazy = source.lazy_moments()
    assert bits(client.compute(lazy).result(timeout=60)) == bits(lazy.compute(scheduler="sync"))
    y = source.map(_doubled)
    np.testing.assert_array_equal(client.compute(y).result(timeout=60), x * 2)


_doubled = functools.partial(np.multiply, 2)  # which other processes need not import this file for


def test_moments_can_be_pickled(x):
    for moments in (fastbn.moments(x), fastbn.moments(x, nan_policy="omit")):
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            assert pickle.loads(pickle.dumps(moments, protocol)) == moments


def test_the_tree_merges_at_most_eight_at_a_time(x):
    lazy = _sources.recognize(da.from_array(x, (50, 6))).lazy_moments()
    names = [key for key in dict(lazy.dask) if str(key).startswith("_merged")]
    assert len(names) == math.ceil(100 / 8) + math.ceil(13 / 8) + 1


@pytest.mark.parametrize("columns", [6, 4])
def test_missing_values(x, columns):
    x[::7, 2], x[:, 4], x[:4000, 5] = np.nan, np.nan, np.nan
    found = _sources.recognize(da.from_array(x, (170, columns))).moments()
    assert_equal(found, fastbn.moments(x, nan_policy="omit"))
    assert found.count.dtype == np.int64


@pytest.mark.parametrize("columns", [6, 4])
@pytest.mark.parametrize("kind", ["numpy", "dask", "other chunks"])
@pytest.mark.parametrize("missing", [False, True])
def test_weights(rng, x, columns, kind, missing):
    weights = rng.random(ROWS)
    weights[100:400] = 0
    if missing:
        x[::7, 2] = np.nan
    given = {"numpy": weights, "dask": da.from_array(weights, 170), "other chunks": da.from_array(weights, 999)}[kind]
    found = _sources.recognize(da.from_array(x, (170, columns))).moments(given)
    whole = fastbn.moments(x, weights=weights, nan_policy="omit")
    assert found.count.dtype == np.float64
    np.testing.assert_allclose(found.count, whole.count, rtol=1e-6)  # weights of float32 data are summed as float32
    np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-6)
    np.testing.assert_allclose(found.var(1), whole.var(1), rtol=1e-5)


@pytest.mark.parametrize("weights", [np.ones(ROWS - 1), da.ones(ROWS - 1), da.ones((ROWS, 1)), np.ones((ROWS, 1))])
def test_weights_that_do_not_fit(x, weights):
    with pytest.raises(ValueError, match=r"sample_weight has shape .*expected \(5000,\)"):
        _sources.recognize(da.from_array(x, (170, 6))).moments(weights)


@pytest.mark.parametrize("scheduler", ["sync", "threads", "processes"])
def test_infinite_entries_have_a_place(x, scheduler):
    x[4321, 5] = np.inf
    source = _sources.recognize(da.from_array(x, (170, 4)))
    with dask.config.set(scheduler=scheduler, num_workers=2):
        with pytest.raises(ValueError, match=r"feature 5, the first in row 4321 \(index \(4321, 5\)"):
            source.moments()


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32, np.bool_])
def test_types(x, dtype):
    x = x.astype(dtype)
    source = _sources.recognize(da.from_array(x, (170, 6)))
    expected = x.dtype if x.dtype.kind == "f" else np.float64
    assert source.dtype == expected
    assert_equal(source.moments(), fastbn.moments(x.astype(expected)))
    y = source.map(np.copy)
    assert y.dtype == expected and y.compute().dtype == expected


# --- unknown shapes, and what is no table ---------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [6, 4])
def test_chunks_of_unknown_rows(x, columns):
    array = da.from_array(x, (170, columns))
    some = array[array[:, 0] > 30]
    kept = x[x[:, 0] > 30]
    source = _sources.recognize(some)
    assert_equal(source.moments(), fastbn.moments(kept))
    np.testing.assert_array_equal(source.map(_doubled).compute(), kept * 2)
    weights = da.from_array(x[:, 1] ** 2, 170)[array[:, 0] > 30]
    assert source.moments(weights).count[0] == pytest.approx(np.sum(kept[:, 1].astype(float) ** 2), rel=1e-5)
    with pytest.raises(ValueError, match="compute_chunk_sizes"):
        source.moments(np.ones(len(kept)))
    with pytest.raises(ValueError, match="0 sample"):
        _sources.recognize(array[array[:, 0] > 1e9]).moments()


@pytest.mark.parametrize("shape, words", [((9,), "Expected 2D array, got 1D"), ((2, 2, 2), "got 3D"), ((0, 3), "0 sample"),
                                          ((3, 0), "0 feature")])
def test_what_is_no_table(shape, words):
    with pytest.raises(ValueError, match=words):
        _sources.recognize(da.ones(shape))


@pytest.mark.parametrize("dtype, error", [(complex, ValueError), ("U1", TypeError), (object, TypeError)])
def test_what_is_no_number(dtype, error):
    with pytest.raises(error, match="Complex|expected numbers"):
        _sources.recognize(da.from_array(np.ones((3, 2)).astype(dtype), 1))


def test_data_frames(x):
    pandas = pytest.importorskip("pandas")
    frames = pytest.importorskip("dask.dataframe")
    names = list("abcdef")
    source = _sources.recognize(frames.from_pandas(pandas.DataFrame(x, columns=names), npartitions=4))
    assert source.feature_names.tolist() == names and source.dtype == np.float32
    assert_equal(source.moments(), fastbn.moments(x))


# --- transform ----------------------------------------------------------------------------------------------------------


def test_map_keeps_the_chunks(x):
    array = da.from_array(x, (170, 6))
    y = _sources.recognize(array).map(_doubled)
    assert isinstance(y, da.Array) and y.chunks == array.chunks and y.dtype == np.float32
    for scheduler in ("threads", "processes"):
        np.testing.assert_array_equal(y.compute(scheduler=scheduler, num_workers=2), x * 2)


def test_chunks_that_a_filter_left_without_rows(x):
    array = da.from_array(x, (500, 6))
    kept = array[da.arange(ROWS, chunks=500) % 1000 < 500]
    scaler = StandardScaler().fit(kept)
    y = scaler.transform(kept).compute()
    assert y.dtype == np.float32
    np.testing.assert_array_equal(scaler.inverse_transform(scaler.transform(kept)).compute(), scaler.inverse_transform(y))
    assert y.shape == (ROWS // 2, COLUMNS)


def test_names_of_data_frames(x):
    pandas = pytest.importorskip("pandas")
    frames = pytest.importorskip("dask.dataframe")
    frame = frames.from_pandas(pandas.DataFrame(x, columns=list("abcdef")), npartitions=4)
    scaler = StandardScaler().fit(frame)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = scaler.transform(frame).compute(scheduler="sync")
    np.testing.assert_allclose(y, StandardScaler().fit(x).transform(x), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="feature names should match"):
        scaler.transform(frame[list("fedcba")])
    with pytest.raises(ValueError, match="feature names should match|5 features"):
        scaler.transform(frame[list("abcde")])


def test_weights_in_a_column_of_the_data_frame(x):
    pandas = pytest.importorskip("pandas")
    frames = pytest.importorskip("dask.dataframe")
    table = pandas.DataFrame(x, columns=list("abcdef")).assign(w=np.arange(ROWS) % 3)
    frame = frames.from_pandas(table, npartitions=4)
    found = _sources.recognize(frame[list("abcdef")]).moments(frame.w)
    assert_equal(found, fastbn.moments(x, weights=np.arange(ROWS) % 3))
    with pytest.raises(ValueError, match=r"to_dask_array\(lengths=True\)"):
        _sources.recognize(frame).moments(np.ones(ROWS))


def test_cut_columns_are_joined_without_larger_chunks(x):
    array = da.from_array(x, (1000, 2))
    y = _sources.recognize(array).map(_doubled)
    assert y.numblocks[1] == 1
    assert max(y.chunks[0]) * COLUMNS <= 1000 * 2
    np.testing.assert_array_equal(y.compute(), x * 2)
    assert _dask._cut((10, 3, 0, 7), 4) == (4, 3, 3, 3, 0, 4, 3)


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_a_chunk_is_transformed_with_one_thread(x, scheduler):
    y = _sources.recognize(da.from_array(x, (1700, 6))).map(_threads_used)
    np.testing.assert_array_equal(y.compute(scheduler=scheduler, num_workers=2), 1)


def _threads_used(chunk):
    return np.full_like(chunk, fastbn.get_num_threads())


def test_the_limit_of_a_chunk_is_over_afterwards(x):
    before = fastbn.get_num_threads()
    _sources.recognize(da.from_array(x, (1700, 6))).map(_doubled).compute(scheduler="sync")
    assert fastbn.get_num_threads() == before


# --- through the scaler ---------------------------------------------------------------------------------------------------


@pytest.fixture
def scaler():
    from fastbn import sklearn as scaling
    if not hasattr(scaling, "StandardScaler"):
        pytest.skip("fastbn.sklearn has no StandardScaler")
    return scaling.StandardScaler


@pytest.mark.parametrize("columns", [6, 4])
def test_the_scaler(x, scaler, columns):
    array = da.from_array(x, (170, columns))
    plain, fitted = scaler().fit(x), scaler().fit(array)
    np.testing.assert_allclose(fitted.mean_, plain.mean_, rtol=1e-7)
    np.testing.assert_allclose(fitted.scale_, plain.scale_, rtol=1e-6)
    assert fitted.n_samples_seen_ == ROWS and fitted.n_features_in_ == COLUMNS
    y = fitted.transform(array)
    assert isinstance(y, da.Array) and y.dtype == np.float32
    for scheduler in ("threads", "processes"):
        np.testing.assert_allclose(y.compute(scheduler=scheduler, num_workers=2), plain.transform(x), rtol=1e-5, atol=1e-6)
    back = fitted.inverse_transform(y)
    np.testing.assert_allclose(back.compute(), x, rtol=1e-5, atol=1e-4)


def test_copy_false_leaves_the_chunks_alone(x, scaler):
    before = x.copy()
    fitted = scaler(copy=False).fit(da.from_array(x, (170, 6)))
    y = fitted.transform(da.from_array(x, (170, 6)))
    np.testing.assert_array_equal(y.compute(), y.compute())
    np.testing.assert_array_equal(x, before)


def test_what_the_scaler_returned_does_not_change_when_it_is_fitted_again(x, scaler):
    array = da.from_array(x, (170, 6))
    fitted = scaler().fit(array)
    y = fitted.transform(array)
    fitted.fit(array * 5 + 3)
    np.testing.assert_allclose(y.compute(), scaler().fit_transform(x), rtol=1e-5, atol=1e-6)


def test_the_scaler_with_weights(rng, x, scaler):
    weights = rng.random(ROWS)
    fitted = scaler().fit(da.from_array(x, (170, 6)), sample_weight=weights)
    np.testing.assert_allclose(fitted.mean_, np.average(x, axis=0, weights=weights), rtol=1e-5)
