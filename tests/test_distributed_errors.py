"""Batch norm over ranks: an error on one reaches all, nobody waits, and nothing has changed."""
from types import SimpleNamespace

import numpy as np
import pytest

import fastbn
from fastbn.distributed import SyncBatchNorm, merge_moments
from fastbn.distributed._handshake import REASON_BYTES, reason_in
from fastbn.distributed._merging import _HEAD as HEAD
from fastbn.distributed._merging import _add_two
from ranks import C, by_tree, draw, make
from threads_communicator import Group, Threads, on_all_ranks, on_ranks

pytestmark = pytest.mark.filterwarnings("error")
X = np.random.default_rng(1).normal(size=(6, C, 4)).astype(np.float32)
GIVES_UP = "gave up this call"


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


@by_tree
def test_a_residual_that_backward_needs_is_no_place_for_y(tree):
    def one_call(bn, rank):
        residual = X.copy()
        bn(X, residual=residual, out=residual if rank == 1 else None)
    found = outcomes(3, one_call, tree, {"activation": "gelu"})
    assert type(found[1]) is ValueError and "out and residual overlap" in str(found[1])
    assert all(type(found[rank]) is RuntimeError and "rank 1 " in str(found[rank]) for rank in (0, 2))


@pytest.mark.parametrize("name", BAD_CALLS)
def test_a_refused_argument_where_the_batch_reaches_moving_averages_alone(name):
    bad, kind, text = BAD_CALLS[name]
    def one_call(bn, rank):
        bn.use_batch_stats, bn.update_running_stats = False, True
        try:
            bad(bn) if rank == 0 else bn(X)
        finally:
            bn.use_batch_stats = bn.update_running_stats = None
    found = outcomes(2, one_call)
    assert type(found[0]) is kind and text in str(found[0])
    assert type(found[1]) is RuntimeError and GIVES_UP in str(found[1])


@by_tree
def test_gamma_is_no_place_for_y_where_the_batch_reaches_moving_averages_alone(tree):
    def one_call(bn, rank):
        out = np.zeros((4, 5), np.float32)
        if rank == 1:
            bn.gamma = out[0]
        bn.use_batch_stats, bn.update_running_stats = False, True
        before = bn.running_mean.copy()
        try:
            bn(np.ones((4, 5), np.float32), out=out)
        finally:
            assert np.array_equal(bn.running_mean, before)
    found = on_ranks(2, lambda comm: one_call(SyncBatchNorm(5, comm=comm, **tree), comm.rank))
    assert type(found[0]) is RuntimeError and GIVES_UP in str(found[0])
    assert type(found[1]) is ValueError and "out and gamma overlap" in str(found[1])


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


class Lenient(Threads):
    """Takes messages that are shorter than expected, and refuses longer ones, as MPI does."""

    def Allgather(self, sendbuf, recvbuf):
        self.group.slots[self.rank] = sendbuf.view(np.uint8).ravel()
        self.group.barrier.wait()
        found = list(self.group.slots)
        self.group.barrier.wait()
        for row, other in zip(recvbuf.reshape(self.group.size, -1).view(np.uint8), found):
            if other.size > row.size:
                raise ConnectionError("message truncated")
            row[:other.size] = other


@pytest.mark.parametrize("features", [(5, 5), (30, 30), (5, 8)], ids=str)
def test_ranks_in_different_calls(features):
    """Forward and backward, of which one or the other sends more; backward of two layers."""
    def work(comm):
        comm = Lenient(comm.group, comm.rank)
        layers = [SyncBatchNorm(c, comm=comm) for c in sorted(set(features))]
        batches = [np.ones((4, bn.num_features), np.float32) for bn in layers]
        for bn, x in zip(layers, batches):
            bn(x)
        bn, x = layers[-comm.rank], batches[-comm.rank]
        before = fingerprint(bn)
        with pytest.raises(RuntimeError, match="another call|message truncated"):
            bn(x) if comm.rank and len(layers) == 1 else bn.backward(x)
        assert fingerprint(bn) == before
    on_all_ranks(2, work)


def test_ranks_in_different_calls_on_a_tree():
    """Where the messages have one size."""
    a, b = (_merging_message(size) for size in (10, 16))
    assert reason_in(_add_two(a, a)) == "" and "different calls" in reason_in(_add_two(a, b))


def _merging_message(size):
    message = np.zeros(HEAD + 128, np.uint8)
    message[REASON_BYTES:HEAD].view(np.int32)[:] = -size, 0
    return message


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
    with pytest.raises(RuntimeError, match=r"the communicator failed in Allgather \(the network is gone\)") as caught:
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
    plain = SimpleNamespace(Get_rank=lambda: 0, Get_size=lambda: 33, Allgather=print)
    with pytest.raises(TypeError, match="without Bcast, Send, Recv"):
        SyncBatchNorm(C, comm=plain)
    assert SyncBatchNorm(C, comm=plain, tree_from=34).comm is plain
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
