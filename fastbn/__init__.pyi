import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, Self, TextIO, TypedDict, TypeVar, Unpack, overload

import numpy as np
import numpy.typing as npt

from . import convert as convert

_Array = npt.NDArray[Any]

class _DLPack(Protocol):  # an array of another library
    def __dlpack__(self) -> Any: ...
    def __dlpack_device__(self) -> tuple[Any, Any]: ...

_Given = npt.ArrayLike | _DLPack
_Axis = int | tuple[int, ...]
_ActivationName = Literal[
    "relu", "leaky_relu", "relu6", "sigmoid", "tanh", "silu", "gelu", "gelu_tanh", "hardswish", "elu"
]
_Activation = _ActivationName | tuple[Literal["leaky_relu", "elu"], float] | None
_LayerNanPolicy = Literal["propagate", "raise", "omit", "skip"]
_NanPolicy = Literal["propagate", "raise", "omit"]
_Target = TypeVar("_Target")  # another framework's layer

class _Settings(TypedDict, total=False):
    axis: _Axis
    eps: float
    momentum: float | None
    ddof: int
    dtype: npt.DTypeLike
    activation: _Activation
    ghost_batch_size: int | None
    renorm: tuple[float, float] | None
    nan_policy: _LayerNanPolicy
    training: bool | None

__version__: str

class Moments:
    count: int | float | npt.NDArray[np.int64] | npt.NDArray[np.float64]
    mean: npt.NDArray[np.float64]
    M2: npt.NDArray[np.float64]
    squares: int | float | npt.NDArray[np.int64] | npt.NDArray[np.float64]
    def __init__(
        self, count: float | _Array, mean: npt.ArrayLike, M2: npt.ArrayLike, squares: float | _Array | None = None
    ) -> None: ...
    @classmethod
    def of_arrays(
        cls,
        count: float | _Array,
        mean: npt.NDArray[np.float64],
        M2: npt.NDArray[np.float64],
        squares: float | _Array | None = None,
    ) -> "Moments": ...
    @classmethod
    def of_variance(
        cls,
        count: float | _Array,
        mean: npt.NDArray[np.float64],
        var: npt.NDArray[np.float64],
        squares: float | _Array | None = None,
    ) -> "Moments": ...
    def check(self, num_features: int | None = None) -> None: ...
    def freedom(self, ddof: int) -> float | npt.NDArray[np.float64]: ...
    def var(self, ddof: int = 0) -> npt.NDArray[np.float64]: ...
    def biased_var(self) -> npt.NDArray[np.float64]: ...
    def step(self, running_mean: _Array, running_var: _Array, *, momentum: float = 0.9, ddof: int = 1) -> bool: ...
    def merge(self, other: "Moments") -> "Moments": ...
    @staticmethod
    def merge_all(parts: Sequence["Moments"]) -> "Moments": ...
    def __add__(self, other: "Moments") -> "Moments": ...
    def __radd__(self, other: int) -> "Moments": ...  # 0, with which sum() begins
    def __eq__(self, other: object) -> bool: ...

class Drift(NamedTuple):
    mean_shift: npt.NDArray[np.float64]
    std_ratio: npt.NDArray[np.float64]
    divergence: npt.NDArray[np.float64]

class _Saved:
    @property
    def mean(self) -> npt.NDArray[np.float64]: ...
    @property
    def var(self) -> npt.NDArray[np.float64]: ...
    @property
    def rstd(self) -> npt.NDArray[np.float64]: ...
    @property
    def moments(self) -> Moments: ...

