"""What synchronizing costs: `python -m bench.distributed` times SyncBatchNorm over the ranks of MPI, and models many more.

__main__.py   the flags; starts mpiexec for each number of ranks
worker.py     what a rank runs: steps of SyncBatchNorm and of BatchNorm in turns, and bare messages
model.py      what a message and a merge cost, fitted to the messages, and from that steps over more ranks than there are
table.py      the tables
"""
