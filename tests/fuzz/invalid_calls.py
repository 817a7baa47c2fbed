"""Calls that have to be refused: with a TypeError, ValueError or RuntimeError, and nothing changed."""
import numpy as np

import fastbn

from .case import REFUSALS, Case

_WRONG = (
    ("gamma of another size", lambda case: {"gamma": np.ones(case.c + 1, np.float32)}),
    ("beta of a half type", lambda case: {"beta": np.ones(case.c, np.float16)}),
    ("eps 0", lambda case: {"eps": 0.0}),
    ("eps NaN", lambda case: {"eps": float("nan")}),
    ("eps a string", lambda case: {"eps": "1e-5"}),
    ("axis out of range", lambda case: {"axis": len(case.shape)}),
    ("axis twice", lambda case: {"axis": (0, -len(case.shape))}),
    ("no axis", lambda case: {"axis": ()}),
    ("unknown activation", lambda case: {"activation": "softplus"}),
    ("a parameter for relu", lambda case: {"activation": ("relu", 1.0)}),
    ("a slope of NaN", lambda case: {"activation": ("leaky_relu", float("nan"))}),
    ("residual of another shape", lambda case: {"residual": np.zeros((*case.shape, 1), case.dtype)}),
    ("a mask of numbers", lambda case: {"mask": np.ones(case.batch_shape)}),
    ("a mask of another shape", lambda case: {"mask": np.ones((*case.batch_shape, 2, 2), bool)}),
    ("a negative weight", lambda case: {"weights": np.full(case.batch_shape, -1.0)}),
    ("a weight of NaN", lambda case: {"weights": np.full(case.batch_shape, np.nan)}),
    ("lengths beyond the end", lambda case: {"lengths": np.full(case.batch_shape[:1], 10**6)}),
    ("ghost batches of 0", lambda case: {"ghost_batch_size": 0}),
    ("renorm without running statistics", lambda case: {"renorm": (3.0, 5.0)}),
    ("rmax below 1", lambda case: {"renorm": (0.5, 5), **{f"running_{k}": np.ones(case.c) for k in ("mean", "var")}}),
    ("running statistics without renorm", lambda case: {"running_mean": np.zeros(case.c)}),
    ("unknown policy", lambda case: {"nan_policy": "skip"}),
    ("no thread", lambda case: {"num_threads": 0}),
    ("half a thread", lambda case: {"num_threads": 0.5}),
    ("out of another type", lambda case: {"out": case.arena.place("out", np.zeros(case.shape, np.int32))}),
    ("out of another shape", lambda case: {"out": case.arena.place("out", np.zeros((2, *case.shape), case.dtype))}),
    ("out that is read-only", lambda case: {"out": read_only(case)}),
    ("out that is a list", lambda case: {"out": [1.0]}),
    ("out that overlaps x", lambda case: overlapping(case)),
)


def read_only(case):
    out = case.arena.place("out", np.zeros(case.shape, case.dtype))
    out.flags.writeable = False
    return out


def overlapping(case):
    """x and out are one element apart in one array."""
    both = case.arena.place("both", np.ones(case.x.size + 1, case.dtype))
    case.x = both[:-1].reshape(case.shape)
    return {"out": both[1:].reshape(case.shape)}


def invalid_case(draw):
    """None where there are too few entries for the fault to be one."""
    case = Case(draw)
    name, arguments = draw.choice(_WRONG)
    one_batch_axis = name.startswith("lengths") and len(case.batch_shape) < 1
    if case.x.size < 2 or not case.batch_shape or one_batch_axis:
        return None
    case.kind = f"invalid: {name}"
    if draw.chance(0.5):
        case.draw_parameters()
    case.keep(**arguments(case))
    return case


def run_invalid(case):
    try:
        fastbn.batch_norm_training(case.x, **case.arguments)
    except REFUSALS:
        case.arena.assert_unchanged()
        return
    raise AssertionError("was not refused")
