"""The arrays of a layer, and the step that a batch takes of its moving averages, apart from forward too.

The factor N / (N - ddof) of that step stands in _engine/moments.py (step), and for plain calls in _binding/plain_calls.pxi.
"""
import numpy as np

from .._data.calibration import calibrate
from .._data.drift import drift
from .._data.layer_state import PUBLIC_NAMES, checked, counter, refuse_read_only
from .._engine import checks
from .._engine.moments import Moments, by_feature
from .._training import nan_policies
from .freezing import Freezing


class Running(Freezing):
    """Moving averages of mean and variance, new = momentum * old + (1 - momentum) * batch, of every batch or of those that
    update() is called with; or the exact statistics of a data set, by calibrate().
    """

    __slots__ = ()

    @property
    def gamma(self):
        """The scale, an array of the layer's dtype and of shape (C,), or None where scale=False."""
        return self._get_gamma()

    @gamma.setter
    def gamma(self, value):
        self._assign("gamma", value, self._scale)

    @property
    def beta(self):
        """The shift, an array of the layer's dtype and of shape (C,), or None where center=False."""
        return self._get_beta()

    @beta.setter
    def beta(self, value):
        self._assign("beta", value, self._center)

    @property
    def running_mean(self):
        """The moving average of the mean, an array of shape (C,), or None where track_running_stats=False."""
        return self._get_mean()

    @running_mean.setter
    def running_mean(self, value):
        self._assign("mean", value, self._tracks)

    @property
    def running_var(self):
        """The moving average of the variance, an array of shape (C,), or None where track_running_stats=False."""
        return self._get_var()

    @running_var.setter
    def running_var(self, value):
        self._assign("var", value, self._tracks)

    def _assign(self, name, value, exists):
        if not exists:
            switch = {"gamma": "scale", "beta": "center"}.get(name, "track_running_stats")
            raise ValueError(f"this layer has no {PUBLIC_NAMES[name]}: it was made with {switch}=False")
        self._set_arrays(**{name: checked(value, PUBLIC_NAMES[name], self.num_features, self.dtype)})

    # ---- moving averages ----

    def reset_running_stats(self):
        """Set the moving averages back to mean 0 and variance 1, and the batch counter to 0.

        Examples
        --------
        >>> import fastbn
        >>> bn = fastbn.BatchNorm(2)
        >>> bn.running_mean[:] = 5
        >>> bn.reset_running_stats()
        >>> bn.running_mean
        array([0., 0.], dtype=float32)
        """
        if self._tracks:
            refuse_read_only(self, ("mean", "var"))
            self.running_mean[:] = 0
            self.running_var[:] = 1
            self.num_batches_tracked = 0

    @property
    def batch_moments(self):
        """The Moments of the last training forward call's batch, without a pass over it; None before the first.

        update(bn.batch_moments) is the step that call took, or, with update=False, left out. Copies of a layer start
        without. Merging those of several batches gives their union's.
        """
        batch = self._get_batch()
        if isinstance(batch, tuple):
            batch = Moments.of_variance(*batch)
            self._set_batch(batch)
        return batch

    calibrate, drift = calibrate, drift

    def update(self, moments):
        """Take one step of the moving averages with a batch's statistics, as a training forward call does, bit for bit.

        Parameters
        ----------
        moments : Moments
            Of C features: batch_moments after bn(x, update=False), say, or fastbn.moments(x).

        Raises
        ------
        TypeError, ValueError
            If moments is no Moments, or has another number of features.
        RuntimeError
            If there are no running statistics.

        Notes
        -----
        momentum, ddof, nan_policy and the counter hold as in forward; where the variance is not known nothing
        changes, as there. A batch whose forward call runs twice (recomputation, "checkpointing") is counted once with
        update=False both times and one call of this. calibrate replaces the running statistics.

        Examples
        --------
        >>> import numpy as np
        >>> import fastbn
        >>> bn = fastbn.BatchNorm(1, momentum=0.5)
        >>> y = bn(np.array([[1.0], [3.0]]), update=False)
        >>> bn.update(bn.batch_moments)
        >>> bn.running_mean
        array([1.], dtype=float32)
        """
        self._check_moments(moments)
        self._refuse_step()
        self._take_step(moments)

    def _check_moments(self, moments):
        if not isinstance(moments, Moments):
            raise TypeError(f"moments is a {type(moments).__name__}, expected fastbn.Moments")
        if not self._tracks:
            raise RuntimeError("this layer has no running statistics: it was made with track_running_stats=False")
        moments.check(self.num_features)
        self._check_arrays()

    def _take_batch(self, batch, updates):
        """After a training forward call with these Moments. updates: whether the moving averages take a step."""
        batch = by_feature(batch) if self._nan_policy == "omit" else batch
        self._set_batch(batch)
        if not self._warned_single and _all(batch.count > 0) and _all(batch.squares == batch.count * batch.count):
            self._warned_single = True
            y_is = "beta" if self._renorm is None else "gamma * d + beta"
            stay = "; the moving averages stay as they are" if self.ddof else ""
            checks.warn(f"one value per feature counts: its variance is 0 and its y is {y_is}{stay}")
        if updates:
            self._take_step(batch)

    def _refuse_step(self):
        """Before a step, and anything else of its call, whatever would keep it from being taken."""
        if not (self.running_mean.flags.writeable and self.running_var.flags.writeable):
            refuse_read_only(self, ("mean", "var"))
        if type(self.num_batches_tracked) is not int:
            self.num_batches_tracked = counter(self.num_batches_tracked)

    def _take_step(self, batch):
        if self._nan_policy == "raise":
            nan_policies.refuse_moments(batch, self.dtype, self.ddof)
        if self._nan_policy == "skip" and nan_policies.overflowing(batch, self.dtype, self.ddof).size:
            return
        seen = self.num_batches_tracked
        momentum = seen / (seen + 1) if self.momentum is None else self.momentum
        if batch.step(self.running_mean, self.running_var, momentum=momentum, ddof=self.ddof):
            self.num_batches_tracked = seen + 1


def _all(truth):
    """np.all, which would take long for what is mostly a single bool, and else one for each feature."""
    return truth.all() if isinstance(truth, np.ndarray) else truth
