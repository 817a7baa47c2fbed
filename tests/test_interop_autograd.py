"""Batch normalization as a primitive of autograd: gradients, gradients of these, moving averages outside the graph."""
import gc
import subprocess
import sys
import weakref

import numpy as np
import pytest

autograd = pytest.importorskip("autograd", reason="autograd is not installed: the extra 'autograd' has it")

import autograd.numpy as anp  # noqa: E402
from autograd import checkpoint, grad, hessian_vector_product, jacobian  # noqa: E402
from autograd.test_util import check_grads  # noqa: E402

import fastbn  # noqa: E402
from fastbn.interop.autograd import batch_norm, batch_norm_inference, batch_norm_training  # noqa: E402

ALL = (0, 1, 2)
LAYOUTS = [((8, 3), 1), ((5, 3, 4), 1), ((4, 2, 3, 3), -1), ((3, 2, 4, 2), (1, 3))]


def composed(x, gamma=None, beta=None, eps=1e-5, axis=1):
    """The formula in autograd's own functions."""
    axes = tuple(i % x.ndim for i in (axis if isinstance(axis, tuple) else (axis,)))
    others = tuple(i for i in range(x.ndim) if i not in axes)
    shape = tuple(size if i in axes else 1 for i, size in enumerate(x.shape))
    mean = anp.mean(x, others, keepdims=True)
    h = (x - mean) / anp.sqrt(anp.mean((x - mean)**2, others, keepdims=True) + eps)
    h = h if gamma is None else h * anp.reshape(gamma, shape)
    return h if beta is None else h + anp.reshape(beta, shape)


def draw(rng, shape=(6, 3, 4), axis=1, dtype=np.float64):
    """x, gamma, beta."""
    c = int(np.prod([shape[i] for i in (axis if isinstance(axis, tuple) else (axis,))]))
    return [a.astype(dtype) for a in (rng.normal(1, 2, shape), rng.normal(1, 0.3, c), rng.normal(size=c))]


def statistics(rng, c=3, dtype=np.float64):
    return rng.normal(size=c).astype(dtype), rng.uniform(0.5, 2, c).astype(dtype)


def assert_like(found, wanted, rtol=1e-9):
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=0, atol=rtol * np.max(np.abs(wanted)))


# Gradients

@pytest.mark.parametrize("shape, axis", LAYOUTS)
@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_training_against_numeric_differences(shape, axis, eps, rng):
    np.random.seed(1)  # check_grads draws its directions there
    arrays = draw(rng, shape, axis)
    check_grads(lambda *p: batch_norm_training(*p, axis=axis, eps=eps), ALL, modes=["rev"], order=2)(*arrays)


@pytest.mark.parametrize("count", [1, 2])
def test_training_without_gamma_or_beta(count, rng):
    np.random.seed(1)
    check_grads(batch_norm_training, tuple(range(count)), modes=["rev"], order=2)(*draw(rng)[:count])
    x, _, beta = draw(rng)
    check_grads(lambda x, beta: batch_norm_training(x, None, beta), (0, 1), modes=["rev"], order=2)(x, beta)


@pytest.mark.parametrize("shape, axis", LAYOUTS)
def test_inference_against_numeric_differences(shape, axis, rng):
    np.random.seed(1)
    x, gamma, beta = draw(rng, shape, axis)
    mean, var = statistics(rng, gamma.size)
    check_grads(lambda x, g, b: batch_norm_inference(x, mean, var, g, b, axis=axis), ALL, modes=["rev"], order=2)(
        x, gamma, beta)
    check_grads(lambda *p: batch_norm_inference(*p, axis=axis), (0, 1, 2, 3, 4), modes=["rev"], order=1)(
        x, mean, var, gamma, beta)


@pytest.mark.parametrize("argnums", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), ALL])
def test_any_of_the_arguments_may_be_variables(argnums, rng):
    arrays, w = draw(rng), rng.normal(size=(6, 3, 4))
    def loss(function):
        return lambda *p: anp.sum(w * anp.sin(function(*p)))
    found, wanted = (grad(loss(function), argnums)(*arrays) for function in (batch_norm_training, composed))
    for a, b in zip(found, wanted, strict=True):
        assert_like(a, b)
    def penalty(function):
        return lambda *p: sum(anp.sum(anp.cos(g)) for g in grad(loss(function), ALL)(*p))
    found, wanted = (grad(penalty(function), argnums)(*arrays) for function in (batch_norm_training, composed))
    for a, b in zip(found, wanted, strict=True):
        assert_like(a, b)


