"""batch_norm_inference and batch_norm_training: y and the statistics."""
import numpy as np
from oracle import WIDE

import fastbn

from .bounds import assert_near
from .case import Case
from .expected import check_statistics, part_of, rows_of, true_statistics
from .tables import as_table, weights_of


def check_y(case, y, parts):
    """The parts' rows together; a constant feature gives exactly beta."""
    assert y.dtype == case.dtype and y.shape == case.shape, f"y is {y.dtype} {y.shape}"
    assert case.out is None or y is case.out, "y is not out"
    table = as_table(y, case.axes)
    for part in parts:
        wanted = part.layer.forward().y
        assert_near(table[part.rows], wanted, part.bounds.y(wanted), case.dtype, "y", part.bounds.through())
        if case.activation is None and case.residual is None and not part.layer.frozen and case.renorm is None:
            check_constant(case, table[part.rows], part)


def check_constant(case, y, part):
    counts = part.layer.w != 0
    x = case.x_table[part.rows]
    some = x[counts.argmax(axis=0), np.arange(case.c)] if len(x) else np.zeros(case.c)
    constant = ((x == some) | ~counts).all(axis=0) & counts.any(axis=0) & np.isfinite(some)
    beta = part.layer.beta[0].astype(np.float64).astype(case.arithmetic).astype(case.dtype).astype(WIDE)
    off = counts & constant & (y != beta)
    assert not off.any(), f"y of constant features {np.flatnonzero(off.any(axis=0))} is not beta"


# ---- by given statistics ----

def inference_case(draw):
    case = Case(draw)
    case.kind, case.training, case.renorm = "batch_norm_inference", False, None
    case.draw_parameters()
    case.draw_extras()
    near = [a.astype(np.float64) for a in true_statistics(case, slice(0, case.entries), False)[1:]]
    mean, var = (np.where(np.isfinite(a), a, 1.0) if draw.chance(0.7) else np.abs(draw.many.standard_normal(case.c))
                 for a in near)
    case.mean, case.var = (case.vector(name, np.abs(a).astype(case.parameter_type) if name == "var" else
                                       a.astype(case.parameter_type)) for name, a in (("mean", mean), ("var", var)))
    case.residual_table, case.keeps = case.table(case.residual), draw.chance(0.5)
    case.out = case.draw_out(more=(case.x, case.residual))
    case.keep(mean=case.mean, var=case.var, out=case.out, return_saved=case.keeps)
    return case


def run_inference(case):
    """(saved or None, parts), or None where the call was refused."""
    result = case.attempt(lambda: fastbn.batch_norm_inference(case.x, **case.arguments),
                          lambda e: refuses_residual(case, e), case.out)
    if result is None:
        return None
    y, saved = result if case.keeps else (result, None)
    parts = [part_of(case, slice(0, case.entries), case.mean.astype(float), case.var.astype(float), frozen=True)]
    check_y(case, y, parts)
    case.y = y
    return saved, parts


def refuses_residual(case, error):
    """Where backward will need the residual, and `out` is it."""
    name, slope = case.activation if isinstance(case.activation, tuple) else (case.activation, 0)
    needs_it = name is not None and name != "relu" and not (name == "leaky_relu" and slope >= 0)
    kept = case.training or case.keeps
    is_residual = case.residual is not None and case.out is case.residual
    return kept and needs_it and is_residual and "out and residual overlap" in str(error)


# ---- by the batch's ----

def training_case(draw):
    case = Case(draw)
    case.kind, case.training = "batch_norm_training", True
    case.draw_parameters()
    case.draw_extras()
    case.draw_counting()
    case.residual_table = case.table(case.residual)
    case.ghost = draw.int(1, max(case.shape[0], 1)) if 0 not in case.axes and draw.chance(0.15) else None
    case.renorm, case.nan_policy = None, draw.choice(("propagate",) * 6 + ("raise", "omit", "omit"))
    if draw.chance(0.12):
        draw_renorm(case)
    case.out = case.draw_out(more=(case.x, case.residual))
    case.keep(out=case.out, ghost_batch_size=case.ghost, nan_policy=case.nan_policy)
    return case


def draw_renorm(case):
    case.renorm = case.draw.choice(((1.0, 0.0), (3.0, 5.0), (1.5, 0.1), (100.0, 100.0)))
    mean, var = case.draw.many.standard_normal(case.c), case.draw.many.uniform(0, 3, case.c)
    case.running = [case.vector(name, a.astype(case.parameter_type))
                    for name, a in (("running_mean", mean), ("running_var", var))]
    case.keep(renorm=case.renorm, running_mean=case.running[0], running_var=case.running[1])


def correction(case):
    """(r, d) of a part, from its statistics; None where there is no renormalization."""
    if case.renorm is None:
        return None
    def of_part(rows, mean, var):
        (rmax, dmax), (old_mean, old_var) = map(WIDE, case.renorm), (a.astype(WIDE) for a in case.running)
        std = np.sqrt(old_var + WIDE(case.eps))
        nothing = true_statistics(case, rows, case.nan_policy == "omit")[0] == 0
        r = np.clip(np.sqrt(var + WIDE(case.eps)) / std, 1 / rmax, rmax)
        d = np.clip((mean - old_mean) / std, -dmax, dmax)
        return np.where(nothing, 1, r), np.where(nothing, 0, d)
    return of_part


def counts_nan(case):
    """Whether an entry that counts is NaN or Inf."""
    bad = ~np.isfinite(case.x_table).all(axis=1)
    slices = rows_of(case, case.ghost)
    if case.product is None:
        return bool(bad.any())
    return any(bool(bad[rows][weights_of(case.product[rows], case.dtype)[0] != 0].any()) for rows in slices)


def run_training(case):
    raises = case.nan_policy == "raise" and counts_nan(case)
    def may_refuse(error):
        if raises and isinstance(error, ValueError) and "x has NaN or Inf in" in str(error):
            case.arena.settle(None if case.out is case.x else case.out)
            return True
        return refuses_residual(case, error)
    result = case.attempt(lambda: fastbn.batch_norm_training(case.x, **case.arguments), may_refuse, case.out)
    if result is None:
        return None
    assert not raises, "nan_policy='raise' let NaN or Inf pass"
    y, saved = result
    parts = parts_of_training(case, saved)
    check_y(case, y, parts)
    case.y = y
    return saved, parts


def parts_of_training(case, saved):
    """Checks the statistics, and gives the parts by them."""
    found, omits = [], case.nan_policy == "omit"
    slices = rows_of(case, case.ghost)
    rows = (len(slices), case.c) if case.ghost is not None else (case.c,)
    assert saved.mean.shape == saved.var.shape == saved.rstd.shape == rows, "shapes of statistics"
    means, variances, rstds = (a.reshape(len(slices), case.c) for a in (saved.mean, saved.var, saved.rstd))
    for at, mean, var, rstd in zip(slices, means, variances, rstds):
        check_statistics(case, at, mean, var, omits)
        wanted = 1 / np.sqrt(var.astype(WIDE) + WIDE(case.eps))
        assert_near(rstd, wanted, rstd * WIDE(2.0**-51), np.dtype(float), "rstd")
        found.append(part_of(case, at, mean, var, frozen=False, omits=omits, renorm=correction(case)))
    return found
