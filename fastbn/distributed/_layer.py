"""SyncBatchNorm, the layer: BatchNorm whose batch is that of all ranks."""
import numpy as np

from fastbn._layer import BatchNorm
from fastbn._training.renormalization import RenormSaved
from fastbn._training.variants import Variant

from ._communicator import TREE_FROM, Ranks, check_tree_from
from ._gradient import SyncSaved
from ._round import Statistics, Sums, telling
from ._training import check_before_moments, train


class SyncBatchNorm(BatchNorm):
    """Batch normalization of batches that lie on several ranks of a communicator, by the statistics of all their entries.

    Parameters
    ----------
    num_features : int
        C, the same on all ranks.
    comm : communicator, optional
        mpi4py.MPI.COMM_WORLD, or anything that has the methods of fastbn.distributed.Communicator. None, or a
        communicator of one rank: the same as fastbn.BatchNorm.
    reduce_parameter_gradients : bool, default False
        What dgamma and dbeta are after backward. False: of this rank's entries, as the gradients of all other
        parameters are where data-parallel training sums or averages these over the ranks afterwards. True: summed
        over all ranks already, as one process has them.
    tree_from : int, default 33
        From so many ranks on messages take a tree in place of a gather.
    **settings : dict
        As for fastbn.BatchNorm, the same on all ranks (axis apart); ghost_batch_size is refused.

    Raises
    ------
    TypeError, ValueError
        As BatchNorm does. A rank whose num_features, dtype, eps or other settings are not those of most ranks (of
        equally many, of the lowest rank) gets a ValueError.
    RuntimeError
        What a call raises on one rank, out of its own arguments, is a RuntimeError on the others that names the rank
        and the reason; so are errors of the communicator. After all of these nothing has changed on any rank.

    Notes
    -----
    Everything is as in fastbn.BatchNorm on one process that has the batches of all ranks, one after the other: y and
    dx of each rank are its part of that, and the running statistics, equal on all ranks, take the step of the whole
    batch. Ranks may hold batches of different sizes, an empty one too (an array of length 0, whose y and dx are
    empty).

    All ranks call forward and backward together, as often and in the same order, from the same parameters (which are
    not compared); whoever has no data passes an empty batch. In training mode a forward call that takes the batch's
    statistics, for y or for the moving averages, sends a fixed number of bytes, by which the ranks agree, and 4 * C
    doubles; its backward 2 * C doubles and a fixed number of bytes, in one collective (with
    reduce_parameter_gradients=True one through the running statistics too). In inference mode nothing is sent: a
    layer without running statistics takes there those of the rank's own batch, and update_running_stats=True is
    refused.

        forward    count = sum(count_r), mean and M2 merged from the ranks' (count_r, mean_r, M2_r) as by fastbn.Moments
        backward   dbeta = sum(dy), dgamma = sum(dy * (x - mean)) * rstd over all ranks, N the count of all
                   dx = gamma * rstd * (dy - dbeta / N - (x - mean) * rstd * dgamma / N)

    Statistics and sums are double and have the same bits on all ranks, whatever the order of messages; and for every
    assignment of the same batches to ranks, unless a tree is taken. Where squares of float64 entries overflow, the
    merged variance is Inf and y is beta; on one rank it is what BatchNorm gives. batch_moments are those of the whole
    batch. update, calibrate and drift send nothing: pass what is equal on all ranks, see
    fastbn.distributed.merge_moments. state_dict, save, load and the conversions are BatchNorm's. A copy has the same
    communicator; an unpickled layer has none and must be given one, as its attribute comm, before it trains.

    References
    ----------
    Ioffe and Szegedy 2015 (arXiv:1502.03167); merging: Chan, Golub and LeVeque 1979.

    Examples
    --------
    >>> import numpy as np
    >>> from fastbn.distributed import SyncBatchNorm
    >>> bn = SyncBatchNorm(1, comm=None, eps=1e-12)    # with mpi4py.MPI.COMM_WORLD all ranks are one batch
    >>> bn(np.array([[1.0], [3.0]]))
    array([[-1.],
           [ 1.]])
    """

    _comm, _ranks, _lacks_comm = None, None, False  # _ranks: None where this rank is alone
    _statistics = None  # of a forward call that sends messages, while it lasts

    def __init__(self, num_features, *, comm=None, reduce_parameter_gradients=False, tree_from=TREE_FROM, **settings):
        super().__init__(num_features, **settings)
        self._tree_from = check_tree_from(tree_from)
        self.comm = comm
        self.reduce_parameter_gradients = reduce_parameter_gradients

    # ---- settings ----

    @property
    def comm(self):
        """The communicator, or None."""
        return self._comm

    @comm.setter
    def comm(self, value):
        ranks = None if value is None else Ranks(value, self._tree_from)
        self._comm, self._ranks, self._lacks_comm = value, None if ranks is None or ranks.size == 1 else ranks, False
        self._choose_way()

    @property
    def tree_from(self):
        """The number of ranks from which on a tree takes the place of a gather."""
        return self._tree_from

    @property
    def reduce_parameter_gradients(self):
        """Whether dgamma and dbeta are sums over all ranks."""
        return self._reduces

    @reduce_parameter_gradients.setter
    def reduce_parameter_gradients(self, value):
        if not isinstance(value, (bool, np.bool_)):
            raise TypeError(f"reduce_parameter_gradients is {value!r}, expected True or False")
        self._reduces = bool(value)

    @property
    def ghost_batch_size(self):
        """None: ghost batches have statistics of their own, and these the statistics of all ranks."""
        return None

    @ghost_batch_size.setter
    def ghost_batch_size(self, value):
        if value is not None:
            raise ValueError(f"ghost_batch_size is {value!r}, expected None: the slices of a batch have statistics of their "
                             "own, of which other ranks need not know; fastbn.BatchNorm has them on each rank")

    # ---- forward and backward ----

    def forward(self, x, *, residual=None, mask=None, weights=None, lengths=None, out=None, update=True, like=None):
        """Do as BatchNorm.forward, with the statistics of the batches of all ranks. bn(x) is the same.

        Parameters
        ----------
        x : array of float32, float64, float16 or bfloat16
            This rank's batch, as for BatchNorm.forward.
        residual, mask, weights, lengths : array, optional
            As for BatchNorm.forward.
        out : array of x's shape and dtype, optional
            As for BatchNorm.forward.
        update : bool, default True
            As for BatchNorm.forward, and the same on all ranks.
        like : array or module, optional
            As for BatchNorm.forward.

        Returns
        -------
        array of x's shape and dtype
            The normalized batch of this rank, y.

        Raises
        ------
        TypeError, ValueError
            As BatchNorm.forward does.
        RuntimeError
            If another rank raised or differs, the communicator failed, the layer was unpickled and has no communicator
            yet, or the moving averages would take a step in inference mode.

        Examples
        --------
        >>> import numpy as np
        >>> from fastbn.distributed import SyncBatchNorm
        >>> bn = SyncBatchNorm(1, comm=None, momentum=0.5)
        >>> y = bn.forward(np.array([[1.0], [3.0]]))
        >>> bn.running_mean
        array([1.], dtype=float32)
        """
        given = {"residual": residual, "mask": mask, "weights": weights, "lengths": lengths, "out": out, "update": update,
                 "like": like}
        updates = self._updates(update)
        if not self._sends_in_forward(updates):
            return super().forward(x, **given)
        try:
            with telling(Statistics(self._ranks, self._terms(updates))) as self._statistics:
                return super().forward(x, **given)
        finally:
            self._statistics = None

    def _sends_in_forward(self, updates):
        if self.training and self._lacks_comm:
            raise RuntimeError("this layer was unpickled, which leaves its communicator behind: set its attribute comm")
        if self._ranks is not None and not self.training and updates:
            raise RuntimeError("update_running_stats is True in inference mode, where ranks send each other nothing and "
                               "their moving averages would come apart: call train(), or bn.update(merge_moments(...))")
        return self._ranks is not None and self.training and (self._normalizes_by_batch() or updates)

    def _terms(self, updates):
        """What has to be the same on all ranks, beside the dtype of x."""
        act, (rmax, dmax) = self._activation, self._renorm or (None, None)
        return {"num_features": self.num_features, "dtype": self.dtype.name, "eps": self.eps, "momentum": self.momentum,
                "ddof": self.ddof, "activation": act.name, "the activation's parameter": act.slope, "scale": self._scale,
                "center": self._center, "track_running_stats": self._tracks, "use_batch_stats": self._normalizes_by_batch(),
                "update": updates, "nan_policy": self.nan_policy, "rmax": rmax, "dmax": dmax}

    def _train(self, x, axes, out, more):
        if self._statistics is None:
            return super()._train(x, axes, out, more)
        given = (x, axes, self.gamma, self.beta, self.eps, out, self._variant() or Variant(), more)
        y, saved = train(*given, lambda local: self._statistics.of_all_ranks(local, x.dtype.name))
        _sync_part(saved).ranks = self._ranks
        return y, saved

    def _normalize_by_running(self, x, axes, out, updates, residual, **weights):
        if self._statistics is not None:
            check_before_moments(x, axes, out, self.activation, residual, gamma=self.gamma, beta=self.beta)
        return super()._normalize_by_running(x, axes, out, updates, residual, **weights)

    def _moments_of(self, x, axes, weights):
        local = super()._moments_of(x, axes, weights)
        return local if self._statistics is None else self._statistics.of_all_ranks(local, x.dtype.name)

    def backward(self, dy, *, out=None, like=None):
        """Do as BatchNorm.backward, with sums over all ranks.

        Parameters
        ----------
        dy : array of y's shape
            The gradient with respect to this rank's y.
        out : array of x's shape and dtype, optional
            As for BatchNorm.backward.
        like : array or module, optional
            As for BatchNorm.backward.

        Returns
        -------
        dx : array of x's shape and dtype
            That of this rank's batch. Where the forward call had a residual: (dx, dresidual).

        Raises
        ------
        TypeError, ValueError
            As BatchNorm.backward does.
        RuntimeError
            If another rank raised, or the communicator failed.

        Notes
        -----
        What dgamma and dbeta are depends on reduce_parameter_gradients. Where another rank gave up, nothing has
        changed, but an `out` after a forward call through constant statistics.

        Examples
        --------
        >>> import numpy as np
        >>> from fastbn.distributed import SyncBatchNorm
        >>> bn = SyncBatchNorm(1, comm=None)
        >>> dx = bn.backward(np.ones_like(bn(np.array([[1.0], [3.0]]))))
        >>> bn.dbeta
        array([2.], dtype=float32)
        """
        sync = _sync_part(self._saved)
        if sync is None and not self._sends_in_backward():
            return super().backward(dy, out=out, like=like)
        sums = Sums(self._ranks if sync is None else sync.ranks, self.num_features)
        if sync is not None:
            sync.reduces, sync.sum_over_ranks = self._reduces, sums.of_all_ranks
        with telling(sums):
            before = self._saved, self.dgamma, self.dbeta
            result = super().backward(dy, out=out, like=like)
            if sync is None:
                self._reduce(sums, before)
            return result

    def _sends_in_backward(self):
        """After no forward call, or one whose statistics were constants."""
        if self._ranks is None or not self.training:
            return False
        if self._saved is None and self._normalizes_by_batch():
            return True
        return self._reduces and self._parameter_gradients and (self._scale or self._center)

    def _reduce(self, sums, before):
        """dgamma and dbeta over all ranks; all as before where another rank gave up."""
        local = np.zeros((2, self.num_features))
        for row, gradient in zip(local, (self.dgamma, self.dbeta)):
            if gradient is not None:
                row[:] = gradient
        try:
            total = sums.of_all_ranks(local)
        except RuntimeError:
            self._saved, self.dgamma, self.dbeta = before
            raise
        self.dgamma = None if self.dgamma is None else total[0].astype(self.dtype)
        self.dbeta = None if self.dbeta is None else total[1].astype(self.dtype)

    def _forwards_plainly(self):
        """Where this rank is alone."""
        return type(self).forward is SyncBatchNorm.forward and self._ranks is None and not self._lacks_comm

    # ---- copies ----

    def __getstate__(self):
        """Without the communicator, which is this process's own."""
        own, *rest = super().__getstate__()
        own["_lacks_comm"] = self._lacks_comm or self._ranks is not None
        return {name: value for name, value in own.items() if name not in ("_comm", "_ranks")}, *rest

    def __deepcopy__(self, memo):
        twin = super().__deepcopy__(memo)
        twin._comm, twin._ranks, twin._lacks_comm = self._comm, self._ranks, self._lacks_comm
        twin._choose_way()
        return twin

    def __repr__(self):
        rank, size = (0, 1) if self._ranks is None else (self._ranks.rank, self._ranks.size)
        reduces = ", reduce_parameter_gradients=True" if self._reduces else ""
        comm = None if self._comm is None else f"<rank {rank} of {size}>"
        return f"Sync{super().__repr__()[:-1]}{reduces}, comm={comm})"


def _sync_part(saved):
    """The SyncSaved in what a forward call left, or None."""
    saved = saved.core if isinstance(saved, RenormSaved) else saved
    return saved if isinstance(saved, SyncSaved) else None
