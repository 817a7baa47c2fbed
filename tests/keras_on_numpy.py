"""fastbn.interop.keras against Keras's own layer: test_interop_keras.py runs this with KERAS_BACKEND=numpy."""
import warnings

import keras
import numpy as np
import pytest

from fastbn.interop.keras import BatchNormalization, convert
from oracle import steps_of_layer

# Keras's variables have an older form of __array__, of which NumPy warns where Keras itself calls it.
pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.filterwarnings("ignore:.*__array__:DeprecationWarning")]

ATTRIBUTES = ("gamma", "beta", "moving_mean", "moving_variance")
CASES = [((16, 5), -1), ((4, 5, 7), 1), ((4, 6, 7, 5), -1), ((4, 5, 6, 7), 1), ((4, 5, 6, 7), 2), ((2, 3, 4, 5, 6), -1)]


def layers(shape, policy="float32", **arguments):
    """Keras's layer and ours, of the same random state."""
    rng, both = np.random.default_rng(5), []
    for kind in (keras.layers.BatchNormalization, BatchNormalization):
        layer = kind(dtype=policy, **arguments)
        layer.build(shape)
        both.append(layer)
    for name in ATTRIBUTES:
        if getattr(both[0], name) is not None:
            value = rng.uniform(0.5, 2, getattr(both[0], name).shape)
            for layer in both:
                getattr(layer, name).assign(value)
    return both


