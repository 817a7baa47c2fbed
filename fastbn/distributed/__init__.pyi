from typing import Any, Protocol

from fastbn import BatchNorm, Moments

__all__ = ["Communicator", "SyncBatchNorm", "merge_moments"]

class _Gathers(Protocol):  # what fewer ranks than tree_from need
    def Get_rank(self) -> int: ...
    def Get_size(self) -> int: ...
    def Allgather(self, sendbuf: Any, recvbuf: Any) -> Any: ...

class Communicator(_Gathers, Protocol):
    def Bcast(self, buf: Any, root: int = 0) -> Any: ...
    def Send(self, buf: Any, dest: int, tag: int = 0) -> Any: ...
    def Recv(self, buf: Any, source: int, tag: int = 0) -> Any: ...

class SyncBatchNorm(BatchNorm):
    comm: _Gathers | None
    reduce_parameter_gradients: bool
    @property
    def tree_from(self) -> int: ...
    def __init__(
        self,
        num_features: int,
        *,
        comm: _Gathers | None = None,
        reduce_parameter_gradients: bool = False,
        tree_from: int = 33,
        **settings: Any,
    ) -> None: ...

def merge_moments(moments: Moments | int, comm: _Gathers | None, *, tree_from: int = 33) -> Moments: ...
