"""Standardize a table that is larger than memory: statistics in one pass, then a file written block by block.

    python larger_than_memory.py [folder]

The table here has 100 MB, so that the example takes seconds; some MiB of memory would do for any size.
"""
import sys
import tempfile
from pathlib import Path

import numpy as np

import fastbn
from fastbn.standardize import standardize_file

ROWS, FEATURES, CHUNK = 1_000_000, 25, 50_000


def write_table(path):
    """Features whose scales differ by nine decades, written chunk by chunk."""
    rng = np.random.default_rng(0)
    table = np.lib.format.open_memmap(path, "w+", np.float32, (ROWS, FEATURES))
    for start in range(0, ROWS, CHUNK):
        table[start:start + CHUNK] = rng.normal(5, 1, (CHUNK, FEATURES)) * np.logspace(-3, 6, FEATURES)
    table.flush()


def main(folder):
    source, target, statistics = (Path(folder, name) for name in ("table.npy", "standard.npy", "statistics.npz"))
    write_table(source)

    # The whole in one call. The statistics are kept: test data are standardized by those of the training data.
    outcome = standardize_file(source, target, axis=-1, save_statistics=statistics, overwrite=True)
    print("standard deviations found:", outcome.statistics.scale[:3], "...")

    # The same statistics in parts, which might have been looked at by several processes or machines.
    table = np.load(source, mmap_mode="r")
    parts = (fastbn.moments(table[start:start + CHUNK], axis=-1) for start in range(0, ROWS, CHUNK))
    total = sum(parts)
    assert np.allclose(total.mean, outcome.statistics.mean, rtol=1e-6)

    check = fastbn.moments(np.load(target, mmap_mode="r"), axis=-1)
    print("of the result: largest |mean|", np.abs(check.mean).max(), "largest |variance - 1|", np.abs(check.var() - 1).max())
    return check


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as scratch:
            main(scratch)
