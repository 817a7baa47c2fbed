"""What each rank runs: mpiexec -n N python -m bench.distributed.worker JSON. Rank 0 prints a JSON of all of it.

A round is a step of BatchNorm on this rank's batch, then one of SyncBatchNorm, each after a barrier; its time is the
slowest rank's. What a step spends in the communicator includes the waiting for the others.
"""
import json
import sys
from statistics import median
from time import perf_counter

import numpy as np

PIXELS = 7, 7
WARM_UP = 3
MESSAGE_ROUNDS = 60


class Timed:
    """A communicator that counts seconds, and bytes handed to it and taken from it."""

    def __init__(self, comm):
        self.comm, self.Get_rank, self.Get_size = comm, comm.Get_rank, comm.Get_size
        self.reset()

    def reset(self):
        self.seconds, self.sent, self.received = 0.0, 0, 0

    def _timed(self, call, *arguments, sent=0, received=0):
        begin = perf_counter()
        call(*arguments)
        self.seconds += perf_counter() - begin
        self.sent, self.received = self.sent + sent, self.received + received

    def Allgather(self, sendbuf, recvbuf):
        self._timed(self.comm.Allgather, sendbuf, recvbuf, sent=sendbuf.nbytes, received=recvbuf.nbytes - sendbuf.nbytes)

    def Bcast(self, buf, root=0):
        share = {"sent": buf.nbytes} if self.Get_rank() == root else {"received": buf.nbytes}
        self._timed(self.comm.Bcast, buf, root, **share)

    def Send(self, buf, dest, tag=0):
        self._timed(self.comm.Send, buf, dest, tag, sent=buf.nbytes)

    def Recv(self, buf, source, tag=0):
        self._timed(self.comm.Recv, buf, source, tag, received=buf.nbytes)


def time_steps(comm, features, rows, rounds, tree_from):
    """{seconds of a step alone, of one over the ranks, of that in the communicator; bytes of the largest sender}."""
    import fastbn
    from fastbn.distributed import SyncBatchNorm
    rng = np.random.default_rng(comm.Get_rank())
    x, dy = rng.normal(3, 2, (2, rows, features, *PIXELS)).astype(np.float32)
    timed, out = Timed(comm), np.empty_like(x)
    layers = fastbn.BatchNorm(features), SyncBatchNorm(features, comm=timed, tree_from=tree_from)
    found = []
    for _ in range(WARM_UP + rounds):
        seconds = []
        for layer in layers:
            comm.Barrier()
            timed.reset()
            begin = perf_counter()
            layer(x, out=out)
            layer.backward(dy, out=out)
            seconds.append(perf_counter() - begin)
        found.append((*seconds, timed.seconds))
    slowest = [np.max(one, axis=0) for one in zip(*comm.allgather(found[WARM_UP:]))]
    alone, step, communicating = np.median(slowest, axis=0)
    return {"features": features, "alone": alone, "step": step, "communicating": communicating,
            "sent": max(comm.allgather(timed.sent)), "received": max(comm.allgather(timed.received))}


def time_messages(comm, sizes):
    """[{bytes, seconds of a gather, of a tree up and down}, ...]: medians of the slowest rank."""
    from fastbn.distributed._communicator import Ranks
    ranks, found = Ranks(comm, 2), []
    for size in sizes:
        message, seconds = np.zeros(size, np.uint8), {}
        for name, call in (("gather", ranks.gathered), ("tree", lambda one: ranks.combined(one, lambda a, b: a))):
            times = []
            for _ in range(WARM_UP + MESSAGE_ROUNDS):
                comm.Barrier()
                begin = perf_counter()
                call(message)
                times.append(perf_counter() - begin)
            seconds[name] = median(map(max, zip(*comm.allgather(times[WARM_UP:]))))
        found.append({"bytes": size, **seconds})
    return found


def main(arguments):
    from mpi4py import MPI

    import fastbn
    asked, comm = json.loads(arguments[0]), MPI.COMM_WORLD
    fastbn.set_num_threads(1)
    result = {"ranks": comm.Get_size(), "mpi": MPI.Get_library_version().split("\n")[0].strip("\0"), "steps": [
        time_steps(comm, features, asked["rows"], asked["rounds"], asked["tree_from"]) for features in asked["features"]]}
    result["messages"] = time_messages(comm, asked["messages"]) if comm.Get_size() > 1 else []
    if comm.Get_rank() == 0:
        print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
