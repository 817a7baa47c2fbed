"""fastbn.BatchNorm: forward calls in changing modes, each checked as the function is, and running statistics."""
import numpy as np
from oracle import WIDE

import fastbn

from .backward import check_gradients, draw_gradient, refuses_overwritten
from .case import Case
from .draw import FLOAT32, FLOAT64
from .expected import part_of, rows_of, true_statistics
from .forward import check_y, counts_nan, parts_of_training, refuses_residual
from .moments_calls import check_averages
from .tables import as_table


def layer_case(draw):
    """A layer with its settings, and the first batch."""
    case = Case(draw)
    case.kind = "BatchNorm"
    if case.c == 0:
        return None
    case.draw_parameters()
    case.parameter_type = draw.choice((FLOAT32, FLOAT64))
    case.draw_extras()
    case.draw_counting()
    case.ghost = draw.int(1, max(case.shape[0], 1)) if 0 not in case.axes and draw.chance(0.15) else None
    case.nan_policy = draw.choice(("propagate",) * 5 + ("raise", "omit", "skip"))
    case.renorm = draw.choice(((1.0, 0.0), (3.0, 5.0))) if draw.chance(0.1) else None
    settings = {"axis": case.axis, "eps": case.eps, "momentum": draw.choice((0.9, 0.5, None)), "ddof": draw.int(0, 1),
                "center": draw.chance(0.8), "scale": draw.chance(0.8) or case.dtype != FLOAT64, "activation": case.activation,
                "dtype": case.parameter_type, "ghost_batch_size": case.ghost, "nan_policy": case.nan_policy}
    settings["track_running_stats"] = case.renorm is not None or draw.chance(0.85)
    case.arguments.clear()
    case.keep(num_features=case.c, **settings, renorm=case.renorm, residual=case.residual, **case.counting)
    case.layer = fastbn.BatchNorm(case.c, renorm=case.renorm, **settings)
    set_parameters(case)
    return case


def set_parameters(case):
    """Guarded arrays; the switches now and then."""
    layer, draw = case.layer, case.draw
    for name, has in (("gamma", layer.gamma is not None), ("beta", layer.beta is not None)):
        value = getattr(case, name)
        value = None if value is None or not has else case.arena.place("own " + name, value.astype(case.parameter_type))
        if value is not None:
            setattr(layer, name, value)
        setattr(case, name, getattr(layer, name))
    case.tracks = layer.running_mean is not None
    if case.tracks:
        for name in ("running_mean", "running_var"):
            setattr(layer, name, case.arena.place(name, getattr(layer, name)))
        layer.use_batch_stats = draw.choice((None, None, None, True, False))
        layer.update_running_stats = draw.choice((None, None, None, True, False))
    layer.parameter_gradients = draw.chance(0.9)
    case.keep(use_batch_stats=layer.use_batch_stats, update_running_stats=layer.update_running_stats)


def run_layer(case):
    """Up to three forward calls of the same batch, in modes of their own; out=x is for the last."""
    steps = case.draw.int(1, 3)
    for step in range(steps):
        case.mode = case.draw.choice(("train", "train", "eval", "eval with backward"))
        case.keep(mode=case.mode, step=step)
        (case.layer.train if case.mode == "train" else case.layer.eval)(
            **({"backward": True} if case.mode == "eval with backward" else {}))
        case.out = case.draw_out(f"out {step}", (case.x,) if step == steps - 1 else ())
        case.keep(out=case.out)
        if not run_step(case):
            return


def run_step(case):
    """Whether it was not refused."""
    layer = case.layer
    case.residual_table = case.table(case.residual)
    by_batch = not case.tracks or (layer.training if layer.use_batch_stats is None else layer.use_batch_stats)
    case.training, case.keeps = by_batch, case.mode != "eval"
    case.updates = case.tracks and ((layer.training and by_batch) if layer.update_running_stats is None else
                                    layer.update_running_stats)
    case.old = [a.copy() for a in (layer.running_mean, layer.running_var)] if case.tracks else None
    case.seen, finite = layer.num_batches_tracked, not counts_nan(case) and holds_statistics(case)
    keywords = {**case.counting, **({} if case.residual is None else {"residual": case.residual})}
    y = case.attempt(lambda: forward(case, keywords), lambda e: refuses(case, e, finite), case.out)
    if y is None:
        return False
    check_forward(case, y, by_batch)
    return True


