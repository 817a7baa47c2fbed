"""The package as others get it: sdist, wheel built from the sdist, installed and used from another folder.

How these are made: packages.py, conftest.py.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from packages import (
    FILES,
    ROOT,
    VERSION,
    build_wheel,
    builds,
    fresh_environment,
    pip_wheel,
    run,
    setup_module,
    unpack,
)

BUILT = (".so", ".pyd", ".o", ".pyc")

pytestmark = builds

# Everything once, against the formulas in float64; prints what the tests ask about as one line of JSON.
SMOKE = """
import hashlib, json, sys
from pathlib import Path
import numpy as np
import fastbn

optional = {"sklearn", "matplotlib", "rich", "torch", "Cython", "setuptools"} & set(sys.modules)
rng = np.random.default_rng(7)
shape, axes, column = (16, 5, 30, 33), (0, 2, 3), (1, 5, 1, 1)
x = (rng.normal(size=shape) * 3 + 50).astype(np.float32)
dy = rng.normal(size=shape).astype(np.float32)
gamma, beta = rng.normal(size=(2, 5)).astype(np.float32)

x64, dy64, gamma64 = x.astype(np.float64), dy.astype(np.float64), gamma.astype(np.float64).reshape(column)
mean, var = x64.mean(axes), x64.var(axes)
rstd = 1 / np.sqrt(var + 1e-5).reshape(column)
x_hat = (x64 - mean.reshape(column)) * rstd
expected_y = x_hat * gamma64 + beta.reshape(column)
dbeta, dgamma = dy64.sum(axes), (dy64 * x_hat).sum(axes)
count = x[:, 0].size
expected_dx = gamma64 * rstd * (dy64 - (dbeta.reshape(column) + x_hat * dgamma.reshape(column)) / count)

def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)
    return np.ascontiguousarray(got)

y, saved = fastbn.batch_norm_training(x, gamma, beta)
results = [close(y, expected_y), close(saved.mean, mean), close(saved.var, var)]
results += [close(*pair) for pair in zip(fastbn.batch_norm_backward(dy, saved), (expected_dx, dgamma, dbeta))]
results.append(close(fastbn.batch_norm_inference(x, mean.astype("f4"), var.astype("f4"), gamma, beta), expected_y))
layer = fastbn.BatchNorm(5)
layer(x)
results.append(close(layer.running_mean, 0.1 * mean))

print(json.dumps({
    "file": fastbn.__file__, "version": fastbn.__version__, "include": fastbn.get_include(),
    "optional": sorted(optional),
    "openmp": fastbn.get_config()["openmp"], "abi3": fastbn.get_config()["limited_api"],
    "threads": fastbn.get_num_threads(),
    "digest": hashlib.sha256(b"".join(result.tobytes() for result in results)).hexdigest(),
}))
"""


def smoke_of_unpacked(wheel, folder):
    """SMOKE with the wheel's files before everything else on the path."""
    site, elsewhere = folder / "site", folder / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    report = json.loads(run([sys.executable, "-c", SMOKE], elsewhere, PYTHONPATH=str(site), OMP_NUM_THREADS="2"))
    assert Path(report["file"]).is_relative_to(site)
    return report


@pytest.fixture(scope="module")
def installed_python(wheel, tmp_path_factory):
    """The interpreter of a fresh environment with nothing in it but the wheel, and NumPy seen through a path file."""
    python, packages = fresh_environment(tmp_path_factory.mktemp("fresh") / "venv", wheel)
    path_file = packages / "numpy_of_the_tests.pth"
    path_file.write_text(f"{Path(np.__file__).parent.parent}\n", encoding="utf-8")
    return python


