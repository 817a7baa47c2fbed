"""NumPy, by the functions of numpy_batchnorm.py. Always one thread: its ufuncs, reductions and einsum have no more."""
from contextlib import contextmanager

import numpy as np

from bench.cases import EPS
from bench.peers import numpy_batchnorm
from bench.peers.work import Work

_EXPRESSIONS = {
    "inference": "inference(x, mean, var, gamma, beta, eps, out)",
    "training": "training(x, gamma, beta, eps, out)",
    "backward": "backward(dy, x, mean, rstd, gamma, out)",
    "moments": "moments(x)",
}


class NumPy:
    name = "numpy"

    def version(self):
        return np.__version__

    @contextmanager
    def session(self, threads):
        yield

    def can(self, case, output):
        """Not half types, which it computes number by number."""
        return output in case.outputs and not case.is_half and (case.operation != "call" or case.layout == "table")

    def work(self, case, data, output, threads):
        view = (case.shape[0], case.features, -1) if case.layout == "first" else (-1, case.features)
        x = data.x.reshape(view)
        names = dict(x=x, gamma=data.gamma, beta=data.beta, mean=data.mean, var=data.var, eps=EPS,
                     out=data.empty().reshape(view) if output == "out=" else None)
        if case.operation == "call":
            return self._call(names)
        names[case.operation] = getattr(numpy_batchnorm, case.operation)
        if case.operation == "backward":
            names["dy"] = data.dy.reshape(view)
            _, names["mean"], names["rstd"] = numpy_batchnorm.training(x, data.gamma, data.beta, EPS)
        return Work(_EXPRESSIONS[case.operation], names)

    def _call(self, names):
        """The least that NumPy can do: scale and shift known beforehand."""
        scale = names["gamma"] / np.sqrt(names["var"] + EPS)
        names.update(scale=scale, shift=names["beta"] - names["mean"] * scale)
        if names["out"] is None:
            return Work("x*scale + shift", names)
        names.update(multiply=np.multiply, add=np.add)
        return Work("add(multiply(x, scale, out=out), shift, out=out)", names)

    def arrays(self, case, result):
        if case.operation == "moments":
            return result
        if case.operation == "backward":
            return result[0].reshape(case.array_shape), *result[1:]
        y = result[0] if case.operation == "training" else result
        return (y.reshape(case.array_shape),)
