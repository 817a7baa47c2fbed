"""Standardizing .npy files of any size: standardize_file in files.py, and the command `python -m fastbn standardize`."""
