"""Keras 3 on its NumPy backend: keras.layers.BatchNormalization, computed by fastbn.

That backend has no gradients, so this is inference, and training's forward pass with its moving averages. Keras takes
its backend from the environment once, when it is first imported; on any other one its arrays are not NumPy's.
"""
import numpy as np

from .. import batch_norm_inference, batch_norm_training

try:
    import keras
except ImportError as error:
    raise ImportError(f"Keras cannot be imported ({error}): pip install 'fastbn[keras]'; where it is installed and "
                      "misses its backend, set the environment variable KERAS_BACKEND=numpy before Python imports "
                      "it") from error

__all__ = ["BatchNormalization", "convert"]


@keras.saving.register_keras_serializable(package="fastbn", name="BatchNormalization")
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras's BatchNormalization with its arguments, config and weights, which fit both layers.

    Parameters
    ----------
    *args, **keywords : object
        Those of keras.layers.BatchNormalization.

    Raises
    ------
    RuntimeError
        If Keras runs on another backend than NumPy. Beside that Keras raises what it does.

    Notes
    -----
    Inference and training compute

        y = (x - mean) / sqrt(variance + epsilon) * gamma + beta

    with moving_mean and moving_variance, or (training=True, where the layer is trainable) the mean and biased
    variance of the batch, and then

        moving = momentum * moving + (1 - momentum) * batch

    The parameters' and statistics' dtype is the layer's, that of y the layer's compute dtype; float16 and bfloat16
    are computed as float32 and rounded once, float64 in double (by Keras in float32). mask: of the inputs' shape
    without the feature axis, or of the first of these axes, (batch,) or (batch, steps) say. An empty batch leaves the
    moving averages alone, where Keras makes them NaN.

    Keras's own code runs in training with renorm=True, with a mask that leaves nothing, and where axis is not the
    last one with a mask of the inputs' shape without the last axis, which is one by feature.

    References
    ----------
    Keras 3.15, keras/src/layers/normalization/batch_normalization.py; Ioffe and Szegedy 2015 (arXiv:1502.03167).

    Examples
    --------
    >>> import keras    # with KERAS_BACKEND=numpy in the environment
    >>> import numpy as np
    >>> from fastbn.interop.keras import BatchNormalization
    >>> layer = BatchNormalization(axis=1, momentum=0.5)
    >>> y = layer(np.array([[1.0], [3.0]], np.float32), training=True)
    >>> layer.moving_mean.value
    array([1.], dtype=float32)
    """

    def __init__(self, *args, **keywords):
        _require_numpy()
        super().__init__(*args, **keywords)

    def call(self, inputs, training=None, mask=None):
        """Normalize the inputs.

        Parameters
        ----------
        inputs : array
            As Keras's layer takes them.
        training : bool, optional
            Whether the statistics are the batch's.
        mask : array of bool, optional
            Which entries count in them.

        Returns
        -------
        array of the inputs' shape
            The result, y, in the layer's compute dtype.

        Examples
        --------
        >>> import keras    # with KERAS_BACKEND=numpy in the environment
        >>> import numpy as np
        >>> from fastbn.interop.keras import BatchNormalization
        >>> layer = BatchNormalization(epsilon=1e-9)
        >>> layer(np.array([[1.0], [3.0]], np.float32), training=True)
        array([[-1.],
               [ 1.]], dtype=float32)
        """
        if training and self.trainable:
            if self.renorm or (mask is not None and not self._takes(inputs, mask)):
                return super().call(inputs, training=training, mask=mask)
            return self._train(self._data(inputs), mask)
        arrays = map(_array, (self.moving_mean, self.moving_variance, self.gamma, self.beta))
        y = batch_norm_inference(self._data(inputs), *arrays, eps=self.epsilon, axis=self.axis)
        return keras.ops.cast(y, self.compute_dtype) if y.dtype.name != self.compute_dtype else y

    def _takes(self, inputs, mask):
        """Whether the mask is the same for all features and leaves something."""
        by_feature = self.axis not in (-1, inputs.ndim - 1) and np.shape(mask) == inputs.shape[:-1]
        return np.ndim(mask) < inputs.ndim and not by_feature and np.any(mask)

    def _train(self, x, mask):
        mask = None if mask is None else np.asarray(mask, bool)
        y, saved = batch_norm_training(x, _array(self.gamma), _array(self.beta), eps=self.epsilon, axis=self.axis,
                                       mask=mask)
        moving = self.moving_mean, self.moving_variance
        arrays = [variable.value.copy() for variable in moving]
        saved.moments.step(*arrays, momentum=self.momentum, ddof=0)
        for variable, a in zip(moving, arrays):
            variable.assign(a)
        return keras.ops.cast(y, self.compute_dtype) if y.dtype.name != self.compute_dtype else y

    def _data(self, inputs):
        """As they are where y gets their dtype, which rounds once; else in the dtype that Keras computes in."""
        if inputs.dtype.name == self.compute_dtype:
            return inputs
        return keras.ops.cast(inputs, keras.backend.result_type(inputs.dtype.name, "float32"))


def convert(model, *, back=False):
    """Copy a model with every keras.layers.BatchNormalization replaced by the one here.

    Parameters
    ----------
    model : keras.Model
        A Functional or Sequential model, models in it included; batch norms inside of other layers or of subclassed
        models are not seen.
    back : bool, default False
        The other way, to Keras's own layers, for example to save it for another backend.

    Returns
    -------
    keras.Model
        The new model, uncompiled; the old one is unchanged.

    Raises
    ------
    TypeError
        If model is no Keras model.
    RuntimeError
        If Keras runs on another backend. Beside that keras.models.clone_model raises what it does.

    Examples
    --------
    >>> import keras    # with KERAS_BACKEND=numpy in the environment
    >>> import numpy as np
    >>> from fastbn.interop.keras import convert
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization()])
    >>> type(convert(model).layers[0]).__module__
    'fastbn.interop.keras'
    """
    _require_numpy()
    if not isinstance(model, keras.Model):
        raise TypeError(f"model is a {type(model).__name__}, expected a keras.Model")
    own, ours = keras.layers.BatchNormalization, BatchNormalization
    old, new = (ours, own) if back else (own, ours)

    def clone(layer):
        kind = new if type(layer) is old else type(layer)
        return kind.from_config(layer.get_config())

    twin = keras.models.clone_model(model, clone_function=clone, recursive=True)
    for copy, original in zip(twin.weights, model.weights, strict=True):
        copy.assign(original.value)
    return twin


def _array(variable):
    """Its value, of half types as float32, as fastbn takes parameters; None stays None."""
    if variable is None:
        return None
    return variable.value if variable.value.itemsize > 2 else variable.value.astype(np.float32)


def _require_numpy():
    backend = keras.config.backend()
    if backend != "numpy":
        raise RuntimeError(f"Keras runs on its {backend} backend, whose arrays are not NumPy's, expected numpy: set "
                           "the environment variable KERAS_BACKEND=numpy before Keras is first imported")
