"""What the tests of fastbn.distributed on threads share: layers, training steps on the parts of a batch, comparisons."""
import numpy as np
import pytest

import fastbn
from fastbn.distributed import SyncBatchNorm
from oracle import sample
from threads_communicator import on_all_ranks

C = 5
SPLITS = [[7, 5], [3, 0, 9], [1, 6, 1, 4], [0, 0, 12, 0]]
by_split = pytest.mark.parametrize("split", SPLITS, ids=str)
TREES = [{}, {"tree_from": 2}]
by_tree = pytest.mark.parametrize("tree", TREES, ids=["gather", "tree"])


def parts_of(array, split):
    return None if array is None else np.split(array, np.cumsum(split)[:-1])


def step(bn, x, dy, **options):
    """What a training step gives, and leaves in the layer."""
    y = bn(x, **options)
    gradients = bn.backward(dy)
    dx, dresidual = gradients if isinstance(gradients, tuple) else (gradients, None)
    return {"y": y, "dx": dx, "dresidual": dresidual, "dgamma": bn.dgamma, "dbeta": bn.dbeta,
            "mean": bn.batch_moments.mean, "M2": bn.batch_moments.M2, "count": np.asarray(bn.batch_moments.count),
            "running_mean": bn.running_mean, "running_var": bn.running_var, "seen": np.asarray(bn.num_batches_tracked)}


OF_ENTRIES = ("y", "dx", "dresidual")


def make(cls, settings, rng_seed=5, **more):
    """A layer with parameters that are not 1 and 0."""
    rng = np.random.default_rng(rng_seed)
    bn = cls(C, **settings, **more)
    for name, values in (("gamma", rng.normal(1, 0.3, C)), ("beta", rng.normal(size=C))):
        if getattr(bn, name) is not None:
            getattr(bn, name)[:] = values
    return bn


def on_parts(split, x, dy, settings, by_entry=(), tree=None, arranged=lambda a: a):
    """What step gives on ranks that have x's parts; by_entry: options that are split as x is."""
    by_entry = dict(by_entry)
    xs, dys = parts_of(x, split), parts_of(dy, split)
    options = [{name: parts_of(value, split)[rank] for name, value in by_entry.items()} for rank in range(len(split))]

    def work(comm):
        bn = make(SyncBatchNorm, settings, comm=comm, reduce_parameter_gradients=True, **(tree or {}))
        return step(bn, arranged(xs[comm.rank]), arranged(dys[comm.rank]), **options[comm.rank])
    return on_all_ranks(len(split), work)


def assert_same_bits(results):
    for name in results[0]:
        if name not in OF_ENTRIES and results[0][name] is not None:
            for other in results[1:]:
                assert results[0][name].dtype == other[name].dtype
                assert results[0][name].tobytes() == other[name].tobytes(), name


def assert_close(found, wanted, name, tolerance=1e-6):
    """Relative to the largest entry: sums of float32 data cancel."""
    assert found.dtype == wanted.dtype and found.shape == wanted.shape, name
    found, wanted = found.astype(float), wanted.astype(float)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted), err_msg=name)
    scale = max(1.0, np.nanmax(np.abs(wanted), initial=0))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * scale, err_msg=name)


def assert_as_one_process(results, whole, tolerance=1e-6):
    assert_same_bits(results)
    for name, wanted in whole.items():
        if wanted is None:
            assert all(result[name] is None for result in results)
        elif name in OF_ENTRIES:
            assert_close(np.concatenate([result[name] for result in results]), wanted, name, tolerance)
        elif name == "mean":
            std = np.sqrt(whole["M2"] / np.maximum(whole["count"], 1))
            ulp = np.spacing(np.maximum(np.abs(wanted), std).astype(np.float32))
            assert np.all(np.abs(results[0]["mean"] - wanted) <= ulp)
        else:
            assert_close(results[0][name], wanted, name, max(tolerance, 1e-6))


def check(split, x, dy, settings=None, by_entry=(), tree=None, tolerance=1e-6):
    settings = settings or {}
    results = on_parts(split, x, dy, settings, by_entry, tree)
    assert_as_one_process(results, step(make(fastbn.BatchNorm, settings), x, dy, **dict(by_entry)), tolerance)
    return results


def draw(rng, shape=(12, C, 4), axis=1, dtype=np.float32, ratio=3.0):
    return sample(rng, shape, axis=axis, dtype=dtype, ratio=ratio), rng.normal(size=shape).astype(dtype)
