"""ONNX: the BatchNormalization operator, opsets 7 to 15 (15 is its last version so far)."""
import numpy as np

from .._engine import checks
from ._common import build, check_layer, outgoing

_NAMES = {"gamma": "scale", "beta": "B", "running_mean": "mean", "running_var": "var"}
_DEFAULTS = {"epsilon": 1e-5, "momentum": 0.9}
_OPSETS = {"spatial": range(7, 9), "training_mode": range(14, 1000), "epsilon": range(7, 1000),
           "momentum": range(7, 1000)}


def from_onnx(cls, node, initializers, *, opset=None, **settings):
    """Make a layer with the state of an ONNX BatchNormalization node.

    Parameters
    ----------
    node : NodeProto or dict
        Its NodeProto; or a dict of its attributes (epsilon, momentum, and as the opset has them spatial,
        training_mode).
    initializers : ModelProto, GraphProto, iterable or dict
        Where the node's inputs scale, B, mean and var are: the ModelProto, its GraphProto, an iterable of
        TensorProto, or a dict of TensorProto or arrays by the names of the node's inputs; with a dict as node, by
        "scale", "B", "mean", "var".
    opset : int, optional
        The opset of the default domain, 7 or more; None: the model's where initializers is a ModelProto, else 15.
    **settings : dict
        Keyword arguments of BatchNorm, where another value than the one found is wanted, and training, the layer's
        mode (False: ready for inference).

    Returns
    -------
    BatchNorm
        A new layer.

    Raises
    ------
    TypeError, ValueError
        If node is another operator or has attributes of another opset, opset is below 7, or inputs are no
        initializers, have other shapes, are damaged, or are stored in another file.

    Notes
    -----
    What is translated: momentum is the weight of the old average in both, default 0.9; epsilon is eps, default 1e-5;
    both are float32 in a node, and read as the shortest decimal that is that float32 (0.9, not 0.8999999761581421).
    The feature axis is 1. ddof=0: opsets 14 and later say that running_var takes the population variance; before, the
    standard left that open, and who knows better passes ddof=1. spatial=0 (opsets 7 and 8: statistics for each
    activation) gives axis=(1, 2, ...), as many as the inputs have axes. The layer is in training mode where the node
    is: training_mode=1 from opset 14 on, more than one output before; else in inference mode. Exact but for rounding.
    ONNX counts no batches: 0.

    References
    ----------
    ONNX, docs/Changelog.md, BatchNormalization-7, -9, -14 and -15.

    Examples
    --------
    >>> import numpy as np
    >>> import fastbn
    >>> ones = np.ones(2, np.float32)
    >>> initializers = {"scale": 3 * ones, "B": ones, "mean": ones, "var": ones}
    >>> fastbn.BatchNorm.from_onnx({"epsilon": 0.01}, initializers)
    BatchNorm(2, axis=1, eps=0.01, momentum=0.9, ddof=0, dtype=float32, training=False)
    """
    opset = _opset(initializers, opset)
    attributes, inputs, outputs = _parts(node)
    _check_attributes(attributes, opset)
    stored = _by_name(initializers)
    arrays = {key: _initializer(stored, name, _NAMES[key]) for key, name in zip(_NAMES, inputs)}
    training = attributes.get("training_mode", 0) if opset >= 14 else outputs > 1
    rank = 1 if attributes.get("spatial", 1) else np.ndim(arrays["running_mean"])
    values = _DEFAULTS | attributes
    own = {"axis": 1 if rank == 1 else tuple(range(1, rank + 1)), "eps": _decimal(values["epsilon"]),
           "momentum": _decimal(values["momentum"]), "ddof": 0}
    return build(cls, arrays, _NAMES, own, settings, training=bool(training))


def _decimal(value):
    """The shortest decimal that rounds to the same float32, as a double."""
    return float(str(np.float32(value)))


def _is_proto(value, name):
    """A message of onnx, or of another copy of its definitions."""
    return type(value).__name__ == name and hasattr(value, "SerializeToString")


def _opset(initializers, opset):
    if opset is None and _is_proto(initializers, "ModelProto"):
        opset = next((entry.version for entry in initializers.opset_import if entry.domain in ("", "ai.onnx")), None)
    opset = 15 if opset is None else opset
    if not checks.is_whole(opset):
        raise TypeError(f"opset is {opset!r}, expected an int")
    if opset < 7:
        raise ValueError(f"opset is {opset}, expected 7 or more: before, BatchNormalization had other attributes; "
                         "onnx.version_converter brings a model to a later opset")
    return opset


def _parts(node):
    """(attributes, names of the inputs scale, B, mean, var, number of outputs)."""
    if hasattr(node, "keys"):
        return dict(node), list(_NAMES.values()), 1
    if not _is_proto(node, "NodeProto"):
        raise TypeError(f"node is a {type(node).__name__}, expected an onnx.NodeProto or a dict of its attributes")
    if node.op_type != "BatchNormalization" or node.domain not in ("", "ai.onnx"):
        raise ValueError(f"node is a {node.op_type}, expected a BatchNormalization")
    if len(node.input) != 5:
        raise ValueError(f"node has {len(node.input)} inputs, expected 5: X, scale, B, mean, var")
    attributes = {a.name: a.f if a.name in _DEFAULTS else a.i for a in node.attribute}
    return attributes, list(node.input[1:]), len([name for name in node.output if name])


