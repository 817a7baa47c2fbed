"""Moments and sums of all ranks from those of each: records of doubles, sorted and merged as neighbours.

Sorted by what is in them, they are the same sequence whichever rank had which batch, and so have the same bits merged. On
a tree they are merged as they come up, in an order that the ranks' numbers fix: every rank has the same bits in every
run, but they depend on which rank had which batch.
"""
import numpy as np

from fastbn._engine.moments import Moments, merge_rows
from fastbn._engine.weights import whole_sums

from ._communicator import TREE_FROM, Ranks, check_tree_from
from ._handshake import REASON_BYTES, agree, call_of, reason_in, refuse_failed, refuse_other_calls, write_reason

_HEAD = REASON_BYTES + 8  # bytes before the sums: the reason, how many sums, below 0, and the rank that has the reason


def merge_moments(moments, comm, *, tree_from=TREE_FROM):
    """Merge the Moments of all ranks: each of them passes its own, and gets the same.

    Parameters
    ----------
    moments : Moments
        A fastbn.Moments of C features, the count 0 included.
    comm : communicator, or None
        As for SyncBatchNorm.
    tree_from : int, default 33
        As for SyncBatchNorm.

    Returns
    -------
    Moments
        Those of the entries of all ranks, merged exactly by count, in double, as by fastbn.Moments.

    Raises
    ------
    TypeError, ValueError
        If moments is no Moments, or has another number of features than on most ranks.
    RuntimeError
        If another rank's has, or the communicator failed.

    Notes
    -----
    For the statistics of a data set of which every rank has a part:

        bn.calibrate(merge_moments(sum(fastbn.moments(x) for x in batches), comm))

    Examples
    --------
    >>> import numpy as np
    >>> import fastbn
    >>> from fastbn.distributed import merge_moments
    >>> part = fastbn.moments(np.array([[1.0], [3.0]]))
    >>> merge_moments(part, None)    # mpi4py.MPI.COMM_WORLD in place of None: all ranks' entries
    Moments(count=2, mean=array([2.]), M2=array([2.]))
    """
    ranks = None if comm is None else Ranks(comm, check_tree_from(tree_from))
    failed = _problem_of(moments)
    if ranks is not None and ranks.size > 1:
        terms = {} if failed else {"num_features": moments.mean.size, "counts by feature": np.ndim(moments.count) > 0}
        agree(ranks, terms, failed)
    if failed is not None:
        raise failed
    return moments if ranks is None or ranks.size == 1 else merged(ranks, moments)


def _problem_of(moments):
    """An exception, or None."""
    if not isinstance(moments, Moments):
        return TypeError(f"moments is a {type(moments).__name__}, expected fastbn.Moments")
    try:
        moments.check()
    except ValueError as error:
        return error
    return None


def merged(ranks, local):
    """The Moments of all ranks, once they agree on the number of features."""
    record = np.empty((4, local.mean.size))
    record[0], record[1], record[2], record[3] = local.count, local.mean, local.M2, local.squares
    whole = ranks.combined(record, _merge_two) if ranks.tree else _merge(_sorted(ranks.gathered(record)))
    count, squares = (whole_sums(row if np.ndim(local.count) else row[0]) for row in (whole[0], whole[3]))
    return Moments.of_arrays(count, whole[1], whole[2], squares)


def _sorted(records):
    """By their bytes: any order will do that follows from the records alone."""
    return records[sorted(range(len(records)), key=lambda rank: records[rank].tobytes())]


def _merge(records):
    return np.stack([*merge_rows(records[:, 0], records[:, 1], records[:, 2]), records[:, 3].sum(axis=0)])


def _merge_two(a, b):
    return _merge(np.stack([a, b]))


def summed(ranks, sums, error=None):
    """The sums over all ranks of an array of doubles that has the same shape on each, in one collective.

    error: why this rank gives up, an exception, or None; with one nothing is raised here but by the communicator.
    Raises RuntimeError (another rank gave up; the communicator failed).
    """
    message = np.zeros(_HEAD + sums.nbytes, np.uint8)
    if error is not None:
        write_reason(message, error)
    message[REASON_BYTES:_HEAD].view(np.int32)[:] = -sums.size, ranks.rank
    message[_HEAD:].view(np.float64)[:] = sums.ravel()
    if ranks.tree:
        whole = ranks.combined(message, _add_two)
    else:
        everyone = ranks.gathered(message)
        refuse_other_calls(ranks.rank, [rank for rank, found in enumerate(everyone) if call_of(found) != -sums.size])
        whole = _add_all(everyone)
    if error is None and (reason := reason_in(whole)):
        refuse_failed(int(whole[REASON_BYTES:_HEAD].view(np.int32)[1]), reason)
    return whole[_HEAD:].view(np.float64).reshape(sums.shape)


def _add_all(messages):
    """One message: the first that tells an error, or else one with the sums of the sorted records, added as neighbours."""
    failed = np.flatnonzero(messages[:, 0])
    whole = messages[failed[0] if failed.size else 0].copy()
    records = _sorted(messages[:, _HEAD:].view(np.float64))
    while len(records) > 1:
        even = len(records) // 2 * 2
        records = np.concatenate([records[:even:2] + records[1:even:2], records[even:]])
    whole[_HEAD:].view(np.float64)[:] = records[0]
    return whole


def _add_two(a, b):
    whole = (b if b[0] and not a[0] else a).copy()
    if call_of(a) != call_of(b):
        write_reason(whole, RuntimeError("the ranks are in different calls, or in those of different layers"))
    whole[_HEAD:].view(np.float64)[:] = a[_HEAD:].view(np.float64) + b[_HEAD:].view(np.float64)
    return whole
