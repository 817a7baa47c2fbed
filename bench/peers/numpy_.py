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
    "inference_relu": "relu(inference(x, mean, var, gamma, beta, eps, out))",
    "inference_add_relu": "relu(inference(x, mean, var, gamma, beta, eps, out), residual)",
    "training_relu": "relu(training(x, gamma, beta, eps, out)[0])",
    "training_add_relu": "relu(training(x, gamma, beta, eps, out)[0], residual)",
    "backward_relu": "backward(relu_backward(dy, y), x, mean, rstd, gamma, out)",
    "backward_add_relu": "(*backward(dz := relu_backward(dy, y), x, mean, rstd, gamma, out), dz)",
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
        names[case.plain] = getattr(numpy_batchnorm, case.plain)
        if case.has_residual:
            names["residual"] = data.residual.reshape(view)
        if case.is_fused:
            names.update(relu=numpy_batchnorm.relu, relu_backward=numpy_batchnorm.relu_backward)
        if case.plain == "backward":
            names["dy"] = data.dy.reshape(view)
            y, names["mean"], names["rstd"] = numpy_batchnorm.training(x, data.gamma, data.beta, EPS)
            if case.is_fused:
                names["y"] = numpy_batchnorm.relu(y, names.get("residual"))
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
        if case.plain == "backward":
            dx, dgamma, dbeta, *dresidual = result
            return dx.reshape(case.array_shape), dgamma, dbeta, *(a.reshape(case.array_shape) for a in dresidual)
        y = result[0] if case.operation == "training" else result
        return (y.reshape(case.array_shape),)
