"""The C core without Python: its own test program, by several compilers and on emulated processors.

The program (tests/c) compares every operation with the formulas, over all instruction sets, thread counts and layouts
of the machine, and prints one hash of the output bytes for each. Hashes of another compiler, another
architecture or a lesser processor have to be the same.
"""

import ctypes
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastbn
from packages import build_wheel, builds
from toolchain import COMMON_FLAGS, CSRC, MACHINE, SETTINGS, build_core_test, can_build, isa_flags, required, run

pytestmark = [*builds, pytest.mark.skipif(not sys.platform.startswith("linux"), reason="built on Linux only")]

x86_only = pytest.mark.skipif(MACHINE != "x86_64", reason="emulates lesser x86 processors: needs an x86-64 machine")

# A processor without AVX-512, and one without AVX: qemu's names, and what the core has to choose there.
LESSER_CPUS = [("Haswell", "avx2"), ("Nehalem", "generic")]


@pytest.fixture(scope="module")
def native(built, tmp_path_factory):
    """With the very kernels of the wheel."""
    return build_core_test(required("gcc", "cc"), tmp_path_factory.mktemp("gcc"), kernels=built[1] / "build")


@pytest.fixture(scope="module")
def static_native(tmp_path_factory):
    """Static, so that an emulator needs no libraries; -O1, to compare with the wheel's -O3."""
    return build_core_test(required("gcc"), tmp_path_factory.mktemp("static"), options=("-O1",), link=("-static",))


@pytest.fixture(scope="module")
def native_hashes(native):
    return run([native, "hash"], **SETTINGS)


def differences(got, expected):
    """The first lines that differ, for a message that can be read."""
    got, expected = got.splitlines(), expected.splitlines()
    assert len(got) == len(expected) and len(expected) > 1000
    return [f"{a}   expected {b.split()[-1]}" for a, b in zip(got, expected) if a != b][:10]


def isa_table(output):
    rows = [line.split() for line in output.splitlines()]
    return {row[0]: row[1:] for row in rows}


def test_flags_are_those_of_the_package(monkeypatch):
    """Here the core is compiled without setup.py: with the same flags for each instruction set."""
    setup_file = CSRC.parent / "setup.py"
    pytest.importorskip("setuptools")
    monkeypatch.chdir(setup_file.parent)
    spec = importlib.util.spec_from_file_location("fastbn_setup", setup_file)
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    here = {isa: flags for machine in setup.MACHINES for isa, flags in isa_flags(machine).items() if isa != "generic"}
    assert here == {name: isa.gnu_flags for name, isa in setup.ISAS.items()} and here["avx2"] and "neon" in here
    assert "-ffp-contract=off" in setup.GNU_FLAGS and "-ffp-contract=off" in COMMON_FLAGS


def test_operations_layouts_isas_threads(native):
    assert run([native, "check"], timeout=900, **SETTINGS).endswith("0 failures\n")  # a minute and a half where idle


def test_the_formulas_of_the_readme(tmp_path):
    """The plain C in csrc/README.md computes what the core does."""
    text = (CSRC / "README.md").read_text(encoding="utf-8")
    (tmp_path / "plain.c").write_text(re.search(r"```c\n(.*?)```", text, re.DOTALL)[1])
    library = tmp_path / "plain.so"
    run([required("gcc", "cc"), "-std=c11", "-Wall", "-Werror", "-O1", "-fPIC", "-shared", tmp_path / "plain.c", "-lm", "-o",
         library])
    plain, rng = ctypes.CDLL(str(library)), np.random.default_rng(1)
    n, c, s = 5, 3, 8
    x, dy = rng.normal(2, 3, (2, n, c, s)).astype(np.float32)
    gamma, beta, mean, rstd, dgamma, dbeta = rng.normal(size=(6, c))
    y, dx, size, at = np.empty_like(x), np.empty_like(x), ctypes.c_long, lambda a: a.ctypes.data_as(ctypes.c_void_p)
    shape = size(n), size(c), size(s)
    plain.forward(*shape, at(x), at(gamma), at(beta), ctypes.c_double(1e-5), at(y), at(mean), at(rstd))
    plain.backward(*shape, at(x), at(dy), at(gamma), at(mean), at(rstd), at(dx), at(dgamma), at(dbeta))
    expected, saved = fastbn.batch_norm_training(x, gamma, beta)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    for one, other in zip((dx, dgamma, dbeta), fastbn.batch_norm_backward(dy, saved)):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_fork(native):
    run([native, "fork"], timeout=100, **SETTINGS)


