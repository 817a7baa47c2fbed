"""Time per training step in batch norm: fastbn against plain NumPy, in the same network, step by step in turns.

Turns, so that both meet the same weather (clock rates, other programs); medians, so that a hiccup does not count.
"""

import time
from dataclasses import dataclass, field
from statistics import median

import fastbn
from fastbn.demo.network import BEFORE
from fastbn.demo.numpy_batchnorm import NumpyBatchNorm
from fastbn.demo.training import batch_order, make_network, mini_batches, training_step

STEPS = 500
WARM_UP = 20


class TimedNorm:
    """A batch norm layer that adds the seconds spent in forward and backward to its contestant's clock."""

    def __init__(self, layer, contestant):
        self._layer = layer
        self._contestant = contestant
        self.train, self.eval, self.parameters = layer.train, layer.eval, layer.parameters

    def forward(self, x):
        return self._timed(self._layer.forward, x)

    def backward(self, dy):
        return self._timed(self._layer.backward, dy)

    def _timed(self, function, argument):
        start = time.perf_counter()
        result = function(argument)
        self._contestant.clock += time.perf_counter() - start
        return result


@dataclass
class Contestant:
    """An implementation of batch norm and its times, in seconds, by step."""

    name: str
    make_norm: object
    clock: float = 0.0
    norm_seconds: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)

    def prepare(self, data, settings):
        def timed(num_features):
            return TimedNorm(self.make_norm(num_features), self)

        self._network, self._optimizer = make_network(data, settings, BEFORE, timed)

    def step(self, images, labels, *, keep):
        self.clock = 0.0
        start = time.perf_counter()
        training_step(self._network, self._optimizer, images, labels)
        seconds = time.perf_counter() - start
        if keep:
            self.step_seconds.append(seconds)
            self.norm_seconds.append(self.clock)

    @property
    def norm_ms(self):
        return 1e3 * median(self.norm_seconds)

    @property
    def step_ms(self):
        return 1e3 * median(self.step_seconds)


def endless_batches(data, settings):
    rng = batch_order(settings)
    while True:
        yield from mini_batches(data, settings.batch_size, rng)


def time_norms(data, settings, steps=STEPS):
    """Train with either implementation for that many steps, and return both contestants, fastbn first."""
    contestants = [Contestant("fastbn", fastbn.BatchNorm), Contestant("plain NumPy", NumpyBatchNorm)]
    for contestant in contestants:
        contestant.prepare(data, settings)
    for step, batch in zip(range(WARM_UP + steps), endless_batches(data, settings)):
        for contestant in contestants if step % 2 else reversed(contestants):
            contestant.step(*batch, keep=step >= WARM_UP)
    return contestants
