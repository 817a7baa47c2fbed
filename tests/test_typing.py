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

# What is not in them: arrays are no None, sums of Moments are taken for Moments, results have types.
USES = """
from collections.abc import Iterable
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt

import fastbn
from fastbn.distributed import SyncBatchNorm, merge_moments
from fastbn.standardize import Outcome, standardize_file

x = np.ones((4, 2), np.float32)
bn = fastbn.BatchNorm(2)
bn.gamma[:], bn.beta[:] = 3, 1
bn.running_mean += 1
deviation: npt.NDArray[np.float32] = np.sqrt(bn.running_var)
assert_type(bn(x), npt.NDArray[Any])
dx: npt.NDArray[np.float32] = bn.backward(x)
dx, dresidual = bn.backward(x)
for name, value, gradient in bn.parameters():
    value -= 0.1 * gradient
y, saved = fastbn.batch_norm_training(x)
assert_type(saved.moments, fastbn.Moments)


def use(parts: Iterable[fastbn.Moments]) -> fastbn.Moments:
    total = sum(parts)
    bn.calibrate(total).update(total)
    assert_type(bn.drift(total).mean_shift, npt.NDArray[np.float64])
    return merge_moments(total, None)


whole = fastbn.Moments.merge_all([fastbn.moments(x), use([saved.moments])])
assert_type(whole.mean, npt.NDArray[np.float64])
sync = SyncBatchNorm(2, comm=None, momentum=0.99).calibrate(whole)
assert_type(sync(x), npt.NDArray[Any])
weight, bias = fastbn.fold_linear(x.T, None, sync)
state = {"bn.running_mean": x[0], "bn.running_var": x[0]}
assert_type(fastbn.convert.from_state_dict(state, training=False)["bn"](x), npt.NDArray[Any])
assert_type(standardize_file("in.npy", "out.npy"), Outcome)
"""
# What both have to refuse, a line each.
REFUSED = """
import numpy as np
import fastbn
fastbn.BatchNorm(2, moment=0.9)
fastbn.BatchNorm(2).gamma.gradient
fastbn.BatchNorm(2, activation="softmax")
fastbn.batch_norm_training(np.ones((4, 2))).mean
"""

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
    (folder / "uses.py").write_text(USES, encoding="utf-8")
    return folder


@pytest.fixture
def refused(tmp_path):
    (tmp_path / "refused.py").write_text(REFUSED, encoding="utf-8")
    return tmp_path


def lines_with_errors(text):
    return {int(line) for line in re.findall(r"refused\.py:(\d+):.*error", text)}


def lines_to_refuse():
    return {number for number, line in enumerate(REFUSED.splitlines(), 1) if line.startswith("fastbn")}


def check(command, folder, **options):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, **options)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.skipif(find_spec("mypy") is None, reason="mypy is not installed: the extra 'typing' has it")
def test_mypy_accepts_the_examples(folder, refused, monkeypatch):
    monkeypatch.setenv("MYPYPATH", str(ROOT))
    command = [sys.executable, "-m", "mypy", "--ignore-missing-imports", "--follow-imports=silent", "--cache-dir",
               str(folder / ".mypy"), "."]
    status, text = check(command, folder)
    assert status == 0, text
    assert lines_with_errors(check(command, refused)[1]) == lines_to_refuse()


@pytest.mark.skipif(find_spec("pyright") is None, reason="pyright is not installed: the extra 'typing' has it")
def test_pyright_accepts_the_examples(folder, refused):
    # MyGrad's names are not re-exported for checkers.
    settings = {"include": ["."], "extraPaths": [str(ROOT)], "reportMissingImports": "warning",
                "reportMissingModuleSource": "none", "reportPrivateImportUsage": "none"}
    for place in (folder, refused):
        (place / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    if check([sys.executable, "-m", "pyright", "--version"], folder)[0] != 0:
        pytest.skip("pyright needs node and its own package, which cannot be had")
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable]
    status, text = check(command, folder)
    assert status == 0, text
    assert lines_with_errors(check(command, refused)[1]) == lines_to_refuse()