def test_more_than_2_to_the_31_entries(native):
    assert run([native, "large"], timeout=300, **SETTINGS).endswith("0 failures\n")


def test_isa_of_the_environment(native):
    table = isa_table(run([native, "isa"]))
    usable = [name for name, state in table.items() if state == ["1", "1"]]
    assert "generic" in usable
    for name in usable:
        assert isa_table(run([native, "isa"], FASTBN_ISA=name))["active"] == [name]
    assert isa_table(run([native, "isa"]))["active"] == usable[:1]


def test_build_without_openmp(built, tmp_path, native_hashes):
    """The kernels know nothing of threads."""
    program = build_core_test(required("gcc", "cc"), tmp_path / "serial", options=("-O1", "-fno-openmp"),
                              kernels=built[1] / "build")
    assert not differences(run([program, "hash"]), native_hashes)


@pytest.mark.parametrize("isa", ["neon", "generic"])
def test_aarch64_gives_the_same_bits(isa, aarch64, native_hashes):
    assert not differences(run([*aarch64, "hash", isa, "2"], **SETTINGS), native_hashes)


@pytest.fixture(scope="module")
def aarch64(tmp_path_factory):
    """The command that runs the test program on an (emulated) 64-bit Arm processor."""
    compiler, emulator = required("aarch64-linux-gnu-gcc"), required("qemu-aarch64", "qemu-aarch64-static")
    program = build_core_test(compiler, tmp_path_factory.mktemp("aarch64"), machine="aarch64", options=("-O1",),
                              link=("-static",))
    return [emulator, str(program)]


def emulated(cpu):
    """The command that runs an x86-64 program on that processor."""
    emulator = required("qemu-x86_64", "qemu-x86_64-static")
    version = re.search(r"version (\d+)\.(\d+)", run([emulator, "--version"]))
    if tuple(map(int, version.groups())) < (7, 2):
        pytest.skip(f"qemu {version[0]} emulates no AVX: 7.2 is the first that does")
    return [emulator, "-cpu", cpu]


@x86_only
@pytest.mark.parametrize("cpu, expected", LESSER_CPUS)
def test_lesser_x86_processors(cpu, expected, static_native, native_hashes):
    program = [*emulated(cpu), static_native]
    assert isa_table(run([*program, "isa"]))["active"] == [expected]
    assert not differences(run([*program, "hash", "best", "2"], **SETTINGS), native_hashes)


@x86_only
@pytest.mark.parametrize("cpu, expected", LESSER_CPUS)
def test_python_on_lesser_x86_processors(cpu, expected):
    """The installed extension module under the same processors (NumPy's wheels ask for x86-64-v2: Nehalem)."""
    emulator = emulated(cpu)
    if subprocess.run([*emulator, sys.executable, "-c", "import numpy"], capture_output=True, timeout=100).returncode:
        pytest.skip(f"this NumPy or Python does not run on a {cpu}")
    script = Path(__file__).with_name("identity_script.py")
    command = [sys.executable, str(script), "--threads", "1,2", "--shapes", "few"]
    environment = {**SETTINGS, "OPENBLAS_NUM_THREADS": "1"}
    native = [line.split("\t") for line in run(command, **environment).splitlines()]
    lesser = [line.split("\t") for line in run([*emulator, *command], **environment).splitlines()]
    assert {row[0] for row in lesser} == {expected}
    assert len(native) > 300 and [row[1:] for row in lesser] == [row[1:] for row in native]


def test_clang_gives_the_same_bits(sdist, tmp_path, native_hashes):
    """The last test: its kernels are those of a wheel of test_build.py, which another process builds meanwhile."""
    clang = required("clang")
    if not can_build(clang, tmp_path):
        pytest.skip("clang has no OpenMP runtime here")
    tree = build_wheel(sdist, tmp_path, CC="clang")[1]
    program = build_core_test(clang, tmp_path / "clang", kernels=tree / "build")
    assert not differences(run([program, "hash"], **SETTINGS), native_hashes)
