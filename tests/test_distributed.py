"""Batch norm over ranks that are threads: one process's results, the same bits everywhere, errors that reach all ranks."""
import copy
import pickle

import numpy as np
import pytest

import fastbn
from fastbn.distributed import SyncBatchNorm, merge_moments
from oracle import sample
from threads_communicator import Group, Threads, on_all_ranks, on_ranks

C = 5
SPLITS = [[7, 5], [3, 0, 9], [1, 6, 1, 4], [0, 0, 12, 0]]
by_split = pytest.mark.parametrize("split", SPLITS, ids=str)
TREES = [{}, {"tree_from": 2}]
by_tree = pytest.mark.parametrize("tree", TREES, ids=["gather", "tree"])
GIVES_UP = "gave up this call"


def parts_of(array, split):
    return None if array is None else np.split(array, np.cumsum(split)[:-1])


def step(bn, x, dy, **options):
    """What a training step gives, and leaves in the layer."""
    y = bn(x, **options)
    gradients = bn.backward(dy)
    dx, dresidual = gradients if isinstance(gradients, tuple) else (gradients, None)
    return {"y": y, "dx": dx, "dresidual": dresidual, "dgamma": bn.dgamma, "dbeta": bn.dbeta,
            "mean": bn.batch_moments.mean, "M2": bn.batch_moments.M2, "count": np.asarray(bn.batch_moments.count),
            "running_mean": bn.running_mean, "running_var": bn.running_var, "seen": np.asarray(bn.num_batches_tracked)}


OF_ENTRIES = ("y", "dx", "dresidual")


def make(cls, settings, rng_seed=5, **more):
    """A layer with parameters that are not 1 and 0."""
    rng = np.random.default_rng(rng_seed)
    bn = cls(C, **settings, **more)
    for name, values in (("gamma", rng.normal(1, 0.3, C)), ("beta", rng.normal(size=C))):
        if getattr(bn, name) is not None:
            getattr(bn, name)[:] = values
    return bn


def on_parts(split, x, dy, settings, by_entry=(), tree=None, arranged=lambda a: a):
    """What step gives on ranks that have x's parts; by_entry: options that are split as x is."""
    by_entry = dict(by_entry)
    xs, dys = parts_of(x, split), parts_of(dy, split)
    options = [{name: parts_of(value, split)[rank] for name, value in by_entry.items()} for rank in range(len(split))]

    def work(comm):
        bn = make(SyncBatchNorm, settings, comm=comm, reduce_parameter_gradients=True, **(tree or {}))
        return step(bn, arranged(xs[comm.rank]), arranged(dys[comm.rank]), **options[comm.rank])
    return on_all_ranks(len(split), work)


def assert_same_bits(results):
    for name in results[0]:
        if name not in OF_ENTRIES and results[0][name] is not None:
            for other in results[1:]:
                assert results[0][name].dtype == other[name].dtype
                assert results[0][name].tobytes() == other[name].tobytes(), name


def assert_close(found, wanted, name, tolerance=1e-6):
    """Relative to the largest entry: sums of float32 data cancel."""
    assert found.dtype == wanted.dtype and found.shape == wanted.shape, name
    found, wanted = found.astype(float), wanted.astype(float)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted), err_msg=name)
    scale = max(1.0, np.nanmax(np.abs(wanted), initial=0))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * scale, err_msg=name)


def assert_as_one_process(results, whole, tolerance=1e-6):
    assert_same_bits(results)
    for name, wanted in whole.items():
        if wanted is None:
            assert all(result[name] is None for result in results)
        elif name in OF_ENTRIES:
            assert_close(np.concatenate([result[name] for result in results]), wanted, name, tolerance)
        elif name == "mean":
            std = np.sqrt(whole["M2"] / np.maximum(whole["count"], 1))
            ulp = np.spacing(np.maximum(np.abs(wanted), std).astype(np.float32))
            assert np.all(np.abs(results[0]["mean"] - wanted) <= ulp)
        else:
            assert_close(results[0][name], wanted, name, max(tolerance, 1e-6))


def check(split, x, dy, settings=None, by_entry=(), tree=None, tolerance=1e-6):
    settings = settings or {}
    results = on_parts(split, x, dy, settings, by_entry, tree)
    assert_as_one_process(results, step(make(fastbn.BatchNorm, settings), x, dy, **dict(by_entry)), tolerance)
    return results


