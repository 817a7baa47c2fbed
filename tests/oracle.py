"""The reference: batch normalization in NumPy, in the widest float there is, and how far a result may be from it.

All formulas work on rows: the feature axis is moved to the end and the others are flattened, so that every layout
becomes a (count, C) table. Means are taken in two passes and then corrected by the mean of what is left, so that they
are right at mean / std = 1e6 even where longdouble is no wider than double.

The bounds are the ones the library promises for float32 (see `fastbn.h`); for float64 data, where nothing is promised
in numbers, 1e-12 leaves room for plain sums of some thousand terms.
"""
import math
from typing import NamedTuple

import numpy as np

import fastbn

WIDE = np.longdouble
EPS64 = np.finfo(np.float64).eps
FLOATS = (np.float32, np.float64)

# Relative to the promise: y and variance, by the type of the data.
Y_UNIT = {np.dtype(np.float32): 1e-6, np.dtype(np.float64): 1e-12}
VAR_UNIT = {np.dtype(np.float32): 1e-6, np.dtype(np.float64): 1e-12}
# Gradients: relative to the sum of the absolute values of what is added.
GRAD_UNIT = {np.dtype(np.float32): 2e-6, np.dtype(np.float64): 1e-12}


class Statistics(NamedTuple):
    count: int
    mean: np.ndarray
    var: np.ndarray


class Gradients(NamedTuple):
    dx: np.ndarray
    dgamma: np.ndarray
    dbeta: np.ndarray


# --- The formulas ---------------------------------------------------------------------------------------------------


def as_rows(x, axis):
    """The wide (count, C) table of an array."""
    moved = np.moveaxis(np.asarray(x), axis, -1)
    return moved.astype(WIDE).reshape(math.prod(moved.shape[:-1]), moved.shape[-1])


def from_rows(rows, shape, axis):
    """The array of that shape whose table is `rows`."""
    order = [size for i, size in enumerate(shape) if i != axis % len(shape)] + [shape[axis]]
    return np.moveaxis(rows.reshape(order), -1, axis)


def statistics(x, axis=1):
    """Count, mean and biased variance of each feature. Nothing has 0, 0 and NaN."""
    rows = as_rows(x, axis)
    count, features = rows.shape
    if count == 0:
        return Statistics(0, np.zeros(features, WIDE), np.full(features, np.nan, WIDE))
    mean = rows.mean(axis=0)
    mean = mean + (rows - mean).mean(axis=0)
    return Statistics(count, mean, np.square(rows - mean).mean(axis=0))


def reciprocal_std(var, eps):
    return 1 / np.sqrt(np.asarray(var, WIDE) + WIDE(eps))


def wide_parameters(features, gamma, beta):
    """gamma and beta with None spelled out."""
    gamma = np.ones(features, WIDE) if gamma is None else np.asarray(gamma, WIDE)
    beta = np.zeros(features, WIDE) if beta is None else np.asarray(beta, WIDE)
    return gamma, beta


def forward(x, mean, var, gamma=None, beta=None, *, eps=1e-5, axis=1):
    """y = (x - mean) / sqrt(var + eps) * gamma + beta, wide."""
    rows = as_rows(x, axis)
    gamma, beta = wide_parameters(rows.shape[1], gamma, beta)
    x_hat = (rows - np.asarray(mean, WIDE)) * reciprocal_std(var, eps)
    return from_rows(x_hat * gamma + beta, np.shape(x), axis)


def backward(x, dy, mean, var, gamma=None, *, eps=1e-5, axis=1, frozen=False):
    """The gradients, wide; with `frozen` the statistics are constants."""
    rows, dy_rows = as_rows(x, axis), as_rows(dy, axis)
    gamma, _ = wide_parameters(rows.shape[1], gamma, None)
    rstd = reciprocal_std(var, eps)
    x_hat = (rows - np.asarray(mean, WIDE)) * rstd
    dbeta, dgamma = dy_rows.sum(axis=0), (dy_rows * x_hat).sum(axis=0)
    inner = dy_rows if frozen else dy_rows - (dbeta + x_hat * dgamma) / max(len(rows), 1)
    return Gradients(from_rows(gamma * rstd * inner, np.shape(x), axis), dgamma, dbeta)


def moving_average(old, batch, momentum, batches_before=0):
    """The running statistic after one more batch; momentum None is the cumulative average."""
    if momentum is None:
        momentum = batches_before / (batches_before + 1)
    return momentum * np.asarray(old, WIDE) + (1 - momentum) * np.asarray(batch, WIDE)


