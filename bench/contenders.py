"""Who computes it. A contender is one class with

    name                                    as on the command line
    version()                               for the report
    session(threads)                        a context in which exactly that many threads are used, restored after it
    takes_out                               whether it can write into an array of the caller's
    work(case, data, output, threads)       the expression to time; output is "fresh" or "out="
    arrays(case, result)                    its result as NumPy arrays, laid out as the reference is

and a line in CONTENDERS. Importing the peer belongs in __init__, so that a missing one is an ImportError there.
"""
from contextlib import contextmanager
from dataclasses import dataclass
from timeit import Timer

import numpy as np

from bench import numpy_batchnorm
from bench.cases import EPS


@dataclass
class Work:
    """A Python expression and its names. timeit compiles it into the loop, so no wrapper's call is timed."""
    expression: str
    names: dict

    def timer(self):
        return Timer(self.expression, globals=self.names).timeit

    def function(self):
        return eval(f"lambda: {self.expression}", self.names)


class Fastbn:
    name = "fastbn"
    takes_out = True

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

    def work(self, case, data, output, threads):
        out = np.empty_like(data.x) if output == "out=" else None
        names = dict(vars(data), fastbn=self.fastbn, eps=EPS, axis=case.axis, threads=threads, out=out)
        if case.operation == "call":
            names["bn"] = self._layer(case, data)
            return Work("bn(x)" if out is None else "bn(x, out=out)", names)
        if case.operation == "backward":
            _, names["saved"] = self.fastbn.batch_norm_training(data.x, data.gamma, data.beta, eps=EPS, axis=case.axis)
        expression = {
            "inference": "fastbn.batch_norm_inference(x, mean, var, gamma, beta, eps=eps, axis=axis, {})",
            "training": "fastbn.batch_norm_training(x, gamma, beta, eps=eps, axis=axis, {})",
            "backward": "fastbn.batch_norm_backward(dy, saved, {})",
            "moments": "fastbn.moments(x, axis=axis, {})",
        }[case.operation]
        return Work(expression.format("num_threads=threads" + (", out=out" if out is not None else "")), names)

    def _layer(self, case, data):
        bn = self.fastbn.BatchNorm(case.features, axis=case.axis, eps=EPS, dtype=data.x.dtype).eval()
        for name, values in (("gamma", "gamma"), ("beta", "beta"), ("running_mean", "mean"), ("running_var", "var")):
            getattr(bn, name)[...] = getattr(data, values)
        return bn

    def arrays(self, case, result):
        if case.operation == "moments":
            return result.mean, result.var()
        if case.operation == "training":
            return (result[0],)
        return result if case.operation == "backward" else (result,)


class NumPy:
    """Always one thread: NumPy's ufuncs, reductions and einsum have no others."""
    name = "numpy"
    takes_out = True

    def version(self):
        return np.__version__

    @contextmanager
    def session(self, threads):
        yield

    def work(self, case, data, output, threads):
        view = (case.shape[0], case.features, -1) if case.layout == "first" else (-1, case.features)
        x = data.x.reshape(view)
        out = np.empty_like(x) if output == "out=" else None
        names = dict(vars(data), np=np, bn=numpy_batchnorm, eps=EPS, x=x, out=out)
        if case.operation == "call":
            return self._call(data, names)
        if case.operation == "backward":
            names["dy"] = data.dy.reshape(view)
            _, names["mean"], names["rstd"] = numpy_batchnorm.training(x, data.gamma, data.beta, EPS)
        expression = {
            "inference": "bn.inference(x, mean, var, gamma, beta, eps, out)",
            "training": "bn.training(x, gamma, beta, eps, out)",
            "backward": "bn.backward(dy, x, mean, rstd, gamma, out)",
            "moments": "bn.moments(x)",
        }[case.operation]
        return Work(expression, names)

    def _call(self, data, names):
        """The least that NumPy can do: scale and shift known beforehand."""
        names["scale"] = data.gamma / np.sqrt(data.var + np.float32(EPS))
        names["shift"] = data.beta - data.mean * names["scale"]
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


class Torch:
    """PyTorch below its autograd: under inference_mode, on the same memory as the others. It allocates its output."""
    name = "torch"
    takes_out = False

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

    def _tensor(self, case, array):
        """Channels-last is memory_format=torch.channels_last: shape (N, C, ...), the memory of an axis=-1 array."""
        tensor = self.torch.from_numpy(array)
        return tensor.movedim(-1, 1) if case.layout == "last" and tensor.ndim > 1 else tensor

    def work(self, case, data, output, threads):
        torch = self.torch
        names = {name: self._tensor(case, a) for name, a in vars(data).items() if a is not None}
        names.update(batch_norm=torch.nn.functional.batch_norm, native_batch_norm=torch.native_batch_norm, eps=EPS,
                     native_batch_norm_backward=torch.ops.aten.native_batch_norm_backward, wanted=[True] * 3,
                     var_mean=torch.var_mean, axes=[i for i in range(len(case.shape)) if i != 1])
        if case.operation == "call":
            names["bn"] = self._layer(case, names)
        if case.operation == "backward":
            _, names["mean"], names["rstd"] = torch.native_batch_norm(
                names["x"], names["gamma"], names["beta"], None, None, True, 0.0, EPS)
        expression = {
            "inference": "batch_norm(x, mean, var, gamma, beta, False, 0.0, eps)",
            "training": "native_batch_norm(x, gamma, beta, None, None, True, 0.0, eps)",
            "backward": "native_batch_norm_backward(dy, x, gamma, None, None, mean, rstd, True, eps, wanted)",
            "moments": "var_mean(x, axes, correction=0)",
            "call": "bn(x)",
        }[case.operation]
        return Work(expression, names)

    def _layer(self, case, names):
        bn = self.torch.nn.BatchNorm1d(case.features, eps=EPS).eval()
        state = {"weight": "gamma", "bias": "beta", "running_mean": "mean", "running_var": "var"}
        bn.load_state_dict({key: names[name] for key, name in state.items()}, strict=False)
        return bn

    def arrays(self, case, result):
        if case.operation == "moments":
            return result[1].numpy(), result[0].numpy()
        first = result if case.operation in ("inference", "call") else result[0]
        array = (first.movedim(1, -1) if case.layout == "last" else first).numpy()
        if case.operation == "backward":
            return array, result[1].numpy(), result[2].numpy()
        return (array,)


CONTENDERS = {contender.name: contender for contender in (Fastbn, NumPy, Torch)}
BASELINE = Fastbn.name


def load(names):
    """The contenders that can be imported, and for the others the reason. The baseline has to be there."""
    present, missing = [], {}
    for name in names:
        try:
            present.append(CONTENDERS[name]())
        except ImportError as error:
            if name == BASELINE:
                raise ImportError(f"{name} cannot be imported ({error}); in a checkout: pip install -e .") from error
            missing[name] = str(error)
    return present, missing


def variants(case, contenders):
    """(contender, output) for everything that can be timed on a case."""
    return [(contender, output) for contender in contenders for output in case.outputs
            if output == "fresh" or contender.takes_out]


def gigabytes_per_second(case, seconds):
    return case.bytes / seconds / 1e9
