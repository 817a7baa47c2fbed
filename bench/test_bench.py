"""pytest bench: every contender alone on every case; a group is one case. Needs pytest-benchmark.

Only times of one group compare, and roughly: contenders do not alternate here. `python -m bench` is the fair
comparison. A peer whose answer is wrong is skipped. Select with -k, or take more shapes:
pytest bench --grid full -k "training and 56x56 and fastbn".
"""
import pytest

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")

from bench.cases import DTYPES, LAYOUTS, OPERATIONS, check, make_data, reference, sample_features  # noqa: E402
from bench.grid import Wanted, make_jobs  # noqa: E402
from bench.peers import BASELINE, CONTENDERS, load, variants  # noqa: E402


def _parameters(grid):
    """Case by case. A contender that is not installed is one skipped entry."""
    present, missing = load(CONTENDERS)
    wanted = Wanted(OPERATIONS, LAYOUTS, DTYPES[:1], ("numpy",), (1,), grid, ())
    for job in make_jobs(wanted):
        for contender, output in variants(job.case, present):
            yield pytest.param(job.case, contender, output, id=f"{job.case}-{contender.name}-{output}")
    for name, reason in missing.items():
        yield pytest.param(None, None, None, id=name, marks=pytest.mark.skip(reason=f"{name} left out: {reason}"))


def pytest_generate_tests(metafunc):
    if "contender" in metafunc.fixturenames:
        metafunc.parametrize("case, contender, output", list(_parameters(metafunc.config.getoption("--grid"))))


@pytest.fixture(scope="module")
def threads():
    """All that fastbn may use."""
    import fastbn
    return fastbn.get_num_threads()


@pytest.mark.benchmark(max_time=0.2, min_rounds=5, warmup=True, warmup_iterations=3)
def test_speed(benchmark, threads, case, contender, output):
    data, features = make_data(case), sample_features(case)
    expected_data = contender.reference_data(case, data) if hasattr(contender, "reference_data") else data
    with contender.session(threads):
        work = contender.work(case, data, output, threads)
        benchmark.group = str(case)
        benchmark.extra_info.update(bytes=case.bytes, threads=threads, expression=work.expression)
        result = benchmark(work.function())
        expected = reference(case, expected_data, features)
        got = contender.arrays(case, result)
    try:
        error = check(case, contender.name, got, expected, features)
    except AssertionError as problem:
        if contender.name == BASELINE:
            raise
        pytest.skip(f"wrong: {problem}")
    benchmark.extra_info["error"] = error
    if benchmark.stats is not None:  # None with --benchmark-disable
        benchmark.extra_info["GB/s"] = case.bytes / benchmark.stats.stats.median / 1e9
