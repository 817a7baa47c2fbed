"""Whether a framework's own results and fastbn's agree: a speed-up over another computation would say nothing."""
import numpy as np

TOLERANCE = 1e-3  # relative to the largest number of the array


class Disagreement(Exception):
    """The message says which result, and by how much."""


def _array(value):
    """In float64; of tensors that carry a gradient, the value alone."""
    value = value.detach() if hasattr(value, "detach") else value
    return np.asarray(value).astype(np.float64)


def _flat(results):
    if isinstance(results, (tuple, list)):
        return [array for result in results for array in _flat(result)]
    return [] if results is None else [_array(results)]


def check(own, ours):
    """Raises Disagreement. own, ours: what the two functions returned."""
    own, ours = _flat(own), _flat(ours)
    if not own or len(own) != len(ours):
        raise Disagreement(f"own returns {len(own)} arrays and ours {len(ours)}, expected as many, and at least one")
    for index, (a, b) in enumerate(zip(own, ours)):
        if a.shape != b.shape:
            raise Disagreement(f"result {index} has shape {a.shape} of own and {b.shape} of ours")
        difference, scale = np.max(np.abs(a - b)), np.max(np.abs(a))
        if not difference <= TOLERANCE * scale:
            raise Disagreement(f"result {index} differs by {difference:.3g}, where own's largest is {scale:.3g}")
