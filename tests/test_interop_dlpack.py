"""Arrays of other libraries through DLPack: taken without a copy, written to, and given back as their own kind.

Results are compared, bit for bit, with those of the same call on NumPy arrays in the same memory.
"""
import gc
import sys

import numpy as np
import pytest

import fastbn
from oracle import parameters, sample

SHAPE = (6, 5, 4, 7)
VERSION = tuple(map(int, np.__version__.split(".")[:2]))
writes = pytest.mark.skipif(VERSION < (2, 1), reason="to older NumPy every array of another library is read-only")


class Forwarded:
    """As little as an array of a library can be: DLPack's two methods, here those of a NumPy array."""

    def __init__(self, a, **device):
        self.a, self.device = a, device.get("device")

    def __dlpack__(self, **options):
        return self.a.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.device or self.a.__dlpack_device__()


class Old(Forwarded):
    """DLPack before 1.0."""

    def __dlpack__(self, stream=None):
        return self.a.__dlpack__()


class Kind:
    """A library: its module (None: it has none), its array on a NumPy array's memory, and the way back."""

    def __init__(self, name):
        self.name, self.module, self.make = name, None, {"forwarded": Forwarded, "old": Old}.get(name)
        if name == "array_api_strict" and VERSION < (2, 1):
            pytest.skip("it is NumPy's own DLPack, in which read-only arrays could not be passed on before 2.1")
        if self.make is None:
            self.module = pytest.importorskip({"jax": "jax.numpy"}.get(name, name))
            self.make = self.module.from_dlpack

    def type(self):
        return type(self.make(np.zeros(1, np.float32)))


@pytest.fixture(params=["forwarded", "old", "array_api_strict", "torch", "jax"])
def kind(request):
    return Kind(request.param)


@pytest.fixture(params=["array_api_strict", "torch", "jax"])
def library(request):
    return Kind(request.param)


def aligned(a):
    """A copy at an address that JAX takes as it is."""
    room = np.empty(a.nbytes + 64, np.uint8)
    first = -room.ctypes.data % 64
    copy = room[first:first + a.nbytes].view(a.dtype).reshape(a.shape)
    copy[...] = a
    return copy


@pytest.fixture
def data(rng):
    """x, dy, gamma, beta"""
    return [aligned(a) for a in (sample(rng, SHAPE), sample(rng, SHAPE), *parameters(rng, SHAPE[1]))]


def assert_same(got, expected):
    """What arrays, tuples of them, and None become."""
    if isinstance(expected, tuple):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_same(one, other)
    elif expected is None:
        assert got is None
    else:
        got = np.asarray(got) if isinstance(got, np.ndarray) else np.from_dlpack(got)
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)


def statistics(saved):
    return saved.mean, saved.var, saved.rstd


def test_functions_take_it_without_a_copy(kind, data):
    x, dy, gamma, beta = data
    x_, dy_, gamma_, beta_ = map(kind.make, data)
    y, saved = fastbn.batch_norm_training(x_, gamma_, beta_)
    expected, plain = fastbn.batch_norm_training(x, gamma, beta)
    assert type(y) is np.ndarray and saved.x.ctypes.data == x.ctypes.data
    assert_same((y, *statistics(saved)), (expected, *statistics(plain)))
    assert_same(fastbn.batch_norm_backward(dy_, saved), fastbn.batch_norm_backward(dy, plain))
    mean, var = (a.astype(np.float32) for a in (saved.mean, saved.var))
    assert_same(fastbn.batch_norm_inference(x_, kind.make(mean), kind.make(var), gamma_, beta_),
                fastbn.batch_norm_inference(x, mean, var, gamma, beta))
    assert fastbn.moments(x_) == fastbn.moments(x)
    assert_same(fastbn.batch_norm_double_backward(x_, gamma_, beta_, dy_, saved),
                fastbn.batch_norm_double_backward(x, gamma, beta, dy, plain))


def test_one_argument_alone_may_be_it(kind, data):
    x, _, gamma, beta = data
    assert_same(fastbn.batch_norm_training(x, kind.make(gamma), beta)[0], fastbn.batch_norm_training(x, gamma, beta)[0])
    assert_same(fastbn.batch_norm_training(kind.make(x), gamma, beta)[0], fastbn.batch_norm_training(x, gamma, beta)[0])


