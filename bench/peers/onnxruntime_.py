"""ONNX Runtime: a model of one BatchNormalization node, its parameters constants of the model. Inference only.

An Add and a Relu after it are nodes of the same model, which the runtime may fuse as it likes.

The number of threads belongs to a session, so each work() makes one. Into "out=" it runs with an io binding, on the
memory of the caller; "fresh" is session.run. On the CPU it has no channels-last batch normalization.
"""
from contextlib import contextmanager

from bench.cases import EPS
from bench.peers.work import Work

OPSET = 15
IR_VERSION = 8  # that of the ONNX release with this opset: later ones a runtime may refuse


class OnnxRuntime:
    name = "onnxruntime"

    def __init__(self):
        import onnx
        import onnxruntime
        self.onnx, self.onnxruntime = onnx, onnxruntime

    def version(self):
        return self.onnxruntime.__version__

    @contextmanager
    def session(self, threads):
        yield

    def can(self, case, output):
        return case.plain == "inference" and case.layout != "last" and not case.is_half

    def _inputs(self, data):
        return {"x": data.x} | ({} if data.residual is None else {"residual": data.residual})

    def _model(self, case, data):
        helper, numpy_helper = self.onnx.helper, self.onnx.numpy_helper
        kind = helper.np_dtype_to_tensor_dtype(data.x.dtype)
        parameters = {"gamma": data.gamma, "beta": data.beta, "mean": data.mean, "var": data.var}
        nodes = [helper.make_node("BatchNormalization", ["x", *parameters], ["normalized"], epsilon=EPS)]
        nodes += [helper.make_node("Add", ["normalized", "residual"], ["sum"])] * case.has_residual
        nodes += [helper.make_node("Relu", nodes[-1].output, ["rectified"])] * case.is_fused
        nodes[-1].output[0] = "y"
        graph = helper.make_graph(
            nodes, "batch_norm",
            [helper.make_tensor_value_info(name, kind, case.array_shape) for name in self._inputs(data)],
            [helper.make_tensor_value_info("y", kind, case.array_shape)],
            [numpy_helper.from_array(array, name) for name, array in parameters.items()])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        return model.SerializeToString()

    def _session(self, case, data, threads):
        options = self.onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        return self.onnxruntime.InferenceSession(self._model(case, data), options, providers=["CPUExecutionProvider"])

    def work(self, case, data, output, threads):
        session = self._session(case, data, threads)
        if output == "fresh":
            return Work("run(outputs, inputs)[0]", dict(run=session.run, outputs=["y"], inputs=self._inputs(data)))
        y, binding, inputs = data.empty(), session.io_binding(), self._inputs(data)
        for name, array in inputs.items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        binding.bind_output("y", "cpu", 0, y.dtype, y.shape, y.ctypes.data)
        return Work("run_with_iobinding(binding) or y",
                    dict(run_with_iobinding=session.run_with_iobinding, binding=binding, y=y, keep_alive=inputs))

    def arrays(self, case, result):
        return (result,)
