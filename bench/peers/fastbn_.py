"""fastbn, called as its users call it: inference through a layer in eval mode, the rest through the functions.

What is fused is fused by its arguments: activation="relu", residual=residual.
"""
from contextlib import contextmanager

from bench.cases import EPS
from bench.peers.work import Work

_EXPRESSIONS = {
    "inference": "bn(x{})",
    "call": "bn(x{})",
    "training": "batch_norm_training(x, gamma, beta, eps=eps, axis=axis{})",
    "backward": "batch_norm_backward(dy, saved{})",
    "inference_relu": "bn(x{})",
    "inference_add_relu": "bn(x, residual=residual{})",
    "training_relu": "batch_norm_training(x, gamma, beta, eps=eps, axis=axis, activation='relu'{})",
    "training_add_relu": "batch_norm_training(x, gamma, beta, eps=eps, axis=axis, activation='relu', "
                         "residual=residual{})",
    "backward_relu": "batch_norm_backward(dy, saved{})",
    "backward_add_relu": "batch_norm_backward(dy, saved{})",
    "moments": "moments(x, axis=axis)",
}


class Fastbn:
    name = "fastbn"

    def __init__(self):
        import fastbn
        self.fastbn = fastbn

    def version(self):
        return self.fastbn.__version__

    @contextmanager
    def session(self, threads):
        before = self.fastbn.get_num_threads()
        self.fastbn.set_num_threads(threads)
        try:
            got = self.fastbn.get_num_threads()
            if got != threads:
                raise RuntimeError(f"fastbn runs {got} threads where {threads} were asked for: is OMP_NUM_THREADS set?")
            yield
        finally:
            self.fastbn.set_num_threads(before)

    def can(self, case, output):
        return output in case.outputs

    def work(self, case, data, output, threads):
        names = dict(x=data.x, dy=data.dy, gamma=data.gamma, beta=data.beta, eps=EPS, axis=case.axis,
                     residual=data.residual)
        if case.plain in ("inference", "call"):
            names["bn"] = self._layer(case, data)
        else:
            function = "moments" if case.operation == "moments" else f"batch_norm_{case.plain}"
            names[function] = getattr(self.fastbn, function)
        if case.plain == "backward":
            _, names["saved"] = self.fastbn.batch_norm_training(
                data.x, data.gamma, data.beta, eps=EPS, axis=case.axis, activation="relu" if case.is_fused else None,
                residual=data.residual)
        if output == "out=":
            names["out"] = data.empty()
        return Work(_EXPRESSIONS[case.operation].format(", out=out" if output == "out=" else ""), names)

    def _layer(self, case, data):
        bn = self.fastbn.BatchNorm(case.features, axis=case.axis, eps=EPS, dtype=data.gamma.dtype,
                                   activation="relu" if case.is_fused else None).eval()
        for name, values in (("gamma", "gamma"), ("beta", "beta"), ("running_mean", "mean"), ("running_var", "var")):
            getattr(bn, name)[...] = getattr(data, values)
        return bn

    def arrays(self, case, result):
        if case.operation == "moments":
            return result.mean, result.var()
        if case.plain == "training":
            return (result[0],)
        return result if case.plain == "backward" else (result,)
