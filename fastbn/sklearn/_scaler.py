"""The class StandardScaler. It decides who computes: fastbn (_statistics.py, _affine.py), or scikit-learn's own method."""
import copy as _copy
import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn import get_config, preprocessing
from sklearn.base import _fit_context
from sklearn.utils._set_output import _get_output_config
from sklearn.utils.validation import _check_sample_weight, check_array, check_is_fitted, validate_data

from fastbn import Moments
from fastbn._training.nan_policies import refuse_moments

from . import _affine, _inputs, _sources, _statistics

# scikit-learn's own methods, without the wrapper that makes data frames of their results.
_TRANSFORM = inspect.unwrap(preprocessing.StandardScaler.transform)
_INVERSE_TRANSFORM = preprocessing.StandardScaler.inverse_transform


class StandardScaler(preprocessing.StandardScaler):
    """The StandardScaler of scikit-learn, with dense float32 and float64 data computed by fastbn, in threads.

    Parameters
    ----------
    copy : bool, default True
        False: transform and inverse_transform write to the memory of X where that is a float32 or float64 array.
    with_mean, with_std : bool, default True
        Whether to subtract mean_, and to divide by scale_.

    Attributes
    ----------
    mean_, var_, scale_ : array of float64, shape (n_features,), or None
        The mean, the biased variance, and its root (1 for constant features).
    n_samples_seen_ : number or array of shape (n_features,)
        An array where features lack different numbers of values.
    n_features_in_ : int
        The number of features.
    feature_names_in_ : array of str
        Their names, where X had some.

    Notes
    -----
    transform is y = (x - mean_) / scale_ of each feature, in one pass, and inverse_transform y = x * scale_ + mean_.

    This is a subclass: parameters, attributes, feature names, clone, pipelines, set_output and metadata routing are
    scikit-learn's, and its documentation is this class's too:
    https://scikit-learn.org/stable/modules/generated/sklearn.preprocessing.StandardScaler.html

    fastbn computes NumPy arrays and data frames of pandas and polars of real numbers, in any layout; all but float32
    become float64, as in scikit-learn. scikit-learn's own code computes sparse matrices, float16, lists and objects,
    other libraries' arrays (array_api_dispatch), with_mean and with_std both False, fits with callbacks (which fits
    to moments, and of data in parts, do not call); and infinite entries, which it refuses.

    Results differ from scikit-learn's by rounding. With float32 data transform subtracts mean_, not its rounding to
    float32. A feature that had no values yet takes part from its first one on (in scikit-learn its mean_ stays NaN).
    Results have the same bits for any number of threads, fastbn.set_num_threads. fit holds no copy of the data.

    Examples
    --------
    >>> import numpy as np
    >>> from fastbn.sklearn import StandardScaler
    >>> StandardScaler().fit_transform(np.array([[1.0], [3.0]]))
    array([[-1.],
           [ 1.]])
    """

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y=None, sample_weight=None):
        """Fit to X and to all that was fitted before; fit is this from a new start.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
            NaN stand for missing values.
        y : object
            It is ignored.
        sample_weight : array of shape (n_samples,), optional
            The weights; a number stands for equal ones.

        Returns
        -------
        StandardScaler
            The scaler.

        Raises
        ------
        ValueError, TypeError
            As scikit-learn does.

        Notes
        -----
        With the weights w, 1 where none are given,

            mean_ = sum(w * x) / sum(w)        var_ = sum(w * (x - mean_)^2) / sum(w)        n_samples_seen_ = sum(w)

        References
        ----------
        Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.

        Examples
        --------
        >>> import numpy as np
        >>> from fastbn.sklearn import StandardScaler
        >>> scaler = StandardScaler().partial_fit(np.array([[1.0], [2.0]]))
        >>> scaler.partial_fit(np.array([[6.0]])).mean_
        array([3.])
        """
        source = _source_of(X)
        if source is not None:
            counted = sample_weight if self.with_mean or self.with_std else None  # as scikit-learn has it
            found = source.moments(sample_weight=counted)
            if counted is not None and not np.any(found.count):
                raise ValueError("sample_weight is 0 for every value of X, expected some above 0")
            return self._adopt(found, source.feature_names, sample_weight is not None)
        _refuse_negative(sample_weight)
        if self._is_theirs(X):
            return super().partial_fit(X, y, sample_weight)
        first = self._is_new()
        table = X if _inputs.is_table(X) else check_array(X, input_name="X", estimator=self, **_inputs.CHECKS)
        if not first:
            validate_data(self, X, reset=False, skip_check_array=True)
        weights = None if sample_weight is None else _check_sample_weight(sample_weight, table, dtype=table.dtype)
        found = _statistics.moments_of(table, weights) if _inputs.is_table(table) else None
        if found is None:
            return super().partial_fit(X, y, sample_weight)
        if first:
            validate_data(self, X, reset=True, skip_check_array=True)
        return self._add(found, first, weights is not None)

    def fit_moments(self, moments, feature_names=None):
        """Fit the scaler to moments that are known, for example of parts that were looked at elsewhere.

        Parameters
        ----------
        moments : Moments
            Of a table's n_features features, without NaN.
        feature_names : list of str, optional
            The n_features names for feature_names_in_.

        Returns
        -------
        StandardScaler
            The scaler.

        Raises
        ------
        TypeError, ValueError
            If moments is no Moments, has NaN or no entries, or there are not as many names as features; then the
            scaler is as it was.

        Examples
        --------
        >>> import numpy as np
        >>> import fastbn
        >>> from fastbn.sklearn import StandardScaler
        >>> parts = np.array([[1.0], [2.0]]), np.array([[3.0]])
        >>> StandardScaler().fit_moments(sum(fastbn.moments(part) for part in parts)).mean_
        array([2.])
        """
        if not isinstance(moments, Moments):
            raise TypeError(f"moments is a {type(moments).__name__}, expected fastbn.Moments")
        names = None if feature_names is None else np.asarray(feature_names, object)
        _check_moments(moments, names)
        self._validate_params()
        self._reset()
        return self._adopt(moments, names, np.asarray(moments.count).dtype.kind == "f")

    def fit_transform(self, X, y=None, **fit_params):
        """Fit to X, then transform it.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
            The data; an iterator will not do, since it is read twice.
        y : object
            It is ignored.
        **fit_params : dict
            Keyword arguments of fit.

        Returns
        -------
        array of shape (n_samples, n_features)
            As transform gives it.

        Raises
        ------
        TypeError
            If X is an iterator; beside that fit and transform raise what they do.

        Examples
        --------
        >>> import numpy as np
        >>> from fastbn.sklearn import StandardScaler
        >>> StandardScaler().fit_transform(np.array([[1.0], [3.0]]), sample_weight=[3.0, 1.0]).round(3)
        array([[-0.577],
               [ 1.732]])
        """
        if isinstance(X, Iterator):
            raise TypeError("X is an iterator, which fit uses up before transform sees it: call fit and transform with an "
                            "iterator each")
        return super().fit_transform(X, y, **fit_params)

    def transform(self, X, copy=None) -> Any:
        """Compute (X - mean_) / scale_.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
            float32 stays float32, all else is float64. NaN stays NaN.
        copy : bool, optional
            False: in place where X is an array of these types that can be written to; None: the parameter copy.

        Returns
        -------
        array of shape (n_samples, n_features)
            The standardized data.

        Raises
        ------
        ValueError
            If X has infinite entries, or other features or names than fit has seen.
        NotFittedError
            If the scaler is not fitted.

        Examples
        --------
        >>> import numpy as np
        >>> from fastbn.sklearn import StandardScaler
        >>> StandardScaler().fit(np.array([[1.0], [3.0]])).transform(np.array([[5.0]]))
        array([[3.]])
        """
        source = _source_of(X)
        if source is None:
            return self._standardized(X, copy)
        y, container = self._mapped(source, "_standardized"), _get_output_config("transform", self)["dense"]
        if container != "default" and not isinstance(y, np.ndarray):
            raise ValueError(f"set_output(transform={container!r}) needs a table in memory, and the result is a "
                             f"{type(y).__name__}: call set_output(transform='default'), or transform chunk by chunk")
        return y

    def inverse_transform(self, X, copy=None) -> Any:
        """Compute X * scale_ + mean_.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
            As for transform; names are not looked at.
        copy : bool, optional
            As for transform.

        Returns
        -------
        array of shape (n_samples, n_features)
            The data as they were.

        Raises
        ------
        ValueError, NotFittedError
            As transform does.

        Examples
        --------
        >>> import numpy as np
        >>> from fastbn.sklearn import StandardScaler
        >>> StandardScaler().fit(np.array([[1.0], [3.0]])).inverse_transform(np.array([[3.0]]))
        array([[5.]])
        """
        source = _source_of(X)
        return self._restored(X, copy) if source is None else self._mapped(source, "_restored")

    def _standardized(self, X, copy=None):
        """transform of what is in memory, as an array (or what scikit-learn makes of other input)."""
        copy = self._ready(copy)
        table = None
        if _inputs.is_table(X) and self._expects(X.shape[1]):
            table = X
        elif _inputs.is_dense(X):
            table = validate_data(self, X, reset=False, force_writeable=not copy, **_inputs.CHECKS)
        y = self._computed(_affine.standardizing, X, table, copy)
        return _TRANSFORM(self, X, copy) if y is None else y

    def _expects(self, features):
        """Whether validate_data would find nothing in a table of so many features without names."""
        return features == getattr(self, "n_features_in_", 0) and not hasattr(self, "feature_names_in_")

    def _restored(self, X, copy=None):
        copy = self._ready(copy)
        table = X if _inputs.is_table(X) else None
        if table is None and _inputs.is_dense(X):
            table = check_array(X, force_writeable=not copy, **_inputs.CHECKS)
        y = self._computed(_affine.restoring, X, table, copy)
        return _INVERSE_TRANSFORM(self, X, copy) if y is None else y

    def _computed(self, line_of, X, table, copy):
        """None where scikit-learn's own method has to answer. table: what its checks made of X, or None."""
        if not (self.with_mean or self.with_std) or not _inputs.is_table(table):
            return None
        line = line_of(self, table.shape[1], table.dtype)
        if line is None:
            return None
        converted = table is not X and isinstance(X, np.ndarray) and not np.may_share_memory(table, X)
        writes = table.flags.writeable and (converted or not copy)
        return _affine.apply(line, table, writes, checks=not get_config()["assume_finite"])

    def _mapped(self, source, method):
        """The source transformed, perhaps later: by the scaler as it is now."""
        check_is_fitted(self)
        scaler = _copy.copy(self)
        if method == "_standardized":
            self._check_features(source.n_features, source.feature_names, reset=False)
            vars(scaler).pop("feature_names_in_", None)  # the chunks have no names, which is no news any more
        return source.map(getattr(scaler, method))

    def _ready(self, copy):
        """The value of copy that holds. Raises NotFittedError."""
        if self._is_new():
            check_is_fitted(self)
        return self.copy if copy is None else copy

    def _is_new(self):
        return not hasattr(self, "n_samples_seen_")

    def _is_theirs(self, X):
        """Whether scikit-learn's own partial_fit takes X."""
        return (not (self.with_mean or self.with_std) or bool(getattr(self, "_skl_callbacks", None))
                or not _inputs.is_dense(X) or self._lacks() is not None)

    def _lacks(self):
        """The name of a statistic that is needed, and was not when the scaler was fitted; or None."""
        if self._is_new():
            return None
        needed = ["mean_"] * (self.with_mean or self.with_std) + ["var_"] * self.with_std
        return next((name for name in needed if not isinstance(getattr(self, name), np.ndarray)), None)

    def _adopt(self, moments, names, weighted):
        """Takes moments in that come without a table. names: an array of str, or None."""
        if (name := self._lacks()) is not None:
            raise ValueError(f"{name} is {getattr(self, name)!r}, expected an array: with_mean or with_std was False when "
                             "the scaler was fitted; call fit, which begins anew")
        first = self._is_new()
        self._check_features(moments.mean.size, names, reset=first)
        if first and names is not None:
            self.feature_names_in_ = names
        return self._add(moments, first, weighted)

    def _check_features(self, c, names, reset):
        """validate_data of c features and their names, an array of str or None, without a table."""
        if reset or names is None or not hasattr(self, "feature_names_in_"):
            validate_data(self, np.broadcast_to(0.0, (1, c)), reset=reset, skip_check_array=True)
        elif list(names) != list(self.feature_names_in_):
            raise ValueError("The feature names should match those that were passed during fit: "
                             f"{list(names)}, expected {list(self.feature_names_in_)}")

    def _add(self, moments, first, weighted):
        whole = moments if first else _statistics.moments_so_far(self) + moments
        _statistics.take(self, whole, weighted)
        return self


def _source_of(X):
    """None for a plain array, which takes no question."""
    return None if type(X) is np.ndarray else _sources.recognize(X)


def _refuse_negative(sample_weight):
    """Which scikit-learn adds up to variances below 0."""
    weights = np.asarray(0 if sample_weight is None else sample_weight)
    if weights.dtype.kind in "if" and (weights < 0).any():
        raise ValueError("sample_weight has a negative entry, expected numbers of at least 0: an entry counts so many times")


def _check_moments(moments, names):
    moments.check()
    refuse_moments(moments)
    if not np.any(moments.count):
        raise ValueError(f"moments has count {moments.count}, expected entries in at least one feature")
    if names is not None and names.shape != moments.mean.shape:
        raise ValueError(f"feature_names has shape {names.shape}, expected {moments.mean.shape}, a name for each feature")
