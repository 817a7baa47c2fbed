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
from itertools import combinations

import numpy as np

import fastbn
from fastbn import _core

GRADIENTS = ("dx", "dgamma", "dbeta")
SUBSETS = [subset for size in (3, 2, 1) for subset in combinations(GRADIENTS, size)]

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
    "rows of 63": ((1031, 63), 1, None),
    "rows of 65": ((1031, 65), 1, None),
    "rows of 300": ((517, 300), 1, None),
    "rows one": ((1, 64), 1, None),
    "rows many features": ((19, 2049), 1, None),
    "rows strided": ((600, 24), 1, lambda x: x[::2]),
    "rows fortran": ((600, 24), 1, np.asfortranarray),
    "rows unaligned": ((400, 50), 1, lambda x: np.concatenate([x.ravel()[:1], x.ravel()])[1:].reshape(x.shape)),
    "planes 7x7": ((8, 33, 7, 7), 1, None),
    "planes strided": ((6, 4, 11, 13), 1, lambda x: x[::2]),
    "channels last": ((2, 9, 11, 32), -1, None),
    "channels last few": ((4, 19, 21, 3), -1, None),
    "features first": ((7, 900), 0, None),
    "features in the middle": ((4, 5, 18, 3, 10), 2, None),
    "one feature, planes": ((2, 1, 999), 1, None),
}
# Enough independent pieces of work for 16 threads in every operation.
WIDE = {
    "wide rows": ((6000, 128), 1, None),
    "wide rows few features": ((200000, 3), 1, None),
    "wide planes": ((4, 32, 400), 1, None),
    "wide planes small": ((17000, 8, 2, 2), 1, None),
}
# Half types take the paths of float32, but where vectors are aligned and how parts of them are loaded and stored.
OF_HALVES = {*FEW, "rows odd", "rows unaligned", "planes 7x7", "channels last", "channels last few", "wide rows"}
# Where training in other ways is computed: planes and rows, few and many features, the features first, in the middle, last.
OF_VARIANTS = {"rows odd", "rows of 300", "rows one", "rows unaligned", "planes 7x7", "channels last", "channels last few",
               "features in the middle", "wide planes"}
GROUPS = {"few": FEW, "all": {**FEW, **MORE, **WIDE}, "wide": WIDE}


def integers(seed, shape, dtype, offset=0):
    """Nearly normal values with a standard deviation near 1.15 from integers: exact up to one conversion."""
    rng = np.random.Generator(np.random.PCG64(seed))
    total = sum(rng.integers(0, 1 << 16, size=shape, dtype=np.int64) for _ in range(4)) - (1 << 17)
    return ((total + offset) / np.float64(1 << 15)).astype(dtype)


class Case:
    """One array of data and everything that an operation on it needs."""

    def __init__(self, shape, axis, place, data_dtype):
        place = place or (lambda x: x)
        features = shape[axis]
        dtype = np.float64 if data_dtype == np.float64 else np.float32
        self.axis, self.features, self.dtype = axis, features, dtype
        self.x = place(integers(1, shape, data_dtype, offset=50000))
        self.dy = place(integers(2, shape, data_dtype))
        self.gamma = integers(3, features, dtype)
        self.beta = integers(4, features, dtype)
        self.mean = integers(5, features, dtype, offset=50000)
        self.var = np.abs(integers(6, features, dtype)) + dtype(0.5)

    @functools.cached_property
    def weights(self):
        """One number for each entry of the batch, a third of them 0."""
        drawn = integers(7, [size for i, size in enumerate(self.x.shape) if i != self.axis % self.x.ndim], np.float64)
        return np.abs(np.where(drawn < -0.5, 0, drawn))

    @functools.cached_property
    def missing(self):
        """x with NaN for a fifth of its entries, those of whole features among them."""
        absent = integers(8, self.x.shape, np.float64) < -1
        np.moveaxis(absent, self.axis, 0)[::7] |= integers(9, len(np.moveaxis(absent, self.axis, 0)[::7]), np.float64)[
            (...,) + (None,) * (self.x.ndim - 1)] > 1
        return np.where(absent, self.x.dtype.type("nan"), self.x)

    def inference(self, threads, **more):
        return fastbn.batch_norm_inference(self.x, self.mean, self.var, self.gamma, self.beta, axis=self.axis,
                                           num_threads=threads, **more)

    def training(self, threads, **more):
        return fastbn.batch_norm_training(self.x, self.gamma, self.beta, axis=self.axis, num_threads=threads, **more)


def moments(case, threads):
    result = fastbn.moments(case.x, axis=case.axis, num_threads=threads)
    return result.mean, result.M2


def inference(case, threads):
    return (case.inference(threads),)


def inference_plain(case, threads):
    return (fastbn.batch_norm_inference(case.x, case.mean, case.var, axis=case.axis, num_threads=threads),)


def relu_of(with_residual):
    def relu(case, threads):
        more = {"activation": "relu", "residual": case.dy if with_residual else None}
        y, saved = case.training(threads, **more)
        return case.inference(threads, **more), y, *fastbn.batch_norm_backward(case.dy, saved, num_threads=threads)

    return relu


def training(case, threads):
    y, saved = case.training(threads)
    return y, saved.mean, saved.var, saved.rstd


def training_plain(case, threads):
    y, saved = fastbn.batch_norm_training(case.x, axis=case.axis, num_threads=threads)
    return y, saved.mean, saved.var, saved.rstd


