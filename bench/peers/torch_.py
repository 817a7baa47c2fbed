"""PyTorch below its autograd: under inference_mode, on the same memory as the others.

The functions are the fastest that PyTorch has for each operation: native_batch_norm rather than functional.batch_norm,
and for moments batch_norm_update_stats, as its own batch normalization does, rather than var_mean, which takes up to
thirty times as long. native_batch_norm's out= writes in place; that of the backward function computes into a fresh
tensor and copies, which is no out=. What is fused in fastbn is a call more for each step here, in place where possible.
"""
from contextlib import contextmanager

import numpy as np

from bench.cases import EPS
from bench.peers.work import Work

_EXPRESSIONS = {
    "inference": "native_batch_norm(x, gamma, beta, mean, var, False, 0.0, eps{})",
    "training": "native_batch_norm(x, gamma, beta, None, None, True, 0.0, eps{})",
    "backward": "native_batch_norm_backward(dy, x, gamma, None, None, mean, rstd, True, eps, wanted)",
    "moments": "batch_norm_update_stats(x, None, None, 0.0)",
    "call": "bn(x)",
}
_FUSED = {
    "inference_relu": "relu_({}[0])",
    "training_relu": "relu_({}[0])",
    "inference_add_relu": "relu_({}[0].add_(residual))",
    "training_add_relu": "relu_({}[0].add_(residual))",
    "backward_relu": "{}",
    "backward_add_relu": "({}, dz)",
}


def _expression(case):
    """With {} where out= goes, if there is one."""
    expression = _EXPRESSIONS[case.plain]
    if not case.is_fused:
        return expression
    through_relu = expression.replace("(dy,", "(dz := threshold_backward(dy, y, 0)," if case.has_residual else
                                      "(threshold_backward(dy, y, 0),")
    return _FUSED[case.operation].format(through_relu)


class Torch:
    name = "torch"

    def __init__(self):
        import torch
        self.torch = torch

    def version(self):
        return self.torch.__version__

    @contextmanager
    def session(self, threads):
        before = self.torch.get_num_threads()
        self.torch.set_num_threads(threads)
        try:
            with self.torch.inference_mode():
                yield
        finally:
            self.torch.set_num_threads(before)

    def can(self, case, output):
        if output == "out=":
            return case.plain in ("inference", "training")
        if case.is_half and case.operation == "backward_add_relu":
            return False  # it rounds before it adds the residual: its relu lets other entries pass
        return case.operation != "call" or case.layout == "table"

    def _tensor(self, case, array):
        """Channels-last is memory_format=torch.channels_last: shape (N, C, H, W), the memory of an axis=-1 array."""
        if case.layout == "last" and array.ndim == 3:
            array = array[:, None]  # that format has no one-dimensional form
        tensor = self._from_numpy(array)
        return tensor.movedim(-1, 1) if case.layout == "last" and tensor.ndim > 1 else tensor

    def _from_numpy(self, array):
        """On the array's memory; NumPy's bfloat16 is a stranger to PyTorch, its bits are not."""
        if array.dtype.name != "bfloat16":
            return self.torch.from_numpy(array)
        return self.torch.from_numpy(array.view(np.int16)).view(self.torch.bfloat16)

    def _to_numpy(self, tensor):
        return (tensor.float() if tensor.dtype == self.torch.bfloat16 else tensor).numpy()

    def work(self, case, data, output, threads):
        torch = self.torch
        names = {name: self._tensor(case, a) for name, a in vars(data).items() if a is not None}
        names.update(native_batch_norm=torch.native_batch_norm, batch_norm_update_stats=torch.batch_norm_update_stats,
                     native_batch_norm_backward=torch.ops.aten.native_batch_norm_backward.default, wanted=[True] * 3,
                     eps=EPS, relu_=torch.relu_, threshold_backward=torch.ops.aten.threshold_backward.default)
        if case.operation == "call":
            names["bn"] = self._layer(case, names)
        if case.plain == "backward":
            y, names["mean"], names["rstd"] = torch.native_batch_norm(
                names["x"], names["gamma"], names["beta"], None, None, True, 0.0, EPS)
            if case.is_fused:
                names["y"] = torch.relu_(y.add_(names["residual"]) if case.has_residual else y)
        if output == "out=":
            saved = [torch.empty(case.features if case.plain == "training" else 0, dtype=names["gamma"].dtype)
                     for _ in range(2)]
            names["out"] = (self._tensor(case, data.empty()), *saved)
        return Work(_expression(case).format(", out=out" if output == "out=" else ""), names)

    def _layer(self, case, names):
        bn = self.torch.nn.BatchNorm1d(case.features, eps=EPS, dtype=names["gamma"].dtype).eval()
        state = {"weight": "gamma", "bias": "beta", "running_mean": "mean", "running_var": "var"}
        bn.load_state_dict({key: names[name] for key, name in state.items()}, strict=False)
        return bn

    def arrays(self, case, result):
        if case.operation == "moments":
            return tuple(self._to_numpy(tensor) for tensor in result)
        if case.plain != "backward":
            return (self._array(case, result if case.is_fused or case.operation == "call" else result[0]),)
        gradients, *dresidual = result if case.has_residual else (result,)
        dx, dgamma, dbeta = gradients
        return (self._array(case, dx), self._to_numpy(dgamma), self._to_numpy(dbeta),
                *(self._array(case, tensor) for tensor in dresidual))

    def _array(self, case, tensor):
        return self._to_numpy(tensor.movedim(1, -1) if case.layout == "last" else tensor).reshape(case.array_shape)