def assert_agree(own, ours, x, tolerance=2e-5, training=False, **call):
    with np.errstate(all="ignore"):
        expected, y = own(x, training=training, **call), ours(x, training=training, **call)
    assert y.dtype == expected.dtype and y.shape == expected.shape
    np.testing.assert_allclose(y.astype("f8"), expected.astype("f8"), rtol=tolerance, atol=tolerance)
    for a, b in zip(own.weights, ours.weights, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(b.value, a.value, rtol=2e-5, atol=2e-5, err_msg=a.path)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape, axis", CASES)
@pytest.mark.parametrize("switches", [{}, {"center": False}, {"scale": False}, {"center": False, "scale": False}])
def test_as_keras_computes(rng, shape, axis, training, switches):
    own, ours = layers(shape, axis=axis, momentum=0.7, epsilon=1e-2, **switches)
    for _ in range(2):
        assert_agree(own, ours, rng.normal(3, 2, shape).astype("f4"), training=training)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("policy, tolerance", [("float64", 2e-5), ("mixed_float16", 2e-3), ("mixed_bfloat16", 2e-2),
                                               ("float16", 2e-3)])
def test_dtype_policies(rng, policy, tolerance, training):
    own, ours = layers((8, 6, 5), policy)
    assert_agree(own, ours, rng.normal(3, 2, (8, 6, 5)), tolerance, training)


def test_float64_is_computed_in_double(rng):
    _, ours = layers((8, 5), "float64")
    x = rng.normal(3, 2, (8, 5))
    gamma, beta = ours.gamma.value, ours.beta.value
    expected = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + ours.epsilon) * gamma + beta
    np.testing.assert_allclose(ours(x, training=True), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", ["int32", "uint8", "float16", "float64"])
@pytest.mark.parametrize("autocast", [False, True])
def test_input_dtypes(rng, dtype, autocast):
    own, ours = layers((8, 6, 5), autocast=autocast)
    assert_agree(own, ours, rng.integers(0, 100, (8, 6, 5)).astype(dtype), training=True)


@pytest.mark.parametrize("shape, axis, mask_shape", [((8, 6, 5), -1, (8, 6)), ((8, 6, 5), 2, (8, 1)),
                                                     ((8, 5), -1, (8,)), ((8, 6, 5), 1, (8, 6)),
                                                     ((4, 3, 6, 5), -1, (1, 3, 6))])
def test_masks(rng, shape, axis, mask_shape):
    own, ours = layers(shape, axis=axis)
    mask, x = rng.random(mask_shape) < 0.6, rng.normal(3, 2, shape).astype("f4")
    assert_agree(own, ours, x, training=True, mask=mask)
    assert_agree(own, ours, x, training=False, mask=mask)
    assert_agree(own, ours, x, training=True, mask=mask.astype("f4"))
    assert_agree(own, ours, x, training=True, mask=np.zeros(mask_shape, bool))


@pytest.mark.parametrize("shape, axis", [((8, 6, 5), 1), ((8, 6, 5), -1), ((8, 3, 6, 5), 1)])
def test_a_mask_by_sample_or_step(rng, shape, axis):
    """Which Keras's own layer takes for another axis, or refuses."""
    x, by_sample = rng.normal(3, 2, shape).astype("f4"), np.arange(shape[0]) < 5
    masks = [by_sample] if axis == -1 else [by_sample, np.broadcast_to(by_sample[:, None], (8, shape[2]))]
    _, want = layers(shape, axis=axis)
    y = want(x[:5], training=True)
    for mask in masks:
        _, ours = layers(shape, axis=axis)
        np.testing.assert_allclose(ours(x, training=True, mask=mask)[:5], y, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(ours.moving_variance.value, want.moving_variance.value, rtol=1e-5)


def test_a_wrong_mask_is_keras_s_error(rng):
    for layer in layers((8, 6, 5)):
        with pytest.raises(ValueError, match="one dimension less"):
            layer(rng.normal(size=(8, 6, 5)), training=True, mask=np.ones((8, 6, 5), bool))


def test_renorm_trains_as_in_keras(rng):
    own, ours = layers((8, 5), renorm=True, renorm_clipping={"rmax": 2, "rmin": 0.5, "dmax": 1})
    for training in (True, True, False):
        assert_agree(own, ours, rng.normal(3, 2, (8, 5)).astype("f4"), training=training)


def test_not_trainable_is_inference(rng):
    own, ours = layers((8, 5))
    own.trainable = ours.trainable = False
    before = [weight.value.copy() for weight in ours.weights]
    assert_agree(own, ours, rng.normal(3, 2, (8, 5)).astype("f4"), training=True)
    assert all(np.array_equal(a, b.value) for a, b in zip(before, ours.weights))


def test_an_empty_batch_leaves_the_averages_alone():
    _, ours = layers((None, 5))
    before = [weight.value.copy() for weight in ours.weights]
    assert ours(np.empty((0, 5), "f4"), training=True).shape == (0, 5)
    assert all(np.array_equal(a, b.value) for a, b in zip(before, ours.weights))


def test_the_averages_hold_at_a_large_mean(rng):
    """Where float32 sums of Keras's NumPy backend lose digits, ours do not."""
    _, ours = layers((4096, 3), momentum=0.0)
    x = rng.normal(1e4, 1, (4096, 3)).astype("f4")
    ours(x, training=True)
    np.testing.assert_allclose(ours.moving_variance.value, x.astype("f8").var(axis=0), rtol=1e-6)


def test_stateless_call(rng):
    _, ours = layers((8, 5))
    before, x = ours.moving_mean.value.copy(), rng.normal(3, 2, (8, 5)).astype("f4")
    y, moving = ours.stateless_call([v.value for v in ours.trainable_variables],
                                    [v.value for v in ours.non_trainable_variables], x, training=True)
    assert np.array_equal(ours.moving_mean.value, before) and not np.array_equal(moving[0], before)
    np.testing.assert_array_equal(y, ours(x, training=True))
    np.testing.assert_array_equal(moving[0], ours.moving_mean.value)


def a_model():
    """A functional model with batch norms in it and in a model in it, and a random state."""
    inputs = keras.Input((6, 4))
    h = keras.layers.Dense(5)(inputs)
    h = keras.layers.ReLU()(keras.layers.BatchNormalization(axis=1, momentum=0.5)(h))
    inner = keras.Sequential([keras.Input((6, 5)), keras.layers.BatchNormalization(scale=False), keras.layers.Dense(3)])
    model = keras.Model(inputs, inner(h))
    for weight in model.weights:
        weight.assign(np.random.default_rng(len(weight.path)).uniform(0.5, 2, weight.shape))
    return model


def test_convert_there_and_back(rng):
    model, x = a_model(), rng.normal(size=(8, 6, 4)).astype("f4")
    ours = convert(model)
    back = convert(ours, back=True)
    for twin, kind in ((ours, BatchNormalization), (back, keras.layers.BatchNormalization)):
        found = [layer for layer in twin._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
        assert len(found) == 2 and {type(layer) for layer in found} == {kind}
        assert [w.path for w in twin.weights] == [w.path for w in model.weights]
        np.testing.assert_allclose(twin.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-5, atol=1e-5)
    ours(x, training=True)
    assert all(np.array_equal(a.value, b.value) for a, b in zip(back.weights, model.weights, strict=True))


def test_saved_and_loaded_under_its_registered_name(tmp_path, rng):
    model, x = convert(a_model()), rng.normal(size=(8, 6, 4)).astype("f4")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert any(type(layer) is BatchNormalization for layer in loaded.layers)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    layer = BatchNormalization(axis=1, epsilon=0.25, name="norm")
    config = keras.saving.serialize_keras_object(layer)
    assert config["registered_name"] == "fastbn>BatchNormalization"
    assert keras.saving.deserialize_keras_object(config).get_config() == layer.get_config()


def test_what_cannot_be_converted():
    with pytest.raises(TypeError, match="model is a Dense, expected a keras.Model"):
        convert(keras.layers.Dense(3))


def test_keras_warns_of_nothing_on_our_account(rng):
    _, ours = layers((8, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for training in (False, True):
            ours(rng.normal(size=(8, 5)).astype("f4"), training=training)


def test_steps_have_the_bits_of_fastbns_layer():
    batches = [np.random.default_rng(i).normal(3, 2, (7, 5, 3)).astype(np.float32) for i in range(3)]
    layer = BatchNormalization(axis=1, momentum=0.9)
    for x in batches:
        layer(x, training=True)
    for found, expected in zip((layer.moving_mean, layer.moving_variance), steps_of_layer(batches, ddof=0)):
        np.testing.assert_array_equal(found.value, expected)
