"""Population statistics: those of a whole data set as a layer's running statistics."""
import contextlib

import numpy as np

from .._engine import checks
from .._engine.fusion import NONE
from .._engine.layout import normalize_axes
from .._engine.moments import Moments
from .._training import nan_policies
from .._training.omit import moments_by
from .layer_state import refuse_read_only
from .progress import tracked


def calibrate(self, batches, *, progress=False):
    """Replace the running statistics by the exact ones of a whole data set, in one pass over it.

    Parameters
    ----------
    batches : iterable of arrays, or Moments
        An iterable of arrays as the layer takes them, of any sizes, which is gone through once and never held; or the
        data's Moments, where they are known. The arrays are inputs of this layer: of the data after the layers before
        it.
    progress : bool, default False
        True shows a bar on stderr, by the package rich (pip install 'fastbn[demo]').

    Returns
    -------
    BatchNorm
        The layer.

    Raises
    ------
    TypeError, ValueError
        If a batch does not fit, which is named by its number, or a feature has not more than ddof entries.
    RuntimeError
        If the layer has no running statistics.
    ImportError
        If progress is True and rich is not installed.

    Notes
    -----
    After an error, of the iterable's own too, nothing has changed. The batches' count, mean and M2 are merged
    (fastbn.Moments), so that

        running_mean = the mean of all entries        running_var = M2 / (N - ddof)

    as if all N entries of a feature had been one batch, with the layer's ddof. A mean of the batches' own estimates,
    as moving averages are, lacks the variance of their means and weighs a small batch as much as a large one.
    num_batches_tracked becomes the number of batches, 1 for a Moments, so that an average with momentum=None goes on
    from there. The mode and the switches make no difference; nan_policy "skip" leaves batches with NaN or Inf out,
    "raise" refuses them, "omit" leaves NaN entries out. Masks and weights come in by the moments:

        bn.calibrate(sum(fastbn.moments(x, mask=mask) for x, mask in batches))

    References
    ----------
    Ioffe and Szegedy 2015 (arXiv:1502.03167), algorithm 2, step 10, with exact moments in place of averages; merging:
    Chan, Golub and LeVeque 1979.

    Examples
    --------
    >>> import numpy as np
    >>> import fastbn
    >>> batches = [np.array([[1.0], [2.0]]), np.array([[6.0]])]
    >>> bn = fastbn.BatchNorm(1, dtype=np.float64).calibrate(batches)
    >>> bn.running_mean, bn.running_var
    (array([3.]), array([7.]))
    """
    if not self._tracks:
        raise RuntimeError("this layer has no running statistics: it was made with track_running_stats=False")
    if isinstance(batches, Moments):
        whole, seen = batches, 1
        self._check_moments(whole)
        if self.nan_policy in ("raise", "skip"):
            nan_policies.refuse_moments(whole, self.dtype, self.ddof)
    else:
        whole, seen = _over(self, *_iterable(batches), progress)
    few = np.flatnonzero(np.isnan(whole.freedom(self.ddof)))
    if few.size and np.ndim(whole.count):
        raise ValueError(f"feature {few[0]} has {whole.count[few[0]]} entries that are not missing, expected more than "
                         f"ddof={self.ddof} ({few.size} of {self.num_features} features have too few)")
    if few.size:
        raise ValueError(f"the data has {whole.count} entries of each feature, expected more than ddof={self.ddof}"
                         f"{': batches was empty, or all were skipped' if not seen else ''}")
    refuse_read_only(self, ("mean", "var"))
    with np.errstate(all="ignore"):
        self.running_mean[:] = whole.mean
        self.running_var[:] = whole.var(self.ddof)
    self.num_batches_tracked = seen
    return self


def _iterable(batches):
    """(iterator, how many it gives, or None)"""
    if isinstance(batches, np.ndarray):
        raise TypeError("batches is an array, expected an iterable of arrays, or Moments: for one batch pass [x]")
    try:
        return iter(batches), getattr(batches, "__len__", lambda: None)()
    except TypeError:
        raise TypeError(f"batches is a {type(batches).__name__}, expected an iterable of arrays, or Moments") from None


def _over(layer, iterator, length, progress):
    """(Moments of everything, number of batches)."""
    whole, seen = Moments.of_arrays(0, np.zeros(layer.num_features), np.zeros(layer.num_features)), 0
    bar = contextlib.closing(tracked(iterator, "calibrating", length)) if progress else contextlib.nullcontext(iterator)
    with bar as steps:
        for number, x in enumerate(steps):
            found = _moments_of_batch(layer, x, number)
            if layer.nan_policy != "skip" or not nan_policies.overflowing(found, layer.dtype).size:
                whole, seen = whole + found, seen + 1
    return whole, seen


def _moments_of_batch(layer, x, number):
    try:
        found = layer_moments(layer, x)
        if layer.nan_policy == "raise":
            x = checks.batch(x)
            nan_policies.refuse(x, normalize_axes(layer.axis, x.ndim), [found], layer.dtype, layer.ddof)
        return found
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"batch {number} (counted from 0): {error}") from error


def layer_moments(layer, x):
    """fastbn.moments along the layer's axis, once x is known to have its features."""
    x = checks.batch(x)
    axes = normalize_axes(layer.axis, x.ndim)
    checks.features(x, axes, layer.num_features)
    return moments_by(x, axes, NONE, 0, layer._omits())[0]
