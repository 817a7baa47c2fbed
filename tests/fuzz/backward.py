"""batch_norm_backward and batch_norm_double_backward after a forward call."""
from types import SimpleNamespace

import numpy as np
from oracle import GRAD_UNIT, WIDE
from test_double_backward import terms

import fastbn

from .bounds import arithmetic_of, assert_near, type_of
from .tables import as_table

NAMES = "dx", "dgamma", "dbeta"


def draw_gradient(case, name, spoils):
    """Like data, now and then with many zeros, as after a relu."""
    dy = case.draw.data(case.shape, case.axes, case.dtype, spoils)
    if case.draw.chance(0.3):
        dy = np.where(case.draw.many.random(case.shape) < 0.4, np.zeros((), case.dtype), dy)
    return case.arena.place(name, dy, case.draw.choice(("C", "C", "F", "permuted", "strided", "negative")))


def run_backward(case, saved, parts):
    draw, dy = case.draw, draw_gradient(case, "dy", spoils=True)
    dy_table = as_table(dy, case.axes)
    of_residual = ("dresidual",) if case.residual is not None else ()
    names = (*NAMES, *(("dmean", "dvar") if saved.frozen else ()), *of_residual)
    needs = tuple(name for name in names if draw.chance(0.7)) if draw.chance(0.4) else None
    out = case.draw_out("dx", (dy,)) if needs is None or "dx" in needs else None
    more = {"out": out, "num_threads": draw.choice((None, 1, 2)), **({} if needs is None else {"needs": needs})}
    case.keep(backward=needs or "all", dy=dy, backward_out=out)
    result = case.attempt(lambda: fastbn.batch_norm_backward(dy, saved, **more),
                          lambda e: refuses_overwritten(case, e), out)
    if result is None:
        return
    needs = (*NAMES, *of_residual) if needs is None else needs
    shown = {**dict(zip(NAMES, result))}
    rest = list(result[3:])
    if case.residual is not None:
        shown["dresidual"] = rest.pop()
    shown |= dict(zip(("dmean", "dvar"), rest))
    assert {name for name, a in shown.items() if a is not None} == set(needs), f"needs {needs}, got {list(shown)}"
    assert out is None or shown["dx"] is out, "dx is not out"
    check_gradients(case, saved, parts, dy_table, shown)


def refuses_overwritten(case, error):
    return case.in_place and isinstance(error, RuntimeError) and "x was overwritten by the forward call" in str(error)


def core_of(saved, part):
    """The core's Saved of a part of the batch, inside of those of ghost batches and renormalization."""
    saved = saved.parts[part] if hasattr(saved, "parts") else saved
    return getattr(saved, "core", saved)


def check_gradients(case, saved, parts, dy, got):
    got = {name: a for name, a in got.items() if a is not None}
    y = as_table(case.y, case.axes)
    tables = {name: as_table(got[name], case.axes) for name in ("dx", "dresidual") if name in got}
    sums = {name: [WIDE(0), WIDE(0)] for name in ("dgamma", "dbeta")}
    for i, part in enumerate(parts):
        if core_of(saved, i).holds_y:
            part.reads(y[part.rows], case.activation)
        found = check_part(case, part, dy[part.rows], tables)
        for name, (value, error) in found.items():
            sums[name][0], sums[name][1] = sums[name][0] + value, sums[name][1] + error
    check_sums(case, parts, sums, got)


def check_part(case, part, dy, tables):
    """dx and dresidual; gives dgamma and dbeta with their bounds."""
    layer, bounds = part.layer, part.bounds
    wanted = layer.backward(dy)
    error = bounds.dz(dy, wanted.dresidual)
    of_dbeta, of_dgamma = bounds.sums(wanted.dresidual, error)
    if "dx" in tables:
        allowed = bounds.dx(wanted.dresidual, error, wanted.dgamma, wanted.dbeta)
        check_finite(tables["dx"][part.rows], wanted.dx, allowed, case.dtype, "dx", bounds.size_of_dx)
    if "dresidual" in tables:
        allowed = error + bounds.data.rounding(np.abs(wanted.dresidual) + error)
        check_finite(tables["dresidual"][part.rows], wanted.dresidual, allowed, case.dtype, "dresidual")
    both = part.r * of_dgamma + np.abs(part.d) * of_dbeta + 10 * WIDE(2.0**-52) * np.abs(part.d * wanted.dbeta)
    return {"dgamma": (part.r * wanted.dgamma + part.d * wanted.dbeta, both), "dbeta": (wanted.dbeta, of_dbeta)}


def check_finite(got, wanted, allowed, dtype, what, size=0):
    """Entries with NaN or Inf may have either, and those of which a term may overflow, by `size`."""
    bad = ~np.isfinite(wanted) | ~np.isfinite(allowed) | (size >= type_of(arithmetic_of(dtype)).largest / 4)
    assert_near(np.where(bad, 0, got), np.where(bad, 0, wanted), np.where(bad, 0, allowed), dtype, what)


