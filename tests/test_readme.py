"""The documents: every Python example runs by itself, links lead somewhere, and README keeps its size."""
import ast
import re
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PACKAGE = ROOT / "fastbn"
ALL = [README, PACKAGE / "GUIDE.md", *sorted(PACKAGE.glob("*/README.md")),
       *(ROOT / name / "README.md" for name in ("bench", "csrc", "tests"))]
LONGEST, WIDEST = 200, 110  # lines of README, and columns


def blocks(document):
    """(line, code) of each Python block."""
    text = document.read_text(encoding="utf-8")
    for found in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield text[:found.start()].count("\n") + 2, found[1]


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
OPTIONAL = {"safetensors": "safetensors", "fastbn.sklearn": "sklearn"}


def packages_of(code):
    """The packages that an example imports, and those of the adapters that it does."""
    for node in ast.walk(ast.parse(code)):
        names = [node.module] if isinstance(node, ast.ImportFrom) else [name.name for name in getattr(node, "names", [])]
        for name in names if isinstance(node, (ast.Import, ast.ImportFrom)) else []:
            yield name.removeprefix("fastbn.interop.").partition(".")[0]


def cannot_run(code):
    """Why: a package that is missing, or Keras imported with another backend by another test."""
    needed = {*packages_of(code), *(package for word, package in OPTIONAL.items() if word in code)}
    missing = sorted(package for package in needed if find_spec(package) is None)
    keras = sys.modules.get("keras")
    if "keras" in needed and keras is not None and keras.backend.backend() != "numpy":
        return "another backend of Keras is in use"
    return f"not installed: {', '.join(missing)}" if missing else None


EXAMPLES = [pytest.param(document, line, code, id=f"{document.relative_to(ROOT).as_posix()}:{line}")
            for document in ALL if document.parent.name != "bench" for line, code in blocks(document)]


@pytest.mark.parametrize("document, line, code", EXAMPLES)
def test_an_example_runs_by_itself(tmp_path, monkeypatch, document, line, code):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_BACKEND", "numpy")
    if cannot_run(code):
        pytest.skip(cannot_run(code))
    if "classifier.onnx" in code:
        write_classifier(tmp_path / "classifier.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(compile("\n" * (line - 1) + code, str(document), "exec"), {"__name__": "example"})


def anchors(document):
    """The names that a document's headings have as link targets."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", ALL, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document):
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        leads_to = (document.parent / path).resolve() if path else document
        assert leads_to.exists(), target
        assert not anchor or anchor in anchors(leads_to), target


def test_readme_keeps_its_size():
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= LONGEST
    assert not [line for line in lines if len(line) > WIDEST]


def test_every_folder_of_the_source_is_named():
    text = README.read_text(encoding="utf-8")
    table = text[text.index("## Reading the source"):text.index("## Development")]
    names = [path.name for path in PACKAGE.iterdir() if path.name[:2] != "__" and list(path.glob("*.p*"))]
    assert not [name for name in names if f"{name}/`" not in table]


@pytest.mark.parametrize("room", ["_engine", "_training", "_data", "_api", "_layer"])
def test_a_folder_lists_its_files(room):
    folder = PACKAGE / room
    listed = re.findall(r"\b(\w+\.py)\b", ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))))
    assert sorted(set(listed)) == sorted(path.name for path in folder.glob("*.py") if path.name != "__init__.py")
