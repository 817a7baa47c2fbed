"""onnx's reference evaluator: a model of one BatchNormalization node of opset 15 in training mode, which its own
operator computes rightly. There is no gradient: forward alone.
"""
from timeit import Timer

import numpy as np

NAME = "onnx"
REPLACES = "BatchNormalization of ReferenceEvaluator (forward)"

_NAMES = ("x", "scale", "B", "mean", "var")
_OUTPUTS = ("y", "running_mean", "running_var")


def version():
    import onnx
    return onnx.__version__


def _evaluator(new_ops, eps):
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator
    node = helper.make_node("BatchNormalization", _NAMES, _OUTPUTS, training_mode=1, epsilon=eps)
    inputs, outputs = ([helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
                       for names in (_NAMES, _OUTPUTS))
    model = helper.make_model(helper.make_graph([node], "graph", inputs, outputs),
                              opset_imports=[helper.make_opsetid("", 15)])
    return ReferenceEvaluator(model, new_ops=new_ops)


def pair(case):
    from fastbn.interop.onnx import BatchNormalization
    features = case.gamma.size
    feeds = dict(zip(_NAMES, (case.x, case.gamma, case.beta, np.zeros(features, np.float32),
                              np.ones(features, np.float32))))
    own, ours = _evaluator(None, case.eps), _evaluator([BatchNormalization], case.eps)
    return (lambda: own.run(None, feeds)), (lambda: ours.run(None, feeds))


def overhead():
    """Forward: the evaluator with the adapter, less that with an operator that returns what it was given, less fastbn's
    own call. Differences of the quickest of many short blocks, since what disturbs only ever adds."""
    import fastbn
    from fastbn.interop.onnx import BatchNormalization as Adapter
    from onnx.reference.op_run import OpRun

    class BatchNormalization(OpRun):
        op_domain = ""

        def _run(self, x, scale, bias, mean, var, epsilon=None, momentum=None, training_mode=None):
            return x, mean, var

    x, gamma, beta, mean, var = (np.ones(shape, np.float32) for shape in ((1, 64), 64, 64, 64, 64))
    feeds = dict(zip(_NAMES, (x, gamma, beta, mean, var)))
    ours, empty = _evaluator([Adapter], 1e-5), _evaluator([BatchNormalization], 1e-5)
    timers = [Timer(lambda: ours.run(None, feeds)), Timer(lambda: empty.run(None, feeds)),
              Timer(lambda: fastbn.batch_norm_training(x, gamma, beta))]
    rounds = [[timer.timeit(100) / 100 for timer in timers] for _ in range(100)]
    with_adapter, machinery, call = map(min, zip(*rounds))
    return 1e6 * (with_adapter - machinery - call)
