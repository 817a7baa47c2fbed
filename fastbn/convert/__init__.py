"""A layer's state out of other frameworks and into them, one file a framework.

None of them is imported here: an object is recognized by the modules of its classes, which its owner has imported.
"""
from .chainer import from_chainer, to_chainer
from .flax import from_flax, to_flax
from .keras import from_keras, to_keras
from .onnx import from_onnx, to_onnx
from .pytorch import from_torch, to_torch


class Conversions:
    """The methods of BatchNorm that convert. A from_ makes a new layer; a to_ changes nothing in the layer."""

    __slots__ = ()

    from_torch, to_torch = classmethod(from_torch), to_torch
    from_keras, to_keras = classmethod(from_keras), to_keras
    from_flax, to_flax = classmethod(from_flax), to_flax
    from_onnx, to_onnx = classmethod(from_onnx), to_onnx
    from_chainer, to_chainer = classmethod(from_chainer), to_chainer
