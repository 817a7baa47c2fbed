"""Standardizing .npy files of any size: standardize_file, and the command `python -m fastbn standardize`."""
from .files import Outcome, standardize_file

__all__ = ["Outcome", "standardize_file"]