class BatchNorm:
    # None where the layer has none: "| Any" spares who knows what a layer has a check for that
    gamma: _Array | Any
    beta: _Array | Any
    running_mean: _Array | Any
    running_var: _Array | Any
    num_batches_tracked: int | Any
    dgamma: _Array | Any  # None before backward, as dbeta
    dbeta: _Array | Any
    training: bool
    axis: _Axis
    eps: float
    momentum: float | None
    ddof: int
    dtype: np.dtype[Any]
    use_batch_stats: bool | None
    update_running_stats: bool | None
    parameter_gradients: bool
    ghost_batch_size: int | None
    renorm: tuple[float, float] | None
    nan_policy: _LayerNanPolicy
    @property
    def activation(self) -> _Activation: ...
    @activation.setter
    def activation(self, value: _Activation) -> None: ...
    @property
    def batch_moments(self) -> Moments | Any: ...  # None before a training call
    @property
    def num_features(self) -> int: ...
    def __init__(
        self,
        num_features: int,
        *,
        axis: _Axis = 1,
        eps: float = 1e-5,
        momentum: float | None = 0.9,
        ddof: int = 1,
        center: bool = True,
        scale: bool = True,
        track_running_stats: bool = True,
        activation: _Activation = None,
        dtype: npt.DTypeLike = ...,
        ghost_batch_size: int | None = None,
        renorm: tuple[float, float] | None = None,
        nan_policy: _LayerNanPolicy = "propagate",
    ) -> None: ...
    def train(self, mode: bool = True) -> Self: ...
    def eval(self, *, backward: bool = False) -> Self: ...
    @overload
    def __call__(
        self,
        x: _Given,
        *,
        residual: _Given | None = None,
        mask: _Given | None = None,
        weights: _Given | None = None,
        lengths: _Given | None = None,
        out: _Array | None = None,
        update: bool = True,
        like: None = None,
    ) -> _Array: ...
    @overload
    def __call__(
        self,
        x: _Given,
        *,
        residual: _Given | None = None,
        mask: _Given | None = None,
        weights: _Given | None = None,
        lengths: _Given | None = None,
        out: _Array | _DLPack | None = None,
        update: bool = True,
        like: Any = None,
    ) -> Any: ...  # an array of another library
    @overload
    def forward(
        self,
        x: _Given,
        *,
        residual: _Given | None = None,
        mask: _Given | None = None,
        weights: _Given | None = None,
        lengths: _Given | None = None,
        out: _Array | None = None,
        update: bool = True,
        like: None = None,
    ) -> _Array: ...
    @overload
    def forward(
        self,
        x: _Given,
        *,
        residual: _Given | None = None,
        mask: _Given | None = None,
        weights: _Given | None = None,
        lengths: _Given | None = None,
        out: _Array | _DLPack | None = None,
        update: bool = True,
        like: Any = None,
    ) -> Any: ...  # an array of another library
    # dx; where the forward call had a residual (dx, dresidual), for which "| Any" stands
    @overload
    def backward(self, dy: _Given, *, out: _Array | None = None, like: None = None) -> _Array | Any: ...
    @overload
    def backward(self, dy: _Given, *, out: _Array | _DLPack | None = None, like: Any = None) -> Any: ...
    def parameters(self) -> list[tuple[str, _Array, _Array | Any]]: ...  # None before backward
    def reset_running_stats(self) -> None: ...
    def update(self, moments: Moments | int) -> None: ...  # a sum() of Moments is of this type
    def calibrate(self, batches: Iterable[_Given] | Moments | int, *, progress: bool = False) -> Self: ...
    def drift(self, x: _Given | Moments | int) -> Drift: ...
    def state_dict(self) -> dict[str, _Array]: ...
    def load_state_dict(self, state: Mapping[str, npt.ArrayLike]) -> Self: ...
    def save(self, path: str | os.PathLike[str]) -> None: ...
    def load(self, path: str | os.PathLike[str], *, settings: Literal["check", "ignore"] = "check") -> Self: ...
    @classmethod
    def from_file(cls, path: str | os.PathLike[str], *, training: bool = True) -> Self: ...
    def as_affine(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]: ...
    @classmethod
    def from_torch(
        cls, source: Any, prefix: str = "", *, track_running_stats: bool = True, **settings: Unpack[_Settings]
    ) -> Self: ...
    @overload
    def to_torch(self, target: None = None, prefix: str = "") -> dict[str, _Array]: ...
    @overload
    def to_torch(self, target: str | os.PathLike[str], prefix: str = "") -> None: ...
    @overload
    def to_torch(self, target: _Target) -> _Target: ...
    @classmethod
    def from_keras(
        cls, source: Any, config: Mapping[str, Any] | None = None, **settings: Unpack[_Settings]
    ) -> Self: ...
    @overload
    def to_keras(self, target: None = None) -> tuple[list[_Array], dict[str, Any]]: ...
    @overload
    def to_keras(self, target: _Target) -> _Target: ...
    @classmethod
    def from_flax(cls, source: Any, module: Any = None, *, prefix: str = "", **settings: Unpack[_Settings]) -> Self: ...
    @overload
    def to_flax(self, target: None = None, *, prefix: str = "") -> dict[str, dict[str, Any]]: ...
    @overload
    def to_flax(self, target: _Target) -> _Target: ...
    @classmethod
    def from_onnx(
        cls, node: Any, initializers: Any, *, opset: int | None = None, **settings: Unpack[_Settings]
    ) -> Self: ...
    def to_onnx(self, *, opset: int = 15) -> tuple[dict[str, float | int], dict[str, _Array]]: ...
    @classmethod
    def from_chainer(cls, source: Any, *, prefix: str = "", **settings: Unpack[_Settings]) -> Self: ...
    @overload
    def to_chainer(self, target: None = None, *, prefix: str = "") -> dict[str, _Array]: ...
    @overload
    def to_chainer(self, target: _Target) -> _Target: ...

