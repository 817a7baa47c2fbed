"""Type checkers accept the documents' examples, and know the stubs."""
import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "fastbn" / "GUIDE.md", *sorted((ROOT / "fastbn").glob("*/README.md")),
             ROOT / "bench" / "README.md"]

pytestmark = [pytest.mark.full, pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="this is no checkout")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Each block of the documents as a file."""
    folder = tmp_path_factory.mktemp("blocks")
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for number, found in enumerate(re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)):
            name = re.sub(r"\W", "_", document.relative_to(ROOT).as_posix())
            (folder / f"{name}_{number}.py").write_text(found[1], encoding="utf-8")
    return folder


def check(command, folder, **options):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, **options)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.skipif(find_spec("mypy") is None, reason="mypy is not installed: the extra 'typing' has it")
def test_mypy_accepts_the_examples(folder, monkeypatch):
    monkeypatch.setenv("MYPYPATH", str(ROOT))
    command = [sys.executable, "-m", "mypy", "--ignore-missing-imports", "--follow-imports=silent", "--cache-dir", ".mypy", "."]
    status, text = check(command, folder)
    assert status == 0, text


@pytest.mark.skipif(find_spec("pyright") is None, reason="pyright is not installed: the extra 'typing' has it")
def test_pyright_accepts_the_examples(folder):
    # MyGrad's names are not re-exported for checkers.
    settings = {"include": ["."], "extraPaths": [str(ROOT)], "reportMissingImports": "warning",
                "reportMissingModuleSource": "none", "reportPrivateImportUsage": "none"}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    if check([sys.executable, "-m", "pyright", "--version"], folder)[0] != 0:
        pytest.skip("pyright needs node and its own package, which cannot be had")
    status, text = check([sys.executable, "-m", "pyright", "--pythonpath", sys.executable], folder)
    assert status == 0, text