def unbiased(stats, ddof):
    """The variance with the divisor count - ddof."""
    return stats.var * stats.count / (stats.count - ddof)


# --- Data -----------------------------------------------------------------------------------------------------------


def sample(rng, shape, *, axis=1, dtype=np.float32, ratio=0.0):
    """Normal data whose features have |mean| / std = ratio, each a standard deviation and a sign of its own."""
    features = shape[axis]
    std = rng.uniform(0.5, 2.0, features)
    mean = ratio * std * rng.choice([-1.0, 1.0], features)
    along = [1] * len(shape)
    along[axis] = features
    return (rng.standard_normal(shape) * std.reshape(along) + mean.reshape(along)).astype(dtype)


def parameters(rng, features, dtype=np.float32):
    """gamma of both signs, away from 0, and beta."""
    gamma = rng.uniform(0.5, 2.0, features) * rng.choice([-1.0, 1.0], features)
    return gamma.astype(dtype), rng.standard_normal(features).astype(dtype)


def strided(values, order, steps):
    """The same values in other memory: axes in that order, outermost first, each with a step (negative: reversed)."""
    values = np.asarray(values)
    base = np.full([values.shape[a] * abs(steps[a]) for a in order], 7, values.dtype)
    view = base.transpose(np.argsort(order))[tuple(slice(None, None, step) for step in steps)]
    view[...] = values
    return view


def unaligned(x):
    raw = np.empty(x.nbytes + 1, np.uint8)
    result = raw[1:].view(x.dtype).reshape(x.shape)
    result[...] = x
    return result


def read_only(x):
    result = x.copy()
    result.flags.writeable = False
    return result


# --- How far a result may be from the reference ---------------------------------------------------------------------


def assert_within(actual, expected, allowed, what):
    """|actual - expected| <= allowed, entry by entry; a NaN never is."""
    assert np.shape(actual) == np.shape(expected), what
    error = np.abs(np.asarray(actual, WIDE) - expected)
    bad = ~(error <= allowed)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        limit = np.broadcast_to(allowed, error.shape)[where]
        raise AssertionError(f"{what}: {bad.sum()} of {bad.size} entries are off; the first at {where}: "
                             f"{actual[where]!r}, expected {expected[where]!r}, off by {error[where]:.3g}, "
                             f"allowed {limit:.3g}")


def spacing(value, dtype):
    """One unit in the last place of `dtype` at that magnitude."""
    return np.spacing(np.abs(np.asarray(value)).astype(dtype)).astype(WIDE)


def check_statistics(mean, var, x, axis=1):
    """Mean within one float32 ulp of max(|mean|, std), relative variance error 1e-6 (float64 data: see above)."""
    dtype = np.asarray(x).dtype.newbyteorder("=")
    expected = statistics(x, axis)
    std = np.sqrt(expected.var)
    ulp = spacing(np.maximum(np.abs(expected.mean), std), dtype)
    assert_within(mean, expected.mean, ulp if dtype == np.float32 else 4 * ulp + 1e-12 * std, "mean")
    # Means are doubles: what their rounding adds to a square (and to a cross term, where parts were merged) stays.
    rounding = 4 * EPS64 * np.abs(expected.mean)
    assert_within(var, expected.var, VAR_UNIT[dtype] * expected.var + rounding * (std + rounding), "var")


def check_forward(y, x, mean, var, gamma=None, beta=None, *, eps=1e-5, axis=1):
    """y within 1e-6 * |gamma| * max(1, |x_hat| / 4) of the reference, and the rounding of beta.

    That is half an ulp where the shift is rounded, and one where y is, which may be twice as large as beta.
    """
    dtype = y.dtype
    expected = as_rows(forward(x, mean, var, gamma, beta, eps=eps, axis=axis), axis)
    gamma, beta = wide_parameters(expected.shape[1], gamma, beta)
    rstd = reciprocal_std(var, eps)
    x_hat = (as_rows(x, axis) - np.asarray(mean, WIDE)) * rstd
    scaled = Y_UNIT[dtype] * np.maximum(1, np.abs(x_hat) / 4) + 2 * EPS64 * np.abs(mean) * rstd
    beta_rounding = np.where(beta == 0, 0, 1.5 * spacing(beta, dtype))
    assert_within(as_rows(y, axis), expected, np.abs(gamma) * scaled + beta_rounding, "y")