@overload
def batch_norm_inference(
    x: _Given,
    mean: _Given,
    var: _Given,
    gamma: _Given | None = None,
    beta: _Given | None = None,
    *,
    eps: float = 1e-5,
    axis: _Axis = 1,
    activation: _Activation = None,
    residual: _Given | None = None,
    out: _Array | None = None,
    num_threads: int | None = None,
    return_saved: Literal[False] = False,
    like: None = None,
) -> _Array: ...
@overload
def batch_norm_inference(
    x: _Given,
    mean: _Given,
    var: _Given,
    gamma: _Given | None = None,
    beta: _Given | None = None,
    *,
    eps: float = 1e-5,
    axis: _Axis = 1,
    activation: _Activation = None,
    residual: _Given | None = None,
    out: _Array | None = None,
    num_threads: int | None = None,
    return_saved: Literal[True],
    like: None = None,
) -> tuple[_Array, _Saved]: ...
@overload
def batch_norm_inference(
    x: _Given,
    mean: _Given,
    var: _Given,
    gamma: _Given | None = None,
    beta: _Given | None = None,
    *,
    eps: float = 1e-5,
    axis: _Axis = 1,
    activation: _Activation = None,
    residual: _Given | None = None,
    out: _Array | _DLPack | None = None,
    num_threads: int | None = None,
    return_saved: bool = False,
    like: Any = None,
) -> Any: ...  # arrays of another library
@overload
def batch_norm_training(
    x: _Given,
    gamma: _Given | None = None,
    beta: _Given | None = None,
    *,
    eps: float = 1e-5,
    axis: _Axis = 1,
    activation: _Activation = None,
    residual: _Given | None = None,
    mask: _Given | None = None,
    weights: _Given | None = None,
    lengths: _Given | None = None,
    out: _Array | None = None,
    num_threads: int | None = None,
    ghost_batch_size: None = None,
    renorm: None = None,
    running_mean: None = None,
    running_var: None = None,
    nan_policy: _NanPolicy = "propagate",
    like: None = None,
) -> tuple[_Array, _Saved]: ...
@overload
def batch_norm_training(
    x: _Given,
    gamma: _Given | None = None,
    beta: _Given | None = None,
    *,
    eps: float = 1e-5,
    axis: _Axis = 1,
    activation: _Activation = None,
    residual: _Given | None = None,
    mask: _Given | None = None,
    weights: _Given | None = None,
    lengths: _Given | None = None,
    out: _Array | None = None,
    num_threads: int | None = None,
    ghost_batch_size: int | None = None,
    renorm: tuple[float, float] | None = None,
    running_mean: _Given | None = None,
    running_var: _Given | None = None,
    nan_policy: _NanPolicy = "propagate",
    like: None = None,
) -> tuple[_Array, _Saved]: ...
@overload
def batch_norm_training(
    x: _Given,
    gamma: _Given | None = None,
    beta: _Given | None = None,
    *,
    eps: float = 1e-5,
    axis: _Axis = 1,
    activation: _Activation = None,
    residual: _Given | None = None,
    mask: _Given | None = None,
    weights: _Given | None = None,
    lengths: _Given | None = None,
    out: _Array | _DLPack | None = None,
    num_threads: int | None = None,
    ghost_batch_size: int | None = None,
    renorm: tuple[float, float] | None = None,
    running_mean: _Given | None = None,
    running_var: _Given | None = None,
    nan_policy: _NanPolicy = "propagate",
    like: Any = None,
) -> tuple[Any, _Saved]: ...
# dx, dgamma, dbeta, and after them dresidual where the forward call had a residual.
@overload
def batch_norm_backward(
    dy: _Given,
    saved: _Saved,
    *,
    out: _Array | None = None,
    num_threads: int | None = None,
    like: None = None,
) -> tuple[_Array, ...]: ...
@overload
def batch_norm_backward(
    dy: _Given,
    saved: _Saved,
    *,
    out: _Array | None = None,
    needs: str | Iterable[str],
    num_threads: int | None = None,
    like: None = None,
) -> tuple[_Array | Any, ...]: ...
@overload
def batch_norm_backward(
    dy: _Given,
    saved: _Saved,
    *,
    out: _Array | _DLPack | None = None,
    needs: str | Iterable[str] = ...,
    num_threads: int | None = None,
    like: Any = None,
) -> tuple[Any, ...]: ...
def batch_norm_double_backward(
    ddx: _Given | None,
    ddgamma: _Given | None,
    ddbeta: _Given | None,
    dy: _Given,
    saved: _Saved,
    *,
    needs: str | Iterable[str] = ...,
    num_threads: int | None = None,
    like: Any = None,
) -> tuple[Any, Any, Any]: ...  # None where not needed
def moments(
    x: _Given,
    *,
    axis: _Axis = 1,
    mask: _Given | None = None,
    weights: _Given | None = None,
    lengths: _Given | None = None,
    nan_policy: Literal["propagate", "omit"] = "propagate",
    num_threads: int | None = None,
) -> Moments: ...
def fold_linear(
    weight: npt.ArrayLike,
    bias: npt.ArrayLike | None,
    bn: BatchNorm,
    *,
    bn_first: bool = False,
    activation: Literal["separate"] | None = None,
) -> tuple[_Array, _Array]: ...
def fold_conv(
    weight: npt.ArrayLike,
    bias: npt.ArrayLike | None,
    bn: BatchNorm,
    *,
    bn_first: bool = False,
    transposed: bool = False,
    groups: int = 1,
    padding: int | Iterable[int] | Literal["valid", "same"] | None = None,
    padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
    activation: Literal["separate"] | None = None,
) -> tuple[_Array, _Array]: ...
def get_config() -> dict[str, Any]: ...
def show_config(file: TextIO | None = None) -> None: ...
def get_include() -> str: ...
def get_num_threads() -> int: ...
def set_num_threads(num_threads: int | None) -> None: ...
def get_backoff() -> bool: ...
def set_backoff(on: bool) -> None: ...
def get_output_cache() -> int: ...
def set_output_cache(nbytes: int | None) -> None: ...
def rearm_threads() -> None: ...
