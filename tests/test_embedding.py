"""The C core in a program outside Python: csrc/Makefile in an unpacked sdist, and tests/c/embed.c with its library."""
import os
import re
import shutil
import subprocess

import pytest

import packages
from toolchain import COMMON_FLAGS, CSRC, find_compiler, isa_flags, run

pytestmark = pytest.mark.skipif(shutil.which("make") is None or find_compiler("cc") is None, reason="no make or no cc")


def commands(*settings):
    """{source: words of its command}, as make would run them."""
    printed = run(["make", "-n", "-B", "-C", CSRC, "OUT=out", *settings])
    lines = [line.split() for line in printed.splitlines() if " -c " in line]
    return {words[words.index("-c") + 1]: words for words in lines}


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_flags_are_those_of_the_package(machine):
    """For every file, with those that tests/test_c_core.py compares with setup.py's."""
    found = commands(f"MACHINE={machine}")
    isas = isa_flags(machine)
    assert len(isas) > 1
    kernels = {f"kernels_{isa}.c": flags for isa, flags in isas.items()}
    others = {path.relative_to(CSRC).as_posix() for path in CSRC.glob("**/*.c") if not path.name.startswith("kernels_")}
    assert set(found) == others | set(kernels)
    have = {f"-DFBN_HAVE_{isa.upper()}" for isa in isas if isa != "generic"}
    for name, words in found.items():
        assert {word for word in words if word.startswith("-m")} == set(kernels.get(name, [])), name
        assert have == {word for word in words if word.startswith("-DFBN_HAVE_")}, name
        assert {"-O3", "-std=c11", "-ffp-contract=off", "-fopenmp"} <= set(words), name
    assert {"-std=c11", "-ffp-contract=off", "-fopenmp"} <= set(COMMON_FLAGS)


def test_a_build_without_threads_and_another_compiler():
    words = commands("OPENMP=", "CC=true", "MACHINE=riscv64", "CFLAGS=-O1 -g")["dispatch.c"]
    assert words[0] == "true" and {"-O1", "-g"} <= set(words)
    assert not [word for word in words if "openmp" in word or word.startswith(("-m", "-DFBN"))]


@pytest.fixture(scope="module")
def library(sdist, tmp_path_factory):
    """The folder of an unpacked sdist in which the Makefile has made the library, not optimized, to save a minute."""
    tree = packages.unpack(sdist, tmp_path_factory.mktemp("embedding"))
    run(["make", f"-j{os.cpu_count()}", "-C", tree / "csrc", "CFLAGS=-O1"], timeout=1200)
    return tree


def documented_commands(tree):
    """The compiler's and the program's, from the head of embed.c; the first, make's, is the fixture."""
    head = (tree / "tests" / "c" / "embed.c").read_text(encoding="utf-8").partition("*/")[0]
    first, second = re.findall(r"^ \*     (\S.*)$", head, re.MULTILINE)
    assert first == "make -C csrc"
    compile_, start = second.split(" && ")
    return compile_.split(), start


@pytest.mark.full
def test_the_program_runs(library):
    """As documented, and with every instruction set; it prints what is wrong."""
    command, start = documented_commands(library)
    subprocess.run([*command, "-Wall", "-Wextra", "-Werror", "-pedantic"], cwd=library, check=True, timeout=300)
    program = library / start
    printed = run([program], OMP_NUM_THREADS="3", OMP_DYNAMIC="false")
    assert re.fullmatch(rf"fastbn {packages.VERSION}, \w+, 3 threads: ok\n", printed)
    assert "generic, 3 threads: ok" in run([program], OMP_NUM_THREADS="3", OMP_DYNAMIC="false", FASTBN_ISA="generic")
    with pytest.raises(AssertionError, match="instruction set"):
        run([program], FASTBN_ISA="mmx")


@pytest.mark.full
def test_the_program_as_cpp(library):
    compiler = find_compiler("g++", "clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    source, program = library / "tests/c/embed.c", library / "embed_cpp"
    run([compiler, "-x", "c++", "-std=c++20", "-Wall", "-Werror", f"-I{library / 'csrc'}", source, "-x", "none",
         library / "csrc/libfastbn.a", "-fopenmp", "-lm", "-o", program])
    assert run([program]).endswith("ok\n")


@pytest.mark.full
def test_only_its_own_names(library):
    """What is visible begins with fastbn_ and is in the header, or with fbn_."""
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    printed = run(["nm", "-g", "--defined-only", library / "csrc/libfastbn.a"])
    names = {line.split()[-1] for line in printed.splitlines() if len(line.split()) == 3}
    assert {"fastbn_training", "fastbn_abi_version"} <= names
    assert not [name for name in names if not name.startswith(("fastbn_", "fbn_"))]
    header = (library / "csrc/fastbn.h").read_text(encoding="utf-8")
    assert not [name for name in names if name.startswith("fastbn_") and f" {name}(" not in header.replace("*", " ")]


def test_the_guide_shows_this_program():
    source = (packages.ROOT / "tests/c/embed.c").read_text(encoding="utf-8")
    shown, text = packages.lines_in_guide("c"), (packages.ROOT / "fastbn" / "GUIDE.md").read_text(encoding="utf-8")
    assert len(shown) > 5 and [line for line in shown if line not in source] == []
    for command in re.findall(r"^ \*     (\S.*)$", source.partition("*/")[0], re.MULTILINE):
        assert command in text
