"""Trains the variants of the network: the same weights at the start, the same mini-batches, the same learning rate."""

import time
from dataclasses import dataclass, field

import numpy as np

import fastbn
from fastbn.demo.data import CLASSES
from fastbn.demo.network import AFTER, BEFORE, SGD, build_network, initial_weights, softmax_cross_entropy
from fastbn.demo.settings import HIDDEN_SIZES, SGD_MOMENTUM


@dataclass(frozen=True)
class Variant:
    """Where a network has its batch norm: None, BEFORE or AFTER the activation."""

    name: str
    position: str | None


VARIANTS = (
    Variant("none", None),
    Variant("before activation", BEFORE),
    Variant("after activation", AFTER),
)


@dataclass
class History:
    """What is known of a variant's finished epochs."""

    variant: Variant
    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    seconds: float = 0.0
    diverged: bool = False

    def add_epoch(self, loss, accuracy, seconds):
        self.losses.append(loss)
        self.accuracies.append(accuracy)
        self.seconds += seconds

    def epochs_to(self, accuracy):
        """The first epoch after which the test accuracy was at least that; None if there is none."""
        return next((epoch for epoch, reached in enumerate(self.accuracies, 1) if reached >= accuracy), None)


def layer_sizes(data):
    return (data.train_images.shape[1], *HIDDEN_SIZES, CLASSES)


def make_network(data, settings, position, make_norm=fastbn.BatchNorm):
    """The network before training, and its optimizer; the seed decides the weights."""
    weights = initial_weights(layer_sizes(data), settings.seed)
    network = build_network(weights, settings.activation, position, make_norm)
    return network, SGD(network, settings.rate, SGD_MOMENTUM)


def mini_batches(data, batch_size, rng):
    """One epoch in random order. What is left over at its end, too few images for a mini-batch, is dropped."""
    order = rng.permutation(len(data.train_images))
    for start in range(0, len(order) - batch_size + 1, batch_size):
        chosen = order[start : start + batch_size]
        yield data.train_images[chosen], data.train_labels[chosen]


def batch_order(settings):
    """The generator of the order of the images: not the weights' one, and the same for all variants."""
    return np.random.default_rng([settings.seed, 1])


def training_step(network, optimizer, images, labels):
    loss, dlogits = softmax_cross_entropy(network.forward(images), labels)
    network.backward(dlogits)
    optimizer.step()
    return loss


def test_accuracy(network, data):
    network.eval()
    predicted = network.forward(data.test_images).argmax(axis=1)
    network.train()
    return float(np.mean(predicted == data.test_labels))


def train_variant(data, settings, history, on_epoch, make_norm=fastbn.BatchNorm, step=None):
    """Train history's variant and return its network; after every epoch history has grown and on_epoch() is called.

    step: takes the place of training_step. A loss that is not finite ends the training: history.diverged.
    """
    network, optimizer = make_network(data, settings, history.variant.position, make_norm)
    rng, step = batch_order(settings), step or training_step
    for _ in range(settings.epochs):
        start = time.perf_counter()
        losses = [step(network, optimizer, *batch) for batch in mini_batches(data, settings.batch_size, rng)]
        seconds = time.perf_counter() - start
        history.diverged = not np.isfinite(losses).all()
        if history.diverged:
            break
        history.add_epoch(float(np.mean(losses)), test_accuracy(network, data), seconds)
        on_epoch()
    return network
