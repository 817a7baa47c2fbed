"""Random but reproducible calls, each between guard pages and compared with the oracle: `python -m tests.fuzz`.

tests/ is no package: its files import each other by their bare names, as pytest lets them. This folder does too, and so
has to be told of them, since here the command is run from the repository's root.
"""
import sys
from pathlib import Path

_TESTS = str(Path(__file__).resolve().parent.parent)
if _TESTS not in sys.path:
    sys.path.append(_TESTS)
