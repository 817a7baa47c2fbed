# What a forward call leaves for the backward call, included by _core.pyx.

cdef object moments_of = None  # what makes the Moments of a Saved, see offer_moments


def offer_moments(function):
    """For fastbn._saved, which knows how: function(saved) is saved.moments."""
    global moments_of
    moments_of = function


cdef enum:
    MOST_DIMS = 64  # of an array of NumPy

cdef enum:
    MEAN, VAR, RSTD, GAMMA, BETA, SAVED_ROWS


cdef int widen(object vector, double *to) except -1:
    """A copy of a vector, see is_vector; of None nothing."""
    if vector is not None:
        typed_kernels(vector).widen(cnp.PyArray_SIZE(<cnp.ndarray> vector), data_or_null(vector), to)
    return 0


# Arrays tell the garbage collector nothing of what they refer to, so it could find no cycle through this anyway.
@cython.final
@cython.no_gc
cdef class Saved:
    """What a forward call leaves for the backward call; the forward calls make it.

    Attributes
    ----------
    mean, var, rstd : array of float64, shape (C,)
        The statistics that normalized: var is the biased variance, rstd = 1 / sqrt(var + eps).
    moments : Moments
        Those of the batch, whose step() is that of moving averages.

    Notes
    -----
    It refers to x without copying it, so keep x unchanged until backward, and holds copies of gamma and beta. After a
    forward call in place it refers to y instead, from which the normalized x comes back as (y - beta) / gamma.

    Examples
    --------
    >>> import numpy as np
    >>> import fastbn
    >>> y, saved = fastbn.batch_norm_training(np.array([[1.0, 10.0], [3.0, 30.0]]))
    >>> saved
    Saved(batch statistics of 2 features)
    >>> saved.mean, saved.var
    (array([ 2., 20.]), array([  1., 100.]))
    """
    cdef public cnp.ndarray x
    """The array of the forward call. Whoever keeps it himself may set this to None, and back before backward."""
    cdef readonly bint frozen
    """Whether the statistics were given, not those of a batch: then they are constants in the gradient."""
    cdef readonly bint holds_y
    """Whether the forward call wrote y over x."""
    cdef readonly cnp.npy_intp entries
    """How many entries each feature has, an int."""
    # What x was in the forward call: whoever holds it can change its shape and type in place.
    cdef int ndim, kind
    cdef cnp.npy_intp[MOST_DIMS] dims
    cdef cnp.ndarray rows    # (SAVED_ROWS, C), float64, in one allocation; a view of a row is made when asked for
    cdef bint has_gamma, has_beta
    cdef bint beta_has_gradient_kind  # or there is none
    cdef public object extras
    """What the call had beyond normalization (activation, residual, weights), or None."""
    cdef fastbn_activation activation  # where that is an activation alone, it: then the short way knows all
    cdef double slope
    cdef int gradient_kind   # NumPy's number of the type that dgamma and dbeta get
    cdef int axis            # -1 where there are several: then they are in `several`
    cdef tuple several

    def __init__(self, cnp.ndarray x not None, tuple axes not None, cnp.npy_intp c, gamma, beta, *, bint frozen,
                 bint in_place):
        """Make one whose mean, var and rstd are for the caller to fill in.

        gamma, beta: plain arrays of shape (c,), or None.
        """
        if not is_vector(gamma, c) or not is_vector(beta, c):
            raise ValueError(f"gamma or beta is no plain array of shape ({c},)")
        self.axis = axes[0] if len(axes) == 1 else -1
        self.several = axes if self.axis < 0 else None
        self.take(x, c, gamma, beta, frozen, in_place)

    cdef int take(self, cnp.ndarray x, cnp.npy_intp c, object gamma, object beta, bint frozen, bint in_place) except -1:
        cdef cnp.npy_intp[2] shape
        shape[0], shape[1] = SAVED_ROWS, c
        self.rows = cnp.PyArray_EMPTY(2, shape, cnp.NPY_FLOAT64, 0)
        self.x, self.frozen, self.holds_y = x, frozen, in_place
        self.entries = cnp.PyArray_SIZE(x) // c if c else 0
        self.ndim, self.kind = cnp.PyArray_NDIM(x), cnp.PyArray_TYPE(x)
        memcpy(self.dims, cnp.PyArray_DIMS(x), self.ndim * sizeof(cnp.npy_intp))
        self.has_gamma, self.has_beta = gamma is not None, beta is not None
        self.gradient_kind = cnp.PyArray_TYPE(<cnp.ndarray> gamma if gamma is not None else x)
        if not is_real(self.gradient_kind):
            self.gradient_kind = cnp.NPY_FLOAT32  # half data, which have float32 parameters
        self.beta_has_gradient_kind = beta is None or cnp.PyArray_TYPE(<cnp.ndarray> beta) == self.gradient_kind
        widen(gamma, self.row(GAMMA))
        widen(beta, self.row(BETA))
        return 0

    cdef double *row(self, int which) noexcept:
        return <double *> cnp.PyArray_DATA(self.rows) + which * cnp.PyArray_DIM(self.rows, 1)

    def set_rstd(self, double eps):
        """Compute rstd from var, as the core does.

        Parameters
        ----------
        eps : float
            It is added to the variance.
        """
        active_kernels().rstd(cnp.PyArray_DIM(self.rows, 1), self.row(VAR), eps, self.row(RSTD))

    cdef fastbn_params params(self) noexcept:
        cdef fastbn_params params
        params.gamma = self.row(GAMMA) if self.has_gamma else NULL
        params.beta = self.row(BETA) if self.has_beta else NULL
        params.dtype = FASTBN_FLOAT64
        params.activation, params.slope, params.extra = FASTBN_IDENTITY, 0, NULL
        return params

    cdef bint has_input(self) noexcept:
        """Whether x is there, with the shape and type of the forward call."""
        cdef cnp.ndarray x = self.x
        return (x is not None and cnp.PyArray_TYPE(x) == self.kind and cnp.PyArray_NDIM(x) == self.ndim
                and cnp.PyArray_CompareLists(self.dims, cnp.PyArray_DIMS(x), self.ndim))

    def input(self):
        """Give x, once it is known to be what it was in the forward call.

        Returns
        -------
        array
            The attribute x.

        Raises
        ------
        RuntimeError
            Where x is None, or its shape or dtype was changed in place.
        """
        cdef object x = self.x  # whose attributes are Python's
        if not self.has_input():
            now = "is None" if x is None else f"has shape {x.shape} and dtype {x.dtype}"
            then = tuple([self.dims[i] for i in range(self.ndim)])
            raise RuntimeError(f"saved.x {now}, expected shape {then} and dtype {cnp.PyArray_DescrFromType(self.kind)}, those "
                               "of the forward call: was it changed in place? Pass a copy of x to the forward call")
        return x

    @property
    def mean(self):
        """The mean of each feature, an array of float64 of shape (C,)."""
        return self.rows[MEAN]

    @property
    def var(self):
        """The biased variance of each feature, an array of float64 of shape (C,)."""
        return self.rows[VAR]

    @property
    def rstd(self):
        """1 / sqrt(var + eps), an array of float64 of shape (C,)."""
        return self.rows[RSTD]

    @property
    def moments(self):
        """The batch's Moments; an AttributeError where the statistics were given."""
        if self.frozen:
            raise AttributeError("the statistics of this call were given, not those of a batch: there are no moments")
        return moments_of(self)

    @property
    def gamma(self):
        """The scale as an array of float64 of shape (C,), or None."""
        return self.rows[GAMMA] if self.has_gamma else None

    @property
    def beta(self):
        """The shift as an array of float64 of shape (C,), or None."""
        return self.rows[BETA] if self.has_beta else None

    @property
    def axes(self):
        """The feature axes, a tuple of int."""
        return (self.axis,) if self.axis >= 0 else self.several

    @property
    def rounds_gradients(self):
        """Whether dgamma and dbeta are float32."""
        return self.gradient_kind == cnp.NPY_FLOAT32

    def __repr__(self):
        kind = "frozen" if self.frozen else "batch"
        return f"Saved({kind} statistics of {len(self.rows[MEAN])} features)"
