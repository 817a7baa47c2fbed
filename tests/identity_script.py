"""Print one hash for every operation, type, layout and number of threads: `python identity_script.py [--isa NAME] ...`.

Run by test_identity.py once for each instruction set, and by test_c_core.py under emulated processors. A line holds,
separated by tabs: instruction set, threads asked for, threads in the team, operation, type, layout, hash of all output
bytes.
Inputs come from integers, so they are the same everywhere. Every NaN counts as the same one.
"""

import argparse
import contextlib
import functools
import hashlib
import importlib

import numpy as np

import fastbn
from fastbn import _core
from identity_operations import ACTIVATIONS, OPERATIONS, TILED, VARIANTS


def unaligned(x):
    """The same values one element further on."""
    return np.concatenate([x.ravel()[:1], x.ravel()])[1:].reshape(x.shape)


# name: (shape of the array, axis of the features, what turns a fresh array into the layout)
FEW = {
    "rows": ((257, 40), 1, None),
    "rows few features": ((3001, 3), 1, None),
    "planes": ((3, 5, 30, 31), 1, None),
    "planes small": ((33, 6, 2, 2), 1, None),
    "one feature": ((501, 1), 1, None),
}
MORE = {
    "rows odd": ((1031, 33), 1, None),
    "rows of 50": ((1400, 50), 1, None),
    "rows of 63": ((1031, 63), 1, None),
    "rows of 65": ((1031, 65), 1, None),
    "rows of 300": ((517, 300), 1, None),
    "rows one": ((1, 64), 1, None),
    "rows few entries": ((9, 3), 1, None),
    "rows many features": ((19, 2049), 1, None),
    "rows strided": ((600, 24), 1, lambda x: x[::2]),
    "rows fortran": ((600, 24), 1, np.asfortranarray),
    "rows unaligned": ((1400, 50), 1, unaligned),
    "rows few features unaligned": ((3001, 3), 1, unaligned),
    "planes 7x7": ((8, 33, 7, 7), 1, None),
    "planes few entries": ((3, 5, 4), 1, None),
    "planes long": ((2, 3, 17001), 1, None),
    "planes strided": ((6, 4, 11, 13), 1, lambda x: x[::2]),
    "planes unaligned": ((3, 5, 30, 31), 1, unaligned),
    "channels last": ((2, 9, 11, 32), -1, None),
    "channels last few": ((4, 19, 21, 3), -1, None),
    "features first": ((7, 900), 0, None),
    "features in the middle": ((4, 5, 18, 3, 10), 2, None),
    "one feature, planes": ((2, 1, 999), 1, None),
    "points": ((2501, 8), 1, None),
}
# Enough independent pieces of work for 16 threads in every operation.
WIDE = {
    "wide rows": ((6000, 128), 1, None),
    "wide rows few features": ((200000, 3), 1, None),
    "wide planes": ((4, 32, 400), 1, None),
    "wide planes small": ((17000, 8, 2, 2), 1, None),
}
# Where the values are those of another layout in another place. That changes no bit either.
ELSEWHERE = {"rows unaligned": "rows of 50", "rows few features unaligned": "rows few features",
             "planes unaligned": "planes"}
# Half types take the paths of float32, but where vectors are aligned and how parts of them are loaded and stored.
OF_HALVES = {*FEW, *ELSEWHERE, *ELSEWHERE.values(), "rows odd", "planes 7x7", "planes long", "channels last",
             "channels last few", "points", "wide rows"}
# Of planes and rows, few and many features, the features first, in the middle, last; with fewer than 64 entries of a
# feature, which are summed in double, and with planes that are cut in parts.
OF_VARIANTS = {"rows odd", "planes 7x7", "planes long", "channels last few", "features in the middle", "wide planes"}
OF_TILED = OF_VARIANTS | {"rows of 50", "rows unaligned", "rows of 300", "rows one", "rows few entries",
                          "rows many features", "planes few entries", "channels last", "one feature, planes"}
GROUPS = {"few": FEW, "all": {**FEW, **MORE, **WIDE}, "wide": WIDE}
# Exponents of the least number, of the least normal one and beyond the largest one.
EXPONENTS = {"float64": (-1074, -1022, 1024), "float32": (-149, -126, 128), "bfloat16": (-133, -126, 128),
             "float16": (-24, -14, 16)}


def generator(seed):
    return np.random.Generator(np.random.PCG64(seed))


def integers(seed, shape, dtype, offset=0):
    """Nearly normal values with a standard deviation near 1.15 from integers: exact up to one conversion."""
    rng = generator(seed)
    total = sum(rng.integers(0, 1 << 16, size=shape, dtype=np.int64) for _ in range(4)) - (1 << 17)
    return ((total + offset) / np.float64(1 << 15)).astype(dtype)


