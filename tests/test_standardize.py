"""`python -m fastbn standardize`: files in, files out, in bounded memory and in one piece or not at all."""
import errno
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from fastbn import _cli
from fastbn._data import standardizing, streaming
from fastbn.standardize import files
from fastbn.standardize.files import standardize_file

FLOATS = [np.float16, np.float32, np.float64]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """So that small files have many blocks, and all ways to cut an array come up."""
    monkeypatch.setattr(streaming, "BLOCK_BYTES", 1 << 10)


def table(rng, shape=(700, 6), dtype=np.float32):
    scale = 2.0 ** rng.integers(-5, 6, shape[-1])
    return (rng.normal(size=shape) * scale + 3 * scale).astype(dtype)


def exact(x, axes):
    """(y, mean, std) by float64."""
    x = x.astype(np.float64)
    others = tuple(i for i in range(x.ndim) if i not in axes)
    mean, std = np.nanmean(x, others, keepdims=True), np.nanstd(x, others, keepdims=True)
    return (x - mean) / np.where(std == 0, 1, std), mean.ravel(), std.ravel()


def assert_near(y, expected, dtype):
    tolerance = {np.float16: 2e-3, np.float32: 1e-6, np.float64: 1e-12}[np.dtype(dtype).type]
    np.testing.assert_allclose(y.astype(np.float64), expected, rtol=tolerance, atol=tolerance)


