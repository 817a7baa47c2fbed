"""The order of the layers, as pyproject.toml says it to import-linter."""

import ast
import subprocess
import sysconfig
from pathlib import Path

import pytest

import fastbn

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(fastbn.__file__).parent
ROOMS = {"demo", "examples", "explain", "sklearn", "distributed", "standardize", "interop", "folding.py", "_cli.py",
         "__main__.py"}

pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="this is no checkout")


def test_arrows_go_down_only_and_there_is_no_circle():
    pytest.importorskip("importlinter")
    lint = Path(sysconfig.get_path("scripts"), "lint-imports")
    done = subprocess.run([str(lint), "--no-cache", str(ROOT / "pyproject.toml")], cwd=ROOT, capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Contracts: 2 kept, 0 broken." in done.stdout


def test_no_file_below_the_rooms_imports_the_package_itself():
    """It would need all of it; the contracts do not look at these imports."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] in ROOMS or path.name == "__init__.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import) and any(name.name == "fastbn" for name in node.names):
                found.append((path.name, node.lineno))
    assert not found