def check_sums(case, parts, sums, got):
    """dgamma, dbeta, and what follows from them for given statistics."""
    layer = parts[0].layer
    dtype = case.gamma.dtype if case.gamma is not None else case.arithmetic
    factor, rstd = (layer.gamma * layer.rstd)[0], layer.rstd[0]
    wanted = {**sums, "dmean": [-factor * sums["dbeta"][0], np.abs(factor) * sums["dbeta"][1]],
              "dvar": [-factor * rstd / 2 * sums["dgamma"][0], np.abs(factor * rstd / 2) * sums["dgamma"][1]]}
    for name, (value, error) in wanted.items():
        if name in got:
            assert got[name].dtype == dtype and got[name].shape == (case.c,), f"{name} is {got[name].dtype}"
            rounding = type_of(dtype).rounding(np.abs(value) + error) + 8 * WIDE(2.0**-52) * np.abs(value)
            check_finite(got[name], value, error + rounding, dtype, name)


# ---- the gradient of the backward ----

def draw_moderate(case, name):
    """The scales are 1e-3 to 1e3: products of three arrays and gamma have no promise where those overflow."""
    values = case.draw.many.standard_normal(case.shape) + case.draw.choice((0, 0, 3, 1e3))
    return case.arena.place(name, (values * case.draw.choice((1, 1, 1e-3, 1e3 if case.dtype.itemsize > 2 else 1)))
                            .astype(case.dtype), case.draw.choice(("C", "C", "F", "permuted", "strided", "negative")))


def sizes_of(plain, upstream, saved):
    """The sizes of what is added up. The reference takes dy without its mean, which is itself a rounded sum."""
    ddy, dx, dgamma = terms(plain, upstream, saved, magnitudes=True)
    rstd = saved.rstd.astype(WIDE)
    product = np.abs(upstream[0]).mean(axis=0) * np.abs(plain.dy).mean(axis=0) * rstd
    h = np.abs(plain.x - saved.mean.astype(WIDE)) * rstd
    gamma = 1 if plain.gamma is None else np.abs(plain.gamma.astype(WIDE))
    return ddy, dx if saved.frozen else dx + gamma * product * rstd * h, dgamma + len(plain.x) * product


def underflow_of(case, plain, upstream, saved):
    """What ddy, dx and dgamma lose below the least number, in units of half of it: nothing is promised there but that
    subnormals are kept.

    The second pass adds up (array - mean) * factor and a constant, in the arithmetic's type (csrc/kernels/combine.inc).
    Each factor, product and constant may be subnormal, and is off by half a unit then: a factor by so much times what it
    multiplies. Sums of subnormals are exact. dgamma is a double.
    """
    def lost(a, mean):
        return np.abs(a - mean) + 1
    means = [0 if saved.frozen else a.mean(axis=0) for a in (upstream[0], plain.dy)]
    of_ddx, of_dy = lost(upstream[0], means[0]), lost(plain.dy, means[1])
    of_x = lost(plain.x, saved.mean.astype(WIDE))
    half = type_of(case.arithmetic).tiny / 2
    return half * (of_ddx + of_x + 1), half * (of_dy + of_x + of_ddx + 1), WIDE(0)


def run_double_backward(case, saved):
    """Plain calls alone have one. The reference is that of tests/test_double_backward.py, on tables."""
    draw, dy, ddx = case.draw, draw_moderate(case, "dy2"), draw_moderate(case, "ddx")
    p, q = (case.vector(name, draw.gamma(case.c, case.parameter_type)) for name in ("ddgamma", "ddbeta"))
    case.keep(double_backward=True, dy2=dy, ddx=ddx, ddgamma=p, ddbeta=q)
    results = case.attempt(lambda: fastbn.batch_norm_double_backward(ddx, p, q, dy, saved), lambda e: False, None)
    plain = SimpleNamespace(x=case.x_table, dy=as_table(dy, case.axes), axis=1, gamma=case.gamma)
    upstream = as_table(ddx, case.axes), p, q
    wanted, sizes = terms(plain, upstream, saved), sizes_of(plain, upstream, saved)
    underflow = underflow_of(case, plain, upstream, saved)
    for name, got, value, size, lost in zip(("ddy", "dx", "dgamma"), results, wanted, sizes, underflow):
        got = got if name == "dgamma" else as_table(got, case.axes, wide=False)
        assert got.dtype == (case.dtype if name != "dgamma" else
                             case.gamma.dtype if case.gamma is not None else case.arithmetic), f"{name} is {got.dtype}"
        allowed = GRAD_UNIT[case.arithmetic] * size + lost + type_of(got.dtype).rounding(value)
        check_finite(got, value, allowed, got.dtype, f"double backward's {name}", size)
