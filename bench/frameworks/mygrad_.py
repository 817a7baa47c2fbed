"""MyGrad: its own batch norm has no running statistics, so ours keeps none here either."""
from timeit import repeat

NAME = "MyGrad"
REPLACES = "nnet.layers.batchnorm"


def version():
    import mygrad
    return mygrad.__version__


def pair(case):
    from mygrad.nnet.layers import batchnorm

    from fastbn.interop.mygrad import batch_norm
    return _step(batchnorm, case), _step(batch_norm, case)


def _step(function, case):
    """The arrays are the case's: a graph locks them against writing only until its backward."""
    import mygrad as mg
    x, gamma, beta = (mg.tensor(a, copy=False) for a in (case.x, case.gamma, case.beta))

    def step():
        y = function(x, gamma=gamma, beta=beta, eps=case.eps)
        y.backward(case.dy)
        return y.data, x.grad, gamma.grad, beta.grad
    return step


def overhead():
    """Forward and backward beyond fastbn's two calls and those of an operation of three tensors that does nothing."""
    import mygrad as mg
    import numpy as np

    import fastbn
    from fastbn.interop.mygrad import batch_norm
    x, gamma, beta = np.random.default_rng(0).normal(size=(1, 64)), np.ones(64), np.zeros(64)
    tensors = [mg.tensor(a) for a in (x, gamma, beta)]
    nothing = _nothing(x + 1, [x + 1, gamma + 1, beta + 1])
    return (_microseconds(lambda: batch_norm(*tensors).backward(x))
            - _microseconds(lambda: mg.Tensor._op(nothing, *tensors).backward(x)) - _microseconds(
                lambda: fastbn.batch_norm_backward(x, fastbn.batch_norm_training(x, gamma, beta)[1])))


def _nothing(result, gradients):
    from mygrad.operation_base import Operation

    class Nothing(Operation):
        def __call__(self, *tensors):
            self.variables = tensors
            return result

        def backward_var(self, grad, index, **keywords):
            return gradients[index]
    return Nothing


def _microseconds(function):
    return min(repeat(function, number=1000, repeat=10)) * 1e3
