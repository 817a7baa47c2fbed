"""Batch norm over ranks: the same bits, what is sent and when, moving averages, parameters' gradients, state."""
import copy
import pickle
import time

import numpy as np
import pytest

import fastbn
from fastbn.distributed import SyncBatchNorm, merge_moments
from ranks import C, by_tree, parts_of, step, make, on_parts, assert_close, assert_as_one_process, check, draw
from threads_communicator import Group, Threads, on_all_ranks

pytestmark = pytest.mark.filterwarnings("error")
X = np.random.default_rng(1).normal(size=(6, C, 4)).astype(np.float32)


# The same bits

@pytest.mark.parametrize("settings", [{}, {"renorm": (2, 1)}, {"nan_policy": "omit"}], ids=str)
def test_whichever_rank_has_which_batch(rng, settings):
    """Batches of equal sizes and of different ones, one of them empty; three records are the least whose order shows."""
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


@pytest.mark.parametrize("order", [[2, 3, 1, 0], [3, 0, 2, 1], [1, 3, 0, 2]], ids=str)
def test_whichever_rank_has_which_gradients(rng, order):
    """In double, with sums of so different size on each rank that the order in which they are added shows."""
    split, settings = [4, 2, 3, 3], {"dtype": np.float64}
    x, dy = draw(rng, dtype=np.float64)
    dy *= np.repeat([1.0, 1e9, -1e9, 1e3], split).reshape(-1, *[1] * (dy.ndim - 1))
    first = on_parts(split, x, dy, settings)
    xs, dys = parts_of(x, split), parts_of(dy, split)
    second = on_parts([split[i] for i in order], *(np.concatenate([a[i] for i in order]) for a in (xs, dys)), settings)
    for place, i in enumerate(order):
        for name, wanted in first[i].items():
            assert wanted is None or wanted.tobytes() == second[place][name].tobytes(), name


def test_order_would_matter_unsorted(rng):
    """The test before has data in which the order of merging shows in the last bits."""
    parts = [fastbn.moments(part) for part in parts_of(draw(rng, ratio=1e3)[0], [4, 2, 3, 3])]
    merges = {fastbn.Moments.merge_all([parts[i] for i in order]).M2.tobytes() for order in
              ([0, 1, 2, 3], [2, 3, 1, 0], [3, 0, 2, 1], [1, 3, 0, 2])}
    assert len(merges) > 1


class Late(Threads):
    """Keeps the others waiting, each time for another while."""

    def __init__(self, group, rank, seed):
        super().__init__(group, rank)
        self.rng = np.random.default_rng([seed, rank])

    def __getattribute__(self, name):
        if name in ("Allgather", "Bcast", "Send", "Recv"):
            time.sleep(self.rng.uniform(0, 0.003))
        return super().__getattribute__(name)


@by_tree
def test_whatever_the_order_of_messages(rng, tree):
    x, dy = draw(rng, (40, C), ratio=1e3)
    def work(comm, seed):
        mine = slice(comm.rank, None, 5)
        bn = make(SyncBatchNorm, {}, comm=Late(comm.group, comm.rank, seed), **tree)
        return b"".join(a.tobytes() for a in step(bn, x[mine], dy[mine]).values() if a is not None)
    assert len({tuple(on_all_ranks(5, lambda comm: work(comm, seed))) for seed in range(6)}) == 1


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
    """Forward: an agreement and 4 * C doubles; backward: 2 * C doubles and what one reason takes, in one collective."""
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
            assert forward[0][1] < 1000 and forward[1][1] == 4 * 8 * c
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


def test_sums_travel_in_double():
    """2^-40 is left of them, which float32 would not have told."""
    def work(comm):
        bn = SyncBatchNorm(1, comm=comm, reduce_parameter_gradients=True)
        bn(np.array([[1.0], [3.0 + comm.rank]]))
        bn.backward(np.full((2, 1), -0.5 if comm.rank else 0.5 + 2.0**-41))
        return bn.dbeta
    assert all(dbeta == 2.0**-40 for dbeta in on_all_ranks(2, work))


@pytest.mark.parametrize("settings", [{}, {"renorm": (2, 1)}], ids=str)
def test_gradients_beyond_float32_are_infinite_without_a_warning(settings):
    dy = np.full(X.shape, 3e38, np.float32)
    for dbeta in on_all_ranks(2, lambda comm: step(make(SyncBatchNorm, settings, comm=comm), X, dy)["dbeta"]):
        assert dbeta.dtype == np.float32 and np.isposinf(dbeta).all()


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
    assert repr(SyncBatchNorm(3, comm=Threads(Group(1), 0))).endswith("comm=<rank 0 of 1>)")
    text = repr(SyncBatchNorm(3, comm=Threads(Group(4), 2), reduce_parameter_gradients=True))
    assert text.endswith("reduce_parameter_gradients=True, comm=<rank 2 of 4>)")


def test_autograd_which_would_take_a_ranks_own_statistics_refuses_it():
    autograd = pytest.importorskip("fastbn.interop.autograd", exc_type=ImportError,
                                   reason="autograd is not installed: the extra 'autograd' has it")
    with pytest.raises(ValueError, match="statistics over ranks are not offered here"):
        autograd.batch_norm(X, None, None, SyncBatchNorm(C, comm=Threads(Group(2), 0)))
    assert autograd.batch_norm(X, None, None, SyncBatchNorm(C)).shape == X.shape


def test_conversions_make_a_layer_that_takes_a_communicator():
    state = {"weight": np.ones(C), "bias": np.zeros(C), "running_mean": np.zeros(C), "running_var": np.ones(C)}
    bn = SyncBatchNorm.from_torch({name: value.astype(np.float32) for name, value in state.items()})
    assert type(bn) is SyncBatchNorm and bn.comm is None
    bn.comm = Threads(Group(2), 1)
    assert "rank 1 of 2" in repr(bn)