def test_a_gradient_linear_in_y_depends_on_gamma_and_not_on_beta(rng):
    """There dy is no variable, and beta is the only one of the backward's arguments."""
    (x, gamma, beta), w = draw(rng), rng.normal(size=(6, 3, 4))
    def inner(function, gamma, beta):
        return anp.sum(w * grad(lambda x: anp.sum(w * function(x, gamma, beta)))(x))
    assert_like(*(grad(inner, 1)(function, gamma, beta) for function in (batch_norm_training, composed)))
    assert not grad(inner, 2)(batch_norm_training, gamma, beta).any()


def test_hessians_and_jacobians(rng):
    x, gamma, beta = draw(rng, (4, 2))
    v = rng.normal(size=x.shape)
    def loss(function):
        return lambda x: anp.sum(anp.tanh(function(x, gamma, beta))**2)
    found, wanted = (hessian_vector_product(loss(f))(x, v) for f in (batch_norm_training, composed))
    assert_like(found, wanted)
    found, wanted = (jacobian(lambda x: f(x, gamma, beta))(x) for f in (batch_norm_training, composed))
    assert_like(found, wanted)


def test_one_inside_the_other(rng):
    arrays, w = draw(rng, (8, 3)), rng.normal(size=(3, 3))
    def net(function):
        def loss(x, gamma, beta):
            return anp.sum(anp.tanh(function(anp.dot(anp.tanh(function(x, gamma, beta)), w), gamma, beta))**2 * x)
        return lambda *p: sum(anp.sum(g**2) for g in grad(loss, ALL)(*p))
    for a, b in zip(*(grad(net(function), ALL)(*arrays) for function in (batch_norm_training, composed))):
        assert_like(a, b, 1e-8)


def test_values_without_a_graph_are_those_of_fastbn(rng):
    x, gamma, beta = draw(rng, dtype=np.float32)
    mean, var = statistics(rng, dtype=np.float32)
    assert np.array_equal(batch_norm_training(x, gamma, beta), fastbn.batch_norm_training(x, gamma, beta)[0])
    assert np.array_equal(batch_norm_inference(x, mean, var, gamma, beta, eps=0.1),
                          fastbn.batch_norm_inference(x, mean, var, gamma, beta, eps=0.1))


@pytest.mark.parametrize("options", [{"activation": "tanh"}, {"weights": np.arange(1, 7.0)[:, None] * np.ones(4)},
                                     {"ghost_batch_size": 3}])
def test_options_have_gradients(options, rng):
    np.random.seed(1)
    check_grads(lambda *p: batch_norm_training(*p, **options), ALL, modes=["rev"], order=1)(*draw(rng))


# Types and layouts of what comes in

@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_gradients_have_the_types_of_their_arguments(dtype, rng):
    x = draw(rng, dtype=dtype)[0]
    for of_gamma in (np.float32, np.float64):
        for of_beta in (np.float32, np.float64):
            gamma, beta = draw(rng, dtype=of_gamma)[1], draw(rng, dtype=of_beta)[2]
            found = grad(lambda *p: anp.sum(batch_norm_training(*p)**2), ALL)(x, gamma, beta)
            assert [a.dtype for a in found] == [dtype, of_gamma, of_beta]
            found = grad(lambda *p: anp.sum(batch_norm_inference(*p)**2), (0, 1, 2, 3, 4))(
                x, *statistics(rng, dtype=of_beta), gamma, beta)
            assert [a.dtype for a in found] == [dtype, of_beta, of_beta, of_gamma, of_beta]


def test_cotangents_may_be_of_another_type_and_in_any_layout(rng):
    arrays = draw(rng, (6, 3, 4, 5), dtype=np.float32)
    seen = []

    @autograd.extend.primitive
    def watched(y):
        return y

    autograd.extend.defvjp(watched, lambda y, x: lambda g: seen.append(g) or g)

    def gradients(function, w):
        def loss(x, gamma, beta):
            y = anp.swapaxes(watched(function(x, gamma, beta)), 1, 3)
            return anp.sum(y * w)
        return grad(loss, ALL)(*arrays)

    w = rng.normal(size=(6, 5, 4, 3))
    found = gradients(batch_norm_training, w)
    assert seen[0].dtype == np.float64 and not seen[0].flags.c_contiguous
    for a, b in zip(found, gradients(composed, w)):
        assert a.dtype == np.float32
        assert_like(a, b, 2e-6)