def forward(case, keywords):
    """The moving averages' new values are settled here, and checked by check_running."""
    y = case.layer(case.x, out=case.out, **keywords)
    for a in (case.layer.running_mean, case.layer.running_var):
        case.arena.settle(a)
    return y


def holds_statistics(case):
    """Whether the layer's type holds those of the batch and of its parts: what it does not hold counts as Inf.

    Unbiased variances are twice as large at most, or with weights by whatever their effective count comes to.
    """
    if not case.tracks or case.parameter_type == FLOAT64:
        return True
    for rows in (slice(0, case.entries), *rows_of(case, case.ghost)):
        _, mean, var = true_statistics(case, rows, case.nan_policy == "omit")
        if (np.maximum(np.abs(mean), var * (2 if case.product is None else 1e6)) > np.finfo(np.float32).max).any():
            return False
    return True


def refuses(case, error, finite):
    if case.nan_policy == "raise" and not finite and isinstance(error, ValueError) and "NaN or Inf" in str(error):
        case.arena.settle(None if case.out is case.x else case.out)
        return True
    return refuses_residual(case, error)


def check_forward(case, y, by_batch):
    rows = slice(0, case.entries)
    case.y = y
    if not by_batch:
        mean, var = (a.astype(float) for a in case.old)
        parts = [part_of(case, rows, mean, var, frozen=True)]
    elif case.keeps:
        parts = training_parts(case)
    else:
        parts = None
    if parts is not None:
        check_y(case, y, parts)
    check_running(case)
    if case.keeps and case.draw.chance(0.7):
        check_backward(case, parts)


def training_parts(case):
    """As of the function: ghost batches and renormalization are for training mode alone."""
    ghost, renorm = case.ghost, case.renorm
    if not case.layer.training:
        case.ghost = case.renorm = None
    case.running = case.old
    parts = parts_of_training(case, case.layer._saved)
    case.ghost, case.renorm = ghost, renorm
    return parts


def check_running(case):
    layer = case.layer
    if not case.tracks:
        return
    batch = layer.batch_moments if case.updates else None
    steps = batch is not None and bool((~np.isnan(np.broadcast_to(batch.freedom(layer.ddof), (case.c,)))).any())
    if steps and case.nan_policy == "skip":
        largest = np.maximum(np.abs(batch.mean), batch.var(layer.ddof))
        steps = bool((largest <= np.finfo(layer.dtype).max).all())
    assert layer.num_batches_tracked == case.seen + steps, "num_batches_tracked"
    new = layer.running_mean, layer.running_var
    if not steps:
        assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(new, case.old)), "the moving averages moved"
        return
    momentum = case.seen / (case.seen + 1) if layer.momentum is None else layer.momentum
    check_averages(new, [a.astype(WIDE) for a in case.old], batch, momentum, layer.ddof)


def check_backward(case, parts):
    layer, saved = case.layer, case.layer._saved
    dy = draw_gradient(case, f"dy {case.arguments['step']}", spoils=True)
    out = case.draw_out(f"dx {case.arguments['step']}", (dy,))
    dy_table = as_table(dy, case.axes)
    case.keep(dy=dy, backward_out=out)
    result = case.attempt(lambda: layer.backward(dy, out=out), lambda e: refuses_overwritten(case, e), out)
    if result is None:
        return
    dx, dresidual = result if case.residual is not None else (result, None)
    got = {"dx": dx, "dresidual": dresidual, "dgamma": layer.dgamma, "dbeta": layer.dbeta}
    learns = layer.parameter_gradients
    assert (layer.dgamma is not None) == (learns and layer.gamma is not None), "dgamma is there or not"
    assert (layer.dbeta is not None) == (learns and layer.beta is not None), "dbeta is there or not"
    check_layer_gradients(case, saved, parts, dy_table, got)


def check_layer_gradients(case, saved, parts, dy, got):
    """They have the layer's type, whatever that of x."""
    gamma = case.gamma
    case.gamma = np.ones(case.c, case.parameter_type) if gamma is None else gamma
    check_gradients(case, saved, parts, dy, got)
    case.gamma = gamma
