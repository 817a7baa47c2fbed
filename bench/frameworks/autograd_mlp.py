"""python -m bench.frameworks.autograd_mlp: what batch norm costs in a training step of autograd, composed and fastbn's.

A network 256-512-512-512-10 with a batch norm and relu after each of the three inner layers, a batch of 4096: loss,
gradients and a step of gradient descent. The steps of three networks alternate, with the composed formula, with fastbn
and without batch norm; what batch norm costs is the difference to the last, the median over the rounds. NumPy's
matrix products and fastbn have threads of their own, OMP_NUM_THREADS=1 limits both. Relu is h * (h > 0): of maximum, autograd's gradients of float32 become float64.
"""
import argparse
from statistics import median
from time import perf_counter

import numpy as np

from bench.frameworks.autograd_ import composed, version

SIZES = (256, 512, 512, 512, 10)
BATCH = 4096


def make_step(norm, dtype):
    """A function that takes one step."""
    import autograd.numpy as anp
    from autograd import grad
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, SIZES[0])).astype(dtype)
    target = np.eye(SIZES[-1], dtype=dtype)[rng.integers(SIZES[-1], size=BATCH)]
    layers = [(rng.normal(0, a**-0.5, (a, b)).astype(dtype), np.ones(b, dtype), np.zeros(b, dtype))
              for a, b in zip(SIZES, SIZES[1:])]

    def loss(layers):
        h = x
        for weight, gamma, beta in layers[:-1]:
            h = norm(anp.dot(h, weight), gamma, beta)
            h = h * (h > 0)
        logits = anp.dot(h, layers[-1][0]) + layers[-1][2]
        logits = logits - anp.max(logits, axis=1, keepdims=True)
        logarithms = logits - anp.log(anp.sum(anp.exp(logits), axis=1, keepdims=True))
        return -anp.sum(target * logarithms) / dtype(BATCH)

    gradient = grad(loss)

    def step():
        nonlocal layers
        changes = gradient(layers)
        layers = [tuple(value - dtype(0.01) * change for value, change in zip(*pair)) for pair in zip(layers, changes)]
        return layers
    return step


def measure(rounds, dtype):
    """Seconds by round: (composed, fastbn, without), after a check that the first two train alike."""
    from fastbn.interop.autograd import batch_norm_training
    steps = [make_step(norm, dtype) for norm in (composed, batch_norm_training, lambda h, gamma, beta: h)]
    for a, b in zip(*(step() for step in steps[:2])):
        for value, other in zip(a, b):
            np.testing.assert_allclose(value, other, rtol=1e-3, atol=1e-5)
            assert value.dtype == other.dtype == dtype
    steps[2]()
    times = []
    for _ in range(rounds):
        times.append([])
        for step in steps:
            begin = perf_counter()
            step()
            times[-1].append(perf_counter() - begin)
    return times


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m bench.frameworks.autograd_mlp", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    args = parser.parse_args(arguments)
    times = measure(args.rounds, getattr(np, args.dtype))
    print(f"autograd {version()}, {args.dtype}: a step of {1e3 * median(t[0] for t in times):.1f} ms composed, "
          f"{1e3 * median(t[1] for t in times):.1f} ms with fastbn, {1e3 * median(t[2] for t in times):.1f} ms without")
    costs = [1e3 * median(t[i] - t[2] for t in times) for i in (0, 1)]
    share = median((t[0] - t[2]) / t[0] for t in times)
    print(f"batch norm costs {costs[0]:.1f} ms composed ({share:.0%} of the step), {costs[1]:.1f} ms with fastbn: "
          f"{costs[1] / costs[0]:.3f} of it")


if __name__ == "__main__":
    main()
