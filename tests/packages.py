"""The package as others get it, for tests: the sdist of the checkout, a wheel of that, an environment with it.

The checkout itself is never built: a copy of its files makes the sdist, and every build starts from that. Objects of
earlier builds are taken from the checkout's build/objects, and new ones are kept there (see setup.py). Builds use the
packages of the running environment (the extra "test" has them), so that nothing is downloaded. The fixtures are in
conftest.py.
"""
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = ["setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md"]
FOLDERS = ["csrc", "fastbn", "tests", "bench", ".github"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
VERSION = PROJECT["version"]
TIME_LIMIT = 600

builds = [
    pytest.mark.full,
    pytest.mark.skipif(find_spec("build") is None or find_spec("Cython") is None,
                       reason="build or Cython is not installed: the extra 'test' has them"),
]


def run(command, cwd, **environment):
    """Standard output; everything that was printed is in the error where the command failed."""
    foreign = ("FASTBN_", "PYTHONPATH", "PIP_QUIET")  # pip would say less than -v asks for
    base = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env={**base, **environment}, timeout=TIME_LIMIT,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    printed = f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    assert done.returncode == 0, f"exit status {done.returncode}: {command}\n{printed}"
    return done.stdout


def make_sdist(folder):
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / "tree" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, folder / "tree")
    options = ["--sdist", "--no-isolation", "--outdir", folder / "dist"]
    run([sys.executable, "-m", "build", *options, folder / "tree"], folder)
    [path] = (folder / "dist").iterdir()
    return path


def unpack(sdist, folder):
    """The tree."""
    safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # since Python 3.11.4
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, **safely)
    return folder / f"fastbn-{VERSION}"


def pip_wheel(tree, folder, **environment):
    """Puts a wheel of the tree into the folder's dist/; returns what pip and the build said."""
    options = ["--no-build-isolation", "--no-deps", "--no-index", "-w", folder / "dist", "--log", folder / "log"]
    (folder / "log").unlink(missing_ok=True)
    environment = {"FASTBN_OBJECTS": str(ROOT / "build" / "objects"), **environment}
    run([sys.executable, "-m", "pip", "wheel", "-v", *options, tree], folder, **environment)
    return (folder / "log").read_text(encoding="utf-8")


def build_wheel(sdist, folder, **environment):
    """Unpacks the sdist into the folder and builds there; returns the wheel and the tree with its objects."""
    tree = unpack(sdist, folder)
    pip_wheel(tree, folder, **environment)
    [wheel] = (folder / "dist").glob("*.whl")
    return wheel, tree


def setup_module():
    """setup.py as a module, for what it says of flags and for its parts."""
    spec = spec_from_file_location("fastbn_setup", ROOT / "setup.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def install(python, *what, **environment):
    """Into another environment, with what that has."""
    offline = ["--no-build-isolation", "--no-deps", "--no-index"]
    command = [sys.executable, "-m", "pip", "--python", python, "install", *offline, *what]
    run(command, Path(python).parent, **environment)


def fresh_environment(home, wheel):
    """A new environment with nothing in it but the wheel: its interpreter, and where packages lie."""
    venv.create(home, with_pip=False, symlinks=os.name != "nt")
    paths = sysconfig.get_paths(scheme="venv", vars={"base": str(home), "platbase": str(home)})
    python = Path(paths["scripts"], "python.exe" if os.name == "nt" else "python")
    install(python, wheel)
    return python, Path(paths["purelib"])


def lines_in_guide(language):
    """The lines of the user guide's blocks in a language."""
    text = (ROOT / "fastbn" / "GUIDE.md").read_text(encoding="utf-8")
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()]
