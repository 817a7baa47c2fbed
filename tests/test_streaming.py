"""Statistics block by block: how arrays are cut, what is merged, and the sources that StandardScaler takes."""
import gc
import math
import os
import subprocess
import sys
import textwrap
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastbn
from fastbn._data import mapped, streaming
from fastbn._engine import fusion
from fastbn._training import omit

SHAPES = [(50, 4), (7, 3, 5), (3, 400), (400, 3), (2, 3, 4, 50), (1, 1), (300,), (5, 0, 3), (0, 4)]


def indexes(a, limit):
    return list(streaming.block_indices(a.shape, streaming.memory_order(a), a.itemsize, limit))


@given(shape=st.lists(st.integers(1, 12), min_size=1, max_size=4), seed=st.integers(0, 99), limit=st.integers(1, 2000))
def test_blocks_are_runs_of_memory_that_make_up_the_array(shape, seed, limit):
    order = np.random.default_rng(seed).permutation(len(shape))
    a = np.arange(math.prod(shape), dtype=np.float32).reshape([shape[i] for i in order]).transpose(np.argsort(order))
    found = [a[index] for index in indexes(a, limit)]
    for block in found:
        in_memory = block.transpose(streaming.memory_order(a))
        assert in_memory.flags.c_contiguous and block.size and (block.nbytes <= limit or block.size == 1)
    joined = np.concatenate([block.transpose(streaming.memory_order(a)).ravel() for block in found])
    np.testing.assert_array_equal(joined, a.transpose(streaming.memory_order(a)).ravel())