def draw(rng, shape=(12, C, 4), axis=1, dtype=np.float32, ratio=3.0):
    return sample(rng, shape, axis=axis, dtype=dtype, ratio=ratio), rng.normal(size=shape).astype(dtype)


# The results of one process

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
    {"activation": "tanh", "scale": False}, {"renorm": (1.5, 0.5)}, {"renorm": (1.5, 0.5), "scale": False, "activation": "relu"},
    {"nan_policy": "raise"}, {"nan_policy": "skip"}], ids=str)
def test_settings(rng, settings):
    for split in SPLITS:
        check(split, *draw(rng), settings)


def test_without_running_statistics(rng):
    x, dy = draw(rng)
    y = np.concatenate(on_all_ranks(2, lambda comm: SyncBatchNorm(C, comm=comm, track_running_stats=False)(x[comm.rank::2])))
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
        bn, (mine, its_dy) = make(SyncBatchNorm, {"activation": activation}, comm=comm), (np.split(a, 2)[comm.rank] for a in (x, dy))
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


# The same bits

@pytest.mark.parametrize("settings", [{}, {"renorm": (2, 1)}, {"nan_policy": "omit"}], ids=str)
def test_whichever_rank_has_which_batch(rng, settings):
    """Of equal sizes and of different ones, one of them empty; three records are the least whose order shows."""
    split, order = [4, 0, 3, 5], rng.permutation(4)
    x, dy = draw(rng, ratio=1e3)
    if settings.get("nan_policy"):
        x[rng.random(x.shape) < 0.2] = np.nan
        dy[np.isnan(x)] = 0
    settings = {"activation": "relu", **settings}
    first = on_parts(split, x, dy, settings)
    xs, dys = parts_of(x, split), parts_of(dy, split)
    shuffled = [np.concatenate([parts[i] for i in order]) for parts in (xs, dys)]
    second = on_parts([split[i] for i in order], *shuffled, settings)
    for place, i in enumerate(order):
        for name, wanted in first[i].items():
            assert wanted is None or wanted.tobytes() == second[place][name].tobytes(), name


def test_order_would_matter_unsorted(rng):
    """The test before has data in which the order of merging shows in the last bits."""
    parts = [fastbn.moments(part) for part in parts_of(draw(rng, ratio=1e3)[0], [4, 2, 3, 3])]
    merges = {fastbn.Moments.merge_all([parts[i] for i in order]).M2.tobytes() for order in
              ([0, 1, 2, 3], [2, 3, 1, 0], [3, 0, 2, 1], [1, 3, 0, 2])}
    assert len(merges) > 1


def test_zeros_of_either_sign_merge_alike():
    moments = [fastbn.Moments(2, [zero], [0.0]) for zero in (0.0, -0.0, -0.0)]
    for order in ((0, 1, 2), (1, 0, 2), (1, 2, 0)):
        for merged in on_all_ranks(3, lambda comm: merge_moments(moments[order[comm.rank]], comm)):
            assert not np.signbit(merged.mean).any()


@pytest.mark.parametrize("size", [2, 3, 4, 5, 7, 8, 9])
@by_tree
def test_any_number_of_ranks(rng, size, tree):
    x, dy = draw(rng, (3 * size, C))
    check([3] * size, x, dy, tree=tree)


def test_alone_it_is_batchnorm_bit_for_bit(rng):
    x, dy = draw(rng)
    wanted = step(make(fastbn.BatchNorm, {"activation": "relu"}), x, dy)
    for comm in (None, Threads(Group(1), 0)):
        bn = make(SyncBatchNorm, {"activation": "relu"}, comm=comm)
        found = step(bn, x, dy)
        for name in wanted:
            assert wanted[name] is None or wanted[name].tobytes() == found[name].tobytes(), name
        assert comm is None or comm.calls == []


# Messages

