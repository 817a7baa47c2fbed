"""Data-parallel training: each rank has a part of every mini-batch, and all have the same weights.

A rank's loss is the sum over its images, divided by the images of the whole mini-batch, so that gradients summed over the
ranks are those of one process. So are the batch norms', which see the whole mini-batch (fastbn.distributed). What is left
are the roundings of sums in another order.
"""

import functools
import sys
import time
import traceback

import numpy as np
from rich.console import Console
from threadpoolctl import threadpool_limits

import fastbn
from fastbn._cli import FAILED, OK
from fastbn.demo.chart import save_chart
from fastbn.demo.data import load_data
from fastbn.demo.network import BEFORE, softmax_cross_entropy
from fastbn.demo.report import describe_network, describe_training, print_results, say
from fastbn.demo.training import History, Variant, train_variant
from fastbn.distributed import SyncBatchNorm

CHART_NAME = "parallel.png"
TOLERANCE = 1e-3  # of the largest loss, and of the test accuracy: float32 roundings grow as training goes on
POLL_SECONDS = 0.02


def run_over_ranks(comm, settings):
    """Train over the ranks, then on rank 0 alone, compare, and return the exit status, the same on all ranks.

    An error on one of them ends all, which would wait for it.
    """
    try:
        return train_and_compare(comm, settings)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        comm.Abort(FAILED)


def train_and_compare(comm, settings):
    fastbn.set_num_threads(settings.threads or 1)  # ranks share the machine's processors
    data = load_data(settings.seed)
    with threadpool_limits(limits=1, user_api="blas"):
        together = History(Variant(f"{comm.size} rank{'s' if comm.size > 1 else ''}", BEFORE))
        network = train_over_ranks(comm, data, settings, together)
        equal = is_equal_everywhere(comm, network)
        status = OK
        if comm.rank == 0:
            status = compare(data, settings, together, equal)
        wait_for_all(comm)
    return comm.bcast(status)


def train_over_ranks(comm, data, settings, history):
    """As train_variant, with a part of every mini-batch on each rank; the history is that of the whole, on all of them."""
    make_norm, step = functools.partial(SyncBatchNorm, comm=comm), functools.partial(parallel_step, comm)
    return train_variant(data, settings, history, lambda: None, make_norm, step)


def parallel_step(comm, network, optimizer, images, labels):
    """A step of training with this rank's part of a mini-batch; returns the loss of the whole."""
    bounds = len(labels) * np.arange(comm.size + 1) // comm.size
    mine = slice(bounds[comm.rank], bounds[comm.rank + 1])
    logits, share = network.forward(images[mine]), len(labels[mine]) / len(labels)
    loss, dlogits = softmax_cross_entropy(logits, labels[mine]) if share else (0.0, logits)
    network.backward(dlogits * np.float32(share))
    loss = sum_over_ranks(comm, [gradient for _, _, gradient in network.parameters()], loss * share)
    optimizer.step()
    return loss


def sum_over_ranks(comm, arrays, number):
    """Sums of float32 arrays, in place, and of a number, in one message and in the order of the ranks."""
    mine = np.concatenate([*(a.ravel() for a in arrays), [number]]).astype(np.float64)
    everyone = np.empty((comm.size, mine.size))
    comm.Allgather(mine, everyone)
    total, first = everyone.sum(axis=0), 0
    for a in arrays:
        a[...] = total[first : first + a.size].reshape(a.shape)
        first += a.size
    return float(total[-1])


def is_equal_everywhere(comm, network):
    """Whether all ranks have the same bits for parameters and moving averages."""
    arrays = [value for _, value, _ in network.parameters()]
    arrays += [a for norm in network.norms() for a in (norm.running_mean, norm.running_var)]
    return len(set(comm.allgather(b"".join(a.tobytes() for a in arrays)))) == 1


def compare(data, settings, together, equal):
    """Train on this rank alone, print and draw both; the exit status."""
    console = Console()
    say(console, f"fastbn {fastbn.__version__}")
    say(console, f"Network: {describe_network(settings, data)}, float32, batch norm before the activation")
    say(console, f"Training: {describe_training(settings)}")
    alone = History(Variant("one process", BEFORE))
    train_variant(data, settings, alone, lambda: None)
    print_results(console, [together, alone], settings)
    say(console, f"Parameters and moving averages: {'the same bits on all ranks' if equal else 'DIFFERENT between ranks'}")
    loss, accuracy = largest_differences(together, alone)
    passed = equal and loss <= TOLERANCE and accuracy <= TOLERANCE
    say(console, f"Largest difference to one process after any epoch (allowed: {TOLERANCE:g}): {loss:.1e} of the largest "
                 f"training loss, {accuracy:.1e} of test accuracy: {'ok' if passed else 'FAILED'}")
    return OK if draw(console, settings, data, [together, alone]) and passed else FAILED


def largest_differences(a, b):
    """(of the losses, relative to the largest; of the accuracies). Infinite where a run ended before the other."""
    if len(a.losses) != len(b.losses) or not a.losses:
        return np.inf, np.inf
    losses, accuracies = (np.abs(np.subtract(x, y)).max() for x, y in ((a.losses, b.losses), (a.accuracies, b.accuracies)))
    return losses / max(b.losses), accuracies


def draw(console, settings, data, histories):
    """Whether the chart could be written."""
    path = settings.output / CHART_NAME
    title = f"Handwritten digits: {describe_network(settings, data)}, {describe_training(settings)}"
    try:
        save_chart(path, histories, title)
    except OSError as error:
        say(console, f"cannot write {str(path)!r}: {error.strerror}")
        return False
    say(console, f"Chart: {path}")
    return True


def wait_for_all(comm):
    """A barrier without spinning: the processors are for whoever still computes."""
    barrier = comm.Ibarrier()
    while not barrier.Test():
        time.sleep(POLL_SECONDS)
