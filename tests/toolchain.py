"""Compilers for the tests of the C core: what this machine has, and how the core is compiled without Python.

The core is plain C11, so a test program is its sources, the test's sources and one `cc` a file. Only
`kernels_<isa>.c` gets instruction set flags, as in the package's own build.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parent.parent / "csrc"
C_TESTS = Path(__file__).resolve().parent / "c"
MACHINE = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())



def isa_flags(machine: str) -> dict[str, list[str]]:
    """{instruction set: the flags of its kernels}, as the head of each kernels_<isa>.c says, for one machine."""
    found = {"generic": []}
    for path in sorted(CSRC.glob("kernels_*.c")):
        head = dict(re.findall(r"^ \* (machine|flags):(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE))
        if head.get("machine", "").strip() == machine:
            found[path.stem.removeprefix("kernels_")] = head["flags"].split()
    return found


COMMON_FLAGS = ["-std=c11", "-ffp-contract=off", "-fopenmp", "-Wall", "-Wextra", '-DFASTBN_VERSION="test"']
# tests/c/caches.c takes the place of these, see there.
RENAMED = ["-Dfbn_level2_bytes=real_level2_bytes", "-Dfbn_last_level_bytes=real_last_level_bytes"]


# As many threads as are asked for. Idle ones sleep: spinning, they would take the time of those that work.
SETTINGS = {"OMP_NUM_THREADS": "8", "OMP_DYNAMIC": "false", "OMP_WAIT_POLICY": "passive"}


def find_compiler(*names: str) -> str | None:
    """The first of these commands that exists."""
    return next((path for path in map(shutil.which, names) if path), None)


def required(*names: str) -> str:
    """The first of these commands that exists; the test is skipped where none does."""
    path = find_compiler(*names)
    if path is None:
        pytest.skip(f"not installed: {' or '.join(names)}")
    return path


def without_randomization() -> list[str]:
    """What runs a program at fixed addresses: older sanitizers fail under the randomization of newer kernels."""
    prefix = ["setarch", platform.machine(), "-R"]
    if shutil.which("setarch") and subprocess.run([*prefix, "true"], capture_output=True).returncode == 0:
        return prefix
    return []


def can_build(compiler: str, folder: Path, *options: str) -> bool:
    """Whether a small OpenMP program compiles and runs with these options (a sanitizer's runtime may be missing)."""
    source, program = folder / "probe.c", folder / "probe"
    source.write_text("#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n")
    command = [compiler, "-fopenmp", *options, str(source), "-o", str(program)]
    if subprocess.run(command, capture_output=True).returncode != 0:
        return False
    return subprocess.run([*without_randomization(), str(program)], capture_output=True).returncode == 0


def sources(machine: str, only: tuple[str, ...] | None = None) -> list[tuple[Path, list[str]]]:
    """The C files of the core for a machine, each with the flags that it alone gets, and those of the test program.

    only: the instruction sets; None: all that the machine has.
    """
    isas = isa_flags(machine)
    isas = isas if only is None else {isa: isas[isa] for isa in only}
    common = [p for p in sorted(CSRC.glob("**/*.c")) if not p.name.startswith(("kernels_", "cache"))]
    kernels = [(CSRC / f"kernels_{isa}.c", flags) for isa, flags in isas.items()]
    have = [f"-DFBN_HAVE_{isa.upper()}" for isa in isas if isa != "generic"]
    tests = [(path, []) for path in sorted(C_TESTS.glob("*.c")) if path.name != "embed.c"]  # a program of its own
    return kernels + [(path, have) for path in common] + [(CSRC / "cache_sizes.c", RENAMED)] + tests


def build_core_test(compiler: str, folder: Path, *, machine: str = MACHINE, options: tuple[str, ...] = ("-O2",),
                    link: tuple[str, ...] = (), only: tuple[str, ...] | None = None,
                    kernels: Path | None = None) -> Path:
    """Compile the core and its test program into `folder`; `options` go to every file and to the link.

    only: see sources(). kernels: a folder of an earlier build, whose kernels are taken as they are; those of a wheel too.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def compile_one(item: tuple[Path, list[str]]) -> Path:
        source, flags = item
        if kernels is not None and source.name.startswith("kernels_"):
            return next(kernels.glob(f"**/*{source.stem}.o"))
        target = folder / f"{source.parent.name}-{source.stem}.o"  # both folders have an operations.c
        command = [compiler, *COMMON_FLAGS, *options, *flags, f"-I{CSRC}", "-c", str(source), "-o", str(target)]
        run(command, timeout=1200)  # kernels under a sanitizer on a busy machine
        return target

    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        objects = list(pool.map(compile_one, sources(machine, only)))
    program = folder / "core_test"
    run([compiler, "-fopenmp", *options, *map(str, objects), *link, "-lm", "-lpthread", "-o", str(program)])
    return program


def run(command: list[str], *, timeout: float = 300, **environment: str) -> str:
    """Standard output of a command; what it printed is in the error where it failed or hung."""
    try:
        done = subprocess.run([str(part) for part in command], env={**os.environ, **environment}, timeout=timeout,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    except subprocess.TimeoutExpired as hung:
        raise AssertionError(f"no end after {timeout} s: {command}\n{hung.stdout}\n{hung.stderr}") from None
    if done.returncode != 0:
        raise AssertionError(f"exit status {done.returncode}: {command}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}")
    return done.stdout
