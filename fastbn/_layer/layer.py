"""BatchNorm, the layer: gamma, beta, and the moving averages."""
import copy
import functools
import inspect
import os

import numpy as np

from .. import _core
from .._data import layer_state
from .._engine import checks, dlpack, fusion
from .._engine.layout import normalize_axes
from .._engine.run import backward_of, like_input, normalize, normalize_by_given
from .._training import nan_policies
from .._training.omit import moments_by
from .._training.variants import train
from ..convert.methods import Conversions
from .running import Running

# Attributes that the core's part of the layer keeps.
_SLOTS = ("training", "num_batches_tracked", "dgamma", "dbeta", "_momentum", "_ddof")


class _CallSignature:
    """What inspect and help show for a layer's call: that of forward. A class has that of its constructor."""

    def __get__(self, layer, owner):
        return None if layer is None else inspect.signature(layer.forward)


class BatchNorm(Running, Conversions):
    """Batch normalization over a feature axis, with learned scale and shift.

    Parameters
    ----------
    num_features : int
        C, the size of the feature axis.
    axis : int or tuple of int, default 1
        The feature axis: 1 for (N, C) and channels-first data, -1 for channels-last; or a tuple of axes.
    eps : float, default 1e-5
        It is added to the variance; above 0.
    momentum : float or None, default 0.9
        The weight that the OLD average keeps, as in ONNX, Keras and Flax; 0.9 is PyTorch's default 0.1. None: the
        average of all batches so far, each with the same weight.
    ddof : {0, 1}, default 1
        1: the running variance takes the unbiased variance, as in PyTorch; 0: the biased one, as in Keras and Flax.
    center, scale : bool, default True
        Whether there is a beta, a gamma.
    track_running_stats : bool, default True
        False: no moving averages; inference uses the statistics of its batch too.
    activation : str or tuple, optional
        act, applied to y in the same pass, and in backward: a name or (name, parameter), see batch_norm_inference.
    dtype : dtype, default numpy.float32
        float32 or float64, of the parameters and the moving averages. The data may be of either, or float16 or
        bfloat16.
    ghost_batch_size : int, optional
        How many entries of axis 0 share statistics in training, as in batch_norm_training.
    renorm : tuple of float, optional
        (rmax, dmax) of batch renormalization, as in batch_norm_training. It takes the running statistics as they are
        before the batch's step, of which there is one, from the whole batch's moments.
    nan_policy : {"propagate", "raise", "omit", "skip"}, default "propagate"
        What becomes of a batch with NaN or Inf, where its statistics are taken. "propagate": its features become NaN,
        and the moving averages with them; where dtype does not hold a variance, that becomes Inf (and y in inference
        beta). "skip": the moving averages and their counter stay as they are. "raise": a ValueError names the
        features, and nothing of the layer has changed (an `out` other than x may have been written to; x never).
        Statistics that dtype does not hold count as Inf for these two. "omit": NaN entries are missing, by feature,
        and a feature takes a step by its own count, of more than 1, or none (num_batches_tracked counts for all of
        them).

    Attributes
    ----------
    gamma, beta : array of shape (C,), or None
        The scale and the shift.
    running_mean, running_var : array of shape (C,), or None
        The moving averages.
    num_batches_tracked : int or None
        How many batches they have seen.
    dgamma, dbeta : array of shape (C,), or None
        The gradients that the last backward call set.
    training : bool
        The mode; a layer starts in training mode.
    num_features : int
        C.
    dtype : dtype
        Of the parameters and the moving averages.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range. Running variances that are negative or NaN are refused wherever they are given.

    Warns
    -----
    UserWarning
        Where momentum < 0.5, since PyTorch's momentum means the opposite, and where given values are not finite.

    See Also
    --------
    batch_norm_training : The function that training calls.

    Notes
    -----
    Training computes y = (x - mean) / sqrt(var + eps) * gamma + beta, with the mean and the biased variance of each
    feature over the batch, and

        running_mean = momentum * running_mean + (1 - momentum) * mean
        running_var  = momentum * running_var  + (1 - momentum) * var * N / (N - ddof)

    with the number of entries N, or of weighted ones the effective number sum(w)^2 / sum(w^2). A batch of N <= ddof
    takes no step. Inference, after eval(), is the same formula with running_mean and running_var.

    The settings eps, momentum, axis, ddof, ghost_batch_size, renorm and nan_policy may be changed between calls.
    Freezing is three switches: use_batch_stats, update_running_stats, parameter_gradients. A layer in inference mode
    may be called from many threads at once. from_torch, from_keras, from_flax, from_onnx and from_chainer make a
    layer from another framework's, to_torch and so on go back; from_file makes one from a saved file.

    References
    ----------
    Ioffe and Szegedy 2015 (arXiv:1502.03167).

    Examples
    --------
    >>> import numpy as np
    >>> import fastbn
    >>> bn = fastbn.BatchNorm(2)
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0]], np.float32)
    >>> y = bn(x)
    >>> np.round(y, 3)
    array([[-1., -1.],
           [ 1.,  1.]], dtype=float32)
    >>> np.round(bn.running_mean, 3)
    array([0.2, 2. ], dtype=float32)
    """

    def __init__(self, num_features, *, axis=1, eps=1e-5, momentum=0.9, ddof=1, center=True, scale=True,
                 track_running_stats=True, activation=None, dtype=np.float32, ghost_batch_size=None, renorm=None,
                 nan_policy="propagate"):
        self._set_num_features(_positive(num_features))
        self.axis, self.eps, self.momentum, self.ddof = axis, eps, momentum, ddof
        self.dtype = _layer_dtype(dtype)
        self._center, self._scale, self._tracks = bool(center), bool(scale), bool(track_running_stats)
        self._set_arrays(
            gamma=np.ones(num_features, self.dtype) if scale else None,
            beta=np.zeros(num_features, self.dtype) if center else None,
            mean=np.zeros(num_features, self.dtype) if track_running_stats else None,
            var=np.ones(num_features, self.dtype) if track_running_stats else None)
        self.num_batches_tracked = 0 if track_running_stats else None
        self.dgamma = self.dbeta = None
        self._saved = None
        self._set_keeps_input(False)
        self._warned_single = False
        self.activation = activation
        self.ghost_batch_size, self.renorm, self.nan_policy = ghost_batch_size, renorm, nan_policy

    __signature__ = _CallSignature()

    def __dir__(self):
        return [name for name in super().__dir__() if not name.startswith("__pyx")]

    def parameters(self):
        """List gamma and beta with their gradients.

        Returns
        -------
        list of tuple
            (name, value, gradient) for each of the two that the layer has; gradient is None before backward. Empty
            where parameter_gradients is False.

        Examples
        --------
        >>> import fastbn
        >>> [name for name, value, gradient in fastbn.BatchNorm(2).parameters()]
        ['gamma', 'beta']
        """
        if not self._parameter_gradients:
            return []
        triples = [("gamma", self.gamma, self.dgamma), ("beta", self.beta, self.dbeta)]
        return [triple for triple in triples if triple[1] is not None]

    def train(self, mode=True):
        """Switch to training mode.

        Parameters
        ----------
        mode : bool, default True
            False: inference mode.

        Returns
        -------
        BatchNorm
            The layer.

        Examples
        --------
        >>> import fastbn
        >>> bn = fastbn.BatchNorm(2).train(False)
        >>> bn.training, bn.train().training
        (False, True)
        """
        self.training = bool(mode)
        self._set_keeps_input(False)
        return self

    def eval(self, *, backward=False):
        """Switch to inference mode.

        Parameters
        ----------
        backward : bool, default False
            True: forward calls keep what backward needs, the statistics being constants.

        Returns
        -------
        BatchNorm
            The layer.

        Examples
        --------
        >>> import numpy as np
        >>> import fastbn
        >>> bn = fastbn.BatchNorm(2, eps=1e-12).eval()
        >>> bn(np.array([[1.0, -2.0]]))    # the moving averages are 0 and 1
        array([[ 1., -2.]])
        """
        self.train(False)
        self._set_keeps_input(bool(backward))
        return self

    # ---- forward and backward ----

    def forward(self, x, *, residual=None, mask=None, weights=None, lengths=None, out=None, update=True, like=None):
        """Normalize x, and in training mode update the moving averages; bn(x) is the same.

        Parameters
        ----------
        x : array of float32, float64, float16 or bfloat16
            It has C entries on the layer's axis, and at least 2 dimensions. Arrays of other libraries are taken too.
        residual : array of x's shape, optional
            It is added before the activation: y = act(bn(x) + residual).
        mask, weights, lengths : array, optional
            How much the entries count in the batch's statistics, see batch_norm_training. Where the running
            statistics normalize they only matter for an update.
        out : array of x's shape and dtype, optional
            Where y is written; it may be x.
        update : bool, default True
            False: leaves the moving averages alone, once.
        like : array or module, optional
            What kind of array y is, see batch_norm_inference.

        Returns
        -------
        array of x's shape and dtype
            The normalized x, y. An empty batch changes nothing. With one value per feature, training gives y = beta,
            leaves the moving averages alone (with ddof=0 it moves them, towards the variance 0) and warns once.

        Raises
        ------
        TypeError, ValueError
            As batch_norm_training does.

        Examples
        --------
        >>> import numpy as np
        >>> import fastbn
        >>> bn = fastbn.BatchNorm(1, eps=1e-12, activation="relu")
        >>> bn.forward(np.array([[1.0], [3.0]]))
        array([[0.],
               [1.]])
        """
        more = {"residual": residual, "mask": mask, "weights": weights, "lengths": lengths}
        plain = update is True and mask is None and weights is None and lengths is None and like is None
        y = self._forward(x, residual, out) if plain else None
        if y is not None:
            return y
        if like is not None or dlpack.concerns(x, out):
            plainly = functools.partial(BatchNorm.forward, self)
            return dlpack.calling(plainly, {"x": x, **more}, like, out, update=update)
        self._check_arrays()
        x = checks.batch(x)
        axes = normalize_axes(self.axis, x.ndim)
        checks.features(x, axes, self.num_features)
        if out is not None:
            self._refuse_state_as(out)
        updates = self._updates(update)
        if updates:
            self._refuse_step()
        if self._normalizes_by_batch():  # see freezing.py; plain calls were decided by the core, in layer_base.pxi
            return self._normalize_by_batch(x, axes, out, updates, more)
        return self._normalize_by_running(x, axes, out, updates, **more)

    def _normalize_by_batch(self, x, axes, out, updates, more):
        y, saved = self._train(x, axes, out, {"activation": self._activation, **more})
        if self.training or self._get_keeps_input():
            self._saved = saved
        if self.training or updates:
            self._take_batch(saved.moments, updates)
        return y

    def _train(self, x, axes, out, more):
        """(y by the batch's statistics, what backward needs)"""
        variant, given = self._variant(), (x, axes, self.gamma, self.beta, self.eps, out, 0)
        return normalize(*given, **more) if variant is None else train(*given, variant, more)

    def _normalize_by_running(self, x, axes, out, updates, residual, **weights):
        """By the statistics as they are before this batch's step."""
        keeps = self.training or self._get_keeps_input()
        batch = self._moments_of(x, axes, weights) if updates else None
        y, saved = self._infer(x, axes, out, residual, keeps)
        if keeps:
            self._saved = saved
        if updates:
            self._set_batch(batch)
            self._take_step(batch)
        return y

    def _infer(self, x, axes, out, residual, keeps):
        """(y by the running statistics, what backward needs if it `keeps` that)"""
        given = {"mean": self.running_mean, "var": self.running_var, "gamma": self.gamma, "beta": self.beta}
        if keeps and residual is None and len(axes) == 1:
            act = fusion.alone(self._activation)
            result = _core.plain_frozen(x, *given.values(), self.eps, axes[0], out, None, act)
            if result is not None:
                return result
        extras = fusion.extras_of(x, self._activation, residual)
        return normalize_by_given(x, axes, given, self.eps, out, 0, extras, keeps)

    def _moments_of(self, x, axes, weights):
        """The Moments of a batch that the running statistics alone see."""
        extras = fusion.with_weights(fusion.NONE, x, axes, **weights)
        batch = moments_by(x, axes, extras, 0, self._omits())[0]
        if self._nan_policy == "raise":
            nan_policies.refuse(x, axes, [batch], self.dtype, self.ddof)
        return batch

    def _refuse_state_as(self, out):
        if isinstance(out, np.ndarray):
            for name, a in (("running_mean", self.running_mean), ("running_var", self.running_var)):
                if a is not None and checks.share_memory(out, a):
                    raise ValueError(f"out and {name} overlap: pass memory of its own")

    def backward(self, dy, *, out=None, like=None):
        """Compute the gradient of the last forward call; set dgamma and dbeta.

        Parameters
        ----------
        dy : array of y's shape
            The gradient with respect to y.
        out : array of x's shape and dtype, optional
            Where dx is written; it may be dy.
        like : array or module, optional
            What kind of arrays the results are, see batch_norm_inference; dgamma and dbeta are NumPy's.

        Returns
        -------
        dx : array of x's shape and dtype
            The gradient with respect to x. Where the forward call had a residual: (dx, dresidual).

        Raises
        ------
        RuntimeError
            If there is no forward call to go back through: there is one backward for each forward.
        TypeError, ValueError
            As batch_norm_backward does.

        Notes
        -----
        The formulas stand at batch_norm_backward. dgamma and dbeta are overwritten. The layer lets go of the forward
        call's input.

        Examples
        --------
        >>> import numpy as np
        >>> import fastbn
        >>> bn = fastbn.BatchNorm(1)
        >>> y = bn(np.array([[1.0], [2.0], [6.0]]))
        >>> dx = bn.backward(np.ones_like(y))
        >>> bn.dbeta
        array([3.], dtype=float32)
        >>> bool(abs(dx).max() < 1e-12)    # a shift of all entries changes nothing
        True
        """
        dx = self._backward(dy, out) if like is None else None
        if dx is not None:
            return dx
        if like is not None or dlpack.concerns(dy, out):
            plainly = functools.partial(BatchNorm.backward, self)
            return dlpack.calling(plainly, {"dy": dy}, like, out, model=getattr(self._saved, "x", None))
        if self._saved is None:
            raise RuntimeError("backward without a forward call: call forward first (in inference mode after "
                               "eval(backward=True)), once for each backward. A layer keeps its last forward call alone: "
                               "for two inputs at once take batch_norm_training, whose `saved` is the caller's to keep")
        learns = self._parameter_gradients
        needs = ["dx"] + ["dgamma"] * (self._scale and learns) + ["dbeta"] * (self._center and learns)
        needs += ["dresidual"] * (self._saved.extras is not None and self._saved.extras.has_residual)
        dy = like_input(dy, "dy", self._saved.input())
        dx, dgamma, dbeta, *dresidual = backward_of(self._saved, dy, out, needs, None)
        self._saved = None
        self.dgamma = None if dgamma is None else dgamma.astype(self.dtype, copy=False)
        self.dbeta = None if dbeta is None else dbeta.astype(self.dtype, copy=False)
        return (dx, *dresidual) if dresidual else dx

    # ---- folding ----

    def as_affine(self):
        """Give the scale and shift with which inference is y = x * scale + shift.

        Returns
        -------
        scale, shift : array of float64, shape (C,)
            New arrays, which later training does not change.

        Raises
        ------
        RuntimeError
            If there are no running statistics, or use_batch_stats is True.

        Notes
        -----
        A layer's activation is not in them: with one, y = act(x * scale + shift).

            scale = gamma / sqrt(running_var + eps)      shift = beta - running_mean * scale

        are computed in double as gamma * (1 / sqrt(...)), with gamma = 1 and beta = 0 where absent. They are the
        numbers of inference itself, which with hi = running_mean in the data's type computes

            (x - hi) * scale + (beta - (running_mean - hi) * scale)

        where scale and the bracket are rounded to that type. So the two differ by rounding alone. But where |mean| /
        std is large, x * scale + shift cancels and loses as many digits, unless it is computed in double.

        References
        ----------
        Ioffe and Szegedy 2015 (arXiv:1502.03167), algorithm 2, step 11.

        Examples
        --------
        >>> import fastbn
        >>> scale, shift = fastbn.BatchNorm(2, eps=1e-12).as_affine()
        >>> scale
        array([1., 1.])
        """
        if not self._tracks:
            raise RuntimeError("this layer has no running statistics: it was made with track_running_stats=False, so its "
                               "inference takes the statistics of each batch and is no fixed affine map")
        if self._use_batch_stats:
            raise RuntimeError("use_batch_stats is True: inference takes the statistics of each batch and is no fixed affine "
                               "map; set it to None or False for the running ones")
        self._check_arrays()
        with np.errstate(all="ignore"):
            scale = 1.0 / np.sqrt(self.running_var.astype(np.float64) + self.eps)
            scale = scale if self.gamma is None else self.gamma.astype(np.float64) * scale
            shift = -(self.running_mean.astype(np.float64) * scale)
            return scale, shift if self.beta is None else self.beta.astype(np.float64) + shift

    # ---- state ----

    def state_dict(self):
        """Copy the layer's arrays.

        Returns
        -------
        dict of str to array
            Those of gamma, beta, running_mean, running_var and num_batches_tracked that the layer has.

        Examples
        --------
        >>> import fastbn
        >>> list(fastbn.BatchNorm(2).state_dict())
        ['gamma', 'beta', 'running_mean', 'running_var', 'num_batches_tracked']
        """
        return layer_state.copies(self)

    def load_state_dict(self, state):
        """Fill the layer from a dict as state_dict gives.

        Parameters
        ----------
        state : dict of str to array
            The arrays.

        Returns
        -------
        BatchNorm
            The layer.

        Raises
        ------
        TypeError, ValueError
            If it does not fit; then nothing has changed.

        Examples
        --------
        >>> import fastbn
        >>> bn = fastbn.BatchNorm(2)
        >>> bn.gamma[:] = 3
        >>> fastbn.BatchNorm(2).load_state_dict(bn.state_dict()).gamma
        array([3., 3.], dtype=float32)
        """
        layer_state.fill(self, state)
        return self

    def save(self, path):
        """Write the arrays and the settings to a file.

        Parameters
        ----------
        path : str or path
            The name of a .npz file of plain arrays, without pickle. It appears when it is complete.

        Raises
        ------
        OSError
            If it cannot be written.

        Examples
        --------
        >>> import os, tempfile
        >>> import fastbn
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "bn.npz")
        ...     fastbn.BatchNorm(2).save(path)
        ...     os.listdir(folder)
        ['bn.npz']
        """
        layer_state.save(self, os.fspath(path))

    def load(self, path, *, settings="check"):
        """Fill the layer from a file that save wrote.

        Parameters
        ----------
        path : str or path
            The file.
        settings : {"check", "ignore"}, default "check"
            "check": a file that was saved with another eps, axis or activation is refused, and other differences
            (momentum, ddof, switches) warn. "ignore": the arrays alone matter, as in files that were written without
            settings.

        Returns
        -------
        BatchNorm
            The layer.

        Raises
        ------
        OSError
            If it cannot be read; then nothing has changed.
        ValueError
            If it is corrupt, or of another layer; then nothing has changed.

        Examples
        --------
        >>> import os, tempfile
        >>> import fastbn
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "bn.npz")
        ...     fastbn.BatchNorm(2, eps=0.01).save(path)
        ...     fastbn.BatchNorm(2).load(path, settings="ignore").eps
        1e-05
        """
        layer_state.load(self, os.fspath(path), settings)
        return self

    @classmethod
    def from_file(cls, path, *, training=True):
        """Make a layer as a file that save wrote tells it, settings and all.

        Parameters
        ----------
        path : str or path
            The file.
        training : bool, default True
            The layer's mode; False for inference.

        Returns
        -------
        BatchNorm
            A new layer.

        Raises
        ------
        OSError
            If the file cannot be read.
        ValueError
            If it is corrupt, or was written without settings.

        Examples
        --------
        >>> import os, tempfile
        >>> import fastbn
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "bn.npz")
        ...     fastbn.BatchNorm(2, eps=0.01).save(path)
        ...     fastbn.BatchNorm.from_file(path, training=False)
        BatchNorm(2, axis=1, eps=0.01, momentum=0.9, ddof=1, dtype=float32, training=False)
        """
        return layer_state.made(cls, os.fspath(path), training)

    # ---- copies ----

    def __reduce__(self):
        return _rebuild, (type(self), self._settings()), self.__getstate__()

    def _settings(self):
        return {"num_features": self.num_features, "axis": self.axis, "eps": self.eps, "ddof": self.ddof,
                "center": self._center, "scale": self._scale, "track_running_stats": self._tracks, "dtype": self.dtype}

    def __getstate__(self):
        """Everything but the context of the last forward call, which belongs to this layer's own backward."""
        slots = {name: getattr(self, name) for name in _SLOTS}
        return dict(self.__dict__), slots, self._get_keeps_input(), layer_state.arrays(self)

    def __setstate__(self, state):
        """Raises TypeError, ValueError where an array is none of this layer's, or a variance negative or NaN."""
        own, slots, keeps_input, arrays = state
        self._take_state(own, slots, keeps_input, {
            name: layer_state.checked(a, layer_state.PUBLIC_NAMES.get(name, name), self.num_features, self.dtype)
            for name, a in arrays.items()})

    def _take_state(self, own, slots, keeps_input, arrays):
        self.__dict__.update(own)
        for name, value in slots.items():
            setattr(self, name, value)
        self._set_keeps_input(keeps_input)
        self._set_arrays(**arrays)
        self.activation = self.activation
        self._choose_way()

    def _is_plain(self):
        return super()._is_plain() and self._forwards_plainly()

    def _forwards_plainly(self):
        """Whether forward is this class's, and not that of a subclass, of which the core's short way knows nothing."""
        return type(self).forward is BatchNorm.forward

    def __copy__(self):
        """A layer of its own: it does not share arrays with this one."""
        return self.__deepcopy__({})

    def __deepcopy__(self, memo):
        twin = _rebuild(type(self), self._settings())
        memo[id(self)] = twin
        twin._take_state(*copy.deepcopy(self.__getstate__(), memo))
        return twin

    def __repr__(self):
        parts = [str(self.num_features), f"axis={self.axis}", f"eps={self.eps:g}", f"momentum={self.momentum}",
                 f"ddof={self.ddof}"]
        parts += [f"{name}=False" for name, on in (("center", self._center), ("scale", self._scale),
                                                   ("track_running_stats", self._tracks)) if not on]
        parts += [f"activation={self.activation!r}"] if self.activation else []
        parts += [f"dtype={self.dtype.name}", *self._training_text(), *self._freezing_text()]
        parts += ["training=False"] * (not self.training)
        return f"BatchNorm({', '.join(parts)})"


def _rebuild(cls, settings):
    layer = cls.__new__(cls)
    BatchNorm.__init__(layer, **settings)
    return layer


def _positive(num_features):
    if not checks.is_whole(num_features):
        raise TypeError(f"num_features is {num_features!r}, expected an int")
    if num_features < 1:
        raise ValueError(f"num_features is {num_features}, expected at least 1")
    return int(num_features)


def _layer_dtype(dtype):
    dtype = np.dtype(dtype)
    if dtype not in checks.DTYPES:
        raise TypeError(f"dtype is {dtype}, expected float32 or float64")
    return dtype
