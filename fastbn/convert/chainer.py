"""Chainer: chainer.links.BatchNormalization, or a dict of its arrays."""
import numpy as np

from ._arrays import is_a
from ._common import build, check_layer, missing, outgoing, pairs, prefixed

_NAMES = {"gamma": "gamma", "beta": "beta", "running_mean": "avg_mean", "running_var": "avg_var"}
_LINK = "BatchNormalization", "chainer.links"
_DEFAULTS = {"axis": 1, "eps": 2e-5, "momentum": 0.9, "ddof": 1}


def from_chainer(cls, source, *, prefix="", **settings):
    """Make a layer with the state of a Chainer batch norm.

    Parameters
    ----------
    source : link or dict of arrays
        A chainer.links.BatchNormalization; or a dict of arrays {"gamma", "beta", "avg_mean", "avg_var", "N"}, gamma,
        beta and N where it has them, as chainer.serializers.save_npz writes (pass what np.load gives).
    prefix : str, default ''
        The link's path in a dict of a whole network: "conv/bn".
    **settings : dict
        Keyword arguments of BatchNorm, where another value than the one found is wanted, and training, the layer's
        mode (False: ready for inference). A link brings its own eps, decay and axis; a dict has none, and Chainer's
        defaults stand (eps 2e-5, decay 0.9, axis 1).

    Returns
    -------
    BatchNorm
        A new layer.

    Raises
    ------
    TypeError, ValueError
        If the link is not initialized, or entries are missing or have other shapes.

    Notes
    -----
    What is translated: decay, the weight of the old average, is momentum; eps is the same; ddof=1: avg_var takes the
    unbiased variance, m / (m - 1) times the biased one. A link's axis names the axes to sum over, fastbn's the
    others; arrays of several feature axes become flat. N, the batches seen in fine-tuning, is num_batches_tracked:
    fine-tuning is momentum=None. Exact, for inference and further training (but for rounding; and for one value a
    feature, which Chainer puts into its averages). The layer starts in training mode.

    References
    ----------
    Chainer, chainer/links/normalization/batch_normalization.py; for avg_var `adjust` in
    chainer/functions/normalization/batch_normalization.py (GeneralBatchNormalizationImpl.forward).

    Examples
    --------
    >>> import numpy as np
    >>> import fastbn
    >>> ones = np.ones(2, np.float32)
    >>> fastbn.BatchNorm.from_chainer({"gamma": 3 * ones, "beta": ones, "avg_mean": ones, "avg_var": ones})
    BatchNorm(2, axis=1, eps=2e-05, momentum=0.9, ddof=1, dtype=float32)
    """
    if is_a(source, *_LINK):
        if prefix:
            raise ValueError(f"prefix is {prefix!r} and source a link, expected no prefix: it is for dicts")
        _check_initialized(source, "source")
        arrays = {key: getattr(source, name) for key, name in _NAMES.items()}
        own = {"axis": _feature_axes(source), "eps": source.eps, "momentum": source.decay, "ddof": 1}
        return build(cls, arrays, _NAMES, own, settings, batches=source.N)
    arrays, batches = _of_dict(source, prefix)
    rank = np.ndim(arrays["running_mean"])
    own = _DEFAULTS | {"axis": 1 if rank <= 1 else tuple(range(1, rank + 1))}
    return build(cls, arrays, _NAMES, own, settings, batches=batches)


def _check_initialized(link, argument):
    if link.avg_mean is None:
        raise ValueError(f"{argument} is a link that is not initialized and has no arrays: call it on a batch first")
    if not isinstance(link.avg_mean, np.ndarray):
        raise TypeError(f"{argument} has arrays of type {type(link.avg_mean).__name__}, expected NumPy's: call its "
                        "to_cpu() first")


def _feature_axes(link):
    """From the axes to sum over (None: all but the ones after the first) to the feature axes."""
    rank = link.avg_mean.ndim
    if link.axis is None:
        axes = tuple(range(1, rank + 1))
    else:
        axes = tuple(i for i in range(len(link.axis) + rank) if i not in link.axis)
    return axes[0] if len(axes) == 1 else axes


def _of_dict(source, prefix):
    if not hasattr(source, "keys"):
        raise TypeError(f"source is a {type(source).__name__}, expected a chainer.links.BatchNormalization or a dict "
                        "of its arrays")
    prefix = prefixed(prefix, "/")
    arrays = {key: source[prefix + name] if prefix + name in source else None for key, name in _NAMES.items()}
    for key in ("running_mean", "running_var"):
        if arrays[key] is None:
            raise missing(_NAMES[key], prefix, source.keys(), _NAMES[key])
    return arrays, source[prefix + "N"] if prefix + "N" in source else 0


def to_chainer(self, target=None, *, prefix=""):
    """Give this layer's state in Chainer's names and meaning.

    Parameters
    ----------
    target : link, optional
        None: returns a dict of arrays {"gamma", "beta", "avg_mean", "avg_var", "N"}, those that the layer has. It
        holds no settings: make the link with decay=bn.momentum, eps=bn.eps. A chainer.links.BatchNormalization: fills
        it, sets its N, decay and eps, and returns it; its axis stays. Where it has a gamma or beta and this layer
        none, they become 1 and 0.
    prefix : str, default ''
        The link's path in a dict of a whole network: "conv/bn".

    Returns
    -------
    dict or link
        The dict where target is None, else the link.

    Raises
    ------
    TypeError, ValueError
        If the layer has an activation or another setting that Chainer lacks, or the target another shape. Then the
        target is as it was.
    RuntimeError
        If the layer has no running statistics.

    Notes
    -----
    decay is momentum; where that is None, a cumulative average, N is num_batches_tracked, a link keeps its decay, and
    calls with finetune=True continue the average; else N is 0. Chainer always takes the unbiased variance, so a layer
    with ddof=0 is converted exactly for inference, but its avg_var would grow on by N / (N - 1) larger batch
    variances there. A layer in training mode with ghost batches or renormalization warns: Chainer's link has neither.

    References
    ----------
    Chainer, chainer/links/normalization/batch_normalization.py.

    Examples
    --------
    >>> import fastbn
    >>> list(fastbn.BatchNorm(2).to_chainer())
    ['gamma', 'beta', 'avg_mean', 'avg_var', 'N']
    """
    check_layer(self, "Chainer")
    seen = self.num_batches_tracked if self.momentum is None else 0
    if target is not None:
        return _fill(self, target, prefix, seen)
    prefix = prefixed(prefix, "/")
    state = {prefix + name: a for name, a in outgoing(self, _NAMES).items()}
    return state | {prefix + "N": np.array(seen, np.int64)}


def _fill(layer, link, prefix, seen):
    if not is_a(link, *_LINK):
        raise TypeError(f"target is a {type(link).__name__}, expected a chainer.links.BatchNormalization")
    if prefix:
        raise ValueError(f"prefix is {prefix!r} and target a link, expected no prefix: it is for dicts")
    _check_initialized(link, "target")
    for target, value in pairs(layer, link, _NAMES):
        (target if isinstance(target, np.ndarray) else target.array)[...] = value
    link.N, link.eps = seen, layer.eps
    link.decay = link.decay if layer.momentum is None else layer.momentum
    return link
