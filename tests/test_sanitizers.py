"""The C core's test program under the sanitizers of gcc and clang.

A file of its own, so that two processes share the time that these tests and test_c_core.py take.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from toolchain import SETTINGS, build_core_test, can_build, required, run, without_randomization

pytestmark = [pytest.mark.full, pytest.mark.skipif(not sys.platform.startswith("linux"), reason="built on Linux only")]


def test_address_and_undefined_behaviour_sanitizers(tmp_path):
    options = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
    compiler = required("gcc", "clang")
    if not can_build(compiler, tmp_path, *options):
        pytest.skip(f"{compiler} has no AddressSanitizer here")
    program = build_core_test(compiler, tmp_path / "asan", options=options)
    environment = {**SETTINGS, "OMP_NUM_THREADS": "4", "ASAN_OPTIONS": "detect_leaks=1"}
    assert run([*without_randomization(), program, "sample", "1", "3"], **environment).endswith("0 failures\n")


def archer_settings(clang):
    """LLVM's tool that tells ThreadSanitizer how OpenMP's barriers order memory: without it all regions are alarms."""
    version = subprocess.run([clang, "-print-resource-dir"], capture_output=True, text=True).stdout.strip()
    folders = [Path(version).parent.parent, *Path("/usr/lib").glob("llvm-*/lib"), Path("/usr/lib/x86_64-linux-gnu")]
    library = next((folder / "libarcher.so" for folder in folders if (folder / "libarcher.so").exists()), None)
    if library is None:
        pytest.skip("libarcher.so is not installed (Debian: libomp-dev)")
    return {"OMP_TOOL_LIBRARIES": str(library), "TSAN_OPTIONS": "ignore_noninstrumented_modules=1:halt_on_error=1"}


def test_thread_sanitizer(tmp_path):
    clang = required("clang")
    options = ("-O1", "-g", "-fsanitize=thread")
    if not can_build(clang, tmp_path, *options):
        pytest.skip("clang has no ThreadSanitizer or no OpenMP here")
    program = build_core_test(clang, tmp_path / "tsan", options=options, only=("generic",))  # threads are alike for all
    environment = {**SETTINGS, "OMP_NUM_THREADS": "4", **archer_settings(clang)}
    assert run([*without_randomization(), program, "sample", "3"], **environment).endswith("0 failures\n")
