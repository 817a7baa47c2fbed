"""The messages of one call: each of its ranks either sends what it has, or the reason why it gives up."""
import contextlib

import numpy as np

from ._handshake import agree
from ._merging import merged, summed


class Statistics:
    """Those of a forward call. terms: what has to be the same on all ranks, by name, beside the dtype of x."""

    def __init__(self, ranks, terms):
        self.ranks, self.terms, self.sent = ranks, terms, False

    def of_all_ranks(self, local, dtype):
        """The Moments of all ranks from this one's, once all agree."""
        self.sent = True
        agree(self.ranks, {"the dtype of x": dtype, **self.terms})
        return merged(self.ranks, local)

    def give_up(self, error):
        agree(self.ranks, {"the dtype of x": None, **self.terms}, error)


class Sums:
    """Those of a backward call, arrays of shape (2, C)."""

    def __init__(self, ranks, num_features):
        self.ranks, self.num_features, self.sent = ranks, num_features, False

    def of_all_ranks(self, local):
        self.sent = True
        return summed(self.ranks, local)

    def give_up(self, error):
        summed(self.ranks, np.zeros((2, self.num_features)), error)


@contextlib.contextmanager
def telling(messages):
    """An error that comes before this rank has sent anything is sent to the others, and goes on here."""
    try:
        yield messages
    except Exception as error:
        if not messages.sent:
            with contextlib.suppress(RuntimeError):  # of the communicator: what matters here is the first error
                messages.give_up(error)
        raise