def test_residuals_masks_weights_lengths(kind, rng, data):
    x, residual = data[:2]
    weights, lengths = aligned(rng.random(SHAPE[:1] + SHAPE[2:])), np.array([4, 1, 2, 3, 4, 0])
    given = {"residual": residual, "weights": weights, "lengths": lengths}
    foreign = {name: kind.make(a) for name, a in given.items()}
    if kind.name != "old":  # it has no bool
        given["mask"] = rng.random(weights.shape) < 0.7
        foreign["mask"] = kind.make(given["mask"])
    expected, plain = fastbn.batch_norm_training(x, **given)
    for first in (kind.make(x), x):
        y, saved = fastbn.batch_norm_training(first, **foreign)
        assert_same((y, *statistics(saved)), (expected, *statistics(plain)))
    of_moments = {name: a for name, a in foreign.items() if name != "residual"}
    assert fastbn.moments(kind.make(x), **of_moments) == fastbn.moments(x, **{name: given[name] for name in of_moments})


@pytest.mark.parametrize("options", [{"ghost_batch_size": 4}, {"renorm": (3, 5)}, {"nan_policy": "raise"},
                                     {"nan_policy": "omit"}], ids=str)
def test_training_in_other_ways(kind, data, options):
    x, dy, gamma, beta = data
    running = {"running_mean": gamma, "running_var": beta * beta + 1} if "renorm" in options else {}
    foreign = {name: kind.make(a) for name, a in running.items()}
    y, saved = fastbn.batch_norm_training(kind.make(x), kind.make(gamma), kind.make(beta), **options, **foreign)
    expected, plain = fastbn.batch_norm_training(x, gamma, beta, **options, **running)
    assert_same(y, expected)
    assert_same(fastbn.batch_norm_backward(kind.make(dy), saved), fastbn.batch_norm_backward(dy, plain))


def test_results_of_its_kind(library, data):
    x, dy, gamma, beta = data
    x_, dy_ = library.make(x), library.make(dy)
    expected, plain = fastbn.batch_norm_training(x, gamma, beta)
    gradients = fastbn.batch_norm_backward(dy, plain)
    second = fastbn.batch_norm_double_backward(x, gamma, None, dy, plain)
    inferred = fastbn.batch_norm_inference(x, beta, gamma * gamma)
    for like in (x_, library.module):
        y, saved = fastbn.batch_norm_training(x_, gamma, beta, like=like)
        dx, dgamma, dbeta = fastbn.batch_norm_backward(dy_, saved, like=like)
        second_ = fastbn.batch_norm_double_backward(x_, gamma, None, dy_, saved, like=like)
        y2 = fastbn.batch_norm_inference(x_, beta, gamma * gamma, like=like)
        y3, frozen = fastbn.batch_norm_inference(x, beta, gamma * gamma, return_saved=True, like=like)
        assert {type(a) for a in (y, dx, dgamma, dbeta, y2, y3, *second_)} == {library.type()}
        assert_same((y, dx, dgamma, dbeta, y2, y3, second_), (expected, *gradients, inferred, inferred, second))
        assert type(saved.mean) is type(saved.x) is type(frozen.mean) is np.ndarray
    dx, dgamma, dbeta = fastbn.batch_norm_backward(dy_, saved, like=x_, needs="dgamma")
    assert dx is dbeta is None and type(dgamma) is library.type()


def test_like_numpy_is_the_default(library, data):
    x = library.make(data[0])
    for like in (None, np, data[1]):
        assert type(fastbn.batch_norm_training(x, like=like)[0]) is np.ndarray
        assert type(fastbn.BatchNorm(SHAPE[1])(x, like=like)) is np.ndarray


def test_results_outlive_and_arguments_are_kept(library, data):
    """Nobody but the result, or what was saved, knows of the memory."""
    x, dy = data[:2]
    expected, plain = fastbn.batch_norm_training(x.copy())
    y, saved = fastbn.batch_norm_training(library.make(aligned(x)), like=library.module)
    gc.collect()
    fillers = [aligned(np.full_like(x, 7)) for _ in range(50)]
    assert_same(y, expected)
    assert_same(fastbn.batch_norm_backward(dy, saved), fastbn.batch_norm_backward(dy, plain))
    assert len(fillers) == 50


