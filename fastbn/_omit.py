"""nan_policy="omit": NaN entries are missing, by feature.

Looking for them costs no pass where there are none: the statistics are taken as if there were none, and only a variance
that is NaN has the entries of its feature counted. Then they are taken again, with the counts. (With weights all
entries are looked at, since an entry of weight 0 leaves no trace in a variance.)
"""
import numpy as np

from ._canonical import arrange
from ._weights import equal_weights

_ENTRIES = 1 << 18  # that are looked at together


def omitting(x, axes, extras, compute, variance):
    """(compute(extras), extras), where the extras know what of x is missing.

    variance: of a result of compute, the array that is NaN where a feature has NaN.
    """
    result, suspects = None, None
    if extras.weights is None:
        result = compute(extras)
        suspects = np.flatnonzero(np.isnan(variance(result)))
        if not suspects.size:
            return result, extras
    counted = _counted(extras, x, axes, suspects)
    if counted is extras and result is not None:
        return result, extras
    return compute(counted), counted


def _counted(extras, x, axes, suspects):
    """With the counts of x's features; the same extras where nothing is missing. suspects: features, or None: all."""
    arrangement = arrange(x, axes)
    n, c, s = arrangement.packed
    if not x.size:
        return extras
    suspects = np.arange(c) if suspects is None else suspects
    weights = None if extras.weights is None else extras.weights.data(arrangement).reshape(n, 1, s)
    there, weight = _present(arrangement.readable(x), weights, suspects)
    if (there == n * s).all():
        return extras
    given = equal_weights(x, axes) if weights is None else extras.weights
    counts, absent = np.full(c, given.total), np.zeros(c, bool)
    short = there < n * s
    counts[suspects[short]], absent[suspects] = weight[short], there == 0
    return extras._replace(weights=given._replace(counts=counts, absent=absent))


def _present(source, weights, features):
    """(number, weight) of the entries of each of the features that are not NaN; source: (n, c, s), weights: (n, 1, s)."""
    n, _, s = source.shape
    there, weight = np.zeros(features.size, np.int64), np.zeros(features.size)
    group = max(1, _ENTRIES // s)
    step = max(1, _ENTRIES // (min(group, features.size) * s))
    for first in range(0, features.size, group):
        some = slice(first, first + group)
        for i in range(0, n, step):
            block = source[i:i + step, features[some]]
            present = block == block
            there[some] += present.sum(axis=(0, 2))
            if weights is not None:
                weight[some] += np.where(present, weights[i:i + step], 0).sum(axis=(0, 2), dtype=np.float64)
    return there, weight if weights is not None else there.astype(np.float64)
