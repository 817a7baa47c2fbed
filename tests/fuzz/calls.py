"""One call by its seed and number: made, described, run and checked."""
import numpy as np

from fastbn import _core

from . import backward, forward, invalid_calls, layer_calls, moments_calls
from .draw import Draw

_KINDS = ("training",) * 9 + ("inference",) * 5 + ("layer",) * 3 + ("moments",) * 2 + ("invalid",)
_CASES = {"training": forward.training_case, "inference": forward.inference_case, "layer": layer_calls.layer_case,
          "moments": moments_calls.moments_case, "invalid": invalid_calls.invalid_case}
_ISAS = [name for name in _core.isa_names() if _core.isa_supported(name)]


def make(seed, number):
    """The case, or None where the draw came to nothing, and what sets it up."""
    draw = Draw(seed, number)
    kind = draw.choice(_KINDS)
    with np.errstate(all="ignore"):
        case = _CASES[kind](draw)
    if case is None:
        return None
    case.isa = draw.choice(_ISAS) if draw.chance(0.4) else None
    case.splits = draw.chance(0.1)  # among threads, however small
    return case


def run(case):
    _core.set_isa(case.isa)
    before = _core.set_bytes_per_thread(0) if case.splits else None
    try:
        with np.errstate(all="ignore"):
            _run(case)
    finally:
        if before is not None:
            _core.set_bytes_per_thread(before)


def _run(case):
    if case.kind.startswith("invalid"):
        return invalid_calls.run_invalid(case)
    if case.kind in ("BatchNorm", "moments"):
        return (layer_calls.run_layer if case.kind == "BatchNorm" else moments_calls.run_moments)(case)
    found = forward.run_training(case) if case.training else forward.run_inference(case)
    if found is None or found[0] is None:
        return None
    saved, parts = found
    if type(saved) is _core.Saved and saved.extras is None and not saved.holds_y and case.draw.chance(0.3):
        backward.run_double_backward(case, saved)
    return backward.run_backward(case, saved, parts) if case.draw.chance(0.8) else None


def described(case):
    more = [f"FASTBN_ISA={case.isa}"] * (case.isa is not None) + ["split among threads"] * case.splits
    return ", ".join([case.described(), *more])
