"""Messages from every rank to all: by one gather, or where there are many ranks by a tree."""
import contextlib
from typing import Protocol

import numpy as np

from fastbn._engine import checks

TREE_FROM = 33  # ranks
_TAG = 11_167   # of the tree's messages


class Communicator(Protocol):
    """What is asked of a communicator, mpi4py's or another: ranks from 0 to size - 1, and messages between them.

    Parameters
    ----------
    *args, **kwargs : object
        A protocol has no constructor of its own.

    Notes
    -----
    Buffers are contiguous arrays of uint8 or float64, of one size on all ranks, and nothing is pickled. All calls
    block. Every rank takes part in Allgather and Bcast. Bcast, Send and Recv serve the tree alone, so that fewer
    ranks than tree_from (33) do without them.

    Examples
    --------
    >>> from fastbn.distributed import SyncBatchNorm
    >>> class Alone:
    ...     def Get_rank(self):
    ...         return 0
    ...     def Get_size(self):
    ...         return 1
    ...     def Allgather(self, sendbuf, recvbuf):
    ...         recvbuf[0] = sendbuf
    >>> SyncBatchNorm(2, comm=Alone())
    SyncBatchNorm(2, axis=1, eps=1e-05, momentum=0.9, ddof=1, dtype=float32, comm=<rank 0 of 1>)
    """

    def Get_rank(self) -> int:
        """Tell this process's number.

        Returns
        -------
        int
            From 0 on.
        """

    def Get_size(self) -> int:
        """Tell how many processes there are.

        Returns
        -------
        int
            The number of ranks.
        """

    def Allgather(self, sendbuf, recvbuf):
        """Write the sendbuf of all ranks to recvbuf, one after the other, in the order of the ranks.

        Parameters
        ----------
        sendbuf : array of uint8 or float64
            What this rank sends.
        recvbuf : array of the same dtype, shape (size, ...)
            Where the messages of all ranks are written.
        """

    def Bcast(self, buf, root=0):
        """Write the buf of the rank `root` to that of all others.

        Parameters
        ----------
        buf : array
            What is sent or received.
        root : int, default 0
            The rank that sends.
        """

    def Send(self, buf, dest, tag=0):
        """Send buf to the rank `dest`.

        Parameters
        ----------
        buf : array
            What is sent.
        dest : int
            The rank that receives.
        tag : int, default 0
            Of the message.
        """

    def Recv(self, buf, source, tag=0):
        """Wait for the message with that tag from the rank `source` and write it to buf.

        Parameters
        ----------
        buf : array
            Where it is written.
        source : int
            The rank that sends.
        tag : int, default 0
            Of the message.
        """


class Ranks:
    """The ranks of a communicator, of which this process is one.

    rank, size: as the communicator has them. tree: whether messages take a tree.
    """

    __slots__ = ("comm", "rank", "size", "tree")

    def __init__(self, comm, tree_from):
        _require(comm, "Get_rank", "Get_size", "Allgather")
        self.comm = comm
        with _failures_named("Get_rank"):
            self.rank, self.size = int(comm.Get_rank()), int(comm.Get_size())
        self.tree = self.size >= tree_from
        if self.tree:
            _require(comm, "Bcast", "Send", "Recv")

    def gathered(self, message):
        """The messages of all ranks, arrays of one shape and dtype, as an array with a row for each."""
        everyone = np.zeros((self.size, *message.shape), message.dtype)
        with _failures_named("Allgather"):
            self.comm.Allgather(message, everyone)
        return everyone

    def combined(self, message, combine):
        """All ranks' messages in one, the same bits on every rank, up a binomial tree to rank 0 and back.

        combine(a, b): one message of two, where all ranks of a come before those of b. In the step s = 1, 2, 4, ... the
        ranks r with r % 2s == s send what they have to r - s. Each rank sends one message up, so the longest way is
        log2(size) messages, whatever the order in which they arrive.
        """
        step = 1
        with _failures_named("Send or Recv"):
            while step < self.size and not self.rank & step:
                if self.rank + step < self.size:
                    theirs = np.empty_like(message)
                    self.comm.Recv(theirs, self.rank + step, _TAG)
                    message = combine(message, theirs)
                step *= 2
            if self.rank:
                self.comm.Send(message, self.rank - step, _TAG)
        with _failures_named("Bcast"):
            self.comm.Bcast(message, 0)
        return message


def _require(comm, *names):
    lacking = [name for name in names if not callable(getattr(comm, name, None))]
    if lacking:
        raise TypeError(f"comm is a {type(comm).__name__} without {', '.join(lacking)}, expected a communicator such as "
                        "mpi4py.MPI.COMM_WORLD, see fastbn.distributed.Communicator, or None")


@contextlib.contextmanager
def _failures_named(what):
    """An error of the communicator, MPI.Exception or any other, becomes a RuntimeError that has it for its cause."""
    try:
        yield
    except Exception as error:
        raise RuntimeError(f"the communicator failed in {what} ({' '.join(str(error).split())}): are all ranks in the same "
                           "call of the same layer, in the same order?") from error


def check_tree_from(value):
    """A whole number of at least 2."""
    if not checks.is_whole(value):
        raise TypeError(f"tree_from is {value!r}, expected a number of ranks")
    if value < 2:
        raise ValueError(f"tree_from is {value}, expected at least 2: one rank sends nothing")
    return int(value)
