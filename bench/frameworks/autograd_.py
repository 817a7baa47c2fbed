"""autograd (HIPS): batch normalization composed of autograd.numpy's functions, as a user of it has to write it."""
from timeit import Timer

import numpy as np

NAME = "autograd"
REPLACES = "batch norm composed of autograd.numpy's functions"


def version():
    from importlib.metadata import version

    import autograd  # noqa: F401  an ImportError where it is absent
    return version("autograd")


def composed(x, gamma, beta, axis=1, eps=1e-5):
    """The formula as it stands in papers, mean and variance by numpy's functions of these names."""
    import autograd.numpy as anp
    axes = tuple(i for i in range(x.ndim) if i != axis)
    shape = tuple(-1 if i == axis else 1 for i in range(x.ndim))
    mean, var = anp.mean(x, axes, keepdims=True), anp.var(x, axes, keepdims=True)
    return (x - mean) / anp.sqrt(var + eps) * anp.reshape(gamma, shape) + anp.reshape(beta, shape)


def pair(case):
    from autograd.builtins import tuple as boxes
    from autograd.core import make_vjp

    from fastbn.interop.autograd import batch_norm_training
    arrays = case.x, case.gamma, case.beta

    def run(function):
        """y and the gradients, through autograd's own make_vjp."""
        backward, y = make_vjp(lambda p: function(p[0], p[1], p[2], axis=case.axis, eps=case.eps), boxes(arrays))
        return y, backward(case.dy)
    return (lambda: run(composed)), (lambda: run(batch_norm_training))


def overhead():
    """Forward and backward of one node: with the adapter, less the same node of a primitive that computes nothing (the
    machinery), less fastbn's two calls. Boxes are made before: what autograd does around a node is not in it. They are
    differences of the quickest of many short blocks, since what disturbs only ever adds."""
    from autograd.core import VJPNode
    from autograd.extend import defvjp_argnums, primitive
    from autograd.tracer import new_box, trace_stack

    import fastbn
    from fastbn.interop.autograd import batch_norm_training
    arrays = [np.linspace(0.5, 2, 64, dtype=np.float32).reshape(shape) for shape in ((1, 64), 64, 64)]
    dy = np.ones_like(arrays[0])
    gradients = fastbn.batch_norm_backward(dy, fastbn.batch_norm_training(*arrays)[1])

    @primitive
    def nothing(x, gamma, beta):
        return x

    defvjp_argnums(nothing, lambda argnums, y, args, kwargs: lambda dy: gradients)
    with trace_stack.new_trace() as trace:
        boxes = [new_box(a, trace, VJPNode.new_root()) for a in arrays]
        timers = [Timer(lambda: batch_norm_training(*boxes)._node.vjp(dy)),
                  Timer(lambda: nothing(*boxes)._node.vjp(dy)),
                  Timer(lambda: fastbn.batch_norm_backward(dy, fastbn.batch_norm_training(*arrays)[1]))]
        rounds = [[timer.timeit(200) / 200 for timer in timers] for _ in range(300)]
    with_adapter, machinery, calls = map(min, zip(*rounds))
    return 1e6 * (with_adapter - machinery - calls)