def test_messages_have_a_size_of_the_order_of_the_features(rng):
    """Forward: an agreement and 3 * C doubles; backward: 2 * C doubles and what one reason takes, in one collective."""
    def work(comm, c, tree_from):
        bn, x = SyncBatchNorm(c, comm=comm, tree_from=tree_from), np.ones((2, c), np.float32)
        x[1] = comm.rank
        bn(x)
        forward = list(comm.calls)
        bn.backward(x)
        return forward, comm.calls[len(forward):]
    for c in (1, 1000):
        for forward, backward in on_all_ranks(3, lambda comm: work(comm, c, 99)):
            assert [name for name, _ in forward + backward] == ["Allgather"] * 3
            assert forward[0][1] < 1000 and forward[1][1] == 3 * 8 * c
            assert 0 < backward[0][1] - 2 * 8 * c < 200
        on_tree = on_all_ranks(5, lambda comm: work(comm, c, 2))
        for rank, (forward, backward) in enumerate(on_tree):
            assert [name for name, _ in forward] == (["Send"] * (rank > 0) + ["Bcast"]) * 2
            assert [name for name, _ in backward] == ["Send"] * (rank > 0) + ["Bcast"]


def test_inference_sends_nothing(rng):
    x, dy = draw(rng)
    def work(comm):
        bn = make(SyncBatchNorm, {}, comm=comm)
        bn(x)
        before = len(comm.calls)
        bn.eval()
        one = bn(x[:1])
        bn.eval(backward=True)
        bn(x)
        bn.backward(dy)
        bn.train().use_batch_stats = False
        bn(x)
        bn.backward(dy)
        assert len(comm.calls) == before
        bn.use_batch_stats = None
        return one, bn
    for one, bn in on_all_ranks(2, work):
        twin = fastbn.BatchNorm(C).load_state_dict(bn.state_dict()).eval()
        np.testing.assert_array_equal(one, twin(x[:1]))


def test_an_untracked_layer_in_inference_takes_its_own_batch(rng):
    x, _ = draw(rng)
    for rank, y in enumerate(on_all_ranks(2, lambda comm: SyncBatchNorm(C, comm=comm, track_running_stats=False).eval()(
            x[comm.rank:comm.rank + 4]))):
        np.testing.assert_array_equal(y, fastbn.BatchNorm(C, track_running_stats=False)(x[rank:rank + 4]))


# Moving averages and parameters' gradients

@by_tree
@pytest.mark.parametrize("policy", ["propagate", "omit"])
def test_steps_without_normalization(rng, tree, policy):
    """Statistics of all ranks reach moving averages through which the batch is normalized."""
    x, dy = draw(rng)
    if policy == "omit":
        x[rng.random(x.shape) < 0.2] = np.nan
        dy[np.isnan(x)] = 0
    def frozen(bn):
        bn.use_batch_stats, bn.update_running_stats = False, True
        return bn
    def work(comm):
        mine = [np.split(a, [7])[comm.rank] for a in (x, dy)]
        bn = make(SyncBatchNorm, {"nan_policy": policy}, comm=comm, reduce_parameter_gradients=True, **tree)
        return step(frozen(bn), *mine)
    assert_as_one_process(on_all_ranks(2, work), step(frozen(make(fastbn.BatchNorm, {"nan_policy": policy})), x, dy))


def test_update_left_out_and_made_up_for(rng):
    x, _ = draw(rng)
    def work(comm):
        bn, plain = make(SyncBatchNorm, {}, comm=comm), make(SyncBatchNorm, {}, comm=comm)
        mine = x[comm.rank::2]
        bn(mine, update=False)
        assert bn.num_batches_tracked == 0 and not bn.running_mean.any()
        bn.update(bn.batch_moments)
        plain(mine)
        return [a.tobytes() for layer in (bn, plain) for a in (layer.running_mean, layer.running_var)]
    for a in on_all_ranks(2, work):
        assert a[:2] == a[2:]


def test_parameter_gradients_are_local_unless_reduced(rng):
    x, dy = draw(rng)
    def work(comm, reduces):
        bn = make(SyncBatchNorm, {}, comm=comm, reduce_parameter_gradients=reduces)
        mine = slice(comm.rank, None, 2)
        bn(x[mine])
        bn.backward(dy[mine])
        return bn.dgamma, bn.dbeta
    local = on_all_ranks(2, lambda comm: work(comm, False))
    np.testing.assert_allclose(local[1][1], dy[1::2].sum(axis=(0, 2)), rtol=1e-5)
    reduced = on_all_ranks(2, lambda comm: work(comm, True))
    for i in range(2):
        assert not np.array_equal(local[0][i], local[1][i])
        np.testing.assert_array_equal(reduced[0][i], reduced[1][i])
        np.testing.assert_allclose(reduced[0][i], local[0][i] + local[1][i], rtol=1e-5, atol=1e-5)