def test_a_constant_cotangent_of_no_strides(rng):
    x, gamma, beta = draw(rng)
    found, wanted = (grad(lambda *p: anp.sum(f(*p)), ALL)(x, gamma, beta) for f in (batch_norm_training, composed))
    assert np.array_equal(found[2], np.full(3, 24.0))
    for a, b in zip(found, wanted):
        assert np.max(np.abs(a - b)) < 1e-12


def test_an_input_of_strides(rng):
    x, gamma, beta = draw(rng, (4, 5, 6), 2)
    x = x.transpose(0, 2, 1)[:, ::2, ::-1]
    found, wanted = (grad(lambda *p: anp.sum(anp.sin(f(*p))), ALL)(x, gamma[:3], beta[:3])
                     for f in (batch_norm_training, composed))
    for a, b in zip(found, wanted):
        assert_like(a, b)


def test_arrays_stay_what_they_were(rng):
    arrays = draw(rng)
    before = [a.copy() for a in arrays]
    grad(lambda *p: anp.sum(batch_norm_training(*p)**2), ALL)(*arrays)
    assert all(np.array_equal(a, b) for a, b in zip(arrays, before))


def test_x_is_let_go_of_with_the_graph(rng):
    class Array(np.ndarray):
        """One that can be referred to weakly."""
    arrays = draw(rng)
    x = arrays[0].view(Array)
    reference = weakref.ref(x)
    grad(lambda g: anp.sum(batch_norm_training(x, g)**2))(arrays[1])
    del x
    gc.collect()
    assert reference() is None


# Moving averages

def made_layer(**settings):
    return fastbn.BatchNorm(3, center=False, scale=False, dtype=np.float64, **settings)


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.7, "ddof": 0}, {"momentum": None}, {"axis": -1, "eps": 0.1}])
def test_moving_averages_are_the_layers_own(settings, rng):
    ours, theirs = made_layer(**settings), fastbn.BatchNorm(3, dtype=np.float64, **settings)
    theirs.gamma[:], theirs.beta[:] = rng.normal(1, 0.3, 3), rng.normal(size=3)
    shape = (6, 4, 3) if settings.get("axis") == -1 else (6, 3, 4)
    for _ in range(3):
        x, w = rng.normal(1, 2, shape), rng.normal(size=shape)
        y = theirs(x)
        def loss(x, gamma, beta):
            return anp.sum(w * batch_norm(x, gamma, beta, ours))
        found = grad(loss, ALL)(x, theirs.gamma, theirs.beta)
        assert np.array_equal(batch_norm(x, theirs.gamma, theirs.beta, ours, update=False), y)
        for a, b in zip(found, (theirs.backward(w), theirs.dgamma, theirs.dbeta)):
            assert np.array_equal(a, b)
        assert np.array_equal(ours.running_mean, theirs.running_mean)
        assert np.array_equal(ours.running_var, theirs.running_var)
        assert ours.num_batches_tracked == theirs.num_batches_tracked
    x = rng.normal(size=shape)
    ours.eval(), theirs.eval()
    assert np.array_equal(batch_norm(x, theirs.gamma, theirs.beta, ours), theirs(x))


def test_inference_is_by_constants_and_takes_no_step(rng):
    bn = made_layer().eval()
    bn.running_mean[:], bn.running_var[:] = statistics(rng)
    before, (x, gamma, beta) = bn.state_dict(), draw(rng)
    np.random.seed(1)
    check_grads(lambda *p: batch_norm(*p, bn), ALL, modes=["rev"], order=2)(x, gamma, beta)
    assert all(np.array_equal(before[name], value) for name, value in bn.state_dict().items())


def test_a_gradient_is_of_the_statistics_at_the_call(rng):
    bn, (x, gamma, beta) = made_layer().eval(), draw(rng)
    def loss(x):
        y = anp.sum(batch_norm(x, gamma, beta, bn)**2)
        bn.running_var[:] = 100
        return y
    found = grad(loss)(x)
    bn.running_var[:] = 1
    assert_like(found, grad(lambda x: anp.sum(batch_norm(x, gamma, beta, bn)**2))(x), 1e-12)