def test_the_layer(library, data):
    x, dy, residual = data[0], data[1], data[1] * 2
    layers = [fastbn.BatchNorm(SHAPE[1], activation="relu") for _ in range(2)]
    expected = layers[0](x, residual=residual)
    y = layers[1](library.make(x), residual=library.make(residual), like=library.module)
    gradients = layers[0].backward(dy)
    dx = layers[1].backward(library.make(dy), like=library.module)
    assert type(y) is type(dx[0]) is type(dx[1]) is library.type()
    assert_same((y, dx), (expected, gradients))
    assert type(layers[1].dgamma) is np.ndarray
    for name, value in layers[0].state_dict().items():
        np.testing.assert_array_equal(layers[1].state_dict()[name], value)
    assert_same(layers[1].eval()(library.make(x), like=y), layers[0].eval()(x))
    assert_same(layers[1].forward(library.make(x)), layers[0].forward(x))


def test_the_layer_on_whatever_has_dlpack(kind, data):
    x, dy = data[:2]
    layers = [fastbn.BatchNorm(SHAPE[1]) for _ in range(2)]
    for _ in range(2):
        assert_same(layers[1](kind.make(x)), layers[0](x))
        assert_same(layers[1].backward(kind.make(dy)), layers[0].backward(dy))
    np.testing.assert_array_equal(layers[1].running_var, layers[0].running_var)
    np.testing.assert_array_equal(layers[1].dgamma, layers[0].dgamma)
    assert layers[1].num_batches_tracked == 2


def test_a_subclass_s_forward_runs_once(library, data):
    class Shifted(fastbn.BatchNorm):
        def forward(self, x, **more):
            return super().forward(x, **more) + 1
    y = Shifted(SHAPE[1])(library.make(data[0]), like=library.module)
    expected = library.make(fastbn.BatchNorm(SHAPE[1])(data[0])) + 1
    assert_same(y, np.from_dlpack(expected))


@writes
@pytest.mark.parametrize("name", ["forwarded", "array_api_strict", "torch"])
def test_out_is_written_to_and_returned(name, data):
    kind, (x, dy, gamma, beta) = Kind(name), data
    expected, plain = fastbn.batch_norm_training(x, gamma, beta)
    memory = np.empty_like(x)
    out = kind.make(memory)
    y, saved = fastbn.batch_norm_training(kind.make(x), gamma, beta, out=out)
    assert y is out
    assert_same((memory, *statistics(saved)), (expected, *statistics(plain)))
    dx = fastbn.batch_norm_backward(dy, saved, out=out, like=kind.module)[0]
    assert dx is out
    assert_same(memory, fastbn.batch_norm_backward(dy, plain)[0])
    assert fastbn.batch_norm_inference(x, beta, gamma * gamma, out=out, activation="relu") is out
    assert_same(memory, fastbn.batch_norm_inference(x, beta, gamma * gamma, activation="relu"))
    assert fastbn.BatchNorm(SHAPE[1])(x, out=out) is out


@writes
@pytest.mark.parametrize("name", ["forwarded", "array_api_strict", "torch"])
def test_in_place(name, data):
    """x itself as out, and dy, by another object on the same memory."""
    kind, (x, dy) = Kind(name), data[:2]
    layers = [fastbn.BatchNorm(SHAPE[1]) for _ in range(2)]
    copy, gradient = x.copy(), dy.copy()
    expected = layers[0](copy, out=copy)
    expected_dx = layers[0].backward(gradient, out=gradient)
    x_, dy_ = kind.make(x), kind.make(dy)
    assert layers[1](x_, out=x_) is x_
    assert_same(x, expected)
    assert layers[1].backward(dy_, out=dy_) is dy_
    assert_same(dy, expected_dx)
    with pytest.raises(ValueError, match="overlap"):
        fastbn.batch_norm_training(kind.make(x[1:]), out=kind.make(x[:-1]))


def test_channels_last_tensors_stay_so(data):
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(data[0]).contiguous(memory_format=torch.channels_last)
    y, saved = fastbn.batch_norm_training(x, like=x)
    assert saved.x.ctypes.data == x.data_ptr()
    assert y.is_contiguous(memory_format=torch.channels_last) and not y.is_contiguous()
    expected = fastbn.batch_norm_training(np.ascontiguousarray(data[0].transpose(0, 2, 3, 1)), axis=-1)[0]
    assert_same(y, expected.transpose(0, 3, 1, 2))