def test_without_parameter_gradients(rng):
    x, dy = draw(rng)
    def work(comm):
        bn = make(SyncBatchNorm, {}, comm=comm, reduce_parameter_gradients=True)
        bn.parameter_gradients = False
        bn(x)
        dx = bn.backward(dy)
        assert bn.dgamma is None and bn.dbeta is None and len(comm.calls) == 3
        bn.use_batch_stats = False
        bn(x)
        bn.backward(dy)
        assert len(comm.calls) == 3
        return dx
    whole = make(fastbn.BatchNorm, {})
    whole(np.concatenate([x, x]))
    wanted = whole.backward(np.concatenate([dy, dy]))[:12]
    for dx in on_all_ranks(2, work):
        assert_close(dx, wanted, "dx")


@by_tree
def test_moments_of_a_data_set(rng, tree):
    batches = [draw(rng)[0] for _ in range(6)]
    def work(comm):
        mine = batches[comm.rank::4]  # two for the first two ranks, one for the others
        total = merge_moments(sum(fastbn.moments(x) for x in mine), comm, **tree)
        return SyncBatchNorm(C, comm=comm).calibrate(total), total
    wanted = fastbn.BatchNorm(C).calibrate(batches)
    for bn, total in on_all_ranks(4, work):
        assert total.count == 6 * 12 * 4 and type(total.count) is int
        np.testing.assert_allclose(bn.running_mean, wanted.running_mean, rtol=1e-6)
        np.testing.assert_allclose(bn.running_var, wanted.running_var, rtol=1e-6)


def test_one_value_in_all(rng):
    x = draw(rng, (1, C))[0]
    def work(comm):
        bn = make(SyncBatchNorm, {}, comm=comm)
        y = bn(x[:0] if comm.rank else x)
        assert bn.num_batches_tracked == 0 and not bn.running_mean.any()
        return y, bn.beta
    with pytest.warns(UserWarning, match="one value per feature"):
        (y, beta), (empty, _) = on_all_ranks(2, work)
    np.testing.assert_array_equal(y[0], beta)
    assert empty.shape == (0, C)


def test_all_ranks_empty():
    def work(comm):
        bn, x = make(SyncBatchNorm, {}, comm=comm, reduce_parameter_gradients=True), np.empty((0, C, 2), np.float32)
        return step(bn, x, x)
    for result in on_all_ranks(3, work):
        assert result["y"].shape == result["dx"].shape == (0, C, 2) and result["count"] == 0 and result["seen"] == 0
        assert not result["dgamma"].any() and not result["dbeta"].any()


def test_what_is_not_finite_on_one_rank_reaches_all_by_feature(rng):
    x, dy = draw(rng)
    x[0, 1, 0], x[0, 2, 1] = np.nan, np.inf
    for result in on_parts([4, 4, 4], x, dy, {}):
        for name in ("y", "dx"):
            assert np.isnan(result[name][:, 1:3]).all() and np.isfinite(np.delete(result[name], [1, 2], axis=1)).all()
        assert np.isnan(result["running_var"][1:3]).all()
    for result in on_parts([4, 4, 4], x, dy, {"nan_policy": "skip"}):
        assert result["seen"] == 0 and not result["running_mean"].any()


# Errors

def fingerprint(bn):
    return [value.tobytes() for value in bn.state_dict().values()], bn.dgamma, bn.dbeta, bn.batch_moments


def outcomes(size, one_call, tree=None, settings=None):
    """What one_call(bn, rank) raises on each rank; afterwards nothing has changed, and a step of all ranks goes well."""
    x, dy = draw(np.random.default_rng(3))

    def work(comm):
        bn = make(SyncBatchNorm, settings or {}, comm=comm, **(tree or {}))
        before, error = fingerprint(bn), None
        try:
            one_call(bn, comm.rank)
        except Exception as caught:
            error = caught
        assert fingerprint(bn) == before
        comm.group.barrier.wait()
        bn.eps, bn.num_batches_tracked = 1e-5, 0
        bn(x)
        bn.backward(dy)
        return [error]
    return [error for [error] in on_all_ranks(size, work)]