def points(shape, dtype):
    """Numbers of all kinds: what is special, all magnitudes that the type has, the range where activations bend."""
    rng, count = generator(10), int(np.prod(shape))
    least, normal, beyond = EXPONENTS[dtype.__name__]
    exponents = rng.integers(least, beyond, size=count // 4)
    magnitudes = np.ldexp(1 + rng.integers(0, 1 << 20, size=exponents.shape) / (1 << 20), exponents)
    magnitudes[::2] *= -1
    special = [0, -0.0, np.inf, -np.inf, np.nan, 3, -3, 6, np.ldexp(1.0, least), np.ldexp(1.0, normal)]
    middle = [rng.integers(-limit << 20, limit << 20, size=count // 4) / (1 << 20) for limit in (10, 120, 800)]
    with np.errstate(over="ignore"):
        return np.concatenate([special, magnitudes, *middle])[:count].reshape(shape).astype(dtype)


class Case:
    """One array of data and everything that an operation on it needs."""

    def __init__(self, label, data_dtype):
        self.shape, self.axis, place = GROUPS["all"][label]
        self.place, self.data_dtype = place or (lambda x: x), data_dtype
        dtype = np.float64 if data_dtype == np.float64 else np.float32
        self.features, self.dtype = self.shape[self.axis], dtype
        self.x = self.place(points(self.shape, data_dtype)) if label == "points" else self.data(1, offset=50000)
        self.dy = self.data(2)
        self.gamma = integers(3, self.features, dtype)
        self.beta = integers(4, self.features, dtype)
        self.mean = integers(5, self.features, dtype, offset=50000)
        self.var = np.abs(integers(6, self.features, dtype)) + dtype(0.5)

    def data(self, seed, offset=0, absent=False):
        """An array like x, with NaN for what is absent."""
        values = integers(seed, self.shape, self.data_dtype, offset)
        return self.place(np.where(absent, values.dtype.type("nan"), values))

    ddx = functools.cached_property(lambda self: self.data(9))
    residual = functools.cached_property(lambda self: self.data(10))

    @functools.cached_property
    def weights(self):
        """One number for each entry of the batch, a third of them 0."""
        drawn = integers(7, [size for i, size in enumerate(self.x.shape) if i != self.axis % self.x.ndim], np.float64)
        return np.abs(np.where(drawn < -0.5, 0, drawn))

    @functools.cached_property
    def missing(self):
        """x and dy with NaN for a fifth of the entries, and for every seventh feature beyond the first ones."""
        absent = integers(8, self.shape, np.float64) < -1
        np.moveaxis(absent, self.axis, 0)[5::7] = True
        return self.data(1, 50000, absent), self.data(2, 0, absent)

    # What backward needs is made once, by one thread: that any number makes the same is seen in training and inference.
    trained = functools.cached_property(lambda self: self.training(1)[1])
    frozen = functools.cached_property(lambda self: self.inference(1, return_saved=True)[1])

    def inference(self, threads, **more):
        return fastbn.batch_norm_inference(self.x, self.mean, self.var, self.gamma, self.beta, axis=self.axis,
                                           num_threads=threads, **more)

    def training(self, threads, x=None, **more):
        x = self.x if x is None else x
        return fastbn.batch_norm_training(x, self.gamma, self.beta, axis=self.axis, num_threads=threads, **more)


def differs_in_little(name):
    """From another operation."""
    return name.count("+") == 1 or name.endswith("plain")


def operations_for(label, dtype):
    """The wide layouts, which are large, do without what differs in little. Half types have no double backward."""
    if label == "points":
        return ACTIVATIONS
    half = dtype not in (np.float32, np.float64)
    plain = {name: operation for name, operation in OPERATIONS.items()
             if not (label in WIDE and differs_in_little(name)) and not (half and name.startswith("double"))}
    return plain | (TILED if label in OF_TILED else {}) | (VARIANTS if label in OF_VARIANTS else {})


def bits(array):
    return array.view(f"u{array.itemsize}")


def digest(arrays):
    """A hash of shapes, types and bytes."""
    total = hashlib.blake2b(digest_size=12)
    for array in arrays:
        if array is None:
            total.update(b"None")
            continue
        total.update(f"{array.dtype}{array.shape}".encode())
        nan = np.isnan(array)
        total.update(bits(np.where(nan, array.dtype.type("nan"), array) if nan.any() else array))
    return total.hexdigest()


def same_bytes(some, others):
    """Whether they certainly have one hash, which takes ten times as long to compute."""
    return all(a is b or (a.dtype == b.dtype and np.array_equal(bits(a), bits(b)))
               for a, b in zip(some, others, strict=True))


def dtypes_for(label):
    types = [np.float32, np.float64]
    if label in OF_HALVES:
        types.append(np.float16)
        with contextlib.suppress(ImportError):
            types.append(importlib.import_module("ml_dtypes").bfloat16)
    return types


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--isa", help="force this instruction set (default: the library's own choice)")
    parser.add_argument("--threads", default="1", help="numbers of threads, separated by commas")
    parser.add_argument("--shapes", choices=GROUPS, default="all")
    return parser.parse_args()


def print_hashes(label, dtype, numbers):
    """All operations with one number of threads, then with the next one: a team that shrinks ends threads, and one that
    grows begins them, which takes long.
    """
    case, first = Case(label, dtype), {}
    for threads in numbers:
        for name, operation in operations_for(label, dtype).items():
            result = [a if a is None else np.ascontiguousarray(a) for a in operation(case, threads)]
            team = _core.last_team_size()
            known, value = first.get(name, (None, None))
            if known is None or not same_bytes(result, known):
                value = digest(result)
            first.setdefault(name, (result, value))
            print(_core.isa_active(), threads, team, name, dtype.__name__, label, value, sep="\t")


def main():
    options = arguments()
    if options.isa:
        _core.set_isa(options.isa)
    _core.set_bytes_per_thread(0)
    for label in GROUPS[options.shapes]:
        for dtype in dtypes_for(label):
            print_hashes(label, dtype, list(map(int, options.threads.split(","))))


if __name__ == "__main__":
    main()
