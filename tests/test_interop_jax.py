"""fastbn.interop.jax against fastbn's own functions, bit for bit, and against JAX's gradients of the composed formula.

Everything runs in both ways: XLA calling the core, and pure_callback.
"""
import importlib
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp
from jax.test_util import check_grads

import fastbn
import fastbn.interop.jax as adapter
from oracle import steps_of_layer
from toolchain import CSRC, find_compiler

pytestmark = pytest.mark.filterwarnings("error")
CASES = [((8, 5), 1), ((6, 5, 3), 1), ((4, 3, 2, 5), -1), ((5, 7), 0), ((2, 5, 3, 3), 1)]
# What the header of jaxlib calls the structs and fields of csrc/adapters/xla.h.
STRUCTS = {
    "extension": ("Extension_Base", {"struct_size": "struct_size", "type": "type", "next": "next"}),
    "version": ("Api_Version", {"extensions": "extension_start", "major": "major_version", "minor": "minor_version"}),
    "metadata": ("Metadata", {"version": "api_version", "traits": "traits"}),
    "metadata_extension": ("Metadata_Extension", {"base": "extension_base", "metadata": "metadata"}),
    "error_arguments": ("Error_Create_Args", {"extensions": "extension_start", "message": "message", "code": "errc"}),
    "api": ("Api", {"version": "api_version", "internal": "internal_api", "create_error": "XLA_FFI_Error_Create"}),
    "buffer": ("Buffer", {"dtype": "dtype", "data": "data", "rank": "rank", "dims": "dims"}),
    "buffers": ("Args", {"size": "size", "types": "types", "items": "args"}),
    "name": ("ByteSpan", {"data": "ptr", "size": "len"}),
    "scalar": ("Scalar", {"dtype": "dtype", "value": "value"}),
    "attributes": ("Attrs", {"size": "size", "types": "types", "names": "names", "items": "attrs"}),
    "frame": ("CallFrame", {"api": "api", "context": "ctx", "stage": "stage", "arguments": "args", "results": "rets",
                            "attributes": "attrs"}),
}
NUMBERS = {"EXTENSION_METADATA": "Extension_Metadata", "SCALAR": "AttrType_SCALAR", "INTERNAL": "Error_Code_INTERNAL",
           "INVALID_ARGUMENT": "Error_Code_INVALID_ARGUMENT", "S64": "DataType_S64", "U32": "DataType_U32",
           "F16": "DataType_F16", "F32": "DataType_F32", "F64": "DataType_F64", "BF16": "DataType_BF16",
           "MAJOR": "API_MAJOR"}


@pytest.fixture(params=["ffi", "callback"], autouse=True)
def way(request, monkeypatch):
    """What was traced in one way is forgotten before the other."""
    monkeypatch.setattr(adapter, "_uses_callbacks", request.param == "callback")
    jax.clear_caches()
    yield request.param
    jax.clear_caches()


@pytest.fixture
def x64():
    enable = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64  # before 0.8
    with enable(True):
        yield


def arrays(rng, shape, axis, dtype="float32", parameters=None):
    c, parameters = shape[axis], parameters or ("float64" if dtype == "float64" else "float32")
    x, dy = (jnp.asarray(rng.normal(1, 2, shape), dtype) for _ in range(2))
    return x, dy, jnp.asarray(rng.uniform(0.5, 2, c), parameters), jnp.asarray(rng.normal(size=c), parameters)


def composed(x, gamma, beta, axis, eps=1e-5):
    axes = tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    along = [-1 if i == axis % x.ndim else 1 for i in range(x.ndim)]
    mean = x.mean(axis=axes)
    var = ((x - mean.reshape(along))**2).mean(axis=axes)
    y = (x - mean.reshape(along)) / jnp.sqrt(var + eps).reshape(along) * gamma.reshape(along) + beta.reshape(along)
    return y, mean, var