X = np.random.default_rng(1).normal(size=(6, C, 4)).astype(np.float32)
BAD_CALLS = {
    "features": (lambda bn: bn(X[:, :3]), ValueError, "axis 1 of x has 3 entries"),
    "integers": (lambda bn: bn(X.astype(int)), TypeError, "expected float32"),
    "dimensions": (lambda bn: bn(X[0, 0]), ValueError, "at least 2 dimensions"),
    "residual": (lambda bn: bn(X, residual=X[1:]), ValueError, "residual has shape"),
    "mask": (lambda bn: bn(X, mask=np.ones((5, 4), bool)), ValueError, "mask has shape"),
    "out": (lambda bn: bn(X, out=X[1:].copy()), ValueError, "out has shape"),
    "overlap": (lambda bn: bn(X[1:], out=X[:-1]), ValueError, "overlap"),
    "like": (lambda bn: bn(X, like=3), TypeError, "like is 3"),
    "nothing": (lambda bn: bn(None), TypeError, "x has dtype object"),
}


@by_tree
@pytest.mark.parametrize("name", BAD_CALLS)
def test_a_refused_argument_is_told_to_the_others(name, tree):
    bad, kind, text = BAD_CALLS[name]
    found = outcomes(4, lambda bn, rank: bad(bn) if rank == 2 else bn(X), tree)
    assert type(found[2]) is kind and text in str(found[2])
    for rank in (0, 1, 3):
        assert type(found[rank]) is RuntimeError
        assert str(found[rank]).startswith("rank 2 ") and GIVES_UP in str(found[rank])
        assert f"{kind.__name__}: {str(found[2])[:60]}" in str(found[rank])


def test_two_ranks_refuse(rng):
    found = outcomes(3, lambda bn, rank: bn(X if rank == 1 else X[:, :rank + 1]))
    assert type(found[0]) is type(found[2]) is ValueError
    assert type(found[1]) is RuntimeError and "rank 0 gave up" in str(found[1])


@by_tree
def test_nan_refused_on_one_rank(tree):
    bad = X.copy()
    bad[1, 2, 3] = np.nan
    found = outcomes(3, lambda bn, rank: bn(bad if rank == 1 else X), tree, {"nan_policy": "raise"})
    assert type(found[1]) is ValueError and "feature 2 (1 NaN)" in str(found[1])
    assert all(type(found[rank]) is RuntimeError and "rank 1 " in str(found[rank]) for rank in (0, 2))


DIFFERENCES = {
    "eps": (lambda bn: setattr(bn, "eps", 0.5), "eps is 0.5 on rank {} and 1e-05 on rank {}"),
    "momentum": (lambda bn: setattr(bn, "momentum", None), "momentum is None on rank {} and 0.9 on rank {}"),
    "ddof": (lambda bn: setattr(bn, "ddof", 0), "ddof is 0 on rank {} and 1 on rank {}"),
    "activation": (lambda bn: setattr(bn, "activation", "relu"), "activation is relu on rank {} and None on rank {}"),
    "renorm": (lambda bn: setattr(bn, "renorm", (2, 3)), "rmax is 2.0 on rank {} and None on rank {}; dmax is 3.0"),
    "nan_policy": (lambda bn: setattr(bn, "nan_policy", "omit"), "nan_policy is omit on rank {} and propagate on rank {}"),
}


@by_tree
@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_rank_with_another_setting(name, tree):
    change, text = DIFFERENCES[name]
    def work(comm):
        bn = make(SyncBatchNorm, {}, comm=comm, **tree)
        if comm.rank == 2:
            change(bn)
        before = fingerprint(bn)
        with pytest.raises(ValueError if comm.rank == 2 else RuntimeError) as caught:
            bn(X)
        assert fingerprint(bn) == before
        return str(caught.value)
    for rank, message in enumerate(on_all_ranks(4, work)):
        assert text.format(2, 0 if rank == 2 else rank) in message


