"""Which statistics normalize, whether the running ones take a step, whether gamma and beta learn: apart from the mode."""
import numpy as np

from .settings import Settings


class Freezing(Settings):
    """Freezing is three switches. Left alone, the first two follow the mode that train() and eval() set; set to True or
    False they hold in both modes, and train() and eval() do not touch them.

    Fine-tuning through constant statistics, gamma and beta still learning: use_batch_stats = False. The batch's
    statistics without a trace in the running ones: update_running_stats = False. gamma and beta as they are:
    parameter_gradients = False.
    """

    __slots__ = ()

    _use_batch_stats = _update_running_stats = None
    _parameter_gradients = True

    @property
    def use_batch_stats(self):
        """Which statistics normalize: True, False or None, the default.

        True: the batch's. False: the running ones, as constants, through which backward goes in training mode as well
        as after eval(backward=True). None: the batch's in training mode, the running ones in inference mode.
        """
        return self._use_batch_stats

    @use_batch_stats.setter
    def use_batch_stats(self, value):
        value = _switch(value, "use_batch_stats", "the batch's statistics in training mode")
        if value is False:
            self._require_tracking("use_batch_stats=False")
        self._use_batch_stats = value
        self._choose_way()

    @property
    def update_running_stats(self):
        """Whether a forward call takes a step of the moving averages: True, False or None, the default.

        True: in both modes; where use_batch_stats is False that costs one more read of x. False: never. None: in
        training mode, where the batch's statistics normalize. bn(x, update=False) leaves it out once.
        """
        return self._update_running_stats

    @update_running_stats.setter
    def update_running_stats(self, value):
        value = _switch(value, "update_running_stats", "a step in training mode")
        if value:
            self._require_tracking("update_running_stats=True")
        self._update_running_stats = value
        self._choose_way()

    @property
    def parameter_gradients(self):
        """Whether gamma and beta learn: True, the default, or False.

        False: backward sets dgamma and dbeta to None and computes dx alone, without a sum where the statistics are
        constants; parameters() is empty.
        """
        return self._parameter_gradients

    @parameter_gradients.setter
    def parameter_gradients(self, value):
        if value is None:
            raise TypeError("parameter_gradients is None, expected True or False")
        self._parameter_gradients = _switch(value, "parameter_gradients", "")
        self._choose_way()

    def _normalizes_by_batch(self):
        if not self._tracks:
            return True
        return self.training if self._use_batch_stats is None else self._use_batch_stats

    def _updates(self, update):
        """Whether a forward call with this argument `update` takes a step."""
        if not update or not self._tracks:
            return False
        if self._update_running_stats is None:
            return self.training and self._normalizes_by_batch()
        return self._update_running_stats

    def _is_plain(self):
        return (super()._is_plain() and self._use_batch_stats is None and self._update_running_stats is None
                and self._parameter_gradients)

    def _freezing_text(self):
        """["name=value", ...] of those that are not the default."""
        found = {"use_batch_stats": (self._use_batch_stats, None),
                 "update_running_stats": (self._update_running_stats, None),
                 "parameter_gradients": (self._parameter_gradients, True)}
        return [f"{name}={value}" for name, (value, default) in found.items() if value is not default]


def _switch(value, name, none_means):
    if value is not None and not isinstance(value, (bool, np.bool_)):
        expected = f"True, False or None ({none_means})" if none_means else "True or False"
        raise TypeError(f"{name} is {value!r}, expected {expected}")
    return None if value is None else bool(value)
