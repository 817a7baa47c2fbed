"""A short run of tests/fuzz, whose long runs are `python -m tests.fuzz`, and whether its guard pages guard."""
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import fastbn

pytestmark = pytest.mark.skipif(os.name != "posix", reason="guard pages by mmap and mprotect")

TESTS = Path(__file__).resolve().parent
CALLS, SEED = 3000, 1


def run(*arguments):
    """With the fastbn that this test has imported, be it installed or the checkout's."""
    environment = {**os.environ, "PYTHONPATH": str(Path(fastbn.__file__).resolve().parent.parent)}
    return subprocess.run([sys.executable, *arguments], cwd=TESTS, env=environment, capture_output=True, text=True,
                          timeout=600)


def test_random_calls():
    done = run("-m", "fuzz", "--calls", str(CALLS), "--seed", str(SEED))
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(rf"seed {SEED}: {CALLS} calls, 0 faults, .* resident memory grew by .* MiB\n", done.stdout)


@pytest.mark.parametrize("right, beyond", [(False, -1), (True, 5)])
def test_a_byte_beyond_an_array_is_a_segmentation_fault(right, beyond):
    script = (f"import ctypes; from fuzz.guarded import guarded_bytes; a = guarded_bytes(5, {right}); a[:] = 1; "
              f"print(int(a.sum()), flush=True); ctypes.string_at(a.ctypes.data + {beyond}, 1)")
    done = run("-c", script)
    assert (done.stdout, done.returncode) == ("5\n", -signal.SIGSEGV)


def test_a_fault_is_told_with_its_call(tmp_path):
    """A child that dies in call 2 of 4: the parent says so, and goes on with call 3."""
    (tmp_path / "dies.py").write_text(
        "import os, signal\nfrom fuzz import worker\nfrom fuzz.__main__ import main\n"
        "def one(handle, seed, number, *more):\n"
        "    if number == 2:\n        os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    print('ran', number, flush=True)\n    return False\n"
        "worker._one = one\n__spec__.name = 'dies'\n"
        "import fuzz.__main__ as command\ncommand.__spec__ = __spec__\nraise SystemExit(main())\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(TESTS),
                                                                str(Path(fastbn.__file__).resolve().parent.parent)])}
    done = subprocess.run([sys.executable, "-m", "dies", "--calls", "4", "--seed", "7"], env=environment, text=True,
                          capture_output=True, timeout=120)
    assert done.returncode == 1 and "fault: seed 7, call 2: killed by SIGSEGV" in done.stdout, done.stdout + done.stderr
    assert [n for n in range(4) if f"ran {n}\n" in done.stdout] == [0, 1, 3]
    assert "seed 7: 4 calls, 1 faults" in done.stdout
