"""Run by test_distributed_mpi.py: mpiexec -n N python mpi_script.py. Each check is one that all ranks do together.

Prints "passed" on rank 0 at the end; whatever fails on one rank ends all of them.
"""
import sys
import traceback

import numpy as np
from mpi4py import MPI

import fastbn
from fastbn.distributed import SyncBatchNorm, merge_moments
from oracle import sample

COMM = MPI.COMM_WORLD
RANK, SIZE = COMM.Get_rank(), COMM.Get_size()
C = 6


def parts(array, split):
    return np.split(array, np.cumsum(split)[:-1])


def splits():
    """How many rows each rank has: as many, different numbers, and none on the first or the last."""
    uneven = [3 + 2 * rank for rank in range(SIZE)]
    return [[4] * SIZE, uneven, [0] * (SIZE > 1) + uneven[:SIZE - (SIZE > 1)], uneven[:SIZE - 1] + [0 if SIZE > 1 else 3]]


def draw(rows, ratio=10.0, dtype=np.float32):
    rng = np.random.default_rng(rows)
    x = sample(rng, (rows, C, 7), axis=1, dtype=dtype, ratio=ratio)
    return x, rng.normal(size=x.shape).astype(dtype)


def close(found, wanted):
    scale = max(1.0, float(np.abs(wanted).max(initial=0)))
    np.testing.assert_allclose(found.astype(float), wanted.astype(float), rtol=0, atol=1e-6 * scale)


def same_bits(*arrays):
    found = COMM.allgather(b"".join(np.asarray(a).tobytes() for a in arrays))
    assert len(set(found)) == 1


def as_one_process(settings, ratio=10.0, activation=None):
    for split in splits():
        x, dy = draw(sum(split), ratio)
        bn = SyncBatchNorm(C, comm=COMM, reduce_parameter_gradients=True, activation=activation, **settings)
        whole = fastbn.BatchNorm(C, activation=activation)
        y, dx = bn(parts(x, split)[RANK]), bn.backward(parts(dy, split)[RANK])
        close(y, parts(whole(x), split)[RANK])
        close(dx, parts(whole.backward(dy), split)[RANK])
        for name in ("dgamma", "dbeta", "running_mean", "running_var"):
            close(getattr(bn, name), getattr(whole, name))
        assert bn.num_batches_tracked == 1 and bn.batch_moments.count == x.size // C
        same_bits(bn.dgamma, bn.dbeta, bn.running_mean, bn.running_var, bn.batch_moments.mean, bn.batch_moments.M2)


def alone_on_comm_self():
    x, dy = draw(5)
    bn, plain = SyncBatchNorm(C, comm=MPI.COMM_SELF), fastbn.BatchNorm(C)
    assert np.array_equal(bn(x), plain(x)) and np.array_equal(bn.backward(dy), plain.backward(dy))
    assert all(np.array_equal(value, plain.state_dict()[name]) for name, value in bn.state_dict().items())


def any_assignment():
    """Rank r has the part r, then the part r + 1, and so on: the same bits each time."""
    split = [2 + rank % 3 for rank in range(SIZE)]
    x, dy = draw(sum(split), 1e3)
    seen = set()
    for shift in range(SIZE):
        bn, mine = SyncBatchNorm(C, comm=COMM, reduce_parameter_gradients=True), (RANK + shift) % SIZE
        y, dx = bn(parts(x, split)[mine]), bn.backward(parts(dy, split)[mine])
        results = sorted(COMM.allgather((mine, y.tobytes(), dx.tobytes())))
        seen.add((tuple(results), bn.running_mean.tobytes(), bn.running_var.tobytes(), bn.dgamma.tobytes()))
    assert len(seen) == 1


def raises(kind, function, text=""):
    try:
        function()
    except kind as error:
        assert type(error) is kind and text in str(error), repr(error)
        return
    raise AssertionError(f"no {kind.__name__}")


def refusals(more):
    """The last rank errs in one way after the other; then all go on."""
    last = SIZE - 1
    x, dy = draw(4)
    def as_on(wrong, call, kind, text):
        if RANK == last:
            raises(kind, lambda: call(wrong))
        else:
            raises(RuntimeError, lambda: call(x), text)
    bn = SyncBatchNorm(C, comm=COMM, **more)
    as_on(x[:, :2], bn, ValueError, f"rank {last} gave up")
    as_on(x.astype(int), bn, TypeError, f"rank {last} gave up")
    as_on(x.astype(float), bn, ValueError, f"the dtype of x is float64 on rank {last}")
    for settings, text in (({"eps": 0.5}, "eps is 0.5"), ({"num_features": C + 1}, f"num_features is {C + 1}")):
        settings = settings if RANK == last else {}
        odd = SyncBatchNorm(**{"num_features": C, "comm": COMM, **more, **settings})
        fitting = x[:, :1].repeat(odd.num_features, axis=1)
        raises(ValueError if settings else RuntimeError, lambda: odd(fitting), text)
    bn(x)
    as_on(dy[1:], bn.backward, ValueError, f"rank {last} gave up")
    bn.backward(dy)
    assert bn.num_batches_tracked == 1


class Astray:
    """Sends to a rank that there is not, for which MPI has an error."""

    Get_rank, Get_size = COMM.Get_rank, COMM.Get_size

    def Allgather(self, sendbuf, recvbuf):
        COMM.Send(sendbuf, SIZE + 7)


def errors_of_mpi():
    bn, x = SyncBatchNorm(C, comm=Astray()), draw(4)[0]
    raises(RuntimeError, lambda: bn(x), "the communicator failed in Allgather")
    try:
        bn(x)
    except RuntimeError as error:
        assert isinstance(error.__cause__, MPI.Exception)
    assert bn.num_batches_tracked == 0


def data_set():
    batches = [draw(3 + i)[0] for i in range(7)]
    mine = sum((fastbn.moments(x) for x in batches[RANK::SIZE]), fastbn.Moments(0, np.zeros(C), np.zeros(C)))
    for more in ({}, {"tree_from": 2}):
        total, wanted = merge_moments(mine, COMM, **more), sum(map(fastbn.moments, batches))
        assert total.count == wanted.count
        np.testing.assert_allclose(total.mean, wanted.mean, rtol=1e-12)
        np.testing.assert_allclose(total.M2, wanted.M2, rtol=1e-12)
        same_bits(total.mean, total.M2)


def main():
    for more in ({}, {"tree_from": 2}):
        as_one_process(more)
        as_one_process(more, activation="relu")
        as_one_process(more, ratio=1e6)
        if SIZE > 1:
            refusals(more)
    alone_on_comm_self()
    any_assignment()
    data_set()
    if SIZE > 1:
        errors_of_mpi()
    COMM.Barrier()
    if RANK == 0:
        print("passed")


try:
    main()
except BaseException:
    traceback.print_exc()
    sys.stderr.flush()
    COMM.Abort(1)
