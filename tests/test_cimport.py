"""cimport fastbn: what other packages' Cython code sees of the C interface, and that it works from such a package."""
import ctypes
import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import fastbn
import packages
from fastbn import _core

FOLDER = Path(fastbn.__file__).parent
USER = Path(__file__).with_name("cython_user")
HEADER = re.sub(r"/\*.*?\*/", " ", Path(fastbn.get_include(), "fastbn.h").read_text(encoding="utf-8"), flags=re.DOTALL)
DECLARATION = re.compile(r"^((?:const )?\w+ \*?)(fastbn_\w+)\(([^)]*)\);", re.MULTILINE)


def cython_type(text):
    """Of C's "const double *mean" Cython's "double const *"."""
    text = re.sub(r"\w+$", "", text.strip()) if " " in text.strip() or "*" in text else text.strip()
    constant, base, stars = re.fullmatch(r"(const )?(\w+) ?(\**)", text.strip()).groups()
    return f"{base}{' const' if constant else ''}{' ' if stars else ''}{stars}"


def signatures():
    """{name: signature as Cython spells it} of the functions of fastbn.h."""
    found = {}
    for result, name, parameters in DECLARATION.findall(HEADER):
        parameters = "void" if parameters == "void" else ", ".join(map(cython_type, parameters.split(",")))
        found[name] = f"{cython_type(result + 'f')} ({parameters})".replace("* (", "*(")
    return found


def capsule_name(capsule):
    name_of = ctypes.pythonapi.PyCapsule_GetName
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
    return name_of(capsule).decode()


def test_exported_functions_are_those_of_the_header():
    """Names and signatures: both are looked up when a module that was built earlier is imported."""
    expected = signatures()
    assert len(expected) > 15
    assert {name: capsule_name(capsule) for name, capsule in _core.__pyx_capi__.items()} == expected


def test_a_signature_as_cython_spells_it():
    arguments = "fastbn_shape const *, fastbn_input, double *, double *, int"
    assert signatures()["fastbn_moments"] == f"fastbn_status ({arguments})"
    assert signatures()["fastbn_isa_active"] == "fastbn_status (char const **)"
    assert signatures()["fastbn_get_num_threads"] == "int (void)"


def test_the_package_cimports_everything_that_the_header_has():
    names = set(re.findall(r"\b(?:FASTBN|fastbn)_\w+", HEADER)) - {"FASTBN_H"}
    assert names <= set(re.findall(r"\w+", (FOLDER / "_core.pxd").read_text(encoding="utf-8")))
    assert (FOLDER / "__init__.pxd").read_text(encoding="utf-8").endswith("\nfrom fastbn._core cimport *\n")


def test_the_declarations_have_the_header_s_members():
    """Cython would not miss one, nor know that a type is another."""
    text = (FOLDER / "_core.pxd").read_text(encoding="utf-8")
    for body, name in re.findall(r"typedef (?:struct|enum) \w+ \{(.*?)\} (\w+);", HEADER, re.DOTALL):
        members = re.findall(r"(\w+)\s*(?:= \d+\s*)?(?:[,;]|\s*$)", body)
        declared = re.search(rf"ctypedef (?:struct|enum) {name}:\n(.*?)\n\n", text, re.DOTALL)[1]
        assert members == re.findall(r"(\w+)(?:,|$)", declared, re.MULTILINE), name


SCRIPT = """
import json, sys
from importlib.util import find_spec
import numpy as np
import tables
assert "fastbn" in sys.modules
x = np.random.default_rng(5).normal(3, 2, (7, 500, 6)).astype(np.float32)
y, statistics = np.empty_like(x), np.empty((7, 3, 6))
tables.normalize(x, y, statistics)
wide = x.astype(np.float64)
mean, var = wide.mean(1), wide.var(1)
np.testing.assert_allclose(statistics, np.stack([mean, var, 1 / np.sqrt(var + 1e-5)], 1), rtol=1e-6)
expected = np.maximum((wide - mean[:, None]) / np.sqrt(var + 1e-5)[:, None], 0)
np.testing.assert_allclose(y, expected, atol=1e-5)
import fastbn
same = all(np.array_equal(a, fastbn.batch_norm_training(b, activation="relu")[0]) for a, b in zip(y, x))
print(json.dumps({"same": same, "refusal": tables.refusal(), "versions": tables.versions(), "file": fastbn.__file__,
                  "others": [name for name in ("hypothesis", "pytest") if find_spec(name)]}))
"""


# What belongs to a package and lies beside it: setuptools finds its commands by its metadata.
BESIDE = {"numpy": ["numpy.libs"], "Cython": ["cython.py"],
          "setuptools": ["_distutils_hack", "pkg_resources", "setuptools-*.dist-info"]}


@pytest.fixture(scope="module")
def clean(wheel, tmp_path_factory):
    """An interpreter that has NumPy, Cython, setuptools and the wheel, nothing else."""
    python, site = packages.fresh_environment(tmp_path_factory.mktemp("clean") / "venv", wheel)
    for package in ("numpy", "Cython", "setuptools"):
        folder = Path(find_spec(package).origin).parent.parent
        for path in (path for name in (package, *BESIDE[package]) for path in folder.glob(name)):
            (site / path.name).symlink_to(path)
    return python


@pytest.mark.full
@packages.builds[1]
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="built on Linux only")
def test_another_package_is_built_and_works(clean, tmp_path):
    folder = tmp_path / "user"
    folder.mkdir()
    for path in USER.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    packages.install(clean, folder)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    report = json.loads(packages.run([clean, "-I", "-c", SCRIPT], elsewhere, OMP_NUM_THREADS="2"))
    assert report["same"] and report["others"] == []
    assert report["refusal"] == "a size is negative, or the sizes multiply to more than 2^62 elements"
    assert report["versions"] == [_core.abi_version()] * 2
    assert Path(report["file"]).is_relative_to(Path(clean).parent.parent)


def test_the_readme_shows_this_package():
    source, shown = (USER / "tables.pyx").read_text(encoding="utf-8"), packages.lines_in_guide("cython")
    assert len(shown) > 5 and [line for line in shown if line not in source and not line.startswith("from fastbn")] == []