@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_are_of_like_sizes(shape):
    a = np.zeros(shape, np.float32)
    sizes = [math.prod(one.stop - one.start for one in index) for index in indexes(a, 400)]
    assert sum(sizes) == a.size
    assert not sizes or max(sizes) <= max(2 * min(sizes), 100)


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 2), (1, 2)])
@pytest.mark.parametrize("order", ["C", "F", "slices"])
@pytest.mark.parametrize("block_bytes", [64, 1000, 10**6])
def test_merged_blocks_have_the_moments_of_the_whole(rng, monkeypatch, axes, order, block_bytes):
    monkeypatch.setattr(streaming, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(streaming, "_ROWS", 0)
    x = rng.normal(3, 2, (20, 6, 9))
    x = np.asfortranarray(x) if order == "F" else x[::-1, ::2, 1:] if order == "slices" else x
    features = math.prod(x.shape[i] for i in axes)
    found = streaming.moments_of_blocks(streaming.blocks_of(x, features), x.shape, axes)
    whole = fastbn.moments(x, axis=axes)
    assert found.count == whole.count and isinstance(found.count, int)
    np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(found.M2, whole.M2, rtol=1e-12)


@pytest.mark.parametrize("block_bytes", [64, 1000, 10**6])
def test_missing_entries_count_by_feature(rng, monkeypatch, block_bytes):
    monkeypatch.setattr(streaming, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(streaming, "_ROWS", 0)
    x = rng.normal(3, 2, (200, 6))
    x[rng.random(x.shape) < 0.2] = np.nan
    x[:, 2], x[:150, 3], x[:, 4] = np.nan, np.nan, 7
    found = streaming.moments_of_blocks(streaming.blocks_of(x, 6), x.shape, (1,))
    np.testing.assert_array_equal(found.count, np.sum(~np.isnan(x), 0))
    assert found.count.dtype == np.int64 and found.M2[4] == 0 and found.mean[4] == 7
    assert found.mean[2] == 0 and found.M2[2] == 0
    some = [0, 1, 3, 5]
    np.testing.assert_allclose(found.mean[some], np.nanmean(x[:, some], 0), rtol=1e-12)
    np.testing.assert_allclose(found.var()[some], np.nanvar(x[:, some], 0), rtol=1e-12)


@given(seed=st.integers(0, 10**6), rate=st.sampled_from([0.01, 0.5, 0.99]), ratio=st.sampled_from([0, 1, 1e3, 1e6]),
       dtype=st.sampled_from([np.float16, np.float32, np.float64]), order=st.sampled_from("CF"),
       outlier=st.sampled_from([None, 1e3]))
def test_moments_of_what_is_present(seed, rate, ratio, dtype, order, outlier):
    """The first entry of a feature may be far from the others, or be the only one."""
    rng = np.random.default_rng(seed)
    x = np.asarray(rng.normal(ratio if dtype is not np.float16 else ratio ** 0.5, 1, (60, 5, 4)), dtype, order=order)
    if outlier is not None:
        x[0] += outlier
    x[rng.random(x.shape) < rate] = np.nan
    x[:, 3] = np.where(np.isnan(x[:, 3]), np.nan, dtype(0.1))
    found = omit.moments_of_present(x, (1,), fusion.NONE, 1)[0]
    there = ~np.isnan(x)
    np.testing.assert_array_equal(found.count, there.sum(axis=(0, 2)))
    for f in range(5):
        entries = x[:, f][there[:, f]].astype(np.longdouble)
        if not entries.size:
            assert found.mean[f] == 0 and found.M2[f] == 0
            continue
        mean, M2 = entries.mean(), ((entries - entries.mean()) ** 2).sum()
        assert abs(found.mean[f] - mean) <= 2e-7 * max(abs(mean), np.sqrt(M2 / entries.size))
        assert abs(found.M2[f] - M2) <= 4e-6 * M2 + 1e-25 * mean ** 2
        if np.ptp(entries) == 0:
            assert found.M2[f] == 0 and found.mean[f] == entries[0]


def test_weights_of_blocks(rng, monkeypatch):
    monkeypatch.setattr(streaming, "BLOCK_BYTES", 200)
    x, weights = rng.normal(3, 2, (200, 6)), rng.random(200)
    weights[20:60] = 0
    x[5, 1] = np.nan
    for a in (x, np.asfortranarray(x)):
        found = streaming.moments_of_blocks(streaming.blocks_of(a, 6), a.shape, (1,), weights=weights)
        whole = fastbn.moments(a, weights=weights, nan_policy="omit")
        assert found.count.dtype == np.float64
        for name in ("count", "squares", "mean", "M2"):
            np.testing.assert_allclose(getattr(found, name), getattr(whole, name), rtol=1e-12)


@pytest.mark.parametrize("weights", [None, np.ones(200)])
def test_infinite_entries_have_a_place(rng, monkeypatch, weights):
    monkeypatch.setattr(streaming, "BLOCK_BYTES", 200)
    x = rng.normal(3, 2, (200, 6))
    x[150, 4] = -np.inf
    x[140, 4] = np.nan
    with pytest.raises(ValueError, match=r"table has an infinite entry in feature 4, the first in row 150 \(index \(150"):
        streaming.moments_of_blocks(streaming.blocks_of(x, 6), x.shape, (1,), weights=weights, name="table")


def test_progress_adds_up_to_all_bytes(rng):
    x, seen = rng.normal(size=(3000, 400)), []
    streaming.moments_of_blocks(streaming.blocks_of(x, 400), x.shape, (1,), advance=seen.append)
    assert len(seen) > 1 and sum(seen) == x.nbytes


# --- mapped files -----------------------------------------------------------------------------------------------------


@pytest.fixture
def mapped_file(rng, tmp_path):
    x = rng.normal(size=(5000, 7)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    return x, tmp_path / "x.npy"


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
@pytest.mark.parametrize("part", [np.s_[:], np.s_[100:-100], np.s_[::-1], np.s_[::3, 2:4]])
def test_letting_go_of_pages_changes_nothing(mapped_file, mode, part):
    x, path = mapped_file
    a = np.load(path, mmap_mode=mode)
    if mode != "r":
        a[2000:2010] = 5  # which a private mapping has nowhere else
        x[2000:2010] = 5
    pages = mapped.Pages(a[part])
    for _ in range(2):
        np.testing.assert_array_equal(a[part], x[part])
        pages.release(np.asarray(a[part]))
        pages.release(np.asarray(a[part])[:0])
    np.testing.assert_array_equal(a, x)


def test_only_mapped_arrays_have_a_mapping(mapped_file):
    _, path = mapped_file
    a = np.load(path, mmap_mode="r")
    assert mapped.mapping_of(a)[1] == mapped.mapping_of(a[3:])[1] == "r"
    assert mapped.mapping_of(a + 1) == mapped.mapping_of(np.ones(3)) == (None, None)


# --- sources of fastbn.sklearn ------------------------------------------------------------------------------------------


@pytest.fixture
def sources():
    pytest.importorskip("sklearn")
    from fastbn.sklearn import _sources
    return _sources


@pytest.fixture
def scaler():
    pytest.importorskip("sklearn")
    scaling = pytest.importorskip("fastbn.sklearn")
    if not hasattr(scaling, "StandardScaler"):
        pytest.skip("fastbn.sklearn has no StandardScaler")
    return scaling.StandardScaler


def assert_moments(found, x):
    np.testing.assert_array_equal(found.count, len(x))
    np.testing.assert_allclose(found.mean, x.mean(0, dtype=np.float64), rtol=1e-7)
    np.testing.assert_allclose(found.var(), x.var(0, dtype=np.float64), rtol=1e-6)


def test_what_is_no_source(sources, tmp_path, rng):
    np.save(tmp_path / "x.npy", rng.normal(size=(20, 3)))
    small = np.load(tmp_path / "x.npy", mmap_mode="r")
    for x in (np.ones((3, 2)), [[1.0]], small, small + 1, None, range(3), np.memmap):
        assert sources.recognize(x) is None


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2", "<i2", "?"])
@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("kind", ["path", "str", "memmap"])
def test_mapped_sources(sources, monkeypatch, tmp_path, rng, dtype, order, kind):
    monkeypatch.setattr(streaming, "BLOCK_BYTES", 3000)
    monkeypatch.setattr(sources, "BLOCK_BYTES", 3000)
    monkeypatch.setattr(sources, "MAPPED_BYTES", 0)
    x = np.asarray(rng.normal(30, 20, (900, 5)).astype(dtype), order=order)
    path = tmp_path / "x.npy"
    np.save(path, x)
    source = sources.recognize({"path": path, "str": str(path), "memmap": np.load(path, mmap_mode="r")}[kind])
    expected = np.dtype(dtype).newbyteorder("=") if "f" in dtype else np.dtype(np.float64)
    assert source.n_features == 5 and source.dtype == expected and source.feature_names is None
    assert_moments(source.moments(), x.astype(np.float64))
    seen = []
    y = source.map(lambda chunk: seen.append(len(chunk)) or chunk * 2)
    np.testing.assert_array_equal(y, x.astype(expected) * 2)
    assert type(y) is np.ndarray and y.dtype == expected and len(seen) > 1
    weights = rng.random(900)
    np.testing.assert_allclose(source.moments(weights).mean, np.average(x.astype(np.float64), axis=0, weights=weights))


def test_a_small_mapped_array_is_one_like_others(sources, tmp_path):
    big = np.memmap(tmp_path / "big", np.float32, "w+", shape=(9 << 20, 1))
    assert sources.recognize(big) is not None
    assert sources.recognize(big[:1000]) is None and sources.recognize(big[:, 0]) is None


@pytest.mark.parametrize("x, error, words", [
    (np.ones(9), ValueError, "Expected 2D array, got 1D"), (np.ones((0, 3)), ValueError, "0 sample"),
    (np.ones((3, 0)), ValueError, "0 feature"), (np.ones((3, 2), complex), TypeError, "complex"),
    (np.array([[1, np.inf]]), ValueError, r"infinite entry in feature 1, the first in row 0"),
])
def test_files_that_are_no_tables(sources, tmp_path, x, error, words):
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(error, match=words):
        sources.recognize(tmp_path / "x.npy").moments()


def test_missing_and_truncated_files(sources, tmp_path):
    with pytest.raises(FileNotFoundError):
        sources.recognize(tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", np.ones((9, 9)))
    os.truncate(tmp_path / "x.npy", 500)
    with pytest.raises(ValueError, match="truncated"):
        sources.recognize(tmp_path / "x.npy")


def chunks(x, *cuts):
    return iter(np.split(x, cuts))


def test_iterators(sources, rng):
    x = rng.normal(30, 20, (900, 5)).astype(np.float32)
    source = sources.recognize(chunks(x, 1, 300, 300))
    assert (source.n_features, source.dtype, source.feature_names) == (5, np.float32, None)
    assert_moments(source.moments(), x)
    assert isinstance(sources.recognize(chunks(x, 7)).moments().count, int)
    source = sources.recognize(chunks(x, 1, 300, 300))
    results = source.map(lambda chunk: chunk + 1)
    np.testing.assert_array_equal(np.concatenate(list(results)), x + 1)
    np.testing.assert_array_equal([len(one) for one in sources.recognize(chunks(x, 5)).map(np.copy)], [5, 895])


def test_iterators_are_asked_for_one_chunk_at_a_time(sources, rng):
    given_out = []

    def generator():
        for number in range(4):
            given_out.append(number)
            yield rng.normal(size=(9, 2))
    source = sources.recognize(generator())
    assert given_out == []
    assert source.n_features == 2 and given_out == [0]
    results = source.map(np.copy)
    next(results)
    assert given_out == [0]
    next(results)
    assert given_out == [0, 1]


def test_no_chunk_is_kept(sources, rng):
    alive = []

    def generator():
        for _ in range(5):
            gc.collect()
            assert sum(one() is not None for one in alive) <= 1
            chunk = rng.normal(size=(9, 2))
            alive.append(weakref.ref(chunk))
            yield chunk
            del chunk
    assert sources.recognize(generator()).moments().count == 45
    for _ in sources.recognize(generator()).map(np.negative):
        pass
    assert len(alive) == 10


def test_weights_and_missing_values_of_iterators(sources, rng):
    x, weights = rng.normal(30, 20, (900, 5)), rng.random(900)
    x[rng.random(x.shape) < 0.1] = np.nan
    whole = fastbn.moments(x, weights=weights, nan_policy="omit")
    found = sources.recognize(chunks(x, 7, 500)).moments(weights)
    for name in ("count", "mean", "M2"):
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name), rtol=1e-12)
    whole = fastbn.moments(x, nan_policy="omit")
    found = sources.recognize(chunks(x, 7, 500)).moments()
    np.testing.assert_array_equal(found.count, whole.count)
    assert found.count.dtype == np.int64
    assert (sources.recognize(chunks(x, 7, 500)).moments(0.5).count * 2 == whole.count).all()
    for wrong in (weights[:, None], weights[:-1], weights[:300], np.ones(901)):
        with pytest.raises(ValueError, match="sample_weight has"):
            sources.recognize(chunks(x, 7, 500)).moments(wrong)


@pytest.mark.parametrize("second, error, words", [
    (np.ones((3, 4)), ValueError, "chunk 1 of X .* has 4 features, expected 5"), (np.ones(5), ValueError, "chunk 1 .*2D"),
    (np.ones((3, 5), complex), ValueError, "chunk 1 .*Complex data"), (np.full((3, 5), "a"), TypeError, "chunk 1 .*<U1"),
    (np.full((3, 5), np.inf), ValueError, "feature 0, the first in row 9"), (object(), ValueError, "chunk 1 .*2D"),
])
def test_chunks_that_do_not_fit(sources, second, error, words):
    with pytest.raises(error, match=words):
        sources.recognize(iter([np.ones((9, 5)), second])).moments()


def test_iterators_that_are_used_up(sources, rng):
    iterator = chunks(rng.normal(size=(9, 2)))
    sources.recognize(iterator).moments()
    with pytest.raises(ValueError, match="gave no chunk"):
        list(sources.recognize(iterator).map(np.copy))
    with pytest.raises(ValueError, match="0 sample"):
        sources.recognize(iter([np.ones((0, 3)), np.ones((0, 3))])).moments()


def test_data_frames_in_chunks(sources, rng):
    pandas = pytest.importorskip("pandas")
    x = rng.normal(size=(9, 2))
    frames = [pandas.DataFrame(part, columns=["a", "b"]) for part in np.split(x, [4])]
    source = sources.recognize(iter(frames))
    assert source.feature_names.tolist() == ["a", "b"] and source.feature_names.dtype == object
    assert_moments(source.moments(), x)
    assert sources.recognize(iter([pandas.DataFrame(x)])).feature_names is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("kind", ["memmap", "path"])
def test_memory_of_mapped_sources_is_bounded(sources, tmp_path, order, kind):
    """Statistics of 256 MB, mostly a hole, within 32 MiB beyond what the program itself takes."""
    with open(tmp_path / "x.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": order == "F", "shape": (8_000_000, 8)})
        file.truncate(file.tell() + 256_000_000)
    script = textwrap.dedent(f"""
        import numpy as np
        from fastbn.sklearn import _sources
        def peak():
            return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
        _sources.recognize(iter([np.ones((100000, 8), np.float32)])).moments()
        before = peak()
        x = "x.npy" if {kind == "path"} else np.load("x.npy", mmap_mode="r")
        found = _sources.recognize(x).moments()
        assert found.count == 8_000_000 and not found.M2.any()
        print(peak() - before)
    """)
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 32 << 10


# --- through the scaler -------------------------------------------------------------------------------------------------


def test_the_scaler_takes_files_and_iterators(scaler, rng, tmp_path):
    x = rng.normal(30, 20, (900, 5)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    plain = scaler().fit(x)
    expected = plain.transform(x)
    for given_as in (lambda: tmp_path / "x.npy", lambda: chunks(x, 7, 500)):
        fitted = scaler().fit(given_as())
        np.testing.assert_allclose(fitted.mean_, plain.mean_, rtol=1e-7)
        np.testing.assert_allclose(fitted.scale_, plain.scale_, rtol=1e-6)
        assert fitted.n_samples_seen_ == 900 and fitted.n_features_in_ == 5
        y = fitted.transform(given_as())
        y = y if isinstance(y, np.ndarray) else np.concatenate(list(y))
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_copy_false_leaves_a_file_alone(scaler, sources, monkeypatch, rng, tmp_path):
    monkeypatch.setattr(sources, "MAPPED_BYTES", 0)
    x = rng.normal(30, 20, (900, 5)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r+")
    y = scaler(copy=False).fit_transform(mapped)
    np.testing.assert_array_equal(mapped, x)
    assert not np.may_share_memory(y, mapped) and abs(y.mean()) < 1e-5


def test_the_scaler_goes_on_with_chunks(scaler, rng):
    x = rng.normal(30, 20, (900, 5))
    fitted = scaler().partial_fit(x[:100]).partial_fit(chunks(x[100:], 300))
    np.testing.assert_allclose(fitted.var_, x.var(0), rtol=1e-10)
