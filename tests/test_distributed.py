"""Batch norm over ranks that are threads gives the results of one process."""
import numpy as np
import pytest

import fastbn
from fastbn.distributed import SyncBatchNorm, merge_moments
from ranks import (C, OF_ENTRIES, SPLITS, assert_as_one_process, assert_close, by_split, by_tree, check, draw, make,
                   on_parts, parts_of, step)
from threads_communicator import on_all_ranks

pytestmark = pytest.mark.filterwarnings("error")


@by_split
@by_tree
@pytest.mark.parametrize("shape, axis", [((12, C), 1), ((12, C, 4, 3), 1), ((12, 3, C), -1), ((12, 40, 60, C), 3),
                                         ((12, C, 50, 40), 1)], ids=str)
def test_as_one_process(rng, split, tree, shape, axis):
    check(split, *draw(rng, shape, axis), {"axis": axis}, tree=tree)


@by_tree
@pytest.mark.parametrize("ratio", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_at_any_mean(rng, tree, ratio, dtype):
    x, dy = draw(rng, (120, C, 30), dtype=dtype, ratio=ratio)
    check([50, 0, 30, 40], x, dy + np.float32(0.5), tree=tree)


@pytest.mark.parametrize("settings", [
    {"dtype": np.float64}, {"ddof": 0}, {"momentum": None}, {"eps": 0.1}, {"center": False}, {"scale": False},
    {"center": False, "scale": False}, {"activation": "relu"}, {"activation": "gelu"}, {"activation": ("leaky_relu", 0.2)},
    {"activation": "tanh", "scale": False}, {"renorm": (1.5, 0.5)},
    {"renorm": (1.5, 0.5), "scale": False, "activation": "relu"},
    {"nan_policy": "raise"}, {"nan_policy": "skip"}], ids=str)
def test_settings(rng, settings):
    for split in SPLITS:
        check(split, *draw(rng), settings)


def test_without_running_statistics(rng):
    x, dy = draw(rng)
    def work(comm):
        return SyncBatchNorm(C, comm=comm, track_running_stats=False)(x[comm.rank::2])
    y = np.concatenate(on_all_ranks(2, work))
    wanted = fastbn.BatchNorm(C, track_running_stats=False)(x)
    assert_close(y, np.concatenate([wanted[0::2], wanted[1::2]]), "y")


@by_split
@pytest.mark.parametrize("activation", [None, "relu", ("leaky_relu", 0.1), "silu"], ids=str)
def test_residuals(rng, split, activation):
    x, dy = draw(rng)
    check(split, x, dy, {"activation": activation}, {"residual": rng.normal(size=x.shape).astype(np.float32)})


@by_split
@by_tree
@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@pytest.mark.parametrize("kind", ["mask", "weights", "lengths"])
def test_weights(rng, split, tree, activation, kind):
    x, dy = draw(rng, (12, 6, C), -1)
    values = {"mask": rng.random((12, 6)) < 0.6, "weights": rng.random((12, 6)), "lengths": rng.integers(0, 7, 12)}[kind]
    if kind != "weights":
        there = values if kind == "mask" else np.arange(6) < values[:, None]
        x[~there] = np.nan
        dy[~there] = 0
    check(split, x, dy, {"axis": -1, "activation": activation}, {kind: values}, tree)


@by_split
@pytest.mark.parametrize("in_place", [False, True])
def test_missing_entries_have_no_gradient_where_nothing_counts(rng, split, in_place):
    """A feature without entries, in place; and missing entries beside others of weight 0."""
    x, dy = draw(rng)
    x[:, 2], mask = np.nan, np.full((12, 4), in_place)
    if not in_place:
        x[::2, 1] = np.nan

    def gradient(cls, x, dy, mask, **more):
        bn, x = make(cls, {"nan_policy": "omit"}, **more), x.copy()
        bn(x, mask=mask, out=x if in_place else None)
        return bn.backward(dy)
    whole = gradient(fastbn.BatchNorm, x, dy, mask)
    xs, dys, masks = (parts_of(a, split) for a in (x, dy, mask))
    dx = on_all_ranks(len(split), lambda comm: gradient(SyncBatchNorm, xs[comm.rank], dys[comm.rank], masks[comm.rank],
                                                        comm=comm))
    assert not whole[:, 2].any()
    assert_close(np.concatenate(dx), whole, "dx")


def test_a_rank_without_weights_among_others(rng):
    x, dy = draw(rng, (10, C))
    weights = np.concatenate([np.ones(6), rng.random(4)])
    def work(comm):
        mine = slice(0, 6) if comm.rank == 0 else slice(6, 10)
        bn = make(SyncBatchNorm, {}, comm=comm, reduce_parameter_gradients=True)
        return step(bn, x[mine], dy[mine], **({} if comm.rank == 0 else {"weights": weights[mine]}))
    assert_as_one_process(on_all_ranks(2, work), step(make(fastbn.BatchNorm, {}), x, dy, weights=weights))


@by_split
@by_tree
@pytest.mark.parametrize("settings", [{}, {"activation": "relu"}, {"momentum": None, "activation": "tanh"}], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_missing_entries(rng, split, tree, settings, weighted):
    x, dy = draw(rng)
    x[rng.random(x.shape) < 0.2] = np.nan
    x[:8, 1], x[:, 2] = np.nan, np.nan  # of one feature most ranks have nothing, of one all
    dy[np.isnan(x)] = np.nan
    by_entry = {"weights": rng.random((12, 4))} if weighted else {}
    check(split, x, dy, {"nan_policy": "omit", **settings}, by_entry, tree)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize("activation", [None, "gelu"])
def test_half_types(rng, name, activation):
    dtype = np.dtype(pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else np.float16)
    x, dy = (a.astype(dtype) for a in draw(rng, (12, C, 30)))
    ulp = 2.0**-8 if name == "bfloat16" else 2.0**-11
    check([7, 5], x, dy, {"activation": activation}, {"residual": dy[::-1].copy()}, tolerance=ulp)
    flat = np.full_like(dy, 0.7)  # whose gradient is 0: rounding dy * gamma * rstd to half would leave noise
    for result in on_parts([7, 5], x, flat, {}):
        assert np.abs(result["dx"].astype(float)).max() < 1e-4


def test_a_half_gradient_beyond_its_type_is_infinite_without_a_warning():
    x, dy = np.array([[0], [1e-3], [2e-3]], np.float16), np.array([[0], [6e4], [0]], np.float16)
    def work(comm):
        bn = SyncBatchNorm(1, comm=comm, eps=1e-12)
        bn(x)
        return bn.backward(dy)
    assert all(np.isinf(dx).any() for dx in on_all_ranks(2, work))


def test_statistics_are_those_of_double_arithmetic(rng):
    x, dy = draw(rng, (1000, C), ratio=1e4)
    for result in on_parts([100, 200, 300, 400], x, dy, {}):
        np.testing.assert_allclose(result["mean"], x.astype(float).mean(axis=0), rtol=1e-10)
        np.testing.assert_allclose(result["M2"] / 1000, x.astype(float).var(axis=0), rtol=1e-6)


def test_the_formula_of_the_gradient(rng):
    """Against double arithmetic on all entries, not against fastbn."""
    x, dy = draw(rng, (40, C), dtype=np.float64)
    h = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5)
    bn = make(fastbn.BatchNorm, {"dtype": np.float64})
    wanted = bn.gamma / np.sqrt(x.var(axis=0) + 1e-5) * (dy - dy.mean(axis=0) - h * (dy * h).mean(axis=0))
    results = on_parts([13, 20, 7], x, dy, {"dtype": np.float64})
    np.testing.assert_allclose(np.concatenate([result["dx"] for result in results]), wanted, rtol=0, atol=1e-12)
    np.testing.assert_allclose(results[0]["dgamma"], (dy * h).sum(axis=0), rtol=1e-12)
    np.testing.assert_allclose(results[0]["dbeta"], dy.sum(axis=0), rtol=1e-12)


@pytest.mark.parametrize("activation", [None, ("leaky_relu", 0.1)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_in_place(rng, activation, masked):
    x, dy = draw(rng)
    mask = rng.random((12, 4)) < 0.7
    options = [{"mask": part} if masked else {} for part in np.split(mask, 2)]
    def work(comm):
        bn = make(SyncBatchNorm, {"activation": activation}, comm=comm)
        mine, its_dy = (np.split(a, 2)[comm.rank] for a in (x, dy))
        y = mine.copy()
        assert bn(y, out=y, **options[comm.rank]) is y
        kept, dx = y.copy(), its_dy.copy()
        assert bn.backward(dx, out=dx) is dx
        np.testing.assert_array_equal(y, kept)
        return {"y": y, "dx": dx}
    results = on_all_ranks(2, work)
    whole = step(make(fastbn.BatchNorm, {"activation": activation}), x, dy, **({"mask": mask} if masked else {}))
    for name in ("y", "dx"):
        assert_close(np.concatenate([result[name] for result in results]), whole[name], name, 1e-5)


def strided(a):
    """The same numbers with the batch axis innermost."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 0, -1)), -1, 0)


@pytest.mark.parametrize("arranged", [strided, lambda a: np.repeat(a, 2, axis=-1)[..., ::2], lambda a: a[::-1][::-1]],
                         ids=["batch innermost", "every second", "views"])
def test_layouts(rng, arranged):
    x, dy = draw(rng)
    results = on_parts([7, 5], x, dy, {"activation": "relu"}, arranged=arranged)
    assert_as_one_process(results, step(make(fastbn.BatchNorm, {"activation": "relu"}), x, dy))


def test_several_feature_axes_and_different_ranks_of_arrays(rng):
    x, dy = draw(rng, (12, 5, 4))
    def work(comm):  # one rank's features on axis 1, the other's on the last
        bn = make(SyncBatchNorm, {"axis": (1, -1)[comm.rank]}, comm=comm, reduce_parameter_gradients=True)
        mine = [np.split(a, 2)[comm.rank] for a in (x, dy)]
        return step(bn, *(np.moveaxis(a, 1, -1) if comm.rank else a for a in mine))
    results = on_all_ranks(2, work)
    for name in OF_ENTRIES[:2]:
        results[1][name] = np.moveaxis(results[1][name], -1, 1)
    assert_as_one_process(results, step(make(fastbn.BatchNorm, {}), x, dy))


def test_given_arrays_are_written_to_and_returned(rng):
    x, dy = draw(rng)
    def work(comm):
        bn, out = make(SyncBatchNorm, {}, comm=comm), np.empty_like(x)
        assert bn(x, out=out) is out
        found = np.empty_like(strided(x))
        assert bn.backward(dy, out=found) is found
        return found
    wanted = make(fastbn.BatchNorm, {})
    wanted(np.concatenate([x, x]))
    wanted = wanted.backward(np.concatenate([dy, dy]))[:12]
    for found in on_all_ranks(2, work):
        assert_close(found, wanted, "dx")


@by_tree
@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_weights_that_are_0_on_some_ranks_or_all(rng, tree, scale):
    """A rank without weight has gradients all the same; where all ranks have none, it is as for an empty batch."""
    x, dy = draw(rng)
    weights = rng.random((12, 4)) * scale
    weights[7:] = 0
    check([7, 5], x, dy, {}, {"weights": weights}, tree)
    check([3, 4, 5], x, dy, {"activation": "silu"}, {"weights": weights}, tree)
    check([7, 5], x, dy, {"activation": "relu"}, {"mask": np.zeros((12, 4), bool)}, tree)


@by_tree
def test_moments_of_ranks_carry_the_squares(rng, tree):
    x, weights = rng.normal(size=(12, C)), rng.random(12) * 1e-3
    parts = [fastbn.moments(x[s], weights=weights[s]) for s in (slice(0, 5), slice(5, 12))]
    found = on_all_ranks(2, lambda comm: merge_moments(parts[comm.rank], comm, **tree))
    whole = fastbn.moments(x, weights=weights)
    for one in found:
        np.testing.assert_allclose(one.var(1), whole.var(1), rtol=1e-12)
        np.testing.assert_allclose(one.squares, whole.squares, rtol=1e-12)


@pytest.mark.parametrize("size", [4e9, 4e19, 1e40])
def test_large_weights_with_missing_entries_over_ranks(rng, size):
    """Sums that no int64 holds."""
    x, dy = draw(rng)
    x[::3, 1] = np.nan
    check([7, 5], x, dy, {"nan_policy": "omit"}, {"weights": np.full((12, 4), size)})


@pytest.mark.parametrize("settings", [{}, {"renorm": (3.0, 5.0)}, {"dtype": np.float64}], ids=str)
def test_nothing_counts_in_place_over_ranks(rng, settings):
    x, dy = draw(rng)
    def work(comm):
        bn, mine = make(SyncBatchNorm, settings, comm=comm), x[comm.rank::2].copy()
        bn(mine, out=mine, mask=np.zeros(mine[:, 0].shape, bool))
        return bn.backward(dy[comm.rank::2])
    assert not any(dx.any() for dx in on_all_ranks(2, work))
