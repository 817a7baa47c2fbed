"""Backward through statistics of all ranks.

As in one process there are two passes: this rank's sums of dz and dz * h, where h = (x - mean) * rstd and
dz = dy * act'(z), and once those of all ranks are known
    dx = scale * dz + w * (slope * h + offset)
    scale = gamma * rstd      slope = -scale * dgamma / N      offset = -scale * dbeta / N
a sum of two shifted and scaled arrays. The core has that as the gradient of a backward through constants, which takes dz
for ddx, slope for ddgamma, offset for ddbeta. N is the weight of the entries of all ranks, w that of an entry; with such
weights the bracket is written first and weighted in place. Half types are computed in copies of float32.
Source of the formula: Ioffe and Szegedy 2015 (arXiv:1502.03167), section 3.
"""
import numpy as np

from fastbn import _core
from fastbn._engine import checks, fusion
from fastbn._engine.layout import arrange
from fastbn._engine.run import as_parameter, run_backward, target_for
from fastbn._engine.saved import OfCore, about_input

_LEAST = 1e-300  # an eps that leaves 1 / sqrt(1 + eps) at 1


class SyncSaved(OfCore):
    """What a training call over ranks leaves for batch_norm_backward, mean, var and rstd being those of all ranks.

    core: the Saved of this rank's batch, with these statistics. moments: those of all ranks. For the layer to set: ranks;
    before backward reduces, whether dgamma and dbeta are sums over the ranks, and sum_over_ranks(sums).
    """

    __slots__ = ("moments", "ranks", "reduces", "sum_over_ranks")

    def __init__(self, core, moments):
        self.core, self.moments, self.ranks, self.reduces, self.sum_over_ranks = core, moments, None, False, None

    def backward(self, dy, out, needs, num_threads):
        x, extras, dx = self.x, self.extras or fusion.NONE, None
        extras.refuse_in_place(self.core)
        if "dx" in needs:
            read = {"dy": dy, "x": x, "residual": extras.residual, "y": extras.written}
            dx = target_for(out, x, self.core.axes, read)[1]
        local = _Local(self.core, self.moments.count, dy, extras, checks.threads(num_threads))
        sums, dz = local.sums(stores_dz="dresidual" in needs or (dx is not None and local.changes_dy()))
        total = self.sum_over_ranks(sums)
        if dx is not None and x.size:
            local.write_dx(dx, dz, total)
        of_features = zip(("dgamma", "dbeta"), total if self.reduces else sums)
        rounds = self.core.rounds_gradients
        gradients = [as_parameter(values if name in needs else None, rounds) for name, values in of_features]
        if not self.has_residual:
            return dx, *gradients
        with np.errstate(all="ignore"):
            return dx, *gradients, dz.astype(x.dtype, copy=False) if "dresidual" in needs else None


class _Local:
    """A rank's arrays in the type of the arithmetic, and the factors by feature."""

    def __init__(self, core, count, dy, extras, threads):
        """count: of all ranks. Where that is 0 there is no scale; where this rank's alone is, its sums are as anywhere."""
        self.core, self.threads = core, threads
        gamma, mean, rstd = about_input(core)
        nothing = np.equal(count, 0)
        gamma = gamma if gamma is None else np.where(nothing, 0.0, gamma)  # in place rstd is a factor of it
        self.factors = gamma, mean, np.where(nothing, 0.0, rstd)
        weights, unit = extras.weights, 1.0
        if weights is not None:
            counts, unit = None if weights.counts is None else np.ones(rstd.size), weights.unit
            extras = extras._replace(weights=weights._replace(total=1.0, counts=counts))
        with np.errstate(all="ignore"):
            self.share = np.where(nothing, 0.0, np.divide(unit, count))
        dtype = np.dtype(np.float64 if dy.dtype == np.float64 else np.float32)
        self.x, self.dy, residual, written = (None if a is None else a.astype(dtype, copy=False)
                                              for a in (core.x, dy, extras.residual, extras.written))
        self.extras = extras if extras is fusion.NONE else extras._replace(residual=residual, written=written)
        self.arrangement = arrange(self.x, core.axes)

    def changes_dy(self):
        """Whether dz is another array than dy; with weights, since dy may be NaN where an entry is missing."""
        return self.extras.activation.name is not None or self.extras.weights is not None

    def sums(self, stores_dz):
        """(sums of dz * h and of dz, of shape (2, C); dz, or dy where that is not stored)"""
        found = np.zeros((2, self.core.mean.size))
        dz, view = self.arrangement.empty(self.x.dtype) if stores_dz else (self.dy, None)
        if self.x.size:
            run_backward(self.x, self.dy, self.core, self.extras, self.factors, self.arrangement, None, *found, view,
                         self.threads)
        return found, dz

    def write_dx(self, dx, dz, total):
        """total: as sums, of all ranks. What is written to may be what dz or x lies in, or of a half type."""
        gamma, _, rstd = self.factors
        with np.errstate(all="ignore"):
            scale = rstd if gamma is None else gamma * rstd
            slope, offset = -scale * (total * self.share)
        view, written = self.arrangement.view(dx), dx
        apart = view is None or dx.dtype != dz.dtype or any(np.may_share_memory(dx, a) for a in (dz, self.x))
        if apart:
            written, view = self.arrangement.empty(dz.dtype)
        if self.extras.weights is None:
            self._combine(dz, slope, offset, view)
        else:
            self._combine_weighted(dz, scale, slope, offset, view)
        if apart:
            with np.errstate(all="ignore"):
                dx[...] = written

    def _combine(self, dz, slope, offset, target):
        """target = scale * dz + slope * h + offset, without the first where dz is None."""
        gamma, mean, rstd = self.factors
        source = self.arrangement.readable(self._normalized())
        dz = None if dz is None else self.arrangement.readable(dz)
        _core.double_backward(source, source, dz, slope, offset, gamma, mean, rstd, True, target, None, None, self.threads)

    def _combine_weighted(self, dz, scale, slope, offset, target):
        """What an entry without weight is, or one that is missing, leaves no trace."""
        weights = self.extras.weights
        shared, view = self.arrangement.empty(self.x.dtype)
        self._combine(None, slope, offset, view)
        by_entry = np.expand_dims(weights.whole, weights.axes)
        with np.errstate(all="ignore"):
            shared *= by_entry
        np.copyto(shared, 0.0, where=by_entry == 0)
        extra = fusion.Extras(residual=shared).for_core(self.arrangement)
        _core.inference(self.arrangement.readable(dz), extra, np.zeros(scale.size), np.ones(scale.size), scale, None, _LEAST,
                        target, self.threads)
        if weights.counts is not None:  # where nothing counts, the factors are NaN
            np.copyto(target, 0.0, where=np.isnan(self.arrangement.readable(self.x)))

    def _normalized(self):
        """The array of which h is an affine map: x, or in its place z, where y of leaky_relu was written to x."""
        act = self.extras.activation
        if not self.core.holds_y or act.name is None:
            return self.x
        return np.where(self.x > 0, self.x, self.x / act.slope).astype(self.x.dtype, copy=False)
