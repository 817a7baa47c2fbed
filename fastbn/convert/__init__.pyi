import os
from collections.abc import Mapping
from typing import Any

from fastbn import BatchNorm

__all__ = ["from_state_dict"]

def from_state_dict(
    state: Mapping[str, Any] | str | os.PathLike[str], **settings: Any
) -> dict[str, BatchNorm]: ...
