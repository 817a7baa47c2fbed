"""Files that are damaged, or made to do harm: each reader gives an error in plain words, or what the file announces;
and none takes memory before it has looked at shapes.
"""
import io
import os
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest

import fastbn
from fastbn._data import npz
from fastbn._data.npy import NpyFile
from fastbn.standardize import standardize_file
from fastbn.standardize.statistics import read_axis, read_statistics

MEBIBYTE = 1 << 20
STATISTICS = {"count": np.full(3, 9), "mean": np.zeros(3), "var": np.ones(3), "scale": np.ones(3),
              "axis": np.array([1])}


def damaged(content, all_values=()):
    """Every truncation; every byte with some of its bits flipped, at `all_values` with every other value."""
    for end in range(len(content)):
        yield content[:end]
    for at, value in enumerate(content):
        for other in range(256) if at in all_values else (value ^ bits for bits in (1, 16, 128, 255)):
            if other != value:
                yield content[:at] + bytes([other]) + content[at + 1:]


def check_all(variants, path, use, *errors):
    """Each variant as a file is one of the errors, and nothing else, or use(path) is true."""
    seen = set()
    for content in variants:
        path.write_bytes(content)
        try:
            assert use(path), content
        except errors as error:
            assert str(path) in str(error) and not isinstance(error, UnicodeError), (content, error)
            seen.add(type(error))
    assert seen == set(errors)


def npz_bytes(arrays, save=np.savez):
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()


def npy(shape, descr="<f8", data=b""):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + data


def with_header(text):
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text.encode()


def trained(rng, **switches):
    layer = fastbn.BatchNorm(3, **switches)
    layer(rng.normal(size=(9, 3)).astype(np.float32))
    return layer


# --- bn.load and statistics -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("switches", [{}, {"track_running_stats": False, "center": False}], ids=["all", "gamma alone"])
def test_a_damaged_state_is_refused_or_the_same(rng, tmp_path, save, switches):
    state, target = trained(rng, **switches).state_dict(), trained(rng, **switches)
    before, content = target.state_dict(), npz_bytes(state, save)

    def same(path):
        try:
            expected = state
            target.load(path)
        except ValueError:
            expected = before
            raise
        finally:
            assert all(np.array_equal(a, expected[name]) for name, a in target.state_dict().items())
            target.load_state_dict(before)
        return True
    records = ()
    if switches and save is np.savez:  # zip's own record of the one array
        records = range(len(content) - 77, len(content) - 22)
    check_all(damaged(content, records), tmp_path / "layer.npz", same, ValueError)


def test_damaged_statistics_are_refused_or_the_same(tmp_path):
    def same(path):
        assert read_axis(path) == (1,)
        return all(np.array_equal(a, STATISTICS[name]) for name, a in read_statistics(path, 3)._asdict().items())
    check_all(damaged(npz_bytes(STATISTICS)), tmp_path / "stats.npz", same, ValueError)


