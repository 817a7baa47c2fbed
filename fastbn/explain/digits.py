"""The demo's network and digits, as several sections use them: built and trained by the demo's own functions."""
import functools

from threadpoolctl import threadpool_limits

from fastbn.demo.data import load_data
from fastbn.demo.network import SGD, Layer
from fastbn.demo.settings import SGD_MOMENTUM, Settings
from fastbn.demo.timing import endless_batches
from fastbn.demo.training import make_network, training_step

load = functools.lru_cache(maxsize=16)(load_data)


class Listener(Layer):
    """A layer that changes nothing and keeps what passed last: x on the way forward, dy on the way back."""

    def forward(self, x):
        self.x = x
        return x

    def backward(self, dy):
        self.dy = dy
        return dy


def one_thread():
    """A context in which NumPy's matrix products and fastbn take one thread: the network is too small to gain from more,
    and on a busy machine waiting for each other costs them many times what they take.
    """
    return threadpool_limits(limits=1)


def build(position, make_norm, *, seed):
    """The demo's network of three hidden layers of 100 sigmoid units; the seed decides the weights.

    position: of batch norm: None, "before" or "after" the activation; make_norm(num_features) makes a layer of it.
    """
    return make_network(load(seed), Settings(seed=seed), position, make_norm)[0]


def train(network, *, seed, steps, after_step=None):
    """Train as the demo does, for so many mini-batches, which the seed decides; after each after_step(number from 1)."""
    settings = Settings(seed=seed)
    optimizer = SGD(network, settings.rate, SGD_MOMENTUM)
    with one_thread():
        for number, batch in zip(range(1, steps + 1), endless_batches(load(seed), settings)):
            training_step(network, optimizer, *batch)
            if after_step is not None:
                after_step(number)