def test_the_handlers_are_taken():
    """With this version of JAX no call goes through Python."""
    assert adapter._register()


def assert_bits_of_fastbn(x, dy, gamma, beta, axis):
    def step(x, gamma, beta):
        (y, mean, var), back = jax.vjp(partial(adapter.batch_norm_training, axis=axis), x, gamma, beta)
        return y, mean, var, *back((dy, jnp.zeros_like(mean), jnp.zeros_like(var)))
    y, mean, var, dx, dgamma, dbeta = jax.jit(step)(x, gamma, beta)
    expected, saved = fastbn.batch_norm_training(*map(np.asarray, (x, gamma, beta)), axis=axis)
    expected = (expected, saved.mean.astype(mean.dtype), saved.var.astype(var.dtype),
                *fastbn.batch_norm_backward(np.asarray(dy), saved))
    for got, value in zip((y, mean, var, dx, dgamma, dbeta), expected, strict=True):
        assert got.dtype == value.dtype
        np.testing.assert_array_equal(np.asarray(got), value)


@pytest.mark.parametrize("shape, axis", CASES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_bits_of_fastbn(rng, shape, axis, dtype):
    assert_bits_of_fastbn(*arrays(rng, shape, axis, dtype), axis)


@pytest.mark.parametrize("dtype, parameters", [("float64", "float64"), ("float32", "float64")])
def test_bits_of_fastbn_in_64_bits(rng, x64, dtype, parameters):
    assert_bits_of_fastbn(*arrays(rng, (6, 5, 3), 1, dtype, parameters), 1)


@pytest.mark.parametrize("shape, axis", CASES)
def test_inference_has_the_bits_of_fastbn(rng, shape, axis):
    x, _, gamma, beta = arrays(rng, shape, axis)
    mean, var = beta + 1, gamma + 1
    for given in ((gamma, beta), (None, beta), (gamma, None), (None, None)):
        y = jax.jit(partial(adapter.batch_norm_inference, axis=axis, eps=0.1))(x, mean, var, *given)
        given = [None if a is None else np.asarray(a) for a in given]
        expected = fastbn.batch_norm_inference(*map(np.asarray, (x, mean, var)), *given, axis=axis, eps=0.1)
        np.testing.assert_array_equal(np.asarray(y), expected)


def test_without_gamma_and_beta(rng):
    x, dy, gamma, beta = arrays(rng, (6, 5, 3), 1)
    for given in ({"gamma": gamma}, {"beta": beta}, {}):
        y = adapter.batch_norm_training(x, **given)[0]
        expected = fastbn.batch_norm_training(np.asarray(x), **{k: np.asarray(v) for k, v in given.items()})[0]
        np.testing.assert_array_equal(np.asarray(y), expected)


def test_gradients_are_those_of_the_composed_formula(rng):
    x, dy, gamma, beta = arrays(rng, (6, 5, 3), 1)
    def loss(function):
        def value(x, gamma, beta):
            y, mean, var = function(x, gamma, beta, axis=1)
            return jnp.sum(jnp.sin(y) * dy) + jnp.sum(mean**2) + jnp.sum(jnp.cos(var))
        return jax.jit(jax.grad(value, (0, 1, 2)))
    found, expected = loss(adapter.batch_norm_training)(x, gamma, beta), loss(composed)(x, gamma, beta)
    for got, value in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, value, rtol=2e-4, atol=2e-5)


