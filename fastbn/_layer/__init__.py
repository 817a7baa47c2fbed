"""BatchNorm, the layer: a chain of classes, each of which adds to the one before. In reading order:

settings.py  what is set: axis, eps, momentum, activation, and how the layer trains
freezing.py  which statistics normalize, and what learns
running.py   the arrays, and the step of the moving averages
layer.py     BatchNorm itself: forward, backward, state, copies
"""
from .layer import BatchNorm

__all__ = ["BatchNorm"]
