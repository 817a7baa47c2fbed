"""The reference as HTML pages: built without a warning, with the guide and with all public names."""
import subprocess
import sys
from pathlib import Path

import pytest

import fastbn

SCRIPT = Path(__file__).resolve().parents[1] / ".github" / "docs.py"

pytestmark = [pytest.mark.full, pytest.mark.skipif(not SCRIPT.exists(), reason="this is no checkout")]


def test_the_pages_are_built_without_a_warning(tmp_path):
    pytest.importorskip("pdoc", reason="pdoc is not installed: the extra 'docs' has it")
    done = subprocess.run([sys.executable, str(SCRIPT), str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Warn" not in done.stderr + done.stdout
    text = (tmp_path / "fastbn.html").read_text(encoding="utf-8")
    assert "Masks, weights and lengths" in text
    assert not [name for name in fastbn.__all__ if f'id="{name}"' not in text]
    assert "StandardScaler" in (tmp_path / "fastbn" / "sklearn.html").read_text(encoding="utf-8")
