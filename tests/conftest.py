"""What every test shares: a seeded generator, one hypothesis profile, the package built once, and all processors.

Hypothesis runs the same examples every time, so that a failure repeats.
"""
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import packages
from fastbn import _core

settings.register_profile(
    "fastbn", deadline=None, derandomize=True, database=None, print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("fastbn")


# What takes longest begins first, so that no processor is left with it at the end.
LONG = ["test_c_core", "test_build", "test_sanitizers", "test_identity", "test_damaged_files", "test_fuzz"]


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """All processors test where pytest-xdist is installed; -n or a path on the command line says otherwise."""
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not config.option.usepdb
    if whole and getattr(config.option, "numprocesses", 0) is None and not hasattr(config, "workerinput"):
        config.option.numprocesses = os.cpu_count()
        config.option.dist, config.option.loadscopereorder = "loadfile", False


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture
def rng():
    """A generator with the same seed in every test."""
    return np.random.default_rng(20150211)


@pytest.fixture
def small_work_threads():
    """Threads whatever the size of the work; afterwards the instruction set of first use again."""
    before = _core.set_bytes_per_thread(0)
    yield
    _core.set_bytes_per_thread(before)
    _core.set_isa(None)


@pytest.fixture(scope="session")
def sdist(tmp_path_factory):
    return packages.make_sdist(tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="session")
def built(sdist, tmp_path_factory):
    """(wheel, the tree it was built in)"""
    return packages.build_wheel(sdist, tmp_path_factory.mktemp("build"))


@pytest.fixture(scope="session")
def wheel(built):
    return built[0]
