"""JAX on the CPU, jitted. It has no batch norm: own is the formula as Flax composes it, mean(x^2) - mean(x)^2."""
from timeit import repeat

NAME = "JAX"
REPLACES = "the composed formula, as in flax.linen.BatchNorm, under jit"


def version():
    import jax
    return jax.__version__


def pair(case):
    from functools import partial

    from fastbn.interop.jax import batch_norm_training
    return _step(_composed, case), _step(partial(batch_norm_training, axis=case.axis, eps=case.eps), case)


def _step(function, case):
    import jax
    import jax.numpy as jnp
    if function is _composed:
        function = lambda *a: _composed(*a, axis=case.axis, eps=case.eps)

    @jax.jit
    def step(x, gamma, beta, dy):
        y, back, statistics = jax.vjp(lambda *a: _with_statistics(function(*a)), x, gamma, beta, has_aux=True)
        return y, *back(dy), *statistics

    arrays = [jnp.asarray(a) for a in (case.x, case.gamma, case.beta, case.dy)]
    return lambda: jax.block_until_ready(step(*arrays))


def _with_statistics(results):
    y, *statistics = results
    return y, statistics


def _composed(x, gamma, beta, *, axis, eps):
    import jax.numpy as jnp
    from jax import lax
    axes = tuple(i for i in range(x.ndim) if i != axis)
    along = [-1 if i == axis else 1 for i in range(x.ndim)]
    mean = x.mean(axis=axes)
    var = jnp.maximum(0.0, (x * x).mean(axis=axes) - mean * mean)
    scale = (lax.rsqrt(var + eps) * gamma).reshape(along)
    return (x - mean.reshape(along)) * scale + beta.reshape(along), mean, var


def overhead():
    """A jitted forward and backward beyond fastbn's two calls and a jitted call of as many arrays that copies."""
    import jax
    import numpy as np

    import fastbn
    from bench.frameworks.cases import Case
    rng = np.random.default_rng(0)
    x, gamma, beta = (rng.normal(size=shape).astype(np.float32) for shape in ((1, 64), 64, 64))
    ours = pair(Case(x=x, dy=x, gamma=gamma, beta=beta))[1]
    copy = jax.jit(lambda x, gamma, beta, dy: (x + dy, dy * 2, gamma + 1, beta + 1, gamma + 2, beta + 2))
    arrays = [jax.numpy.asarray(a) for a in (x, gamma, beta, x)]
    return (_microseconds(ours) - _microseconds(lambda: jax.block_until_ready(copy(*arrays))) - _microseconds(
        lambda: fastbn.batch_norm_backward(x, fastbn.batch_norm_training(x, gamma, beta)[1])))


def _microseconds(function):
    return min(repeat(function, number=1000, repeat=10)) * 1e3
