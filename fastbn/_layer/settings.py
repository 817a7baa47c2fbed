"""The settings of a layer: what it computes with beside its arrays, and how it trains."""
import numpy as np

from .. import _core
from .._engine import activations, checks, fusion
from .._engine.layout import normalize_axes
from .._training import ghost_batches, nan_policies, renormalization
from .._training.variants import Variant


class Settings(_core.LayerBase):
    """Settings that may change between calls. Each is checked when it is set."""

    __slots__ = ()

    @property
    def axis(self):
        """The feature axis, an int, or a tuple of several."""
        return self._axis

    @axis.setter
    def axis(self, value):
        several = value if isinstance(value, (tuple, list)) else [value]
        largest = max((abs(i) for i in several if isinstance(i, (int, np.integer))), default=0)
        normalize_axes(value, 2 * largest + 1)  # so many dimensions that -1 and 1 may be different axes
        self._axis = tuple(value) if isinstance(value, (tuple, list)) else int(value)
        self._set_axis(self._axis if isinstance(self._axis, int) else None)

    @property
    def activation(self):
        """What is applied to y in the same pass, as batch_norm_inference's argument; None: nothing."""
        return self._activation.argument

    @activation.setter
    def activation(self, value):
        self._activation = activations.parse(value)
        self._set_activation(self._activation.code, self._activation.slope, fusion.alone(self._activation))

    @property
    def eps(self):
        """What is added to the variance, a float above 0."""
        return self._get_eps()

    @eps.setter
    def eps(self, value):
        self._set_eps(checks.epsilon(value))

    @property
    def momentum(self):
        """The weight that the old average keeps, a float from 0 to 1, or None: all batches alike."""
        return self._momentum

    @momentum.setter
    def momentum(self, value):
        self._momentum = checks.momentum_or_none(value)
        if self._momentum is not None and self._momentum < 0.5:
            checks.warn(f"momentum={self._momentum} is the weight of the old average, which hardly keeps anything: PyTorch's "
                        f"momentum is the weight of the new batch; its {self._momentum} is "
                        f"{1 - self._momentum:g} here")

    @property
    def ddof(self):
        """1: the moving variance takes the unbiased variance; 0: the biased one."""
        return self._ddof

    @ddof.setter
    def ddof(self, value):
        self._ddof = checks.ddof(value)

    # ---- training by other statistics than the plain ones of the batch ----
    #
    # Inference takes the running statistics, so only nan_policy means anything there, where use_batch_stats is True or there are
    # no running statistics.

    _ghost_batch_size = _renorm = None
    _nan_policy = "propagate"

    @property
    def ghost_batch_size(self):
        """Entries of the batch axis (axis 0) that share statistics in training, or None: the whole batch."""
        return self._ghost_batch_size

    @ghost_batch_size.setter
    def ghost_batch_size(self, value):
        self._ghost_batch_size = ghost_batches.check(value)
        self._choose_way()

    @property
    def renorm(self):
        """(rmax, dmax) of batch renormalization in training, or None.

        Set it as training goes on: Ioffe 2017 begins with (1, 0), which is plain training, for 5000 steps, and relaxes
        to rmax 3 at step 40000 and dmax 5 at step 25000.
        """
        return self._renorm

    @renorm.setter
    def renorm(self, value):
        value = renormalization.check(value)
        if value is not None:
            self._require_tracking("renorm")
        self._renorm = value
        self._choose_way()

    @property
    def nan_policy(self):
        """What becomes of a batch with NaN or Inf: "propagate", "raise", "omit" or "skip"."""
        return self._nan_policy

    @nan_policy.setter
    def nan_policy(self, value):
        self._nan_policy = nan_policies.check(value)
        self._choose_way()

    def _variant(self):
        """How the next call that takes the batch's statistics computes; None: plainly."""
        size, limits = (self._ghost_batch_size, self._renorm) if self.training else (None, None)
        policy = "propagate" if self._nan_policy == "skip" else self._nan_policy
        if size is None and limits is None and policy == "propagate":
            return None
        running = (None, None) if limits is None else (self.running_mean, self.running_var)
        return Variant(size, limits, *running, policy, *((self.dtype, self.ddof) if self._tracks else ()))

    def _omits(self):
        """Whether NaN entries are missing."""
        return self._nan_policy == "omit"

    def _require_tracking(self, what):
        if not self._tracks:
            raise ValueError(f"{what} needs running statistics, and this layer has none: it was made with "
                             "track_running_stats=False")

    def _choose_way(self):
        self._enable_fast_path(self._is_plain())

    def _is_plain(self):
        """Whether the core's short way, which knows of no more than it is told, may take the calls."""
        return self._ghost_batch_size is None and self._renorm is None and self._nan_policy == "propagate"

    def _training_text(self):
        """["name=value", ...] of those that are not the default."""
        found = {"ghost_batch_size": self._ghost_batch_size, "renorm": self._renorm,
                 "nan_policy": None if self._nan_policy == "propagate" else self._nan_policy}
        return [f"{name}={value!r}" for name, value in found.items() if value is not None]
