"""thinc. It has no batch norm: own is the same layer written with NumpyOps, as its LayerNorm is."""
from timeit import repeat

NAME = "thinc"
REPLACES = "nothing: thinc has no batch norm; compared with one composed of NumpyOps"


def version():
    import thinc
    return thinc.__version__


def pair(case):
    """Features are on the last axis in thinc: an image batch is taken channels-last."""
    import numpy as np
    x, dy = (np.ascontiguousarray(np.moveaxis(a, case.axis, -1)) for a in (case.x, case.dy))
    return _step(_composed(case.eps), x, dy, case), _step(_ours(case.eps), x, dy, case)


def _step(model, x, dy, case):
    model.initialize(X=x[:1])
    model.set_param("gamma", case.gamma.copy())
    model.set_param("beta", case.beta.copy())

    def step():
        for name in ("gamma", "beta"):
            model.set_grad(name, model.ops.alloc1f(x.shape[-1]))
        y, backprop = model.begin_update(x)
        return y, backprop(dy), model.get_grad("gamma"), model.get_grad("beta")
    return step


def _ours(eps):
    from fastbn.interop.thinc import BatchNorm
    return BatchNorm(eps=eps)


def _composed(eps):
    from thinc.api import Model
    from fastbn.interop.thinc import init
    return Model("composed", _composed_forward, init=init, dims={"nI": None, "nO": None},
                 params={"gamma": None, "beta": None}, attrs={"eps": eps})


def _composed_forward(model, X, is_train):
    gamma, beta, axes = model.get_param("gamma"), model.get_param("beta"), tuple(range(X.ndim - 1))
    mean, var = X.mean(axis=axes), X.var(axis=axes)
    model.attrs["running_mean"] = 0.9 * model.attrs["running_mean"] + 0.1 * mean
    model.attrs["running_var"] = 0.9 * model.attrs["running_var"] + 0.1 * var
    rstd = 1 / model.ops.xp.sqrt(var + model.attrs["eps"])
    h = (X - mean) * rstd
    y = h * gamma + beta

    def backprop(dY):
        dgamma, dbeta = (dY * h).sum(axis=axes), dY.sum(axis=axes)
        model.inc_grad("gamma", dgamma)
        model.inc_grad("beta", dbeta)
        n = X.size // X.shape[-1]
        return gamma * rstd * (dY - dbeta / n - h * (dgamma / n))

    return y, backprop


def overhead():
    """Forward and backward of the layer's functions beyond fastbn's own two calls."""
    import numpy as np

    import fastbn
    from fastbn.interop.thinc import BatchNorm
    x = np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32)
    model = BatchNorm(64).initialize()
    gamma, beta = model.get_param("gamma"), model.get_param("beta")
    return (_microseconds(lambda: model.begin_update(x)[1](x)) - _microseconds(
        lambda: fastbn.batch_norm_backward(x, fastbn.batch_norm_training(x, gamma, beta, axis=-1)[1])))


def _microseconds(function):
    return min(repeat(function, number=1000, repeat=10)) * 1e3
