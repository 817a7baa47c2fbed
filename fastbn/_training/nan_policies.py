"""What becomes of a batch with NaN or Inf: nan_policy. ("omit", for NaN alone: _training/missing.py.)

Looking for them costs no pass: a feature's variance is not finite exactly where the feature has a NaN or an Inf, or finite
entries whose sums overflow. Only then are the entries looked at. A layer of float32 has no room for larger statistics
either: they count as Inf.
"""
import numpy as np

from .._engine.moments import Moments

POLICIES = ("propagate", "raise", "omit", "skip")
OF_FUNCTIONS = POLICIES[:3]
_SHOWN = 8


def check(value, allowed=POLICIES):
    if value not in allowed:
        if value == "skip":
            raise ValueError(f"nan_policy is 'skip', expected {_any_of(allowed)}: leaving a batch out of the "
                             "running statistics is for the layer, which has some")
        raise ValueError(f"nan_policy is {value!r}, expected {_any_of(allowed)}")
    return value


def _any_of(allowed):
    return f"{', '.join(map(repr, allowed[:-1]))} or {allowed[-1]!r}"


def refuse(x, axes, batches, dtype=np.float64, ddof=0):
    """Raises ValueError where a feature of x has NaN or Inf, or statistics that the dtype does not hold.

    batches: the Moments of x, or of its slices.
    """
    bad = [overflowing(batch, np.float64) for batch in batches]
    if dtype != np.float64:
        bad.append(overflowing(batches[0] if len(batches) == 1 else Moments.merge_all(batches), dtype, ddof))
    bad = np.unique(np.concatenate(bad))
    if not bad.size:
        return
    moved = np.moveaxis(x, axes, range(len(axes)))
    found = [(f, _found(moved[np.unravel_index(f, moved.shape[:len(axes)])])) for f in bad[:_SHOWN]]
    raise ValueError(f"x has NaN or Inf in {bad.size} of {batches[0].mean.size} features: "
                     f"{', '.join(f'feature {f} ({text})' for f, text in found)}{', ...' * (bad.size > _SHOWN)}; "
                     "nan_policy='propagate' lets them through")


def refuse_moments(moments, dtype=np.float64, ddof=0):
    """The same for the statistics alone."""
    bad = overflowing(moments, dtype, ddof)
    if bad.size:
        raise ValueError(f"moments is NaN, Inf or too large for {np.dtype(dtype).name} in {bad.size} of "
                         f"{moments.mean.size} features: {', '.join(map(str, bad[:_SHOWN]))}"
                         f"{', ...' * (bad.size > _SHOWN)}; the batch had NaN or Inf, or very large entries")


def overflowing(moments, dtype=np.float64, ddof=0):
    """The features, with entries, of which the dtype would not hold the mean and the variance."""
    with np.errstate(all="ignore"):
        var = moments.biased_var() * (moments.count / moments.freedom(ddof)) if ddof else moments.biased_var()
        fits = np.maximum(np.abs(moments.mean), var) <= np.finfo(dtype).max
    return np.flatnonzero(~fits & np.logical_not(np.isnan(moments.freedom(ddof))))


def _found(entries):
    nan, inf = np.count_nonzero(np.isnan(entries)), np.count_nonzero(np.isinf(entries))
    counts = [f"{count} {name}" for count, name in ((nan, "NaN"), (inf, "Inf")) if count]
    return ", ".join(counts) or "a variance that is too large"