# --- Half types -----------------------------------------------------------------------------------------------------


def address(a):
    return a.data_ptr() if hasattr(a, "data_ptr") else a.unsafe_buffer_pointer()


@pytest.mark.parametrize("name", ["torch", "jax"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types(name, dtype, data):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    kind, (x, dy, gamma, beta) = Kind(name), data
    type_ = np.dtype(getattr(ml_dtypes, dtype) if dtype == "bfloat16" else dtype)
    x, dy = x.astype(type_), dy.astype(type_)
    as_library = {"torch": lambda a: kind.make(a).to(getattr(kind.module, dtype)),
                  "jax": lambda a: kind.make(a).astype(dtype)}[name]
    x_, dy_ = as_library(data[0]), as_library(data[1])
    y, saved = fastbn.batch_norm_training(x_, gamma, beta, like=x_)
    expected, plain = fastbn.batch_norm_training(x, gamma, beta)
    assert saved.x.dtype == type_ and saved.x.ctypes.data == address(x_)
    assert y.dtype == x_.dtype
    bits = [fastbn.batch_norm_inference(a, np.zeros(5), np.ones(5), eps=1e-12) for a in (y, expected)]  # back to NumPy
    np.testing.assert_array_equal(bits[0].view(np.uint16), bits[1].view(np.uint16))
    dx, dgamma, _ = fastbn.batch_norm_backward(dy_, saved, like=kind.module)
    expected = fastbn.batch_norm_backward(dy, plain)
    assert dx.dtype == x_.dtype
    np.testing.assert_array_equal(np.from_dlpack(dgamma), expected[1])
    assert (fastbn.moments(dx), dx.shape) == (fastbn.moments(expected[0]), x.shape)


@writes
def test_bfloat16_out():
    torch, ml_dtypes = pytest.importorskip("torch"), pytest.importorskip("ml_dtypes")
    x = torch.linspace(-3, 3, 60).reshape(12, 5).bfloat16()
    out = torch.zeros_like(x)
    assert fastbn.batch_norm_training(x, out=out)[0] is out
    expected = fastbn.batch_norm_training(x.float().numpy().astype(ml_dtypes.bfloat16))[0]
    np.testing.assert_array_equal(out.view(torch.uint16).numpy(), expected.view(np.uint16))


def test_bfloat16_without_ml_dtypes(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(TypeError, match="(?s)x is bfloat16.*pip install ml_dtypes"):
        fastbn.moments(torch.zeros(4, 3, dtype=torch.bfloat16))


# --- Errors ---------------------------------------------------------------------------------------------------------


def test_tensors_that_require_a_gradient():
    torch = pytest.importorskip("torch")
    x, good = torch.ones(4, 3, requires_grad=True), np.ones((4, 3), np.float32)
    layer = fastbn.BatchNorm(3)
    layer(good)
    _, saved = fastbn.batch_norm_training(good)
    for name, call in (("x", lambda: fastbn.batch_norm_training(x)), ("x", lambda: fastbn.moments(x)),
                       ("gamma", lambda: fastbn.batch_norm_training(good, torch.nn.Parameter(torch.ones(3)))),
                       ("dy", lambda: fastbn.batch_norm_backward(x, saved)), ("x", lambda: layer(x)),
                       ("dy", lambda: layer.backward(x)), ("out", lambda: layer(good, out=x))):
        with pytest.raises(ValueError, match=rf"{name} requires a gradient.*{name}\.detach\(\).*fastbn\[torch\]"):
            call()
    assert layer.num_batches_tracked == 1
    layer.backward(good)


def test_arrays_that_are_elsewhere():
    x = np.ones((4, 3), np.float32)
    cuda, new = Forwarded(x, device=(2, 0)), Forwarded(x, device=(99, 0))
    with pytest.raises(ValueError, match=r"x is on a CUDA device.*x\.cpu\(\).*jax\.device_put"):
        fastbn.batch_norm_training(cuda)
    with pytest.raises(ValueError, match="gamma is on a CUDA device"):
        fastbn.batch_norm_training(x, Forwarded(np.ones(3), device=(2, 0)))
    with pytest.raises(ValueError, match="out is on a CUDA device"):
        fastbn.batch_norm_training(x, out=cuda)
    with pytest.raises(ValueError, match="(?s)like is on a CUDA device.*pass like=the library"):
        fastbn.batch_norm_training(x, like=cuda)
    with pytest.raises(ValueError, match="DLPack's type 99"):
        fastbn.moments(new)


def test_pinned_memory_is_the_processor_s():
    x = np.ones((4, 3), np.float32)
    assert fastbn.moments(Forwarded(x, device=(3, 0))) == fastbn.moments(x)


def test_tensors_that_are_no_plain_memory():
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match="x is a Tensor whose memory cannot be read as it is: .*layout"):
        fastbn.moments(torch.ones(4, 3).to_sparse())
    with pytest.raises(ValueError, match="x is a Tensor whose memory cannot be read as it is: .*meta"):
        fastbn.moments(torch.empty(4, 3, device="meta"))


def test_tracers_of_jax():
    jax = pytest.importorskip("jax")
    with pytest.raises(ValueError, match="x is a .*Tracer whose memory cannot.*jax.jit"):
        jax.jit(lambda x: fastbn.moments(x).mean)(np.ones((4, 3), np.float32))


def test_types_and_shapes_are_checked_as_ever(kind):
    with pytest.raises(TypeError, match="x has dtype int32.*astype"):
        fastbn.moments(kind.make(np.ones((4, 3), np.int32)))
    with pytest.raises(ValueError, match="3 entries and gamma 4 features"):
        fastbn.batch_norm_training(kind.make(np.ones((4, 3), np.float32)), kind.make(np.ones(4, np.float32)))
    with pytest.raises(TypeError, match="saved is a tuple"):
        fastbn.batch_norm_backward(kind.make(np.ones((4, 3), np.float32)), (), like=kind.module)


def test_an_out_that_may_not_be_written_to():
    x, fixed = np.ones((4, 3), np.float32), np.zeros((4, 3), np.float32)
    fixed.flags.writeable = False
    for out in (Old(np.zeros((4, 3), np.float32)), Forwarded(fixed)):
        with pytest.raises(ValueError, match=f"out is (read-only: .*{type(out).__name__}|a Forwarded whose memory)"):
            fastbn.batch_norm_training(x, out=out)
        assert (out.a == 0).all()


@writes
def test_an_out_of_jax_is_read_only():
    jnp = pytest.importorskip("jax.numpy")
    out = jnp.zeros((4, 3))
    with pytest.raises(ValueError, match="out is read-only"):
        fastbn.batch_norm_training(np.ones((4, 3), np.float32), out=out)
    assert not out.any()


@writes
def test_an_out_that_does_not_fit():
    torch = pytest.importorskip("torch")
    x = torch.ones(4, 3)
    with pytest.raises(ValueError, match=r"out has shape \(3, 4\)"):
        fastbn.batch_norm_training(x, out=torch.ones(3, 4))
    with pytest.raises(TypeError, match="out has dtype float64"):
        fastbn.batch_norm_training(x, out=torch.ones(4, 3).double())


@pytest.mark.parametrize("like", [3, "torch", [1.0], object(), Forwarded(np.ones(3))], ids=lambda a: type(a).__name__)
def test_like_is_no_array_of_a_library(like):
    layer, x = fastbn.BatchNorm(3), np.ones((4, 3), np.float32)
    _, saved = fastbn.batch_norm_training(x)
    for call in (lambda: fastbn.batch_norm_training(x, like=like), lambda: layer(x, like=like),
                 lambda: fastbn.batch_norm_backward(x, saved, like=like),
                 lambda: fastbn.batch_norm_inference(x, x[0], x[0], like=like),
                 lambda: fastbn.batch_norm_double_backward(x, None, None, x, saved, like=like)):
        with pytest.raises(TypeError, match="like is .*from_dlpack"):
            call()
    assert layer.num_batches_tracked == 0


def test_nothing_has_changed_where_a_library_lacks_the_type():
    xp = pytest.importorskip("array_api_strict")
    layer, x = fastbn.BatchNorm(3), np.ones((4, 3), np.float16)
    with pytest.raises(TypeError, match="(?s)results are float16.*array_api_strict"):
        layer(x, like=xp)
    assert layer.num_batches_tracked == 0
    layer(x)
    with pytest.raises(TypeError, match="results are float16"):
        layer.backward(x, like=xp)
    layer.backward(x)