def check_gradients(gradients, x, dy, mean, var, gamma=None, *, eps=1e-5, axis=1, frozen=False, slack=1):
    """Those of dx, dgamma and dbeta that are not None, within some roundings of what was summed."""
    expected = backward(x, dy, mean, var, gamma, eps=eps, axis=axis, frozen=frozen)
    rows, dy_rows = as_rows(x, axis), np.abs(as_rows(dy, axis))
    gamma, _ = wide_parameters(rows.shape[1], gamma, None)
    rstd = reciprocal_std(var, eps)
    x_hat = np.abs(rows - np.asarray(mean, WIDE)) * rstd
    unit = slack * GRAD_UNIT[np.asarray(x).dtype.newbyteorder("=")]
    off = 2 * EPS64 * np.abs(np.asarray(mean, WIDE)) * rstd  # what rounding the mean to double does to x_hat
    sum_dy, sum_projected = dy_rows.sum(axis=0), (dy_rows * x_hat).sum(axis=0)
    dx, dgamma, dbeta = gradients
    if dbeta is not None:
        rounding = np.abs(expected.dbeta) * np.finfo(dbeta.dtype).eps
        assert_within(dbeta, expected.dbeta, unit * sum_dy + rounding, "dbeta")
    if dgamma is not None:
        rounding = np.abs(expected.dgamma) * np.finfo(dgamma.dtype).eps
        assert_within(dgamma, expected.dgamma, unit * sum_projected + off * sum_dy + rounding, "dgamma")
    if dx is not None:
        allowed = unit * dy_rows
        if not frozen:
            count = max(len(rows), 1)
            allowed = allowed + ((unit + x_hat * off) * sum_dy + (unit * x_hat + off) * sum_projected) / count
        assert_within(as_rows(dx, axis), as_rows(expected.dx, axis), np.abs(gamma) * rstd * allowed, "dx")


def check_every_operation(x, dy, rng, *, axis=1, eps=1e-5, param_dtype=None):
    """Moments, training, inference and both backwards of one input against the reference."""
    plain, plain_dy = native_copy(x), native_copy(dy)
    features = plain.shape[axis]
    gamma, beta = parameters(rng, features, param_dtype or plain.dtype)
    keywords = {"eps": eps, "axis": axis}
    expected = statistics(plain, axis)

    moments = fastbn.moments(x, axis=axis)
    assert moments.count == expected.count
    y, saved = fastbn.batch_norm_training(x, gamma, beta, **keywords)
    gradients = fastbn.batch_norm_backward(dy, saved)
    assert y.dtype == gradients[0].dtype == plain.dtype
    assert y.shape == gradients[0].shape == plain.shape
    if expected.count:
        check_statistics(moments.mean, moments.var(), plain, axis)
        check_statistics(saved.mean, saved.var, plain, axis)
        check_forward(y, plain, expected.mean, expected.var, gamma, beta, **keywords)
        check_gradients(gradients, plain, plain_dy, expected.mean, expected.var, gamma, **keywords)

    mean = rng.standard_normal(features).astype(gamma.dtype)
    var = rng.uniform(0.5, 2.0, features).astype(gamma.dtype)
    y, saved = fastbn.batch_norm_inference(x, mean, var, gamma, beta, return_saved=True, **keywords)
    gradients = fastbn.batch_norm_backward(dy, saved)
    assert y.dtype == gradients[0].dtype == plain.dtype
    check_forward(y, plain, mean, var, gamma, beta, **keywords)
    check_gradients(gradients, plain, plain_dy, mean, var, gamma, frozen=True, **keywords)


def native_copy(x):
    """The values alone: C order, aligned, native byte order, writable."""
    x = np.asarray(x)
    return np.array(x, dtype=x.dtype.newbyteorder("="), order="C")


def steps_of_layer(batches, *, ddof, momentum=0.9, dtype=np.float32):
    """(running_mean, running_var) of a fastbn.BatchNorm after these batches: what adapters have to give, bit for bit."""
    layer = fastbn.BatchNorm(batches[0].shape[1], ddof=ddof, momentum=momentum, dtype=dtype)
    for x in batches:
        layer(x)
    return layer.running_mean, layer.running_var


def central_differences(loss, values, step=1e-5):
    """The gradient of loss() with respect to the entries of `values`, which it reads: each is moved and put back."""
    gradient = np.empty_like(values)
    for i in np.ndindex(values.shape):
        kept = values[i]
        values[i] = kept + step
        above = loss()
        values[i] = kept - step
        gradient[i] = (above - loss()) / (2 * step)
        values[i] = kept
    return gradient
