"""pytest bench: every contender alone on every case; a group is one case. Needs pytest-benchmark.

Only times of one group compare, and roughly: contenders do not alternate here. `python -m bench` is the fair
comparison.
Select with -k: pytest bench -k "training and 56x56 and fastbn".
"""
import pytest

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")

from bench.cases import check, make_cases, make_data, reference  # noqa: E402
from bench.contenders import CONTENDERS, gigabytes_per_second, load, variants  # noqa: E402

CONTENDERS_HERE, MISSING = load(CONTENDERS)


@pytest.fixture(scope="module")
def threads():
    import fastbn
    return fastbn.get_num_threads()


def _parameters():
    """Case by case. A contender that is not installed is one skipped entry."""
    for case in make_cases():
        for contender, output in variants(case, CONTENDERS_HERE):
            yield pytest.param(case, contender, output, id=f"{case}-{contender.name}-{output}")
    for name, reason in MISSING.items():
        yield pytest.param(None, None, None, id=name, marks=pytest.mark.skip(reason=f"{name} left out: {reason}"))


@pytest.mark.benchmark(max_time=0.2, min_rounds=5, warmup=True, warmup_iterations=3)
@pytest.mark.parametrize("case, contender, output", list(_parameters()))
def test_speed(benchmark, threads, case, contender, output):
    data = make_data(case)
    with contender.session(threads):
        work = contender.work(case, data, output, threads)
        benchmark.group = str(case)
        benchmark.extra_info.update(bytes=case.bytes, threads=threads, expression=work.expression)
        result = benchmark(work.function())
        check(case, contender.name, contender.arrays(case, result), reference(case, data))
    if benchmark.stats is not None:  # None with --benchmark-disable
        benchmark.extra_info["GB/s"] = gigabytes_per_second(case, benchmark.stats.stats.median)