def training_in_place(case, threads):
    x = np.array(case.x, order="C")
    y, saved = fastbn.batch_norm_training(x, case.gamma, case.beta, axis=case.axis, num_threads=threads, out=x)
    return y, saved.mean, saved.var, saved.rstd


def backward_of(needs):
    def backward(case, threads):
        saved = case.training(threads)[1]
        return fastbn.batch_norm_backward(case.dy, saved, needs=needs, num_threads=threads)

    return backward


def frozen_of(needs):
    def frozen(case, threads):
        saved = case.inference(threads, return_saved=True)[1]
        return fastbn.batch_norm_backward(case.dy, saved, needs=needs, num_threads=threads)

    return frozen


def double_of(frozen):
    def double_backward(case, threads):
        saved = case.inference(threads, return_saved=True)[1] if frozen else case.training(threads)[1]
        ddx = case.dy * case.x
        return fastbn.batch_norm_double_backward(ddx, case.mean, case.beta, case.dy, saved, num_threads=threads)

    return double_backward


def variant_of(missing=False, weighted=False, running=False, ghost=False, **settings):
    """A training call in another way, and its gradients. ghost: three slices of the batch, the last one smaller."""
    def variant(case, threads):
        x = case.missing if missing else case.x
        more = {"nan_policy": "omit"} if missing else {}
        more |= {"weights": case.weights} if weighted else {}
        more |= {"ghost_batch_size": len(x) // 3 + 1} if ghost else {}
        more |= {"running_mean": case.mean, "running_var": case.var} if running else {}
        y, saved = fastbn.batch_norm_training(x, case.gamma, case.beta, axis=case.axis, num_threads=threads, **settings, **more)
        moments = saved.moments
        return (y, saved.mean, saved.var, moments.mean, moments.M2,
                *fastbn.batch_norm_backward(case.dy, saved, num_threads=threads))

    return variant


def layer(case, threads):
    """Two training steps of a layer, then inference: the running averages as well."""
    fastbn.set_num_threads(threads)
    bn = fastbn.BatchNorm(case.features, axis=case.axis, dtype=case.dtype)
    first = bn(case.x)
    dx = bn.backward(case.dy)
    dgamma, dbeta = bn.dgamma.copy(), bn.dbeta.copy()
    bn(case.dy)
    last = bn.eval()(case.x)
    fastbn.set_num_threads(None)
    return first, dx, dgamma, dbeta, bn.running_mean, bn.running_var, last


OPERATIONS = {
    "moments": moments,
    "inference": inference,
    "inference_plain": inference_plain,
    "relu": relu_of(with_residual=False),
    "relu and residual": relu_of(with_residual=True),
    "training": training,
    "training_plain": training_plain,
    "training_in_place": training_in_place,
    **{"backward " + "+".join(needs): backward_of(needs) for needs in SUBSETS},
    **{"frozen " + "+".join(needs): frozen_of(needs) for needs in SUBSETS},
    "double backward": double_of(frozen=False),
    "double frozen": double_of(frozen=True),
    "layer": layer,
}
VARIANTS = {
    "weights": variant_of(weighted=True),
    "weights relu": variant_of(weighted=True, activation="relu"),
    "omit": variant_of(missing=True),
    "omit relu": variant_of(missing=True, activation="relu"),
    "omit weights": variant_of(missing=True, weighted=True),
    "omit weights gelu": variant_of(missing=True, weighted=True, activation="gelu"),
    "ghost": variant_of(ghost=True),
    "ghost weights": variant_of(ghost=True, weighted=True),
    "renorm": variant_of(renorm=(1.5, 0.5), running=True),
    "renorm ghost": variant_of(renorm=(1.5, 0.5), running=True, ghost=True),
    "silu": variant_of(activation="silu"),
    "elu": variant_of(activation=("elu", 0.5)),
}


def operations_for(label, dtype):
    """All of them; for the wide layouts, which are large, not those that differ from another one in little. Half types have
    no double backward.
    """
    exact = dtype in (np.float32, np.float64)
    plain = {name: operation for name, operation in OPERATIONS.items()
             if (label not in WIDE or (name.count("+") != 1 and not name.endswith("plain")))
             and (exact or not name.startswith("double"))}
    return plain | (VARIANTS if label in OF_VARIANTS else {})


def digest(arrays):
    """A hash of shapes, types and bytes."""
    total = hashlib.blake2b(digest_size=12)
    for array in arrays:
        if array is None:
            total.update(b"None")
            continue
        dense = np.ascontiguousarray(array)
        dense = np.where(np.isnan(dense), dense.dtype.type("nan"), dense)
        total.update(f"{dense.dtype}{dense.shape}".encode())
        total.update(dense.tobytes())
    return total.hexdigest()


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


def main():
    options = arguments()
    if options.isa:
        _core.set_isa(options.isa)
    _core.set_bytes_per_thread(0)
    for label, (shape, axis, place) in GROUPS[options.shapes].items():
        for dtype in dtypes_for(label):
            case = Case(shape, axis, place, dtype)
            for name, operation in operations_for(label, dtype).items():
                for threads in map(int, options.threads.split(",")):
                    result = operation(case, threads)
                    team = _core.last_team_size()
                    print(_core.isa_active(), threads, team, name, dtype.__name__, label, digest(result), sep="\t")


if __name__ == "__main__":
    main()
