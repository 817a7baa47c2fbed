"""The memory of large results, which is kept for the next ones."""
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

import fastbn
from fastbn import _core

DEFAULT = fastbn.get_output_cache()
pytestmark = pytest.mark.skipif(DEFAULT == 0, reason="nothing is kept on this system")

C = 64
BIG = (9 * 2**20 // C, C)      # 36 MiB of float32
SMALL = (8 * 2**20 // C, C)    # 32 MiB, which malloc keeps by itself


@pytest.fixture(autouse=True)
def empty_cache():
    fastbn.set_output_cache(0)
    fastbn.set_output_cache(None)
    yield
    fastbn.set_output_cache(None)


def layer():
    return fastbn.BatchNorm(C).eval()


def address(a):
    return a.__array_interface__["data"][0]


def allocator(a):
    return np._core.multiarray.get_handler_name(a) if hasattr(np, "_core") else np.core.multiarray.get_handler_name(a)


def batch(shape=BIG):
    return np.resize(np.random.default_rng(0).standard_normal(2**16, dtype=np.float32), shape)


def test_freed_memory_serves_the_next_result():
    bn, x = layer(), batch()
    first = bn(x)
    place, wanted = address(first), first.copy()
    assert allocator(first) == "fastbn" and first.flags.owndata and _core.output_cache_used() == 0
    del first
    assert _core.output_cache_used() == 36 * 2**20
    second = bn(x)
    assert address(second) == place and _core.output_cache_used() == 0
    np.testing.assert_array_equal(second, wanted)


def test_memory_in_use_is_not_handed_out():
    bn, x = layer(), batch()
    first = bn(x)
    view = first[1:2]
    kept = view.copy()
    del first
    others = [bn(x + 1) for _ in range(3)]
    np.testing.assert_array_equal(view, kept)
    assert len({address(y) for y in others} | {address(view) - view.nbytes}) == 4


@pytest.mark.parametrize("shape, axis", [(BIG, -1), ((16, C, 96, 96), 1), ((96, 96, 16, C), (0, 3))], ids=str)
def test_every_result_of_the_shape_of_x(shape, axis):
    x = batch(shape)
    y, saved = fastbn.batch_norm_training(x, axis=axis)
    dx = fastbn.batch_norm_backward(x, saved)[0]
    for a in (y, dx, fastbn.batch_norm_inference(x, saved.mean, saved.var, axis=axis)):
        assert allocator(a if a.base is None else a.base) == "fastbn"


def test_small_results_and_other_arrays_are_numpys():
    bn, x = layer(), batch()
    assert allocator(bn(x[:SMALL[0]])) == "default_allocator"
    y = bn(x)
    assert allocator(y.copy()) == allocator(np.empty(BIG)) == "default_allocator"


def test_much_smaller_result_does_not_take_a_large_block():
    bn, x = layer(), batch((2 * BIG[0], C))
    large = bn(x)
    place = address(large)
    del large
    assert address(bn(x[:BIG[0]])) != place


def test_limit_drops_the_oldest():
    bn, x = layer(), batch()
    fastbn.set_output_cache(80 * 2**20)
    results = [bn(x) for _ in range(3)]
    newest = {address(y) for y in results[1:]}
    while results:
        del results[0]
    assert _core.output_cache_used() == 72 * 2**20
    assert {address(y) for y in [bn(x), bn(x)]} == newest
    fastbn.set_output_cache(0)
    assert _core.output_cache_used() == 0 == fastbn.get_output_cache()
    assert allocator(bn(x)) == "default_allocator"


def test_limit_lowered_while_a_result_lives():
    y = layer()(batch())
    fastbn.set_output_cache(2**20)
    del y
    assert _core.output_cache_used() == 0


def test_resize_of_a_result():
    y = layer()(batch())
    start, rows = y[:2].copy(), len(y)
    y.resize((rows + 2**16, C), refcheck=False)
    np.testing.assert_array_equal(y[:2], start)
    assert not y[rows:].any()
    y.resize((2, C), refcheck=False)
    np.testing.assert_array_equal(y, start)


def test_tracemalloc_sees_the_memory():
    x, bn = batch(), layer()
    tracemalloc.start()
    try:
        y = bn(x)
        assert tracemalloc.get_traced_memory()[0] >= y.nbytes
        del y
        assert tracemalloc.get_traced_memory()[0] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forked_child_has_memory_of_its_own():
    script = """
import os, numpy as np, fastbn
bn, x = fastbn.BatchNorm(64).eval(), np.ones((9 * 2**14, 64), np.float32)
y = bn(x)
wanted = y[0, 0]
del y
child = os.fork()
y = bn(x if child else 7 * x)
if not child:
    os._exit(0 if y[0, 0] != wanted else 1)
assert os.waitpid(child, 0)[1] == 0 and (y == wanted).all()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize("text, wanted", [("0", 0), ("1000", 1000), ("", DEFAULT), ("-1", DEFAULT), ("much", DEFAULT)])
def test_limit_by_environment(text, wanted):
    script = "import fastbn; print(fastbn.get_output_cache())"
    environment = {**os.environ, "FASTBN_OUTPUT_CACHE": text}
    found = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert int(found.stdout) == wanted


@pytest.mark.parametrize("nbytes, error", [(-1, ValueError), (1.5, TypeError), (True, TypeError), ("1", TypeError)])
def test_useless_limits(nbytes, error):
    with pytest.raises(error, match="nbytes is"):
        fastbn.set_output_cache(nbytes)
    assert fastbn.get_output_cache() == DEFAULT


def test_limit_beyond_any_memory():
    fastbn.set_output_cache(2**100)
    assert fastbn.get_output_cache() == sys.maxsize