def archive(change, method=zipfile.ZIP_STORED):
    """The file has gamma alone; change(zipfile.ZipFile) writes more."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name for the second time
        file.writestr("gamma.npy", npy((3,), "<f4", bytes(12)))
        change(file)
    return buffer.getvalue()


def encrypted():
    content = bytearray(archive(lambda file: None))
    content[content.index(b"PK\1\2") + 8] |= 1
    return bytes(content)


@pytest.mark.parametrize("content, words", [
    (encrypted(), "gamma is encrypted"),
    (archive(lambda file: None, zipfile.ZIP_BZIP2), "method 12"),
    (archive(lambda file: None, zipfile.ZIP_LZMA), "method 14"),
    (archive(lambda file: file.writestr("gamma.npy", b"")), "gamma twice"),
    (archive(lambda file: file.writestr("more/", b"")), "'more/', which is no array"),
    (archive(lambda file: file.writestr("beta.npy", npy((3,), "<f4", bytes(11)))), "beta.npy has other data than"),
    (archive(lambda file: file.writestr("beta.npy", npy((3,), "<f4", bytes(13)))), "beta.npy has other data than"),
    (archive(lambda file: file.writestr("beta.npy", npy((3,), "|O"))), "beta.npy has dtype object"),
    (archive(lambda file: file.writestr("beta.npy", npy((129,)))), "expected at most 64 entries"),
    (archive(lambda file: file.writestr("beta.npy", npy((9,), "<U99"))), "expected at most 64 entries"),
    (npz_bytes({f"a{i}": np.ones(1) for i in range(65)}), "65 arrays, expected at most 64"),
    (npz_bytes({"gamma": np.ones(3, np.int64)}), "gamma has dtype int64"),
    (npz_bytes({"gamma": np.ones(4, np.float32)}), r"shape \(4,\)"),
    (npz_bytes({"gamma": np.ones(3, np.float32), "eps": np.ones(1)}), "unexpected eps"),
])
def test_archives_that_are_refused(rng, tmp_path, content, words):
    layer = trained(rng, track_running_stats=False, center=False)
    before = layer.gamma.copy()
    (tmp_path / "layer.npz").write_bytes(content)
    with pytest.raises(ValueError, match=f"layer.npz .*{words}"):
        layer.load(tmp_path / "layer.npz")
    np.testing.assert_array_equal(layer.gamma, before)


def test_small_arrays_of_any_name_are_read(tmp_path):
    arrays = {"eps": np.array(1e-5), "activation": np.array("relu"), "axis": np.array([[1, 2], [3, 4]], order="F"),
              "none": np.zeros((0, 3)), "flag": np.array(True), "mean": np.arange(100.0)}
    np.savez(tmp_path / "a.npz", **arrays)
    found = npz.read(str(tmp_path / "a.npz"), 100)
    assert list(found) == list(arrays)
    for name, a in arrays.items():
        np.testing.assert_array_equal(found[name], a, strict=True)
    assert list(npz.read(str(tmp_path / "a.npz"), 0, ("flag", "axis", "other"))) == ["axis", "flag"]


def test_a_counter_that_no_file_could_take_back(rng):
    layer = trained(rng)
    state = layer.state_dict() | {"num_batches_tracked": np.array(2**63, np.uint64)}
    with pytest.raises(ValueError, match="num_batches_tracked is"):
        layer.load_state_dict(state)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name here")
def test_a_pipe_is_not_waited_for(rng, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is not a regular file"):
        trained(rng).load(tmp_path / "pipe")


def inflating(path, name, start):
    """A zip file of some KiB whose member unpacks to 32 MiB, which begin with `start`."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr(name, start + bytes(32 * MEBIBYTE))