def fail(capsys, *arguments):
    """Run a command line that must fail; its only line on stderr, without the start."""
    assert _cli.main(["standardize", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("fastbn: error: ") and captured.err.count("\n") == 1
    return captured.err.removeprefix("fastbn: error: ")


@pytest.fixture
def folder(tmp_path):
    """A folder that afterwards has no temporary file."""
    yield tmp_path
    assert not list(tmp_path.glob(".*"))


# --- results ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("byte_order", "<>")
@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_form_of_file(rng, folder, dtype, byte_order, order, version):
    x = np.asarray(table(rng, dtype=dtype), order=order)
    with open(folder / "in.npy", "wb") as file:
        np.lib.format.write_array(file, x.astype(x.dtype.newbyteorder(byte_order)), version=version)
    outcome = standardize_file(folder / "in.npy", folder / "out.npy")
    y = np.load(folder / "out.npy")
    assert y.dtype == x.dtype and y.dtype.isnative and y.flags.f_contiguous == (order == "F") and outcome.shape == x.shape
    assert_near(y, exact(x, (1,))[0], dtype)


@pytest.mark.parametrize("shape, axis", [
    ((40, 3, 5, 7), 1), ((40, 3, 5, 7), (1,)), ((40, 3, 5, 7), -1), ((40, 3, 5, 7), (1, 3)), ((40, 3, 5, 7), (0, 2)),
    ((3, 4000), 0), ((3, 4000), 1), ((2, 3, 2000), 1), ((2000, 1), 0 - 1), ((1, 1, 9), 2), ((500, 2), 0),
])
@pytest.mark.parametrize("order", "CF")
def test_every_axis(rng, folder, shape, axis, order):
    """Blocks that hold whole slices, parts of one, and some of the features."""
    x = np.asarray(rng.normal(3, 2, shape), order=order)
    np.save(folder / "in.npy", x)
    found = standardize_file(folder / "in.npy", folder / "out.npy", axis=axis).statistics
    axes = tuple(sorted(i % x.ndim for i in (axis if isinstance(axis, tuple) else (axis,))))
    y, mean, std = exact(x, axes)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-14)
    np.testing.assert_allclose(np.sqrt(found.var), std, rtol=1e-13, atol=1e-15)
    assert found.axis == axes and (found.count == x.size // mean.size).all()
    assert_near(np.load(folder / "out.npy"), y, np.float64)


def test_a_vector_is_one_feature(rng, folder):
    x = rng.normal(5, 3, 3000).astype(np.float32)
    np.save(folder / "in.npy", x)
    assert standardize_file(folder / "in.npy", folder / "out.npy").statistics.mean.shape == (1,)
    assert_near(np.load(folder / "out.npy"), exact(x[:, None], (1,))[0][:, 0], np.float32)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("order", "CF")
def test_missing_values_and_constant_features(rng, folder, dtype, order):
    x = np.asarray(table(rng, dtype=dtype), order=order)
    x[rng.random(x.shape) < 0.1] = np.nan
    x[:, 2] = 0.1
    x[3, 2] = np.nan
    x[:, 4] = np.nan
    np.save(folder / "in.npy", x)
    found = standardize_file(folder / "in.npy", folder / "out.npy").statistics
    y = np.load(folder / "out.npy")
    np.testing.assert_array_equal(np.isnan(y), np.isnan(x))
    assert (y[~np.isnan(x[:, 2]), 2] == 0).all() and found.scale[2] == 1 and found.scale[4] == 1
    np.testing.assert_array_equal(found.count, np.sum(~np.isnan(x), 0))
    others = [0, 1, 3, 5]
    assert_near(y[:, others], exact(x[:, others], (1,))[0], dtype)


@pytest.mark.parametrize("mean", [0, 1, 1e3, 1e6])
def test_accuracy_at_any_mean(rng, folder, mean):
    x = rng.normal(mean, 1, (3000, 4)).astype(np.float32)
    np.save(folder / "in.npy", x)
    standardize_file(folder / "in.npy", folder / "out.npy")
    y = np.load(folder / "out.npy")
    assert_near(y, exact(x, (1,))[0], np.float32)


def test_statistics_are_saved_and_used(rng, folder):
    x, test = table(rng), table(rng, (50, 6))
    np.save(folder / "train.npy", x)
    np.save(folder / "test.npy", test)
    standardize_file(folder / "train.npy", folder / "out.npy", save_statistics=folder / "stats.npz")
    with np.load(folder / "stats.npz") as saved:
        assert sorted(saved.files) == ["axis", "count", "mean", "scale", "var"]
        _, mean, std = exact(x, (1,))
        np.testing.assert_allclose(saved["mean"], mean, rtol=1e-8)
        np.testing.assert_allclose(saved["scale"], std, rtol=1e-6)
        assert saved["count"].tolist() == [700] * 6 and saved["axis"].tolist() == [1]
    outcome = standardize_file(folder / "test.npy", folder / "test_out.npy", statistics=folder / "stats.npz")
    assert not outcome.fitted
    assert_near(np.load(folder / "test_out.npy"), (test - mean) / std, np.float32)


def test_the_axis_comes_with_the_statistics(rng, folder):
    x = table(rng, (60, 4, 9))
    np.save(folder / "in.npy", x)
    standardize_file(folder / "in.npy", folder / "a.npy", axis=1, save_statistics=folder / "stats.npz")
    standardize_file(folder / "in.npy", folder / "b.npy", statistics=folder / "stats.npz")
    assert (folder / "a.npy").read_bytes() == (folder / "b.npy").read_bytes()


@pytest.mark.parametrize("order", "CF")
def test_no_rows(rng, folder, order, capsys):
    np.save(folder / "in.npy", table(rng))
    standardize_file(folder / "in.npy", folder / "out.npy", save_statistics=folder / "stats.npz")
    np.save(folder / "empty.npy", np.zeros((0, 6), np.float32, order=order))
    standardize_file(folder / "empty.npy", folder / "empty_out.npy", statistics=folder / "stats.npz")
    assert np.load(folder / "empty_out.npy").shape == (0, 6)
    assert "without an entry" in fail(capsys, folder / "empty.npy", folder / "other.npy")


def test_the_file_onto_itself(rng, folder, capsys):
    x = table(rng)
    np.save(folder / "x.npy", x)
    assert "--force" in fail(capsys, folder / "x.npy", folder / "x.npy")
    np.testing.assert_array_equal(np.load(folder / "x.npy"), x)
    assert _cli.main(["standardize", str(folder / "x.npy"), str(folder / "x.npy"), "--force"]) == 0
    assert_near(np.load(folder / "x.npy"), exact(x, (1,))[0], np.float32)


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")
def test_links_are_followed_and_permissions_kept(rng, folder):
    np.save(folder / "in.npy", table(rng))
    target = folder / "target.npy"
    target.write_bytes(b"old")
    target.chmod(0o640)
    (folder / "link.npy").symlink_to(target)
    standardize_file(folder / "in.npy", folder / "link.npy", overwrite=True)
    assert (folder / "link.npy").is_symlink() and np.load(target).shape == (700, 6)
    assert target.stat().st_mode & 0o777 == 0o640


def test_the_summary(rng, folder, capsys):
    x = table(rng)
    x[:, 1], x[5, 0] = 2, np.nan
    np.save(folder / "in.npy", x)
    arguments = ["standardize", str(folder / "in.npy"), str(folder / "out.npy")]
    assert _cli.main(arguments) == 0
    out, err = capsys.readouterr()
    assert "700 x 6 float32, 6 features, 1 of them constant, 1 NaN left as they are; " in out and err == ""
    assert _cli.main([*arguments, "--force", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(rng, folder, monkeypatch, capsys):
    pytest.importorskip("rich")
    np.save(folder / "in.npy", table(rng))
    monkeypatch.setattr("fastbn._data.progress._is_terminal", lambda stream: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    standardize_file(folder / "in.npy", folder / "out.npy", progress=True)
    shown = capsys.readouterr().err
    assert "statistics" in shown and "standardizing" in shown
    standardize_file(folder / "in.npy", folder / "out.npy", overwrite=True)
    assert capsys.readouterr().err == ""


def test_without_rich(rng, folder, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr("fastbn._data.progress._is_terminal", lambda stream: True)
    np.save(folder / "in.npy", table(rng))
    standardize_file(folder / "in.npy", folder / "out.npy", progress=True)
    assert capsys.readouterr().err == "" and np.load(folder / "out.npy").shape == (700, 6)


# --- the one call of the core ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("power", [-1030, -300, -130, -120, 0, 120, 127, 300, 1020])
def test_scales_of_any_size(rng, dtype, power):
    if abs(power) > 150 and dtype is np.float32:
        power = np.sign(power) * 127
    scale = np.array([2.0**power, 1.0])
    x = (np.clip(rng.normal(size=(50, 2)), -1.5, 1.5) * scale).astype(dtype)
    y = standardizing.standardize_into(x, np.zeros(2), scale)
    with np.errstate(under="ignore"):
        expected = x.astype(np.float64) / scale
    assert y.dtype == dtype
    assert_near(y, expected, dtype)
    out = np.empty_like(x)
    assert standardizing.standardize_into(x, np.zeros(2), scale, out=out) is out
    np.testing.assert_array_equal(out, y)


def test_mean_or_scale_alone(rng):
    x = table(rng)
    mean, scale = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    assert_near(standardizing.standardize_into(x, mean, None), x - mean, np.float32)
    assert_near(standardizing.standardize_into(x, None, scale), x / scale, np.float32)


# --- errors -----------------------------------------------------------------------------------------------------------


def damaged(folder, change):
    """A good file's bytes, changed."""
    np.save(folder / "in.npy", np.ones((300, 4), np.float32))
    content = bytearray((folder / "in.npy").read_bytes())
    (folder / "in.npy").write_bytes(change(content))


@pytest.mark.parametrize("change, words", [
    (lambda content: content[:-1], "truncated"),
    (lambda content: content[:200], "truncated"),
    (lambda content: content + b"\0", "1 bytes after its data"),
    (lambda content: b"", "no .npy file"),
    (lambda content: content[:5], "no .npy file"),
    (lambda content: content[:40], "no .npy file"),
    (lambda content: b"PK" + content, "no .npy file"),
    (lambda content: content.replace(b"'shape'", b"'shapx'"), "no .npy file"),
    (lambda content: content.replace(b"\x01\x00", b"\x09\x00", 1), "version 9.0"),
    (lambda content: content.replace(b"}", b" "), "header is damaged"),
    (lambda content: content.replace(b"(300, 4)", b"(-300,-4)".ljust(8)), "header is damaged"),
])
def test_damaged_files(folder, capsys, change, words):
    damaged(folder, change)
    message = fail(capsys, folder / "in.npy", folder / "out.npy")
    assert words in message and str(folder / "in.npy") in message
    assert not (folder / "out.npy").exists()


@pytest.mark.parametrize("x, words", [
    (np.ones((9, 2), np.int32), "int32"), (np.ones((9, 2), bool), "bool"), (np.ones((9, 2), complex), ".real and .imag"),
    (np.array([[object()]]), "pickled"), (np.zeros(3, [("a", "f4")]), "fields"), (np.zeros((2, 2), "V2"), "bfloat16"),
    (np.array([["a"]]), "<U1"), (np.float32(1), "a single number"), (np.zeros((0, 3)), "without an entry"),
    (np.zeros((3, 0)), "without an entry"), (np.zeros((2, 2), np.longdouble), "longdouble"),
])
def test_files_of_something_else(folder, capsys, x, words):
    if words == "longdouble":
        if x.dtype.itemsize <= 8:
            pytest.skip("a long double is a double here")
        words = str(x.dtype)
    np.save(folder / "in.npy", x, allow_pickle=True)
    assert words in fail(capsys, folder / "in.npy", folder / "out.npy")
    assert not (folder / "out.npy").exists()


@pytest.mark.parametrize("axis, words", [("2", "out of range"), ("-3", "out of range"), ("0 1", "all axes"),
                                         ("1 1", "twice"), ("1 -1", "twice")])
def test_axes_that_are_none(rng, folder, capsys, axis, words):
    np.save(folder / "in.npy", table(rng))
    assert words in fail(capsys, folder / "in.npy", folder / "out.npy", "--axis", *axis.split())


def test_the_axis_of_a_vector(folder, capsys):
    np.save(folder / "in.npy", np.ones(9))
    assert "one-dimensional" in fail(capsys, folder / "in.npy", folder / "out.npy", "--axis", "0")


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinite_entries_are_named(rng, folder, capsys, order, given, value):
    x = np.asarray(table(rng), order=order)
    np.save(folder / "good.npy", x)
    standardize_file(folder / "good.npy", folder / "good_out.npy", save_statistics=folder / "stats.npz")
    x[601, 3] = x[650, 3] = value
    x[5, 3] = x[9, 1] = np.nan
    np.save(folder / "in.npy", x)
    options = ["--use-stats", folder / "stats.npz"] if given else []
    message = fail(capsys, folder / "in.npy", folder / "out.npy", *options)
    assert "feature 3" in message and "row 601" in message and "(601, 3)" in message
    assert not (folder / "out.npy").exists()


@pytest.mark.parametrize("x", [np.array([[1e200], [-1e200], [0]]), np.repeat([[1e200], [-1e200]], 1000, axis=0)])
def test_squares_that_overflow(folder, capsys, x):
    """In one block, or where blocks that are each constant are merged."""
    np.save(folder / "in.npy", x)
    assert "feature 0 whose squares overflow" in fail(capsys, folder / "in.npy", folder / "out.npy")


def test_names_that_cannot_be_used(rng, folder, capsys):
    np.save(folder / "in.npy", table(rng))
    assert "No such file" in fail(capsys, folder / "missing.npy", folder / "out.npy")
    assert "is a folder" in fail(capsys, folder, folder / "out.npy")
    assert "is a folder" in fail(capsys, folder / "in.npy", folder)
    assert "is a folder" in fail(capsys, folder / "in.npy", f"{folder / 'out.npy'}/")
    assert "an empty name" in fail(capsys, folder / "in.npy", "", "--stats", folder / "stats.npz", "--force")
    assert not (folder / "stats.npz").exists()
    assert "No such file" in fail(capsys, folder / "in.npy", folder / "no" / "out.npy")
    assert "No such file" in fail(capsys, folder / "in.npy", folder / "out.npy", "--stats", folder / "no" / "stats.npz")
    assert not (folder / "out.npy").exists()


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="no devices as files here")
def test_devices_are_no_files(rng, folder, capsys):
    np.save(folder / "in.npy", table(rng))
    assert "not a regular file" in fail(capsys, "/dev/null", folder / "out.npy")
    assert "not a regular file" in fail(capsys, folder / "in.npy", "/dev/null", "--force")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name here")
def test_a_pipe_is_not_waited_for(folder, capsys):
    os.mkfifo(folder / "pipe.npy")
    assert "not a regular file" in fail(capsys, folder / "pipe.npy", folder / "out.npy")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_folders_that_may_not_be_written_to(rng, folder, capsys):
    np.save(folder / "in.npy", table(rng))
    (folder / "closed").mkdir(mode=0o500)
    message = fail(capsys, folder / "in.npy", folder / "closed" / "out.npy")
    assert "Permission denied" in message and str(folder / "closed" / "out.npy") in message


def test_too_little_space(rng, folder, capsys, monkeypatch):
    np.save(folder / "in.npy", table(rng))
    usage = files.shutil.disk_usage(folder)._replace(free=16799)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage)
    message = fail(capsys, folder / "in.npy", folder / "out.npy")
    assert "not enough space" in message and "16800 bytes" in message and "16799" in message


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_disk_that_fills_up(rng, folder):
    """Stood in for by a limit on the size of files."""
    np.save(folder / "in.npy", table(rng))
    script = """
        import resource, sys
        from fastbn import _cli
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, resource.RLIM_INFINITY))
        sys.exit(_cli.main(["standardize", "in.npy", "out.npy"]))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=folder, capture_output=True, text=True,
                          timeout=60)
    assert done.returncode == 2 and done.stderr.startswith("fastbn: error: ") and done.stderr.count("\n") == 1
    assert "too large" in done.stderr and sorted(os.listdir(folder)) == ["in.npy"]


def test_one_name_for_both_results(rng, folder, capsys):
    np.save(folder / "in.npy", table(rng))
    assert "expected two" in fail(capsys, folder / "in.npy", folder / "out.npy", "--stats", folder / "out.npy")


def test_the_data_are_not_lost_to_the_statistics(rng, folder, capsys):
    x = table(rng)
    np.save(folder / "in.npy", x)
    os.link(folder / "in.npy", folder / "same.npy")
    for name in ("in.npy", "same.npy"):
        assert "would be lost" in fail(capsys, folder / "in.npy", folder / "out.npy", "--stats", folder / name, "--force")
    assert np.array_equal(np.load(folder / "in.npy"), x) and not (folder / "out.npy").exists()


def test_statistics_are_as_they_were_where_the_disk_is_full_at_the_end(rng, folder, capsys, monkeypatch):
    """The last of the result is written when all else is done."""
    np.save(folder / "in.npy", table(rng))
    (folder / "stats.npz").write_bytes(b"old")

    def fsync(descriptor):
        if os.fstat(descriptor).st_size > 10000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, "fsync", fsync)
    message = fail(capsys, folder / "in.npy", folder / "out.npy", "--stats", folder / "stats.npz", "--force")
    assert os.strerror(errno.ENOSPC) in message
    assert (folder / "stats.npz").read_bytes() == b"old" and not (folder / "out.npy").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes are Linux's")
def test_a_name_that_the_summary_cannot_show(rng, folder):
    np.save(folder / "in.npy", table(rng))
    done = subprocess.run([sys.executable, "-m", "fastbn", "standardize", "in.npy", b"\xff\xc3\xa9.npy"], cwd=folder,
                          capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii:strict"}, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(rb"\udcff\xe9.npy: 700 x 6 float32")
    assert (folder / os.fsdecode(b"\xff\xc3\xa9.npy")).exists()


def test_a_file_that_becomes_shorter(rng, folder, capsys, monkeypatch):
    np.save(folder / "in.npy", table(rng))

    def cut(blocks, *arguments, **keywords):
        os.truncate(folder / "in.npy", 10000)
        return streaming.moments_of_blocks(blocks, *arguments, **keywords)
    monkeypatch.setattr(files, "moments_of_blocks", cut)
    assert "shorter" in fail(capsys, folder / "in.npy", folder / "out.npy")


@pytest.mark.parametrize("change, words", [
    ({"mean": np.zeros(5), "count": np.full(5, 9), "var": np.ones(5), "scale": np.ones(5)}, "5 features"),
    ({"scale": np.zeros(6)}, "above 0"), ({"mean": np.full(6, np.nan)}, "finite"), ({"mean": np.zeros(5)}, "one shape"),
    ({"scale": None}, "lacks scale"), ({"mean": np.full(6, "a")}, "mean of dtype"),
    ({"mean": np.zeros(6, complex)}, "mean of dtype"), ({"axis": np.array([1.0])}, "axis of dtype"),
    ({"count": np.full(6, np.nan)}, "count of dtype float64, expected integers"),
])
def test_statistics_that_do_not_fit(rng, folder, capsys, change, words):
    np.save(folder / "in.npy", table(rng))
    good = {"count": np.full(6, 9), "mean": np.zeros(6), "var": np.ones(6), "scale": np.ones(6), "axis": np.array([1])}
    np.savez(folder / "stats.npz", **{name: a for name, a in (good | change).items() if a is not None})
    assert words in fail(capsys, folder / "in.npy", folder / "out.npy", "--use-stats", folder / "stats.npz")


def test_statistics_that_are_none(rng, folder, capsys):
    np.save(folder / "in.npy", table(rng))
    assert "no .npz file" in fail(capsys, folder / "in.npy", folder / "out.npy", "--use-stats", folder / "in.npy")
    assert "No such file" in fail(capsys, folder / "in.npy", folder / "out.npy", "--use-stats", folder / "missing.npz")


def test_existing_files_are_kept(rng, folder, capsys):
    np.save(folder / "in.npy", table(rng))
    for name in ("out.npy", "stats.npz"):
        (folder / name).write_text("old")
    assert "exists" in fail(capsys, folder / "in.npy", folder / "out.npy")
    assert "exists" in fail(capsys, folder / "in.npy", folder / "new.npy", "--stats", folder / "stats.npz")
    assert (folder / "out.npy").read_text() == (folder / "stats.npz").read_text() == "old"
    assert not (folder / "new.npy").exists()


# --- processes --------------------------------------------------------------------------------------------------------

HELD = """
import sys, time
from fastbn import _cli
from fastbn.standardize import files
write = files.standardize_into
def slowly(*arguments, **keywords):
    print("writing", flush=True)
    time.sleep({seconds})
    return write(*arguments, **keywords)
files.standardize_into = slowly
sys.exit(_cli.main(["standardize", "in.npy", "out.npy", "--quiet", "--force"]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("name, status", [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129), ("SIGKILL", -9)])
@pytest.mark.parametrize("existing", [False, True])
def test_a_run_that_is_stopped_leaves_no_half_file(rng, tmp_path, name, status, existing):
    np.save(tmp_path / "in.npy", table(rng, (400000, 6)))
    if existing:
        (tmp_path / "out.npy").write_text("old")
    process = subprocess.Popen([sys.executable, "-c", HELD.format(seconds=30)], cwd=tmp_path, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True,
                               preexec_fn=lambda: [signal.signal(one, signal.SIG_DFL) for one in (signal.SIGINT,
                                                                                                  signal.SIGHUP)])
    try:
        assert process.stdout.readline() == "writing\n"
        process.send_signal(getattr(signal, name))
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == status and "Traceback" not in err
    left = sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("."))
    assert left == ["in.npy", *["out.npy"] * existing]
    assert not existing or (tmp_path / "out.npy").read_text() == "old"
    temporary = list(tmp_path.glob(".*"))
    assert len(temporary) == (1 if name == "SIGKILL" else 0)
    assert all(path.name.startswith(".out.npy.") and path.name.endswith(".part") for path in temporary)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("order, shape, axis", [("C", (12_000_000, 8), 1), ("F", (12_000_000, 8), 1),
                                                ("C", (3, 8_000_000, 4), 0)])
def test_memory_is_bounded(tmp_path, order, shape, axis):
    """A file of 384 MB, mostly a hole, with less than 32 MiB beyond what the program itself takes."""
    header = {"descr": "<f4", "fortran_order": order == "F", "shape": shape}
    with open(tmp_path / "in.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.write(np.arange(1000, dtype="<f4").tobytes())
        file.truncate(file.tell() - 4000 + 4 * int(np.prod(shape)))
    script = textwrap.dedent(f"""
        import numpy as np
        from fastbn.standardize.files import standardize_file
        def peak():
            return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
        np.save("small.npy", np.random.default_rng(0).normal(size=(100000, 8)))
        standardize_file("small.npy", "small_out.npy")
        before = peak()
        standardize_file("in.npy", "out.npy", axis={axis})
        print(peak() - before)
    """)
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 32 << 10
    y = np.load(tmp_path / "out.npy", mmap_mode="r")
    assert y.shape == shape and np.isfinite(y[0]).all() and y.ravel(order)[999] > y.ravel(order)[2000]


def test_it_is_a_command(rng, tmp_path):
    np.save(tmp_path / "in.npy", table(rng))
    done = subprocess.run([sys.executable, "-m", "fastbn", "standardize", "in.npy", "out.npy", "--axis", "-1"],
                          cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == "" and done.stdout.startswith("out.npy: 700 x 6 float32, 6 features; ")
    assert sorted(os.listdir(tmp_path)) == ["in.npy", "out.npy"]