def test_switches_and_update(rng):
    bn, (x, gamma, beta) = made_layer(), draw(rng)
    batch_norm(x, gamma, beta, bn, update=False)
    assert bn.num_batches_tracked == 0 and not bn.running_mean.any()
    bn.update(bn.batch_moments)
    other = made_layer()
    batch_norm(x, gamma, beta, other)
    assert np.array_equal(bn.running_var, other.running_var) and bn.num_batches_tracked == 1
    bn.update_running_stats = False
    batch_norm(x, gamma, beta, bn)
    assert bn.num_batches_tracked == 1
    bn.use_batch_stats, bn.update_running_stats = False, True
    y = batch_norm(x, gamma, beta, bn)
    assert bn.num_batches_tracked == 2
    assert np.array_equal(y, fastbn.batch_norm_inference(x, other.running_mean, other.running_var, gamma, beta))


def test_recomputation_counts_once(rng):
    bn, (x, gamma, beta) = made_layer(), draw(rng)
    block = checkpoint(lambda x: batch_norm(x, gamma, beta, bn, update=False))
    found = grad(lambda x: anp.sum(anp.sin(block(x))))(x)
    bn.update(bn.batch_moments)
    assert bn.num_batches_tracked == 1
    assert_like(found, grad(lambda x: anp.sum(anp.sin(composed(x, gamma, beta))))(x))


def test_an_activation_of_the_layer(rng):
    bn, (x, gamma, beta) = made_layer(activation="relu"), draw(rng)
    found = grad(lambda *p: anp.sum(batch_norm(*p, bn)**2), ALL)(x, gamma, beta)
    wanted = grad(lambda *p: anp.sum(anp.maximum(composed(*p), 0)**2), ALL)(x, gamma, beta)
    for a, b in zip(found, wanted):
        assert_like(a, b)


def test_nan_policies(rng):
    bn, (x, gamma, beta) = made_layer(nan_policy="skip"), draw(rng)
    x[0, 1] = np.nan
    assert np.isnan(batch_norm(x, gamma, beta, bn)[:, 1]).all() and bn.num_batches_tracked == 0
    bn.nan_policy = "raise"
    with pytest.raises(ValueError, match="feature"):
        batch_norm(x, gamma, beta, bn)
    assert bn.num_batches_tracked == 0


def test_one_value_per_feature_takes_no_step(rng):
    bn, (x, gamma, beta) = made_layer(), draw(rng, (1, 3))
    with pytest.warns(UserWarning, match="one value per feature") as warned:
        assert np.array_equal(batch_norm(x, gamma, beta, bn), beta[None])
    assert warned[0].filename == __file__ and bn.num_batches_tracked == 0


def test_training_learns(rng):
    """Two classes, a network of one inner layer; the running statistics serve in the end."""
    x = rng.normal(size=(200, 5))
    labels = (x[:, 0] * x[:, 1] > 0).astype(float)
    bn = fastbn.BatchNorm(16, center=False, scale=False, dtype=np.float64)
    values = [rng.normal(size=(5, 16)), np.ones(16), np.zeros(16), rng.normal(size=16) * 0.1]

    def loss(values):
        weight, gamma, beta, out = values
        logits = anp.dot(anp.tanh(batch_norm(anp.dot(x, weight), gamma, beta, bn)), out)
        return anp.mean(anp.log1p(anp.exp(-anp.abs(logits))) + anp.maximum(logits, 0) - logits * labels)

    first, gradient = loss(values), grad(loss)
    for _ in range(150):
        values = [value - change for value, change in zip(values, gradient(values))]
    bn.eval()
    assert loss(values) < first / 2 and bn.num_batches_tracked == 151


# Errors