def peak_of(use, path, words):
    """The memory in bytes that a refused file took."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=words):
            use(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("start, words", [
    (npy((4 * MEBIBYTE,)), "expected at most 64 entries"), (npy((4 * MEBIBYTE, 1)), "expected at most 64 entries"),
    (b"\x93NUMPY\2\0" + struct.pack("<I", 32 * MEBIBYTE), "bytes of header"),
    (npy((1,)), "other data than the 8 bytes"),
], ids=["shape", "rank", "header", "more data"])
@pytest.mark.parametrize("name", ["axis.npy", "gamma.npy", "mean"])
def test_a_file_that_inflates_takes_no_memory(tmp_path, start, words, name):
    inflating(tmp_path / "a.npz", name, start)
    np.save(tmp_path / "in.npy", np.ones((9, 3), np.float32))
    uses = [fastbn.BatchNorm(3).load]
    if name != "gamma.npy":
        uses += [lambda path: standardize_file(tmp_path / "in.npy", tmp_path / "out.npy", statistics=path)]
    for use in uses:
        assert peak_of(use, tmp_path / "a.npz", words if name != "mean" else "is no array") < MEBIBYTE // 2
    assert not (tmp_path / "out.npy").exists()


def test_statistics_of_many_more_features_take_no_memory(tmp_path):
    """The axis is looked at first, and by it how many there may be."""
    np.savez_compressed(tmp_path / "stats.npz", **STATISTICS | {"mean": np.zeros(2 * MEBIBYTE)})
    np.save(tmp_path / "in.npy", np.ones((9, 3), np.float32))
    peak = peak_of(lambda path: standardize_file(tmp_path / "in.npy", tmp_path / "out.npy", statistics=path),
                   tmp_path / "stats.npz", "mean.npy has shape .*expected at most 64 entries")
    assert peak < MEBIBYTE // 2


# --- .npy files -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # of what a damaged header looks like as Python's source
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_a_damaged_npy_file_is_refused_or_as_long_as_it_says(rng, tmp_path, version):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, rng.normal(size=(3, 2)).astype(np.float32), version=version)
    content = buffer.getvalue()

    def is_whole(path):
        with NpyFile(path) as file:
            (_, block), = file.blocks((*file.shape, 1), (len(file.shape),))
            return block.size == np.prod(file.shape) and file._start + file.nbytes == len(content)
    check_all(damaged(content, range(75) if version == (1, 0) else ()), tmp_path / "a.npy", is_whole,
              ValueError, *[TypeError] * (version == (1, 0)))


def test_damaged_npy_files_are_no_surprise_to_those_who_read_them(rng, tmp_path):
    scaler = pytest.importorskip("fastbn.sklearn").StandardScaler()
    buffer = io.BytesIO()
    np.save(buffer, rng.normal(size=(3, 2)).astype(np.float32))

    def works(path):
        standardize_file(path, tmp_path / "out.npy", overwrite=True)
        return np.load(tmp_path / "out.npy").size == 6
    check_all(damaged(buffer.getvalue()), tmp_path / "a.npy", works, ValueError)

    def scales(path):
        try:
            return scaler.fit(path).transform(path).shape in ((3, 2), (2, 3))
        except ValueError as error:
            raise ValueError(f"{path} {error}") if "2D array" in str(error) or "infin" in str(error) else error
    check_all(damaged(buffer.getvalue()), tmp_path / "a.npy", scales, ValueError)


@pytest.mark.parametrize("text", [
    "(" * 9000, "-" * 9000 + "1", "{'descr': ('<f4',), 'fortran_order': False, 'shape': (1,)}", "'''", "\0", "{[]: 1}",
    "{'descr': [('a',)], 'fortran_order': False, 'shape': (1,)}", "1L\n  2\n 3", "{1: 2, 'a': 3}",
    *("{'descr': '<f4', 'fortran_order': False, 'shape': (%s)}" % shape for shape in (
        f"0, {2**62}", f"0, {10**40}", f"0, 0x{'f' * 5000}", "1," * 100, "0, -1", f"{2**40}, {2**40}"))], ids=range(15))
def test_headers_that_are_none(tmp_path, text):
    (tmp_path / "a.npy").write_bytes(with_header(text))
    with pytest.raises(ValueError, match="(?s)a.npy is no .npy file, or its header is damaged .") as caught:
        NpyFile(tmp_path / "a.npy")
    assert len(str(caught.value)) < 1000


def test_a_header_is_not_read_before_its_length_was_looked_at(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\2\0" + struct.pack("<I", 32 * MEBIBYTE))
    os.truncate(tmp_path / "a.npy", 32 * MEBIBYTE)
    assert peak_of(NpyFile, tmp_path / "a.npy", "33554432 bytes of header") < MEBIBYTE // 2


def test_a_table_of_no_rows_and_many_columns(rng, tmp_path):
    scaler = pytest.importorskip("fastbn.sklearn").StandardScaler().fit(rng.normal(size=(9, 3)))
    (tmp_path / "a.npy").write_bytes(npy((0, 10**12)))
    with pytest.raises(ValueError, match="X has 1000000000000 features"):
        scaler.transform(tmp_path / "a.npy")


@pytest.mark.parametrize("kind", [str, os.fspath, lambda path: path])
def test_a_path_of_something_else_is_said_to_be_that(tmp_path, kind):
    scaler = pytest.importorskip("fastbn.sklearn").StandardScaler()
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="table.csv is no .npy file"):
        scaler.fit(kind(tmp_path / "table.csv"))
    with pytest.raises(FileNotFoundError, match=r"expected that of a \.npy file.*absent.csv"):
        scaler.fit(kind(tmp_path / "absent.csv"))
    with pytest.raises(IsADirectoryError, match="is a folder"):
        scaler.fit(kind(tmp_path))
    np.save(tmp_path / "table.npy", np.ones((9, 2)))
    os.rename(tmp_path / "table.npy", tmp_path / "table.data")
    assert scaler.fit(kind(tmp_path / "table.data")).n_features_in_ == 2


@pytest.mark.skipif(sys.platform == "win32", reason="a file that is mapped stays as long as it is")
@pytest.mark.parametrize("rows", [2000, 0])
def test_a_mapped_file_that_was_cut(tmp_path, rows):
    """To read what is missing would end the process."""
    sources = pytest.importorskip("fastbn.sklearn._sources")
    np.save(tmp_path / "a.npy", np.ones((rows, 5)))
    x = np.load(tmp_path / "a.npy", mmap_mode="r")
    late = np.memmap(tmp_path / "a.npy", np.float64, "r", offset=8192, shape=(rows, 4)) if rows else x
    assert sources.recognize(x) is None and sources.recognize(late) is None
    os.truncate(tmp_path / "a.npy", 70000 if rows else 128)
    for mapped in (x, late, x[:5]) if rows else ():
        with pytest.raises(ValueError, match="X is mapped from a file that has become shorter"):
            sources.recognize(mapped)


# --- .safetensors files -----------------------------------------------------------------------------------------------


@pytest.fixture
def safetensors():
    return pytest.importorskip("safetensors")


def tensors(entries):
    """A .safetensors file of {name: (dtype, shape, bytes)}."""
    places = np.cumsum([0, *(len(data) for _, _, data in entries.values())]).tolist()
    header = ",".join(f'"{name}":{{"dtype":"{dtype}","shape":{list(shape)},"data_offsets":[{first},{last}]}}'
                      for (name, (dtype, shape, _)), first, last in zip(entries.items(), places, places[1:]))
    return (struct.pack("<Q", len(header) + 2) + f"{{{header}}}".encode()
            + b"".join(data for _, _, data in entries.values()))


def test_damaged_safetensors_are_refused_or_of_their_shapes(rng, tmp_path, safetensors):
    trained(rng).to_torch(tmp_path / "good.safetensors")
    check = fastbn.BatchNorm.from_torch

    def fits(path):
        try:
            return check(path).num_features == 3
        except (TypeError, ValueError) as error:  # what is there and not of a layer has the names of its arrays alone
            raise ValueError(f"{path} {error}") from error
    content = (tmp_path / "good.safetensors").read_bytes()
    check_all(damaged(content, range(8)), tmp_path / "a.safetensors", fits, ValueError)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_types_that_numpy_lacks_are_named(tmp_path, safetensors, dtype):
    entries = {"weight": (dtype, (4,), bytes(4)), "running_mean": ("F32", (4,), bytes(16)),
               "running_var": ("F32", (4,), bytes(16))}
    (tmp_path / "a.safetensors").write_bytes(tensors(entries))
    with pytest.raises(ValueError, match=f"a.safetensors has weight of dtype {dtype}, which NumPy has no type for"):
        fastbn.BatchNorm.from_torch(tmp_path / "a.safetensors")


@pytest.mark.parametrize("there, expected", [(True, "[1. 1. 1. 1.]"), (False, "needs the package ml_dtypes: save it")])
def test_bfloat16_where_nobody_has_imported_it(tmp_path, safetensors, there, expected):
    pytest.importorskip("ml_dtypes")
    entries = {name: ("BF16", (4,), b"\x80\x3f" * 4) for name in ("running_mean", "running_var")}
    (tmp_path / "a.safetensors").write_bytes(tensors(entries))
    script = "import sys, fastbn\n" + ("" if there else "sys.modules['ml_dtypes'] = None\n") + (
        "try: print(fastbn.BatchNorm.from_torch('a.safetensors').running_mean)\n"
        "except ValueError as error: print(error)")
    environment = os.environ | {"PYTHONPATH": os.path.dirname(os.path.dirname(fastbn.__file__))}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True,
                          timeout=60)
    assert expected in done.stdout, done.stderr


def test_shapes_are_looked_at_before_the_data_are_read(tmp_path, safetensors):
    small = {"running_mean": ("F32", (4,), bytes(16)), "running_var": ("F32", (4,), bytes(16))}
    for entry, shape, words in (("weight", (8 * MEBIBYTE,), "weight has shape"),
                                ("weight", (8, MEBIBYTE), "expected one dimension"),
                                ("num_batches_tracked", (8 * MEBIBYTE,), "expected a single number")):
        content = tensors({**small, entry: ("I8", shape, bytes(8 * MEBIBYTE))})
        (tmp_path / "a.safetensors").write_bytes(content)
        assert peak_of(fastbn.BatchNorm.from_torch, tmp_path / "a.safetensors", words) < MEBIBYTE // 2


# --- ONNX -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def onnx():
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnx.numpy_helper")
    return onnx


def node_of(onnx, layer):
    attributes, arrays = layer.to_onnx()
    return onnx.helper.make_node("BatchNormalization", ["x", *arrays], ["y", "m", "v"], **attributes), arrays


@pytest.mark.parametrize("raw", [True, False])
def test_damaged_onnx_models_are_refused_or_of_their_shapes(rng, tmp_path, onnx, raw):
    node, arrays = node_of(onnx, trained(rng))
    parts = [onnx.numpy_helper.from_array(a, name) if raw else onnx.helper.make_tensor(name, 1, a.shape, a.tolist())
             for name, a in arrays.items()]
    graph = onnx.helper.make_graph([node], "g", [], [], parts)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 15)], ir_version=8)

    def fits(path):
        try:
            model = onnx.load_from_string(path.read_bytes())
        except Exception as error:  # onnx's own
            raise ValueError(path) from error
        try:
            return not model.graph.node or fastbn.BatchNorm.from_onnx(model.graph.node[0], model).num_features == 3
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} {error}") from error
    check_all(damaged(model.SerializeToString()), tmp_path / "a.onnx", fits, ValueError)


@pytest.mark.parametrize("change, words", [
    (lambda t: setattr(t, "data_type", 29), "data type 29"), (lambda t: setattr(t, "data_type", 0), "data type 0"),
    (lambda t: setattr(t, "raw_data", b"abc"), r"'scale', scale, of shape \(3,\)"),
    (lambda t: t.dims.__setitem__(0, -1), r"of shape \(-1,\)"), (lambda t: t.dims.append(2**40), "damaged"),
    (lambda t: (setattr(t, "data_location", 1), t.external_data.add(key="location", value="a")), "in another file"),
])
def test_initializers_that_are_none(rng, onnx, change, words):
    node, arrays = node_of(onnx, trained(rng))
    parts = {name: onnx.numpy_helper.from_array(a, name) for name, a in arrays.items()}
    change(parts["scale"])
    with pytest.raises(ValueError, match=f"the initializer 'scale'.*{words}|{words}"):
        fastbn.BatchNorm.from_onnx(node, parts)