def test_gradients_at_a_large_mean_without_64_bits(rng):
    """mean / std is 1e6: the mean that JAX sees is a float32, that of the gradient is not."""
    x = (1e6 + rng.normal(size=(512, 3))).astype(np.float32)
    weights = rng.normal(size=x.shape).astype(np.float32)
    dx = jax.grad(lambda x: jnp.sum(adapter.batch_norm_training(x)[0] * weights))(jnp.asarray(x))
    h = (x - x.mean(axis=0, dtype=np.float64)) / np.sqrt(x.var(axis=0, dtype=np.float64) + 1e-5)
    rstd = 1 / np.sqrt(x.var(axis=0, dtype=np.float64) + 1e-5)
    expected = rstd * (weights - weights.mean(axis=0) - h * (weights * h).mean(axis=0))
    np.testing.assert_allclose(dx, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape, axis", CASES[:3])
def test_gradients_of_both_orders_by_differences(rng, x64, shape, axis):
    x, _, gamma, beta = arrays(rng, shape, axis, "float64")
    def outputs(x, gamma, beta):
        return [jnp.sin(a) for a in adapter.batch_norm_training(x, gamma, beta, axis=axis)]
    check_grads(outputs, (x, gamma, beta), order=2, modes=["rev"])
    check_grads(lambda *a: outputs(*a)[0], (x, gamma, beta), order=2, modes=["rev"])
    def inference(x, gamma, beta, mean, var):
        return jnp.sin(adapter.batch_norm_inference(x, mean, var, gamma, beta, axis=axis))
    check_grads(inference, (x, gamma, beta, beta + 1, gamma + 1), order=2, modes=["rev"])


def test_hessian_vector_products_are_those_of_the_composed_formula(rng):
    x, dy, gamma, beta = arrays(rng, (6, 5, 3), 1)
    def penalty(function):
        def loss(x, gamma):
            return jnp.sum(jnp.sin(function(x, gamma, beta, axis=1)[0]))
        def value(x, gamma):
            return sum(jnp.sum(g**2) for g in jax.grad(loss, (0, 1))(x, gamma))
        return jax.jit(jax.grad(value, (0, 1)))(x, gamma)
    for got, value in zip(penalty(adapter.batch_norm_training), penalty(composed), strict=True):
        np.testing.assert_allclose(got, value, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("dtype, tolerance", [("float16", 2e-2), ("bfloat16", 1e-1)])
def test_second_order_of_half_types(rng, dtype, tolerance):
    x, dy, gamma, beta = arrays(rng, (8, 5), 1, dtype)
    def value(x, dy):
        return jax.grad(lambda x: jnp.vdot(adapter.batch_norm_training(x, gamma)[0], dy).astype("float32"))(x)
    ddx = jnp.asarray(rng.normal(size=x.shape), dtype)
    found = jax.vjp(value, x, dy)[1](ddx)
    wide = [np.asarray(a, np.float32) for a in (x, dy, ddx)]
    _, saved = fastbn.batch_norm_training(wide[0], np.asarray(gamma))
    ddy, dx, _ = fastbn.batch_norm_double_backward(wide[2], None, None, wide[1], saved)
    for got, expected in zip(found, (dx, ddy), strict=True):
        assert got.dtype == dtype
        np.testing.assert_allclose(np.asarray(got, np.float32), expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("in_axes", [(0, None, None), (2, None, None), (None, 0, None), (0, 0, 1), (-1, 1, 0)])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_vmap(rng, in_axes, dtype):
    """Values and gradients are those of one entry after the other."""
    x, dy, gamma, beta = arrays(rng, (6, 5, 3), 1)
    x, dy = jnp.asarray(x).astype(dtype), jnp.asarray(dy).astype(dtype)
    given = []
    for a, axis in zip((x, gamma, beta), in_axes):
        parts = [a + i for i in range(4)]
        given.append(a if axis is None else jnp.stack(parts, axis=axis))
    def step(x, gamma, beta):
        y, back = jax.vjp(lambda *a: adapter.batch_norm_training(*a)[0], x, gamma, beta)
        return y, *back(dy), adapter.batch_norm_inference(x, beta, gamma)
    found = jax.jit(jax.vmap(step, in_axes))(*given)
    for i in range(4):
        entry = [a if axis is None else jnp.take(a, i, axis=axis) for a, axis in zip(given, in_axes)]
        for got, expected in zip(found, step(*entry), strict=True):
            np.testing.assert_array_equal(np.asarray(got[i]), np.asarray(expected))


def test_vmap_in_vmap_and_of_second_order(rng):
    x = jnp.asarray(rng.normal(1, 2, (2, 3, 6, 5)), jnp.float32)
    def value(x):
        return jnp.sum(jax.grad(lambda x: jnp.sum(jnp.sin(adapter.batch_norm_training(x)[0])))(x)**2)
    found = jax.vmap(jax.vmap(jax.grad(value)))(x)
    for i in np.ndindex(2, 3):
        np.testing.assert_array_equal(np.asarray(found[i]), np.asarray(jax.grad(value)(x[i])))


@pytest.mark.parametrize("ddof", [0, 1])
def test_running_statistics_in_a_loop_of_xla(rng, ddof):
    """lax.scan over batches gives the layer's statistics; what is passed in stays as it is."""
    batches = rng.normal(3, 2, (4, 8, 5)).astype(np.float32)
    first = jnp.zeros(5), jnp.ones(5)
    def step(state, x):
        y, *state = adapter.batch_norm(x, None, None, *state, training=True, momentum=0.8, ddof=ddof)
        return tuple(state), y
    (mean, var), y = jax.jit(partial(jax.lax.scan, step))(first, jnp.asarray(batches))
    bn = fastbn.BatchNorm(5, momentum=0.8, ddof=ddof)
    for got, x in zip(y, batches, strict=True):
        np.testing.assert_array_equal(np.asarray(got), bn(x))
    np.testing.assert_allclose(mean, bn.running_mean, rtol=1e-6)
    np.testing.assert_allclose(var, bn.running_var, rtol=1e-6)
    assert np.all(first[0] == 0) and np.all(first[1] == 1)
    x = jnp.asarray(batches[0])
    y, mean2, var2 = adapter.batch_norm(x, None, None, mean, var, training=False)
    assert mean2 is mean and var2 is var
    np.testing.assert_array_equal(y, adapter.batch_norm_inference(x, mean, var))


def test_running_statistics_carry_no_gradient(rng):
    x = jnp.asarray(rng.normal(3, 2, (8, 5)), jnp.float32)
    def value(x):
        _, mean, var = adapter.batch_norm(x, None, None, jnp.zeros(5), jnp.ones(5), training=True)
        return jnp.sum(mean) + jnp.sum(var)
    assert not np.any(jax.grad(value)(x))


def test_a_network_learns_with_it(rng):
    x = rng.normal(size=(128, 4))
    labels = jnp.asarray((x[:, 0] * x[:, 1] > 0).astype(int))
    x = jnp.asarray(x * [1, 1, 10, 0.1] + [5, -5, 50, 0], jnp.float32)
    shapes = {"gamma": (4,), "beta": (4,), "w": (4, 16), "b": (16,), "v": (16, 2)}
    p = {name: jnp.asarray(rng.normal(0, 0.5, shape), jnp.float32) for name, shape in shapes.items()}
    @jax.jit
    def step(p, statistics):
        def loss(p):
            h, *new = adapter.batch_norm(x, p["gamma"], p["beta"], *statistics, training=True)
            scores = jax.nn.log_softmax(jax.nn.relu(h @ p["w"] + p["b"]) @ p["v"])
            return -jnp.mean(scores[jnp.arange(128), labels]), tuple(new)
        (value, statistics), gradients = jax.value_and_grad(loss, has_aux=True)(p)
        return jax.tree.map(lambda a, g: a - 0.3 * g, p, gradients), statistics, value
    statistics, losses = (jnp.zeros(4), jnp.ones(4)), []
    for _ in range(150):
        p, statistics, value = step(p, statistics)
        losses.append(float(value))
    assert losses[-1] < losses[0] / 3
    np.testing.assert_allclose(statistics[0], x.mean(axis=0), rtol=1e-3, atol=1e-2)


def test_large_arrays_side_by_side(rng):
    """More than one call in a program, each larger than what one thread computes."""
    x = jnp.asarray(rng.normal(size=(16, 32, 28, 28)), jnp.float32)
    function = jax.jit(lambda x: [adapter.batch_norm_training(x * k)[0].sum(axis=(0, 2, 3)) for k in (1, 2, 3)])
    for _ in range(5):
        for sums in function(x):
            np.testing.assert_allclose(sums, 0, atol=0.5)


@pytest.mark.parametrize("rows", [0, 1])
def test_one_value_and_none(rows):
    mean, var = jnp.zeros(5), jnp.ones(5)
    y, mean2, var2 = adapter.batch_norm(jnp.ones((rows, 5)), None, jnp.full(5, 2.0), mean, var, training=True)
    assert y.shape == (rows, 5) and np.all(np.asarray(y) == 2) and mean2 is mean and var2 is var
    assert adapter.batch_norm_inference(jnp.ones((rows, 5)), mean, var).shape == (rows, 5)
    gradient = jax.grad(lambda x: jnp.sum(adapter.batch_norm_training(x)[0]))(jnp.ones((rows, 5)))
    assert not np.any(gradient)


@pytest.mark.parametrize("arguments, error, message", [
    ({"x": jnp.ones((4, 5), int)}, TypeError, "x has dtype int32.*astype"),
    ({"x": jnp.ones(5)}, ValueError, "at least 2 dimensions"),
    ({"axis": 2}, ValueError, "axis"),
    ({"axis": (0, 1)}, ValueError, "expected an int"),
    ({"eps": 0}, ValueError, "eps is 0"),
    ({"gamma": jnp.ones(4)}, ValueError, r"gamma has shape \(4,\), expected \(5,\)"),
    ({"beta": jnp.ones(5, int)}, TypeError, "beta has dtype int32"),
])
def test_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        jax.jit(lambda: adapter.batch_norm_training(**{"x": jnp.ones((4, 5)), **arguments}))()


@pytest.mark.parametrize("arguments, message", [
    ({"momentum": 2}, "momentum is 2"), ({"momentum": None}, "momentum is None"), ({"ddof": 2}, "ddof is 2"),
    ({"running_var": jnp.ones(4)}, "running_var has")])
def test_errors_of_running_statistics(arguments, message):
    given = {"running_mean": jnp.zeros(5), "running_var": jnp.ones(5), "training": True, **arguments}
    with pytest.raises(ValueError, match=message):
        adapter.batch_norm(jnp.ones((4, 5)), None, None, **given)


def test_forward_mode_and_third_order_are_refused(rng):
    """Never silently wrong: JAX says that there is no such derivative."""
    x = jnp.asarray(rng.normal(size=(6, 5)), jnp.float32)
    def value(x):
        return jnp.sum(jnp.sin(adapter.batch_norm_training(x)[0]))
    with pytest.raises(TypeError, match="jvp"):
        jax.jvp(value, (x,), (x,))
    for _ in range(2):
        value = partial(lambda f, x: jnp.sum(jax.grad(f)(x)**2), value)
    with pytest.raises(ValueError, match="cannot be differentiated|do not support JVP"):
        jax.grad(value)(x)


def test_a_frame_that_does_not_fit_is_an_error():
    """The handlers check what they are given, whoever calls them."""
    x, vector = jnp.ones((4, 5)), jnp.ones(5)
    results = [jax.ShapeDtypeStruct((4, 5), np.float32)]
    call = jax.ffi.ffi_call("fastbn_inference", results)
    good = {"rank": np.int64(2), "axis": np.int64(1), "eps": np.float64(1e-5)}
    assert np.all(np.isfinite(call(x, vector, vector, vector, vector, **good)[0]))
    for wrong in ({"axis": np.int64(2)}, {"rank": np.int64(3)}, {"axis": np.int64(0)}, {"eps": np.float32(1e-5)}):
        with pytest.raises(Exception, match="fastbn: buffers or attributes"):
            jax.block_until_ready(call(x, vector, vector, vector, vector, **{**good, **wrong}))
    with pytest.raises(Exception, match="fastbn: buffers or attributes"):
        jax.block_until_ready(call(x, vector, vector, vector, vector.astype(jnp.float16), **good))


def test_handlers_that_are_not_taken_leave_callbacks(monkeypatch):
    def refuse(*arguments, **keywords):
        raise RuntimeError("another version")
    monkeypatch.setattr(jax.ffi, "register_ffi_target", refuse)
    with pytest.warns(RuntimeWarning, match="another version.*through Python"):
        assert adapter._register() is False
    monkeypatch.setenv("FASTBN_JAX_CALLBACK", "1")
    assert adapter._register() is False


def test_structs_are_those_of_jaxlib(tmp_path):
    """Sizes, places and numbers of csrc/adapters/xla.h, compared by a C compiler with XLA's own header."""
    compiler, header = find_compiler("gcc", "cc", "clang"), Path(jax.ffi.include_dir(), "xla/ffi/api/c_api.h")
    if compiler is None or not header.exists():
        pytest.skip("no C compiler, or jaxlib without headers")
    lines = ["#include <xla/ffi/api/c_api.h>", '#include "adapters/xla.h"',
             "#define FIELD(a, f, b, g) _Static_assert(offsetof(a, f) == offsetof(b, g) && sizeof(((a *)0)->f) == "
             "sizeof(((b *)0)->g), #f)"]
    for ours, (theirs, fields) in STRUCTS.items():
        kind = "struct" if ours in ("version", "metadata", "metadata_extension", "api") else ""
        lines += [f"FIELD(fbn_xla_{ours}, {f}, {kind} XLA_FFI_{theirs}, {g});" for f, g in fields.items()]
    lines += [f'_Static_assert((int)FBN_XLA_{ours} == (int)XLA_FFI_{theirs}, "{ours}");'
              for ours, theirs in NUMBERS.items()]
    lines += ["_Static_assert(FBN_XLA_MINOR <= XLA_FFI_API_MINOR, \"minor\");", "int main(void) { return 0; }"]
    source = tmp_path / "structs.c"
    source.write_text("\n".join(lines))
    command = [compiler, "-std=c11", f"-I{CSRC}", f"-I{jax.ffi.include_dir()}", "-fsyntax-only", str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_jax(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", None)
    monkeypatch.delitem(sys.modules, "fastbn.interop.jax")
    with pytest.raises(ImportError, match=r"pip install 'fastbn\[jax\]'"):
        importlib.import_module("fastbn.interop.jax")


@pytest.mark.parametrize("ddof", [0, 1])
def test_steps_have_the_bits_of_the_layers(rng, ddof):
    batches = [rng.normal(3, 2, (7, 5, 3)).astype(np.float32) for _ in range(3)]
    mean, var = jnp.zeros(5), jnp.ones(5)
    for x in batches:
        call = partial(adapter.batch_norm, training=True, ddof=ddof)
        _, mean, var = jax.jit(call)(x, jnp.ones(5), jnp.zeros(5), mean, var)
    for found, expected in zip((mean, var), steps_of_layer(batches, ddof=ddof)):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("ddof, steps", [(0, True), (1, False)])
def test_a_step_of_one_value_per_feature(ddof, steps):
    """Its biased variance is known, 0, and its unbiased one is not."""
    x = jnp.full((1, 5), 3.0)
    call = partial(adapter.batch_norm, training=True, ddof=ddof)
    y, mean, var = call(x, jnp.ones(5), jnp.full(5, 7.0), jnp.zeros(5), jnp.ones(5))
    assert (y == 7).all() and bool((mean > 0).all()) == steps and bool((var < 1).all()) == steps