@by_tree
def test_ranks_of_different_features_and_dtypes(tree):
    def work(comm):
        bn = SyncBatchNorm(C - (comm.rank == 1), comm=comm, **tree)
        with pytest.raises(ValueError if comm.rank == 1 else RuntimeError) as of_features:
            bn(X[:, :bn.num_features])
        bn = SyncBatchNorm(C, comm=comm, **tree)
        with pytest.raises(ValueError if comm.rank == 2 else RuntimeError) as of_dtypes:
            bn(X.astype(np.float64) if comm.rank == 2 else X)
        return str(of_features.value), str(of_dtypes.value)
    for of_features, of_dtypes in on_all_ranks(3, work):
        assert "num_features is 4 on rank 1 and 5 on rank" in of_features
        assert "the dtype of x is float64 on rank 2 and float32 on rank" in of_dtypes


def test_of_two_opinions_the_lower_rank_is_right():
    def work(comm):
        with pytest.raises(RuntimeError if comm.rank % 2 == 0 else ValueError) as caught:
            SyncBatchNorm(C, comm=comm, eps=0.1 * (1 + comm.rank % 2))(X)
        return str(caught.value)
    found = on_all_ranks(4, work)
    assert "ranks [1, 3] differ" in found[0] and "eps is 0.2 on rank 3 and 0.1 on rank 0" in found[3]


@by_tree
@pytest.mark.parametrize("bad, kind", [(X[1:], ValueError), (X.astype(int), TypeError)], ids=["shape", "integers"])
def test_backward_refused_on_one_rank(tree, bad, kind):
    """The forward call's context stays, on all ranks."""
    def work(comm):
        bn = make(SyncBatchNorm, {}, comm=comm, **tree)
        bn(X)
        before = fingerprint(bn)[:3]
        with pytest.raises(kind if comm.rank == 3 else RuntimeError) as caught:
            bn.backward(bad if comm.rank == 3 else X)
        assert comm.rank == 3 or ("rank 3 gave up" in str(caught.value) and kind.__name__ in str(caught.value))
        assert fingerprint(bn)[:3] == before
        return bn.backward(X)
    assert all(dx.shape == X.shape for dx in on_all_ranks(5, work))


@by_tree
def test_backward_without_a_forward_call(tree):
    def work(comm):
        bn = make(SyncBatchNorm, {}, comm=comm, **tree)
        with pytest.raises(RuntimeError, match="call forward first"):
            bn.backward(X)
        bn(X)
        if comm.rank == 1:
            bn._saved = None
        with pytest.raises(RuntimeError, match="call forward first" if comm.rank == 1 else "rank 1 gave up"):
            bn.backward(X)
    on_all_ranks(3, work)


def test_refused_gradients_of_frozen_statistics():
    """They are summed over the ranks after they are computed: what they replaced comes back."""
    def work(comm):
        bn = make(SyncBatchNorm, {}, comm=comm, reduce_parameter_gradients=True)
        bn.use_batch_stats = False
        bn(X)
        with pytest.raises(ValueError if comm.rank else RuntimeError):
            bn.backward(X[comm.rank:])
        assert bn.dgamma is None and bn.dbeta is None
        bn.backward(X)
        return bn.dbeta
    for dbeta in on_all_ranks(2, work):
        np.testing.assert_allclose(dbeta, 2 * X.sum(axis=(0, 2)), rtol=1e-5)


class Broken(Threads):
    """Fails in the call of a number."""

    def __init__(self, number):
        super().__init__(Group(2), 0)
        self.number = number

    def Allgather(self, sendbuf, recvbuf):
        self.calls.append(())
        if len(self.calls) == self.number:
            raise ConnectionError("the network is gone")
        recvbuf[...] = sendbuf


@pytest.mark.parametrize("number", [1, 2, 3])
def test_errors_of_the_communicator(number):
    bn, calls = make(SyncBatchNorm, {}, comm=Broken(number)), [lambda bn: bn(X), lambda bn: bn.backward(X)]
    if number == 3:
        calls.pop(0)(bn)
    before = fingerprint(bn)[:3]
    with pytest.raises(RuntimeError, match="the communicator failed in Allgather: the network is gone") as caught:
        calls[0](bn)
    assert isinstance(caught.value.__cause__, ConnectionError) and fingerprint(bn)[:3] == before


def test_a_failing_communicator_does_not_hide_the_first_error():
    with pytest.raises(ValueError, match="axis 1 of x has 3 entries"):
        make(SyncBatchNorm, {}, comm=Broken(1))(X[:, :3])


