"""Other libraries' batch norms for the section on speed, each into an array that exists where the library can.

A peer is a function prepare(data, threads), data being a speed.Data: it returns a call without arguments, or None where the
library has nothing for such an array. What it writes is batch norm with gamma and beta, but for scikit-learn's.
"""
import contextlib
import functools
import importlib

import numpy as np

EPS = 1e-5


def _view(a, axis):
    """A view (n, c, s) or (n, c) of a contiguous array."""
    return a.reshape(*a.shape[:2], -1) if axis == 1 and a.ndim > 2 else a.reshape(-1, a.shape[axis])


def _along(v, view):
    """A vector of shape (c,) as it broadcasts over such a view."""
    return v[:, None] if view.ndim == 3 else v


def numpy_training(data, threads):
    """Sums by einsum, which needs no array of squares, and everything else in place."""
    x, y = (_view(a, data.axis) for a in (data.x, data.out))
    letters = "ncs"[: x.ndim]
    scale = np.float32(data.gamma.size / x.size)

    def call():
        mean = np.einsum(f"{letters}->c", x) * scale
        np.subtract(x, _along(mean, x), out=y)
        var = np.einsum(f"{letters},{letters}->c", y, y) * scale
        np.multiply(y, _along(data.gamma / np.sqrt(var + np.float32(EPS)), x), out=y)
        np.add(y, _along(data.beta, x), out=y)

    return call


def numpy_inference(data, threads):
    x, y = (_view(a, data.axis) for a in (data.x, data.out))

    def call():
        scale = data.gamma / np.sqrt(data.var + np.float32(EPS))
        np.multiply(x, _along(scale, x), out=y)
        np.add(y, _along(data.beta - data.mean * scale, x), out=y)

    return call


def torch_call(data, threads, training):
    """torch.native_batch_norm, below functional.batch_norm, which has no out=."""
    import torch

    def tensor(a):
        t = torch.from_numpy(a)
        return t.movedim(-1, 1) if data.axis == -1 and t.ndim > 1 else t

    x, gamma, beta, mean, var = map(tensor, (data.x, data.gamma, data.beta, data.mean, data.var))
    saved = [torch.empty(data.gamma.size if training else 0) for _ in range(2)]
    given, out = (None, None) if training else (mean, var), (tensor(data.out), *saved)
    return lambda: torch.native_batch_norm(x, gamma, beta, *given, training, 0.0, EPS, out=out)


def onnxruntime_inference(data, threads):
    """A model of one node. On the CPU it has the features on axis 1 alone."""
    if data.axis != 1:
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(_onnx_model(data), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_input("x", "cpu", 0, np.float32, data.x.shape, data.x.ctypes.data)
    binding.bind_output("y", "cpu", 0, np.float32, data.out.shape, data.out.ctypes.data)
    return lambda: session.run_with_iobinding(binding)


def _onnx_model(data):
    """With an opset and a format that runtimes of the last years read."""
    from onnx import TensorProto, helper, numpy_helper

    parameters = {"gamma": data.gamma, "beta": data.beta, "mean": data.mean, "var": data.var}
    node = helper.make_node("BatchNormalization", ["x", *parameters], ["y"], epsilon=EPS)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, data.x.shape) for name in "xy")
    constants = [numpy_helper.from_array(array, name) for name, array in parameters.items()]
    graph = helper.make_graph([node], "batch_norm", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8).SerializeToString()


def sklearn_inference(data, threads):
    """StandardScaler's transform, without gamma and beta, into a new array. It takes tables."""
    if data.axis == 1 and data.x.ndim > 2:
        return None
    from sklearn import config_context
    from sklearn.preprocessing import StandardScaler

    x = data.x.reshape(-1, data.gamma.size)
    scaler = StandardScaler().fit(x[:2])
    scaler.mean_, scaler.var_, scaler.scale_ = data.mean, data.var, np.sqrt(data.var + np.float32(EPS))

    def call():
        with config_context(assume_finite=True, skip_parameter_validation=True):
            return scaler.transform(x)

    return call


# {name: ({operation: prepare}, the modules it needs, the first of them with its version)}
PEERS = {
    "NumPy": ({"training": numpy_training, "inference": numpy_inference}, ("numpy",)),
    "PyTorch": ({operation: functools.partial(torch_call, training=operation == "training")
                 for operation in ("training", "inference")}, ("torch",)),
    "ONNX Runtime": ({"inference": onnxruntime_inference}, ("onnxruntime", "onnx")),
    "scikit-learn": ({"inference": sklearn_inference}, ("sklearn",)),
}


@functools.cache
def is_installed(name):
    """Whether a peer can be imported. One that is there and broken is as good as none: the page goes on without."""
    try:
        for module in PEERS[name][1]:
            importlib.import_module(module)
    except (ImportError, OSError):
        return False
    return True


def installed(operation):
    """{name: prepare} of the peers that are installed here and have that operation, "training" or "inference"."""
    return {name: by_operation[operation] for name, (by_operation, _) in PEERS.items()
            if operation in by_operation and is_installed(name)}


def described():
    """The installed peers with their versions, for a sentence; and what is missing."""
    there = [f"{name} {importlib.import_module(modules[0]).__version__}" for name, (_, modules) in PEERS.items()
             if is_installed(name)]
    missing = [name for name in PEERS if not is_installed(name)]
    return ", ".join(there) + (f"; not installed: {', '.join(missing)}" if missing else "")


@contextlib.contextmanager
def threads_set(threads):
    """PyTorch, where it is installed, computes with that many threads meanwhile."""
    if not is_installed("PyTorch"):
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)
