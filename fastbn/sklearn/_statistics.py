"""The moments of a table as StandardScaler counts them, and the attributes that it keeps of them.

All state is in scikit-learn's attributes, from which the moments are made again for the next chunk: M2 = var_ * n, but
for its last bit. So whatever changes them (scikit-learn's own partial_fit of a sparse chunk, an unpickled older scaler, a
user) has changed the moments too.
"""
import functools

import numpy as np
from sklearn.preprocessing import StandardScaler
from sklearn.preprocessing._data import _handle_zeros_in_scale, _is_constant_feature

import fastbn

from . import _inputs


def moments_of(x, weights):
    """The Moments of the table x, where NaN are missing values. weights: None, or an array of shape (N,).

    None where scikit-learn's own code has to answer: infinite entries, sums that overflow.
    """
    if weights is not None and _inputs.has_infinity(x):  # one of weight 0 would leave no trace
        return None
    found = fastbn.moments(x, weights=weights)
    suspects = np.flatnonzero(~np.isfinite(found.M2))
    return _without_missing(x, weights, suspects, found) if suspects.size else found


def _without_missing(x, weights, suspects, found):
    """moments_of where the features `suspects` have NaN or worse; found: the moments, useless for these.

    They are looked at again, in a copy of these features alone, of a block of rows at a time.
    """
    parts = []
    for rows in _inputs.blocks_of(x):
        block = np.take(x[rows], suspects, axis=1)
        parts.append(fastbn.moments(block, weights=None if weights is None else weights[rows], nan_policy="omit"))
    again = fastbn.Moments.merge_all(parts)
    if not np.isfinite(again.M2).all():
        return None
    counts = np.full(len(found.mean), found.count, np.result_type(np.asarray(found.count), again.count))
    counts[suspects], found.mean[suspects], found.M2[suspects] = again.count, again.mean, again.M2
    return fastbn.Moments.of_arrays(counts, found.mean, found.M2)


def moments_so_far(scaler):
    """Those that the attributes of a fitted scaler tell; 0 for the mean and variance that it has no use for."""
    count, nothing = np.asarray(scaler.n_samples_seen_), np.zeros(scaler.n_features_in_)
    mean, var = (nothing if values is None else values for values in (scaler.mean_, scaler.var_))
    mean, M2 = (np.where(count > 0, values, nothing) for values in (mean, var * count))
    return fastbn.Moments(count if count.ndim else count.item(), mean, M2)


def take(scaler, moments, weighted):
    """Sets n_samples_seen_, mean_, var_ and scale_. A feature without any value has NaN for all but the first.

    weighted: whether the count is of weights, which decides its type, as in the scikit-learn that is installed.
    """
    neither = not (scaler.with_mean or scaler.with_std)
    count = np.asarray(moments.count).astype(_count_dtype(neither, weighted))
    if count.ndim and (count == count[0]).all():
        count = count[0]
    scaler.n_samples_seen_ = count if count.ndim else count[()]
    scaler.mean_ = None if neither else np.where(count > 0, moments.mean, np.nan)
    keeps_var = scaler.with_std or isinstance(getattr(scaler, "var_", None), np.ndarray)  # with_std was True before
    scaler.var_ = moments.var() if keeps_var else None
    scaler.scale_ = _scale(scaler.var_, scaler.mean_, scaler.n_samples_seen_) if scaler.with_std else None


def _scale(var, mean, count):
    """The standard deviation; 1 for a feature that is constant, to rounding."""
    return _handle_zeros_in_scale(np.sqrt(var), copy=False, constant_mask=_is_constant_feature(var, mean, count))


@functools.cache
def _count_dtype(neither, weighted):
    """It has changed between versions: whatever a scaler of scikit-learn's own has."""
    model = StandardScaler(with_mean=not neither, with_std=not neither)
    return model.fit(np.zeros((2, 1)), sample_weight=np.ones(2) if weighted else None).n_samples_seen_.dtype
