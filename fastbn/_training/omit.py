"""Moments and normalization where NaN entries may be missing ones (nan_policy="omit"), by the engine and missing.py."""
import numpy as np

from .._engine.layout import arrange
from .._engine.moments import by_feature
from .._engine.run import moments_from, moments_of, normalize_by_batch, normalize_by_moments
from .._engine.weights import equal_weights
from .missing import present


def moments_by(x, axes, extras, threads, omits=False):
    """(moments, extras) after the checks, where the extras know what of x is missing.

    Looking for NaN costs no pass where there is none: a feature's M2 is NaN where it has one. (With weights all entries
    are looked at, since an entry of weight 0 leaves no trace in M2.)
    """
    if not omits:
        return moments_of(x, axes, extras, threads), extras
    found = moments_of(x, axes, extras, threads) if extras.weights is None else None
    if found is not None and not np.isnan(found.M2).any():
        return by_feature(found), extras
    return moments_of_present(x, axes, extras, threads, found)


def moments_of_present(x, axes, extras, threads, found=None):
    """(the moments of the entries that are not NaN, extras that know of them); the same extras where none is NaN.

    found: the moments with NaN, where they are known: those of features without NaN stay as they are.
    """
    arrangement = arrange(x, axes)
    n, c, s = arrangement.packed
    weights = None if extras.weights is None else extras.weights.data(arrangement).reshape(n, s)
    there = present(arrangement.readable(x), weights, threads)
    short = there.entries < n * s
    if not short.any():
        return by_feature(moments_of(x, axes, extras, threads) if found is None else found), extras
    given = equal_weights(x, axes) if weights is None else extras.weights
    counts, squares = np.where(short, there.weight, given.total), np.where(short, there.squares, given.squares)
    extras = extras._replace(weights=given._replace(counts=counts, squares=squares, absent=there.entries == 0))
    mean, M2 = there.mean, there.M2 * given.unit
    if found is not None:
        mean, M2 = np.where(short, mean, found.mean), np.where(short, M2, found.M2)
    return moments_from(extras, n * s, mean, _infinite_where_too_large(mean, M2)), extras


def _infinite_where_too_large(mean, M2):
    """M2, with Inf where it is NaN although all entries are finite: their squares overflowed, and Inf - Inf is NaN."""
    return np.where(np.isnan(M2) & np.isfinite(mean), np.inf, M2)


def normalize_without_nan(x, axes, gamma, beta, eps, out, threads, extras):
    """The same where NaN entries are missing; `out` shares no memory with x and the residual."""
    found = None
    if extras.weights is None:
        out, saved = normalize_by_batch(x, axes, gamma, beta, eps, out, threads, extras)
        if not np.isnan(saved.var).any():
            return out, saved
        found = saved.moments
    batch, counted = moments_of_present(x, axes, extras, threads, found)
    if counted is not extras:
        return normalize_by_own_moments(x, axes, batch, gamma, beta, eps, out, threads, counted)
    return normalize_by_batch(x, axes, gamma, beta, eps, out, threads, extras) if found is None else (out, saved)


def normalize_by_own_moments(x, axes, batch, gamma, beta, eps, out, threads, extras):
    """(y by the moments of x, what backward needs), where these are known before y is written.

    Where squares of float64 entries overflow, M2 is Inf and does not tell the scale of y, so that the core has to look at
    x for that.
    """
    if np.isinf(batch.M2).any():
        return normalize_by_batch(x, axes, gamma, beta, eps, out, threads, extras)
    return normalize_by_moments(x, axes, batch, gamma, beta, eps, out, threads, extras)
