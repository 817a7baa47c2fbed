"""What becomes of a batch with NaN or Inf: nan_policy. ("omit", for NaN alone: _missing.py.)

Looking for them costs no pass: a feature's variance is NaN exactly where the feature has a NaN or an Inf, or finite
entries whose sums overflow. Only then are the entries looked at.
"""
import numpy as np

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


def refuse(x, axes, var):
    """Raises ValueError where a feature of the batch x has NaN or Inf. var: what is NaN then, (C,) or rows of that."""
    if not np.isnan(var).any():
        return
    bad = _features(var)
    moved = np.moveaxis(x, axes, range(len(axes)))
    found = [(f, _found(moved[np.unravel_index(f, moved.shape[:len(axes)])])) for f in bad[:_SHOWN]]
    raise ValueError(f"x has NaN or Inf in {bad.size} of {np.shape(var)[-1]} features: "
                     f"{', '.join(f'feature {f} ({text})' for f, text in found)}{', ...' * (bad.size > _SHOWN)}; "
                     "nan_policy='propagate' lets them through")


def refuse_moments(moments):
    """The same for the statistics alone."""
    bad = _features(moments.M2)
    if bad.size:
        raise ValueError(f"moments is NaN in {bad.size} of {moments.M2.size} features: "
                         f"{', '.join(map(str, bad[:_SHOWN]))}{', ...' * (bad.size > _SHOWN)}; the batch had NaN "
                         "or Inf")


def _features(var):
    nan = np.isnan(var)
    return np.flatnonzero(nan.any(axis=0) if nan.ndim > 1 else nan)


def _found(entries):
    nan, inf = np.count_nonzero(np.isnan(entries)), np.count_nonzero(np.isinf(entries))
    counts = [f"{count} {name}" for count, name in ((nan, "NaN"), (inf, "Inf")) if count]
    return ", ".join(counts) or "sums that overflow"