def _check_attributes(attributes, opset):
    for name in attributes:
        if opset not in _OPSETS.get(name, ()):
            raise ValueError(f"node has the attribute {name}, which BatchNormalization of opset {opset} does not have: "
                             "is the opset another?")


def _by_name(initializers):
    if _is_proto(initializers, "ModelProto"):
        initializers = initializers.graph
    if _is_proto(initializers, "GraphProto"):
        initializers = initializers.initializer
    if hasattr(initializers, "keys"):
        return initializers
    try:
        return {tensor.name: tensor for tensor in initializers}
    except (TypeError, AttributeError) as error:
        raise TypeError(f"initializers is a {type(initializers).__name__}, expected a ModelProto, a GraphProto, "
                        "TensorProtos or a dict of arrays") from error


def _initializer(stored, name, role):
    if name not in stored:
        raise ValueError(f"there is no initializer {name!r}, the node's input {role}: is it computed in the graph? "
                         "Only constants that are stored as initializers can be read")
    value = stored[name]
    return _array(value, role) if _is_proto(value, "TensorProto") else value


def _array(tensor, role):
    import onnx.numpy_helper  # the message is one of its own
    shape = tuple(tensor.dims)
    about = f"the initializer {tensor.name!r}, {role}, of shape {shape} and data type {tensor.data_type},"
    if onnx.external_data_helper.uses_external_data(tensor):
        raise ValueError(f"{about} has its numbers in another file: onnx.load, from the model's path, or "
                         "onnx.load_external_data_for_model reads them")
    try:
        a = onnx.numpy_helper.to_array(tensor)
        if a.shape != shape:  # a size of -1 is any
            raise ValueError(f"it has {a.size} numbers")
    except Exception as error:  # KeyError for a type that is none, for example
        raise ValueError(f"{about} is damaged ({type(error).__name__}: {error})") from error
    return a


def to_onnx(self, *, opset=15):
    """Give this layer's state in ONNX's names and meaning.

    Parameters
    ----------
    opset : int, default 15
        7 or more. Before 14 a node is in training mode where it has more than one output.

    Returns
    -------
    attributes, initializers : dict
        Those of a BatchNormalization node that does what this layer does.

    Raises
    ------
    TypeError, ValueError
        If opset is below 7, the layer has an activation or another setting that ONNX lacks, its axis is not 1, where
        the operator has its features, or its momentum is None in training mode.
    RuntimeError
        If the layer has no running statistics.

    Notes
    -----
    The attributes are {"epsilon", "momentum"}, from opset 14 on also "training_mode", the layer's mode, for
    onnx.helper.make_node("BatchNormalization", [x, scale, B, mean, var], outputs, **attributes). The initializers are
    {"scale", "B", "mean", "var"}, new arrays of shape (C,), for onnx.numpy_helper.from_array, under the names that the
    node's inputs get. Where the layer has no gamma or beta they are 1 and 0, since the operator always has them.

    momentum and eps are the same in both (a node rounds them to float32); where momentum is None, a cumulative
    average, an inference node gets none, as it needs none. ONNX takes the biased variance, so a layer with ddof=1 is
    converted exactly for inference, but its running variance would grow on by batch variances smaller by (N - 1) / N
    there. A layer in training mode with ghost batches or renormalization warns: ONNX has neither.

    References
    ----------
    ONNX, docs/Changelog.md, BatchNormalization-7, -9, -14 and -15.

    Examples
    --------
    >>> import fastbn
    >>> attributes, initializers = fastbn.BatchNorm(2).eval().to_onnx()
    >>> attributes, list(initializers)
    ({'epsilon': 1e-05, 'momentum': 0.9, 'training_mode': 0}, ['scale', 'B', 'mean', 'var'])
    """
    check_layer(self, "ONNX")
    opset = _opset(None, opset)
    if self.axis != 1:
        raise ValueError(f"axis is {self.axis}, expected 1: BatchNormalization has its features there; put a "
                         "Transpose around the node and set the layer's axis to 1 first")
    attributes = {"epsilon": self.eps}
    if self.momentum is not None:
        attributes["momentum"] = self.momentum
    elif self.training:
        raise ValueError("momentum is None, a cumulative average, which ONNX does not have: set the layer's momentum "
                         "to a number, or call eval() first for an inference node")
    if opset >= 14:
        attributes["training_mode"] = int(self.training)
    neutral = {"scale": np.ones(self.num_features, self.dtype), "B": np.zeros(self.num_features, self.dtype)}
    return attributes, neutral | outgoing(self, _NAMES)
