"""What ranks tell each other before they exchange statistics: that all is well, and what each wants to compute.

A message has a fixed number of bytes, whatever the layer, so that ranks which disagree on everything can still read each
other's: the reason why this rank gives up (empty: it does not), then the terms as text, by which differences are named.
Where a tree takes the gather's place, it only finds out whether all messages are the same; if not, they are gathered.

Messages of sums (_merging.py) have a number below 0 after the reason, which is no text: so a rank that is in forward while
another is in backward finds that out, where MPI does not mind messages of different sizes.
"""
from collections import Counter

import numpy as np

REASON_BYTES = 160
MESSAGE_BYTES = REASON_BYTES + 320
_DIFFER = 1  # in a flag before the message on a tree


def agree(ranks, terms, error=None):
    """Returns where all ranks have the same terms and none has an error to tell.

    terms: {name: value}, with the same names on all ranks; error: an exception, or None. A rank that tells an error
    returns too, whatever the others say: it has something to raise.
    Raises RuntimeError (another rank told an error, or differs) or ValueError (this rank differs). Where there are two
    opinions the majority is right, and of equally many the one that has the lowest rank.
    """
    message = _message(terms, error)
    if ranks.tree and _is_same_everywhere(ranks, message, error):
        return
    everyone = ranks.gathered(message)
    if error is None and (everyone != message).any():
        refuse_other_calls(ranks.rank, [rank for rank, found in enumerate(everyone) if call_of(found) < 0])
        _refuse(ranks.rank, everyone, tuple(terms))


def write_reason(message, error):
    """Puts an error into the first bytes of a message, those of no error being 0."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}".encode()[:REASON_BYTES]
    message[:len(text)] = np.frombuffer(text, np.uint8)


def reason_in(message):
    """The text that write_reason put there; "" where there is none."""
    return message[:REASON_BYTES].tobytes().rstrip(b"\0").decode(errors="ignore")


def refuse_failed(rank, reason):
    """Raises RuntimeError for the error that another rank has told of."""
    raise RuntimeError(f"rank {rank} gave up this call, so that nothing has changed on this rank either. There it was "
                       f"{reason}")


def call_of(message):
    """What stands after the reason: below 0 in messages of sums, that many of them."""
    return int(message[REASON_BYTES:REASON_BYTES + 4].view(np.int32)[0])


def refuse_other_calls(own, others):
    """Raises RuntimeError where there are such ranks. (One's own is among them where messages ran into each other.)"""
    if others:
        ranks = [rank for rank in others if rank != own] or "unknown"
        raise RuntimeError(f"ranks {ranks} are in another call than rank {own}, or in that of another layer: forward and "
                           "backward of all layers have to come in the same order on all ranks")


def _message(terms, error):
    message = np.zeros(MESSAGE_BYTES, np.uint8)
    if error is not None:
        write_reason(message, error)
    text = "\n".join(map(str, terms.values())).encode()[:MESSAGE_BYTES - REASON_BYTES]
    message[REASON_BYTES:REASON_BYTES + len(text)] = np.frombuffer(text, np.uint8)
    return message


def _is_same_everywhere(ranks, message, error):
    def compare(a, b):
        if (a != b).any():
            a[0] = _DIFFER
        return a
    flagged = np.concatenate([np.array([0 if error is None else _DIFFER], np.uint8), message])
    return ranks.combined(flagged, compare)[0] != _DIFFER


def _refuse(own, everyone, names):
    for rank, message in enumerate(everyone):
        if reason := reason_in(message):
            refuse_failed(rank, reason)
    terms = [message[REASON_BYTES:].tobytes().rstrip(b"\0").decode(errors="ignore").split("\n") for message in everyone]
    right = Counter(map(tuple, terms)).most_common(1)[0][0]  # of equals the first seen
    odd = [rank for rank, found in enumerate(terms) if tuple(found) != right]
    reference = next(rank for rank, found in enumerate(terms) if tuple(found) == right)
    if own in odd:
        raise ValueError(f"{_differences(names, terms[own], terms[reference], own, reference)}: the layers and the data of "
                         "all ranks have to be of one kind; nothing has changed")
    raise RuntimeError(f"{_differences(names, terms[odd[0]], terms[own], odd[0], own)}"
                       f"{f' (ranks {odd} differ)' if len(odd) > 1 else ''}: nothing has changed on this rank, {own}")


def _differences(names, found, wanted, rank, reference):
    differing = [f"{name} is {a} on rank {rank} and {b} on rank {reference}"
                 for name, a, b in zip(names, found, wanted) if a != b]
    return "; ".join(differing) or f"rank {rank} and rank {reference} have different settings"
