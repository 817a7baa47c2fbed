"""Batch normalization over several processes, the ranks of a communicator: each holds a part of the batch.

    from mpi4py import MPI
    bn = SyncBatchNorm(64, comm=MPI.COMM_WORLD)  # else as fastbn.BatchNorm
    y = bn(x)                                    # by the statistics of the batches of all ranks
    dx = bn.backward(dy)

Nothing here imports mpi4py (pip install 'fastbn[mpi]'): whatever has the methods of Communicator will do.

The files: _communicator.py: messages to all ranks, by a gather or a tree; _handshake.py: whether all ranks want the
same; _merging.py: moments and sums of all ranks; _training.py, _gradient.py: forward and backward; _layer.py: the layer.
"""
from ._communicator import Communicator
from ._layer import SyncBatchNorm
from ._merging import merge_moments

__all__ = ["Communicator", "SyncBatchNorm", "merge_moments"]
