"""fastbn.moments, their merging, and the step of moving averages."""
import numpy as np
from oracle import WIDE

import fastbn

from .bounds import assert_near
from .case import Case
from .expected import check_statistics, true_statistics
from .tables import weights_of

DOUBLE = np.dtype(float)


def moments_case(draw):
    case = Case(draw)
    case.kind = "moments"
    case.draw_counting()
    case.omits = draw.chance(0.3)
    case.keep(nan_policy="omit" if case.omits else "propagate")
    return case


def run_moments(case):
    found = case.attempt(lambda: fastbn.moments(case.x, **case.arguments), lambda e: False, None)
    check_moments(case, found, slice(0, case.entries))
    if case.draw.chance(0.5) and 0 not in case.axes:
        check_merging(case)
    check_step(case, found)


def check_moments(case, found, rows):
    """Counts are whole numbers, or sums in the arithmetic's type."""
    count, _, _ = true_statistics(case, rows, case.omits)
    check_statistics(case, rows, found.mean, found.var(), case.omits)
    assert np.shape(found.count) == ((case.c,) if case.omits else ()), "count's shape"
    unit = 1.0 if case.product is None else weights_of(case.product, case.dtype)[1]
    wanted = count * WIDE(unit)
    got = np.broadcast_to(np.asarray(found.count, float), wanted.shape)
    assert_near(got, wanted, np.abs(wanted) * WIDE(2.0**-40), DOUBLE, "count")


def check_merging(case):
    """Two parts along the first axis: the formula of Chan, Golub and LeVeque in the wide type, from their moments."""
    cut = case.draw.int(0, case.shape[0])
    more = {key: value for key, value in case.arguments.items() if key not in case.counting}
    a, b = (fastbn.moments(part, **more) for part in (case.x[:cut], case.x[cut:]))
    merged = case.attempt(lambda: a + b, lambda e: False, None)
    with np.errstate(all="ignore"):
        n_a, n_b = (np.broadcast_to(np.asarray(part.count, WIDE), (case.c,)) for part in (a, b))
        n, delta = n_a + n_b, b.mean.astype(WIDE) - a.mean
        mean = np.where(n_a == 0, b.mean, np.where(n_b == 0, a.mean, a.mean + delta * n_b / n))
        cross = np.where((n_a == 0) | (n_b == 0), 0, delta**2 * n_a * n_b / n)
    eps = WIDE(2.0**-51)
    assert_near(merged.mean, mean, eps * (np.abs(mean) + np.abs(delta)), DOUBLE, "merged mean")
    with np.errstate(all="ignore"):
        M2 = np.where(n_a == 0, b.M2, np.where(n_b == 0, a.M2, a.M2 + b.M2.astype(WIDE) + cross))
        rounding = eps * (a.M2 + b.M2 + 4 * cross + 2 * np.sqrt(cross) * (np.abs(a.mean) + np.abs(b.mean)) * eps)
    assert_near(merged.M2, M2, np.where((n_a == 0) | (n_b == 0), 0, rounding), DOUBLE, "merged M2")


def check_step(case, found):
    """Moving averages by the formula, from the moments, rounded to their type."""
    draw, dtype = case.draw, case.draw.choice((np.dtype(np.float32), DOUBLE))
    old = [case.vector(name, values.astype(dtype)) for name, values in (
        ("step_mean", draw.many.standard_normal(case.c)), ("step_var", draw.many.uniform(0, 2, case.c)))]
    before = [a.astype(WIDE) for a in old]
    momentum, ddof = draw.choice((0.9, 0.0, 1.0, 0.99)), draw.int(0, 1)
    case.keep(momentum=momentum, ddof=ddof)
    found.step(*old, momentum=momentum, ddof=ddof)
    for a in old:
        case.arena.settle(a)
    case.arena.assert_unchanged()
    check_averages(old, before, found, momentum, ddof)


def check_averages(new, old, moments, momentum, ddof):
    """Features whose variance is not known stay as they are; else one rounding to the type, and those of doubles."""
    known = ~np.isnan(np.broadcast_to(moments.freedom(ddof), moments.mean.shape))
    for name, got, before, batch in zip(("mean", "var"), new, old, (moments.mean, moments.var(ddof))):
        keeps = WIDE(momentum) * before
        wanted = np.where(known, keeps + (1 - WIDE(momentum)) * batch, before)
        size = np.where(known, np.abs(keeps) + np.abs((1 - WIDE(momentum)) * batch), 0)
        rounding = np.where(known, np.spacing(np.abs(wanted).astype(got.dtype)).astype(WIDE), 0)
        assert_near(got, wanted, np.nan_to_num(rounding + 8 * WIDE(2.0**-52) * size), got.dtype, f"running {name}")
