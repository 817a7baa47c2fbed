"""A layer's state out of other frameworks and into them, one file a framework, and that of whole networks.

None of them is imported here: an object is recognized by the modules of its classes, which its owner has imported.
"""
from .networks import from_state_dict

__all__ = ["from_state_dict"]
