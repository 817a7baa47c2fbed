"""The documents' Python examples run, those of a document in their order in one session, as a reader would type them."""
import ast
import re
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import fastbn

README = Path(__file__).resolve().parents[1] / "README.md"
DOCUMENTS = [path for path in (README, *sorted((README.parent / "fastbn").glob("*/README.md")))
             if "```python" in path.read_text(encoding="utf-8")]


def blocks(document):
    """(line, code) of each Python block."""
    text = document.read_text(encoding="utf-8")
    for found in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield text[:found.start()].count("\n") + 2, found[1]


def readers_own(rng):
    """What the text leaves to the reader: arrays for 64 channels."""
    def array(*shape):
        return rng.normal(size=shape).astype(np.float32)
    shape = (32, 64, 56, 56)
    return {"gamma": array(64), "beta": array(64), "mean": array(64), "var": array(64)**2, "dy": array(*shape),
            "ddx": array(*shape), "ddgamma": array(64), "ddbeta": array(64),
            "batches": [array(8, 64, 4, 4) for _ in range(3)],
            "image": array(2, 3), "kernel": array(64, 4, 3, 3), "weight": array(64, 8), "bias": array(64)}


def write_model(path, rng):
    """A .safetensors file with the batch norm that an example reads."""
    from safetensors.numpy import save_file
    names = ("weight", "bias", "running_mean", "running_var")
    save_file({f"layer1.0.bn1.{name}": rng.random(64).astype(np.float32) for name in names}, path)


def write_classifier(path):
    """A model with a batch norm that an example runs."""
    import onnx
    from onnx import helper
    names, kind = ("x", "scale", "B", "mean", "var"), onnx.TensorProto.FLOAT
    node = helper.make_node("BatchNormalization", names, ["y"])
    graph = helper.make_graph([node], "classifier", [helper.make_tensor_value_info("x", kind, [None, 3])],
                              [helper.make_tensor_value_info("y", kind, [None, 3])],
                              [helper.make_tensor(name, kind, [3], [1.0, 2.0, 3.0]) for name in names[1:]])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)]), path)


# By a word of an example, the package that it needs beside those that it imports.
OPTIONAL = {"ml_dtypes": "ml_dtypes", "safetensors": "safetensors", "fastbn.sklearn": "sklearn"}


def packages_of(code):
    """The packages that an example imports, and those of the adapters that it does."""
    for node in ast.walk(ast.parse(code)):
        names = [node.module] if isinstance(node, ast.ImportFrom) else [name.name for name in getattr(node, "names", [])]
        for name in names if isinstance(node, (ast.Import, ast.ImportFrom)) else []:
            yield name.removeprefix("fastbn.interop.").partition(".")[0]


def cannot_run(code):
    """Whether a package is missing, or Keras was imported with another backend by another test."""
    needed = {*packages_of(code), *(package for word, package in OPTIONAL.items() if word in code)}
    keras = sys.modules.get("keras")
    return any(find_spec(package) is None for package in needed) or (
        "keras" in needed and keras is not None and keras.backend.backend() != "numpy")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(README.parent).as_posix())
def test_examples_run(tmp_path, monkeypatch, rng, document):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_BACKEND", "numpy")
    if find_spec("safetensors"):
        write_model(tmp_path / "resnet.safetensors", rng)
    if find_spec("onnx"):
        write_classifier(tmp_path / "classifier.onnx")
    session, places = readers_own(rng), {}
    for line, code in blocks(document):
        if cannot_run(code):
            session["bn"] = fastbn.BatchNorm(64)  # what the example would have left
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            exec(compile("\n" * (line - 1) + code, str(document), "exec"), session)
        if "out=shortcut" in code:
            places = {name: session[name] for name in ("y", "shortcut", "dx", "dy")}
    if document == README:
        assert places["y"] is places["shortcut"] and places["dx"] is places["dy"]
    assert len(list(blocks(document))) > 5


def test_every_folder_of_the_source_is_named():
    text = README.read_text(encoding="utf-8")
    table = text[text.index("## Reading the source"):text.index("## Development")]
    package = README.parent / "fastbn"
    names = [path.name for path in package.iterdir() if path.is_dir() and list(path.glob("*.p*"))]
    assert not [name for name in names if f"{name}/`" not in table]


@pytest.mark.parametrize("room", ["_engine", "_training", "_data", "_api", "_layer"])
def test_a_folder_lists_its_files(room):
    folder = README.parent / "fastbn" / room
    listed = re.findall(r"\b(\w+\.py)\b", ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))))
    assert sorted(set(listed)) == sorted(path.name for path in folder.glob("*.py") if path.name != "__init__.py")
