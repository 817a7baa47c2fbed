"""A communicator whose ranks are threads of this process, for tests of fastbn.distributed without MPI.

Nothing waits for ever: after some seconds a rank that nobody answers gets an error, and so a deadlock fails its test.
"""
import queue
import threading

import numpy as np

PATIENCE = 20  # seconds


class Group:
    """What the ranks share."""

    def __init__(self, size):
        self.size, self.slots, self.barrier = size, [None] * size, threading.Barrier(size, timeout=PATIENCE)
        self.mail = {(a, b): queue.Queue() for a in range(size) for b in range(size)}


class Threads:
    """One rank. calls: (method, bytes sent) of each call so far."""

    def __init__(self, group, rank):
        self.group, self.rank, self.calls = group, rank, []

    def Get_rank(self):
        return self.rank

    def Get_size(self):
        return self.group.size

    def _exchange(self, name, buffer):
        """What all ranks brought, once they have."""
        self.calls.append((name, buffer.nbytes))
        self.group.slots[self.rank] = name, buffer.copy()
        self.group.barrier.wait()
        found = list(self.group.slots)
        self.group.barrier.wait()
        assert {other for other, _ in found} == {name}, f"different collectives at a time: {found}"
        assert len({other.nbytes for _, other in found}) == 1, "buffers of different sizes"
        return [other for _, other in found]

    def Allgather(self, sendbuf, recvbuf):
        assert sendbuf.flags.c_contiguous and recvbuf.flags.c_contiguous
        assert recvbuf.nbytes == sendbuf.nbytes * self.group.size
        recvbuf[...] = np.stack(self._exchange("Allgather", sendbuf))

    def Bcast(self, buf, root=0):
        assert buf.flags.c_contiguous
        buf[...] = self._exchange("Bcast", buf)[root]

    def Send(self, buf, dest, tag=0):
        assert buf.flags.c_contiguous
        self.calls.append(("Send", buf.nbytes))
        self.group.mail[self.rank, dest].put((tag, buf.copy()))

    def Recv(self, buf, source, tag=0):
        found_tag, found = self.group.mail[source, self.rank].get(timeout=PATIENCE)
        assert found_tag == tag and found.nbytes == buf.nbytes and found.dtype == buf.dtype
        buf[...] = found


def on_ranks(size, work):
    """[work(comm) of each rank, or the exception it raised]."""
    group, results = Group(size), [None] * size

    def run(rank):
        try:
            results[rank] = work(Threads(group, rank))
        except Exception as error:
            results[rank] = error
    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE)
    assert not any(thread.is_alive() for thread in threads), "a rank is still waiting"
    return results


def on_all_ranks(size, work):
    """The same where nothing is to be raised."""
    results = on_ranks(size, work)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results
