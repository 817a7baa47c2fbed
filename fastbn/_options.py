"""How a layer trains: ghost batches, renormalization, the NaN policy. Mixed into BatchNorm."""
from . import _ghost, _nan_policy
from . import _renorm as renormalization
from ._variants import Variant


class Options:
    """Settings that may change between calls. Inference takes the running statistics, so only nan_policy means anything
    there, where use_batch_stats is True or there are none.
    """

    __slots__ = ()

    _ghost_batch_size = _renorm = None
    _nan_policy = "propagate"

    @property
    def ghost_batch_size(self):
        """Entries of the batch axis (axis 0) that share statistics in training, or None: the whole batch."""
        return self._ghost_batch_size

    @ghost_batch_size.setter
    def ghost_batch_size(self, value):
        self._ghost_batch_size = _ghost.check(value)
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
        self._nan_policy = _nan_policy.check(value)
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

    def _trains_plainly(self):
        return self._ghost_batch_size is None and self._renorm is None and self._nan_policy == "propagate"

    def _options_text(self):
        """["name=value", ...] of those that are not the default."""
        found = {"ghost_batch_size": self._ghost_batch_size, "renorm": self._renorm,
                 "nan_policy": None if self._nan_policy == "propagate" else self._nan_policy}
        return [f"{name}={value!r}" for name, value in found.items() if value is not None]