@pytest.fixture(scope="module")
def smoke(installed_python, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    report = json.loads(run([installed_python, "-I", "-c", SMOKE], elsewhere, OMP_NUM_THREADS="2"))
    assert Path(report["file"]).is_relative_to(installed_python.parent.parent)
    return report


def test_sdist_has_every_source_and_nothing_built(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    expected = {*FILES, "fastbn/_core.pyx", "fastbn/py.typed", "csrc/Makefile"}
    for pattern in ("csrc/**/*.[ch]", "csrc/**/*.inc", "tests/**/*.py", "tests/c*/*", "bench/**/*.py", "bench/*.c",
                    "bench/*.json", "fastbn/**/*.py", "fastbn/**/*.md", "fastbn/*.px*", "fastbn/explain/templates/*",
                    ".github/*.png"):
        expected |= {path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern) if path.is_file()}
    assert expected <= names
    assert not [name for name in names if name.endswith(BUILT) or name in {"fastbn/_core.c", "fastbn/include"}]


def test_wheel_has_what_others_compile_and_check_against(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert archive.read("fastbn/include/fastbn.h") == (ROOT / "csrc/fastbn.h").read_bytes()
    expected = {"py.typed", "_core.pxd", "__init__.pxd", "_core.pyi", "__init__.py", "demo/__init__.py",
                "convert/__init__.py", "convert/__init__.pyi", "distributed/__init__.py", "distributed/__init__.pyi",
                "interop/__init__.py", "explain/__init__.py",
                "explain/templates/page.html", "explain/templates/page.css"}
    assert {f"fastbn/{name}" for name in expected} <= names
    assert len([name for name in names if re.fullmatch(r"fastbn/_core\..*(so|pyd)", name)]) == 1
    assert {name.partition("/")[0] for name in names} == {"fastbn", f"fastbn-{VERSION}.dist-info"}
    assert not [name for name in names if name.endswith((".c", ".inc", ".pyx", ".pxi", ".o", ".pyc"))]


def test_wheel_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"fastbn-{VERSION}.dist-info/METADATA").decode()
        assert f"fastbn-{VERSION}.dist-info/licenses/LICENSE" in archive.namelist()
    metadata = HeaderParser().parsestr(text)
    requirements = metadata.get_all("Requires-Dist")
    assert [line for line in requirements if "extra ==" not in line] == ["numpy>=1.26"]
    assert [line for line in requirements if line.startswith("torch")] == ['torch==2.13.0; extra == "torch"']
    adapters = {path.stem for path in (ROOT / "fastbn" / "interop").glob("[a-z]*.py")}
    extras = {"demo", "test", "bench", "peers", "convert", "frameworks", "interop", "sklearn", "dask", "mpi", "engines", "docs", "typing"}
    assert set(metadata.get_all("Provides-Extra")) == extras | adapters
    assert (metadata["Version"], metadata["Requires-Python"]) == (VERSION, ">=3.11")
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert metadata.get_payload().startswith("# fastbn") and "](fastbn/" not in metadata.get_payload()


def test_the_readme_of_a_package_index_has_no_relative_links():
    text = "[a](b.md#c) ![d](.github/e.png) [f](https://g.org) [h](#i)"
    elsewhere = setup_module().readme_elsewhere
    assert elsewhere(text, None) == "a  [f](https://g.org) [h](#i)"
    assert elsewhere(text, "https://x.org/y") == ("[a](https://x.org/y/blob/main/b.md#c) "
                                                  "![d](https://x.org/y/raw/main/.github/e.png) "
                                                  "[f](https://g.org) [h](#i)")


def test_installed_wheel_works_from_another_folder(smoke):
    assert smoke["version"] == VERSION
    assert smoke["optional"] == [], "import fastbn loaded a package that only an extra needs"


def test_module_prints_the_configuration(installed_python, tmp_path):
    printed = run([installed_python, "-I", "-m", "fastbn"], tmp_path)
    assert VERSION in printed
    assert "-ffp-contract=off" in printed or os.name == "nt"


@pytest.mark.parametrize("language", [["-x", "c", "-std=c11"], ["-x", "c++", "-std=c++17"]], ids=["c", "c++"])
def test_installed_header_stands_alone(smoke, tmp_path, language):
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None or (language[1] == "c++" and shutil.which("g++") is None):
        pytest.skip("no gcc or clang for this language")
    source = tmp_path / "user.c"
    source.write_text('#include "fastbn.h"\nint main(void) { return fastbn_abi_version() - FASTBN_ABI_VERSION; }\n')
    strict = ["-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only"]
    run([compiler, *language, *strict, f"-I{smoke['include']}", source], tmp_path)


@pytest.mark.skipif(bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="free-threaded Python has no abi3")
def test_the_wheel_serves_every_later_python(wheel, smoke):
    assert wheel.name.startswith(f"fastbn-{VERSION}-cp311-abi3-")
    assert smoke["abi3"]


def later_pythons():
    """{minor: interpreter} of the later releases on the PATH, and beside the running one as pyenv has them."""
    found = {}
    for minor in range(sys.version_info[1] + 1, 20):
        beside = sorted(Path(sys.base_prefix).parent.glob(f"3.{minor}.*/bin/python3.{minor}"))
        for path in [shutil.which(f"python3.{minor}"), *beside]:
            if path and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:  # pyenv's shims may not run
                found.setdefault(minor, path)
    return found


@pytest.mark.parametrize("minor", sorted(later_pythons()) or [None])
def test_the_wheel_without_a_compiler_on_other_pythons(wheel, smoke, tmp_path, minor):
    if minor is None:
        pytest.skip("no later Python is on this machine")
    (tmp_path / "no compiler").mkdir()
    run([later_pythons()[minor], "-m", "venv", tmp_path / "venv"], tmp_path)
    python, path = tmp_path / "venv/bin/python", {"PATH": str(tmp_path / "no compiler")}
    try:
        run([python, "-m", "pip", "install", "--only-binary", ":all:", "numpy"], tmp_path, **path)
    except AssertionError:
        pytest.skip(f"no NumPy can be had for Python 3.{minor}")
    run([python, "-m", "pip", "install", "--no-index", "--no-deps", wheel], tmp_path, **path)
    report = json.loads(run([python, "-I", "-c", SMOKE], tmp_path, OMP_NUM_THREADS="2", **path))
    assert report["abi3"] and report["version"] == VERSION


def test_without_openmp_the_same_bits_come_from_one_thread(sdist, smoke, tmp_path):
    """Built for the running Python alone as well, so that this way of building is tested too."""
    wheel = build_wheel(sdist, tmp_path, FASTBN_NO_OPENMP="1", FASTBN_LIMITED_API="0")[0]
    report = smoke_of_unpacked(wheel, tmp_path)
    assert "abi3" not in wheel.name and not report["abi3"]
    assert (report["openmp"], report["threads"]) == (None, 1)
    assert report["digest"] == smoke["digest"]
    printed = run([sys.executable, "-m", "fastbn"], tmp_path / "elsewhere", PYTHONPATH=str(tmp_path / "site"))
    assert re.search(r"openmp.*(none|not|without|no\b)", printed, re.IGNORECASE), printed


@pytest.mark.skipif(shutil.which("clang") is None, reason="clang is not installed")
def test_clang_builds_the_same_bits(sdist, smoke, tmp_path):
    report = smoke_of_unpacked(build_wheel(sdist, tmp_path, CC="clang")[0], tmp_path)
    assert report["openmp"] in {"libomp", None}
    assert report["digest"] == smoke["digest"]


def test_fast_math_in_cflags_is_refused(sdist, tmp_path):
    with pytest.raises(AssertionError, match="CFLAGS contains -ffast-math"):
        build_wheel(sdist, tmp_path, CFLAGS="-O2 -ffast-math")


# Two files of the core, whichever.
ONE, OTHER = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("csrc/[!k]*.c"))[:2]


