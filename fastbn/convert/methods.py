"""The conversions as methods, for BatchNorm, which is above this folder."""
from .chainer import from_chainer, to_chainer
from .flax import from_flax, to_flax
from .keras import from_keras, to_keras
from .onnx import from_onnx, to_onnx
from .pytorch import from_torch, to_torch


class Conversions:
    """The methods of BatchNorm that convert. A from_ makes a new layer; a to_ changes nothing in the layer.

    _class: the class that they are methods of, once there is one.
    """

    __slots__ = ()
    _class = None

    def __init_subclass__(cls, **keywords):
        super().__init_subclass__(**keywords)
        Conversions._class = Conversions._class or cls

    from_torch, to_torch = classmethod(from_torch), to_torch
    from_keras, to_keras = classmethod(from_keras), to_keras
    from_flax, to_flax = classmethod(from_flax), to_flax
    from_onnx, to_onnx = classmethod(from_onnx), to_onnx
    from_chainer, to_chainer = classmethod(from_chainer), to_chainer
