"""ONNX: the operator BatchNormalization for onnx's reference evaluator.

    from onnx.reference import ReferenceEvaluator
    from fastbn.interop.onnx import BatchNormalization
    session = ReferenceEvaluator(model, new_ops=[BatchNormalization])

The evaluator finds an operator by the name of its class, whatever the opset, so one class has all versions, and reads
the model's opset to know which is meant. (onnx 1.23's own operator is wrong for opsets 9 to 13, where it takes each
node to be in training mode, and fails for 7 and 8.)
"""
import numpy as np

import fastbn

try:
    import onnx.defs
    from onnx.reference.op_run import OpRun
except ImportError as error:
    raise ImportError("fastbn.interop.onnx needs the package onnx: pip install 'fastbn[onnx]'") from error

__all__ = ["BatchNormalization"]

_VERSIONS = (1, 6, 7, 9, 14, 15)
_TINY = np.nextafter(0.0, 1.0)  # epsilon may be 0 here; added to a variance of float32 or float64, this is


class BatchNormalization(OpRun):
    """BatchNormalization of the default domain, of all opsets, in inference and training.

    Parameters
    ----------
    onnx_node : NodeProto
        The evaluator's.
    run_params : dict
        The evaluator's.
    schema : OpSchema, optional
        The evaluator's.

    Raises
    ------
    ValueError
        If shapes do not fit, epsilon is negative, or the node has outputs that its mode does not have: more than Y in
        inference, or Y alone where is_test is 0 (that attribute says training and the outputs inference: set it).
    TypeError
        If data are of other types; the evaluator raises it around fastbn's.

    Notes
    -----
    Y = (X - mean) / sqrt(var + epsilon) * scale + B with the statistics given or, in training, those of the batch
    (var over N, not N - 1), where also

        running_mean = momentum * mean + (1 - momentum) * batch mean

    and the same with var. X: (N, C, D1, ..., Dn), or (N,), which has one feature. scale, B, mean, var: (C,), or where
    spatial=0 (opsets before 9) (C, D1, ..., Dn). All are float16, bfloat16, float32 or float64, and may differ.

    When a node is in training mode, and which outputs it then has, depends on the opset:

    - from 14 on, where training_mode is not 0: Y, running_mean, running_var;
    - from 7 to 13, where it has more than one output: Y, running mean, running var, saved_mean, saved_var, the last two
      being mean and variance of the batch;
    - from 1 to 6, where is_test is 0: the same outputs.

    Outputs have the type of X, running statistics that of the ones given. Without entries in X these are returned.

    Operators in functions of the model are not replaced, since the evaluator does not hand new_ops to them: use
    onnx.inliner.inline_local_functions(model) first.

    References
    ----------
    ONNX, docs/Changelog.md, BatchNormalization-1, -6, -7, -9, -14 and -15.

    Examples
    --------
    >>> import numpy as np
    >>> from onnx import TensorProto, helper
    >>> from onnx.reference import ReferenceEvaluator
    >>> from fastbn.interop.onnx import BatchNormalization
    >>> names = ["X", "scale", "B", "mean", "var"]
    >>> node = helper.make_node("BatchNormalization", names, ["Y"], epsilon=0.0)
    >>> inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    >>> outputs = [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)]
    >>> model = helper.make_model(helper.make_graph([node], "bn", inputs, outputs))
    >>> one = np.ones(1, np.float32)
    >>> values = {"X": np.array([[1.0], [5.0]], np.float32), "scale": one, "B": 0 * one, "mean": one, "var": 4 * one}
    >>> ReferenceEvaluator(model, new_ops=[BatchNormalization]).run(None, values)[0]
    array([[0.],
           [2.]], dtype=float32)
    """

    op_domain = ""

    def __init__(self, onnx_node, run_params, schema=None):
        opset = run_params["opsets"][onnx_node.domain]
        schema = onnx.defs.get_schema("BatchNormalization", opset, onnx_node.domain)
        self.since = schema.since_version
        if self.since not in _VERSIONS:
            raise ValueError(f"BatchNormalization of opset {opset} is version {self.since} of the operator, expected "
                             f"one of {_VERSIONS}: is there a newer fastbn?")
        super().__init__(onnx_node, run_params, schema)

    def _run(self, x, scale, bias, mean, var, epsilon=None, momentum=None, training_mode=0, spatial=1, is_test=1,
             consumed_inputs=None):
        x = np.asarray(x)
        data = x.reshape(-1, 1) if x.ndim == 1 else x
        axes, shape = (1, data.shape[1:2]) if spatial else (tuple(range(1, data.ndim)), data.shape[1:])
        parameters = [_parameter(*named, shape) for named in
                      (("scale", scale), ("B", bias), ("mean", mean), ("var", var))]
        gamma, beta, *running = parameters
        options = {"eps": float(epsilon) or _TINY, "axis": axes}
        if not self._is_training(training_mode, is_test):
            return (fastbn.batch_norm_inference(data, *running, gamma, beta, **options).reshape(x.shape),)
        y, saved = fastbn.batch_norm_training(data, gamma, beta, **options)
        running = [value.copy() for value in running]
        saved.moments.step(*running, momentum=float(momentum), ddof=0)
        results = [(mean, running[0]), (var, running[1]), (x, saved.mean), (x, saved.var)]
        wanted = results[:len(self.output) - 1]  # a variance that float16 does not hold is rounded only where it is
        return (y.reshape(x.shape), *(value.reshape(shape).astype(like.dtype) for like, value in wanted))

    def _is_training(self, training_mode, is_test):
        """By the rules of the node's version. Raises ValueError where its outputs are not those of the mode."""
        outputs = sum(name != "" for name in self.output)
        if self.since in (7, 9):
            return outputs > 1
        training = bool(training_mode) if self.since >= 14 else not is_test
        attribute = f"training_mode={training_mode}" if self.since >= 14 else f"is_test={is_test}"
        if not training and outputs > 1:
            raise ValueError(f"the node {self.onnx_node.name!r} has {outputs} outputs and {attribute}, expected Y "
                             "alone: the others exist in training mode only")
        if self.since < 7 and training and outputs == 1:
            raise ValueError(f"the node {self.onnx_node.name!r} has {attribute} (is it missing?), which is training "
                             "mode, and no output but Y, which is inference: set is_test=1 for inference, or name the "
                             "outputs mean and var too")
        return training


def _parameter(name, value, shape):
    """The value, which has to be of shape (C,); half types as float32."""
    value = np.asarray(value)
    if value.shape != shape:
        raise ValueError(f"{name} has shape {value.shape}, expected {shape}, the feature axes of X")
    return (value.astype(np.float32) if value.dtype.itemsize == 2 else value).reshape(-1)