def compiled(printed):
    """(C files, kernels among them) that a build says it compiled; (0, 0) where it says that nothing has changed."""
    found = re.search(r"fastbn: compiles (\d+) C files, (\d+) of them kernels", printed)
    assert found or "fastbn: no C file has changed" in printed, printed
    return tuple(map(int, found.groups())) if found else (0, 0)


def test_a_second_build_compiles_what_has_changed(sdist, built, tmp_path):
    """In another folder, as under pip, with other paths, and with the objects of built, which was made before."""
    tree = unpack(sdist, tmp_path)
    objects = shutil.copytree(ROOT / "build" / "objects", tmp_path / "objects")

    def build():
        return compiled(pip_wheel(tree, tmp_path, FASTBN_OBJECTS=str(objects)))

    assert build() == (0, 0)
    for changed, expected in (("fastbn/folding.py", (0, 0)), (ONE, (1, 0)), ("fastbn/_core.pyx", (1, 0))):
        with open(tree / changed, "a", encoding="utf-8") as file:
            file.write("\nint fbn_new;\n" if changed.endswith(".c") else "\nnew = 1\n")
        assert build() == expected, changed
    with zipfile.ZipFile(next((tmp_path / "dist").glob("*.whl"))) as archive:
        assert b"\nnew = 1\n" in archive.read("fastbn/folding.py")


def test_other_flags_and_another_compiler_are_other_objects(monkeypatch):
    """Key by key, and without building; an unused macro and another folder with the same headers are no difference."""
    monkeypatch.chdir(ROOT)
    setup = setup_module()
    from distutils.ccompiler import new_compiler  # setuptools' own, since setup.py has imported it

    def key(path=ONE, compiler="gcc", flags=("-O3",), macros=(), folders=("csrc",)):
        plain = new_compiler(compiler="unix")
        plain.set_executables(compiler_so=tool(compiler))
        build = SimpleNamespace(plain_compiler=plain, openmp_flags=[], isa_flags={})
        return setup.Source(build, path, list(flags), {"macros": macros, "include_dirs": list(folders)}).key()

    assert key() == key(macros=[("UNUSED", "1")]) == key(folders=[str(ROOT / "csrc")])
    others = [key(flags=["-O2"]), key(path=OTHER), key(macros=[("int64_t", "long")])]
    assert len({key(), *others}) == 4 and None not in others
    assert key(flags=["--no-such-flag"]) is None
    assert shutil.which("clang") is None or key(compiler="clang") != key()


