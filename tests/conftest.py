"""What every test shares: a seeded generator, one hypothesis profile, and the package built once.

Hypothesis runs the same examples every time, so that a failure repeats.
"""
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