def test_moments_that_do_not_fit():
    moments = [fastbn.Moments(1, np.zeros(2 + (rank == 2)), np.zeros(2 + (rank == 2))) for rank in range(3)]
    found = on_ranks(3, lambda comm: merge_moments(moments[comm.rank], comm))
    assert [type(error) for error in found] == [RuntimeError, RuntimeError, ValueError]
    found = on_ranks(2, lambda comm: merge_moments(X if comm.rank else moments[0], comm))
    assert [type(error) for error in found] == [RuntimeError, TypeError] and "expected fastbn.Moments" in str(found[0])


def test_arguments():
    with pytest.raises(ValueError, match="ghost_batch_size is 4, expected None"):
        SyncBatchNorm(C, ghost_batch_size=4)
    bn = SyncBatchNorm(C)
    with pytest.raises(ValueError, match="ghost_batch_size"):
        bn.ghost_batch_size = 2
    with pytest.raises(TypeError, match="comm is a list without Get_rank, Get_size, Allgather"):
        SyncBatchNorm(C, comm=[])
    with pytest.raises(TypeError, match="reduce_parameter_gradients is None"):
        SyncBatchNorm(C, reduce_parameter_gradients=None)
    with pytest.raises(ValueError, match="tree_from is 1"):
        SyncBatchNorm(C, tree_from=1)
    with pytest.raises(TypeError, match="tree_from is 2.5"):
        SyncBatchNorm(C, tree_from=2.5)


def test_a_step_in_inference_is_refused():
    bn = SyncBatchNorm(C, comm=Broken(0)).eval()
    bn.update_running_stats = True
    with pytest.raises(RuntimeError, match="come apart"):
        bn(X)


# State

def test_state_goes_to_batchnorm_and_back(tmp_path):
    def work(comm):
        bn = make(SyncBatchNorm, {}, comm=comm)
        bn(X)
        return bn
    bn = on_all_ranks(2, work)[0]
    plain = fastbn.BatchNorm(C).load_state_dict(bn.state_dict()).eval()
    np.testing.assert_array_equal(plain(X), bn.eval()(X))
    plain.save(tmp_path / "state.npz")
    np.testing.assert_array_equal(SyncBatchNorm(C).load(tmp_path / "state.npz").eval()(X), plain(X))


def test_copies_share_the_communicator_and_pickles_leave_it_behind():
    def work(comm):
        bn = make(SyncBatchNorm, {"activation": "relu"}, comm=comm, reduce_parameter_gradients=True, tree_from=7)
        twins = [copy.copy(bn), copy.deepcopy(bn)]
        assert all(twin.comm is comm and twin.gamma is not bn.gamma for twin in twins)
        loaded = pickle.loads(pickle.dumps(bn))
        assert loaded.comm is None and loaded.tree_from == 7 and loaded.reduce_parameter_gradients
        np.testing.assert_array_equal(loaded.eval()(X), bn.eval()(X))
        with pytest.raises(RuntimeError, match="was unpickled"):
            loaded.train()(X)
        with pytest.raises(RuntimeError, match="was unpickled"):
            pickle.loads(pickle.dumps(loaded))(X)
        loaded.comm = comm
        bn.train()
        return [layer(X[comm.rank:]).tobytes() for layer in (bn, *twins, loaded)]
    for ys in on_all_ranks(2, work):
        assert len(set(ys)) == 1
    alone = pickle.loads(pickle.dumps(SyncBatchNorm(C)))
    np.testing.assert_array_equal(alone(X), fastbn.BatchNorm(C)(X))


def test_repr():
    assert repr(SyncBatchNorm(3)) == f"Sync{repr(fastbn.BatchNorm(3))[:-1]}, comm=None)"
    text = repr(SyncBatchNorm(3, comm=Threads(Group(4), 2), reduce_parameter_gradients=True))
    assert text.endswith("reduce_parameter_gradients=True, comm=<rank 2 of 4>)")


def test_conversions_make_a_layer_that_takes_a_communicator():
    state = {"weight": np.ones(C), "bias": np.zeros(C), "running_mean": np.zeros(C), "running_var": np.ones(C)}
    bn = SyncBatchNorm.from_torch({name: value.astype(np.float32) for name, value in state.items()})
    assert type(bn) is SyncBatchNorm and bn.comm is None
    bn.comm = Threads(Group(2), 1)
    assert "rank 1 of 2" in repr(bn)