def test_the_folder_of_objects(monkeypatch, tmp_path):
    """A file that is not there or cannot be kept is no error; those unused for longest go."""
    monkeypatch.setenv("FASTBN_OBJECTS", str(tmp_path / "objects"))
    store, made, target = setup_module().Store(), tmp_path / "made.o", tmp_path / "build/target.o"
    made.write_text("object")
    assert not store.take("a", target) and not store.take(None, target)
    for name in "abcd":
        store.keep(name, made)
        os.utime(store.folder / name, (ord(name), ord(name)))
    assert store.take("a", target) and target.read_text() == "object"
    store.LIMIT = 2
    store.trim()
    assert {path.name for path in store.folder.iterdir()} == {"a", "d"}
    store.folder = made / "folder of a file"
    store.keep("a", made)
    store.trim()
    assert not store.take("a", target)


# What the kernel objects may contain. x86: vfmadd132ps, vfnmsub231sd, ...; aarch64: fmla, fmls, fmadd, fnmsub, ...
# Packed vfmsub is only used for a * 1 - b (diff in csrc/vec), which has the bits of a - b: tests/test_identity.py.
FUSED = re.compile(r"\b(vf(n?madd|nmsub|maddsub|msubadd)\w*|vfmsub\d+s[sd]|fml[as]\w*|fn?m(add|sub))\b")
WRITES_FLOATING_POINT_STATE = re.compile(r"\bv?ldmxcsr\b|\bfldcw\b|\bmsr\s+fpcr")
# What the disassembly of an instruction set's kernels has to show, and what it must not. Mnemonics with v are AVX's.
X86_CODE = {"avx512": ("%zmm", None), "avx2": ("%ymm", "%[zk]"), "generic": ("%xmm", r"\tv\w")}


def tool(name):
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def objects_of(tree):
    paths = list(tree.glob("build/temp*/**/*.o"))
    assert {"kernels_generic", "dispatch", "_core"} <= {path.stem for path in paths}
    return paths


def disassembled(path, objdump="objdump"):
    text = run([tool(objdump), "-d", "--no-show-raw-insn", path], path.parent)
    assert "<" in text, f"objdump shows nothing of {path.name}"
    return text


def exported_by(path, nm="nm"):
    return [line.split()[-1] for line in run([tool(nm), "-g", "--defined-only", path], path.parent).splitlines()]


def check_kernel_object(path, **tools):
    code = disassembled(path, tools.get("objdump", "objdump"))
    assert not FUSED.search(code), f"{path.name}: {FUSED.search(code)[0]} has other bits than * and +"
    assert not WRITES_FLOATING_POINT_STATE.search(code), f"{path.name} changes the floating-point environment"
    assert exported_by(path, tools.get("nm", "nm")) == [f"fbn_{path.stem}"]
    sections = run([tool(tools.get("objdump", "objdump")), "-h", path], path.parent)
    assert ".text" in sections, f"objdump shows no sections of {path.name}"
    assert not re.search(r"\.(init_array|ctors)", sections), f"{path.name} runs code when it is loaded"


linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads ELF objects")


@linux_only
def test_kernel_objects(built):
    kernels = [path for path in objects_of(built[1]) if path.stem.startswith("kernels_")]
    assert len(kernels) > 1
    for path in kernels:
        check_kernel_object(path)


@linux_only
@pytest.mark.skipif(sysconfig.get_platform() != "linux-x86_64", reason="names x86-64 registers")
@pytest.mark.skipif("-m" in os.environ.get("CFLAGS", ""), reason="CFLAGS asks for more than the baseline processor")
def test_only_kernel_objects_use_more_than_the_baseline_processor(built):
    """Everything without flags of its own is held to what "generic" may use: it runs before the choice is made."""
    for path in objects_of(built[1]):
        isa = path.stem.removeprefix("kernels_")
        wanted, forbidden = X86_CODE.get(isa, X86_CODE["generic"])
        code = disassembled(path)
        assert isa not in X86_CODE or wanted in code, f"{path.name} has no {wanted}"
        assert forbidden is None or not re.search(forbidden, code), f"{path.name}: {re.search(forbidden, code)[0]}"


@linux_only
def test_neon_kernel_object(tmp_path):
    """Cross-compiled with the flags of the build: every aarch64 processor has fused instructions to misuse."""
    setup = setup_module()
    compiler, objdump, nm = (tool(f"aarch64-linux-gnu-{name}") for name in ("gcc", "objdump", "nm"))
    target = tmp_path / "kernels_neon.o"
    flags = [*setup.GNU_FLAGS, *setup.ISAS["neon"].gnu_flags, f"-I{ROOT / 'csrc'}"]
    run([compiler, *flags, "-c", ROOT / "csrc/kernels_neon.c", "-o", target], tmp_path)
    check_kernel_object(target, objdump=objdump, nm=nm)