def test_what_is_not_offered_is_an_error(rng):
    x, gamma, beta = draw(rng)
    mean, var = statistics(rng)
    def deep(function, depth):
        return function if depth == 0 else deep(lambda x: anp.sum(grad(function)(x)**2), depth - 1)
    def plain(x):
        return anp.sum(anp.sin(batch_norm_training(x, gamma, beta)))
    grad(deep(plain, 1))(x)
    with pytest.raises(NotImplementedError, match="a third derivative .* compose batch norm"):
        grad(deep(plain, 2))(x)
    with pytest.raises(NotImplementedError, match="forward mode is asked for"):
        autograd.differential_operators.make_jvp(plain)(x)(x)
    for name, again in {"activation": "tanh", "weights": np.ones((6, 4)), "mask": np.ones((6, 4), bool)}.items():
        with pytest.raises(ValueError, match="expected plain batch normalization"):
            grad(deep(lambda x: anp.sum(anp.sin(batch_norm_training(x, gamma, beta, **{name: again}))), 1))(x)
    with pytest.raises(TypeError, match="saved is a GhostSaved"):
        grad(deep(lambda x: anp.sum(anp.sin(batch_norm_training(x, ghost_batch_size=2))), 1))(x)
    def frozen(*p):
        return anp.sum(batch_norm_inference(*p)**2)
    for first, second in ((0, 1), (0, 2), (1, 0), (2, 0)):
        with pytest.raises(NotImplementedError, match="pass mean and var as constants"):
            grad(lambda *p: anp.sum(grad(frozen, first)(*p)**2), second)(x, mean, var)


def test_with_an_activation_a_gradient_depends_on_beta(rng):
    """It is the only variable of the backward there, and would be 0 if nobody looked."""
    (x, gamma, beta), w = draw(rng), rng.normal(size=(6, 3, 4))
    def inner(beta):
        return anp.sum(grad(lambda x: anp.sum(w * batch_norm_training(x, gamma, beta, activation="tanh")))(x)**2)
    with pytest.raises(ValueError, match="expected plain batch normalization"):
        grad(inner)(beta)


def test_renormalization_has_no_double_backward(rng):
    x, gamma, beta = draw(rng)
    mean, var = statistics(rng)
    def loss(x):
        return anp.sum(anp.sin(batch_norm_training(x, gamma, beta, renorm=(2, 1), running_mean=mean, running_var=var)))
    grad(loss)(x)
    with pytest.raises((TypeError, ValueError), match="saved is"):
        grad(lambda x: anp.sum(grad(loss)(x)**2))(x)


def test_arguments_are_checked(rng):
    x, gamma, beta = draw(rng)
    for name in ("out", "residual"):
        with pytest.raises(ValueError, match=f"{name} is given"):
            batch_norm_training(x, gamma, beta, **{name: x})
        with pytest.raises(ValueError, match=f"{name} is given"):
            batch_norm_inference(x, *statistics(rng), **{name: x})
    with pytest.raises(TypeError, match="epsilon"):
        batch_norm_training(x, gamma, beta, epsilon=1e-3)
    with pytest.raises(ValueError, match="3 entries and gamma 2 features"):
        grad(lambda x: anp.sum(batch_norm_training(x, gamma[:2])))(x)
    with pytest.raises(TypeError, match="weights has dtype object"):
        grad(lambda w: anp.sum(batch_norm_training(x, weights=w)))(np.ones((6, 4)))
    with pytest.raises(TypeError, match="complex128"):
        batch_norm_training(x + 1j)


def test_the_layer_is_checked_before_anything_changes(rng):
    x, gamma, beta = draw(rng)
    with pytest.raises(TypeError, match="bn is a dict, expected a fastbn.BatchNorm"):
        batch_norm(x, gamma, beta, {})
    for settings in ({"ghost_batch_size": 2}, {"renorm": (3, 5)}, {"nan_policy": "omit"}):
        with pytest.raises(ValueError, match="are not offered here"):
            batch_norm(x, gamma, beta, made_layer(**settings))
    bn = made_layer()
    with pytest.raises(ValueError, match="has 4 entries and bn 3 features.*axis=1"):
        bn.axis = 2
        batch_norm(x, None, None, bn)
    bn.axis = 1
    with pytest.raises(ValueError, match="3 entries and gamma 2 features"):
        batch_norm(x, gamma[:2], beta, bn)
    assert bn.num_batches_tracked == 0 and not bn.running_mean.any() and bn.batch_moments is None


def test_without_autograd_the_remedy_is_named():
    code = ("import sys; sys.modules['autograd'] = None\n"
            "import fastbn\n"
            "try:\n    import fastbn.interop.autograd\nexcept ImportError as error:\n    print(error)")
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "fastbn.interop.autograd needs the package autograd: pip install 'fastbn[autograd]'\n"


def test_fastbn_imports_no_framework():
    code = "import sys, fastbn; print([name for name in ('autograd', 'onnx', 'fastbn.interop') if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "[]\n"
