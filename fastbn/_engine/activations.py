"""Activations by name, for the arguments `activation=`."""
from typing import NamedTuple

import numpy as np

from .. import _core
from . import checks

# As csrc/fastbn.h numbers them; the first is the identity.
_NUMBERED = _core.activation_names()
NAMES = _NUMBERED[1:]
_PARAMETERS = {"leaky_relu": 0.01, "elu": 1.0}  # their defaults


class Activation(NamedTuple):
    """One of NAMES, or None for the identity; `slope` is leaky_relu's slope for z < 0 or elu's alpha."""

    name: str | None
    slope: float = 0.0
    code: int = 0  # the C core's number

    @property
    def keeps_sign(self):
        """Whether the derivative at z follows from the sign of y."""
        return self.name == "relu" or (self.name == "leaky_relu" and self.slope >= 0)

    @property
    def inverts(self):
        """Whether z can be had back from y: a slope of 1e-50 would be 0 in float32."""
        return self.name is None or (self.name == "leaky_relu" and np.float32(self.slope) > 0)

    @property
    def argument(self):
        """What activation= takes."""
        return (self.name, self.slope) if self.name in _PARAMETERS else self.name


IDENTITY = Activation(None)
WITHOUT_PARAMETER = {name: Activation(name, 0.0, _NUMBERED.index(name)) for name in NAMES if name not in _PARAMETERS}


def parse(activation):
    """An Activation from None, a name, or (name, parameter). Raises TypeError, ValueError."""
    if activation is None:
        return IDENTITY
    if isinstance(activation, str) and activation in WITHOUT_PARAMETER:
        return WITHOUT_PARAMETER[activation]
    name, given = activation, None
    if isinstance(activation, (tuple, list)):
        if len(activation) != 2:
            raise ValueError(f"activation is {activation!r}, expected a name or (name, parameter)")
        name, given = activation
    if not isinstance(name, str):
        raise TypeError(f"activation is {activation!r}, expected one of {', '.join(NAMES)}, or None")
    if name not in NAMES:
        raise ValueError(f"activation is {name!r}, expected one of {', '.join(NAMES)}, or None")
    if name not in _PARAMETERS:
        if given is not None:
            raise ValueError(f"activation {name!r} takes no parameter: {' and '.join(_PARAMETERS)} do")
        return WITHOUT_PARAMETER[name]
    parameter = _PARAMETERS[name] if given is None else checks.finite(given, f"the parameter of {name}")
    return Activation(name, parameter, _NUMBERED.index(name))
