"""fastbn.interop.torch against PyTorch itself: its own samples of its batch norm modules, gradients of both orders,
memory formats, half types, compiled and exported graphs, conversion of models, errors.
"""
import copy
import importlib
import pickle
import subprocess
import sys

import numpy as np
import pytest

import fastbn
from fastbn import _core
from oracle import steps_of_layer

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
adapter = pytest.importorskip("fastbn.interop.torch", exc_type=ImportError)
eager, operators, tensors = (importlib.import_module(f"fastbn.interop._torch_{name}")
                             for name in ("eager", "operators", "tensors"))
modules_of_torch = pytest.importorskip("torch.testing._internal.common_modules", exc_type=ImportError)

from torch import nn  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.autograd import gradcheck, gradgradcheck  # noqa: E402
from torch.multiprocessing.reductions import StorageWeakRef  # noqa: E402
from torch.nn import functional as F  # noqa: E402

HALVES = (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, torch.float64, *HALVES)
PAIRS = {nn.BatchNorm1d: adapter.BatchNorm1d, nn.BatchNorm2d: adapter.BatchNorm2d, nn.BatchNorm3d: adapter.BatchNorm3d}
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 2e-5, torch.float64: 1e-10}
LAYOUTS = {"2d": ((6, 5), None), "1d": ((6, 5, 7), None), "contiguous": ((4, 5, 6, 7), None),
           "channels_last": ((4, 5, 6, 7), torch.channels_last),
           "channels_last_3d": ((3, 5, 2, 4, 3), torch.channels_last_3d)}
on_layouts = pytest.mark.parametrize("layout", LAYOUTS)
on_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
on_modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(20150211)
    yield
    torch._dynamo.reset()


def close(a, b, dtype=None):
    tolerance = TOLERANCE[dtype or a.dtype]
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def batch(layout="contiguous", dtype=torch.float32):
    shape, memory = LAYOUTS[layout]
    x = (torch.randn(shape, dtype=torch.float64) * 2 + 3).to(dtype)
    return (x if memory is None else x.contiguous(memory_format=memory)).requires_grad_()


def parameters(dtype=torch.float64, c=5):
    return tuple((torch.randn(c, dtype=torch.float64) + 1).to(dtype).requires_grad_() for _ in range(2))


def statistics(dtype=torch.float64, c=5):
    return torch.randn(c).to(dtype), (torch.rand(c) + 0.5).to(dtype)


def trained(module):
    """With a state of its own in every entry."""
    with torch.no_grad():
        for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
            if tensor is not None:
                tensor.uniform_(0.5, 2.0)
    return module


def compare(ours, theirs, make_input, dtype=None):
    """A forward and a backward of two modules of equal state: outputs, gradients, buffers."""
    x, x_theirs = make_input.detach().clone().requires_grad_(), make_input.detach().clone().requires_grad_()
    y, y_theirs = ours(x), theirs(x_theirs)
    dy = torch.randn_like(y_theirs)
    y.backward(dy)
    y_theirs.backward(dy)
    assert y.shape == y_theirs.shape and y.dtype is y_theirs.dtype
    close(y, y_theirs, dtype)
    close(x.grad, x_theirs.grad, dtype)
    for (name, one), (other_name, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert name == other_name and one.grad.dtype is other.grad.dtype
        close(one.grad, other.grad, dtype)
    same_buffers(ours, theirs, dtype)
    return y


def same_buffers(ours, theirs, dtype=None):
    for (name, one), (other_name, other) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
        assert name == other_name and one.dtype is other.dtype
        if one.is_floating_point():
            close(one, other, dtype)
        else:
            assert torch.equal(one, other), name


# ---- PyTorch's own samples of its modules ----

def samples(dtype, training):
    for info in modules_of_torch.module_db:
        if info.module_cls in PAIRS:
            for sample in info.module_inputs_func(info, "cpu", dtype, True, training):
                yield info.module_cls, sample


def made(cls, sample, dtype, training):
    given = sample.constructor_input
    return trained(cls(*given.args, **given.kwargs)).to(dtype).train(training)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@on_modes
def test_samples_of_torch(dtype, training):
    found = 0
    for cls, sample in samples(dtype, training):
        theirs = made(cls, sample, dtype, training)
        ours = adapter.convert(copy.deepcopy(theirs))
        assert type(ours) is PAIRS[cls]
        for _ in range(2):
            compare(ours, theirs, sample.forward_input.args[0])
        found += 1
    assert found >= 21


@on_modes
def test_gradients_of_samples_of_torch(training):
    for cls, sample in samples(torch.float64, training):
        module = adapter.convert(made(cls, sample, torch.float64, training))
        x, (names, values) = sample.forward_input.args[0], tuple(zip(*module.named_parameters())) or ((), ())

        def call(x, *values):
            state = dict(zip(names, values)) | {name: buffer.clone() for name, buffer in module.named_buffers()}
            return torch.func.functional_call(module, state, (x,))
        for check in (gradcheck, gradgradcheck):
            assert check(call, (x, *values), fast_mode=True)


def test_error_samples_of_torch():
    found = 0
    for info in modules_of_torch.module_db:
        if info.module_cls not in PAIRS:
            continue
        for error in info.module_error_inputs_func(info, "cpu", torch.float32, True, True):
            given = error.module_error_input.constructor_input
            module = PAIRS[info.module_cls](*given.args, **given.kwargs)
            with pytest.raises(error.error_type, match=error.error_regex):
                module(*error.module_error_input.forward_input.args)
            assert module.num_batches_tracked == 0
            found += 1
    assert found == 6


# ---- values and gradients ----

@on_layouts
@on_dtypes
@on_modes
def test_like_torch(layout, dtype, training):
    """Parameters in float32 but of float64 data, as PyTorch wants them; the order of memory stays."""
    x = batch(layout, dtype)
    theirs = trained({2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[x.dim()](5))
    theirs = (theirs.double() if dtype is torch.float64 else theirs).train(training)
    y = compare(adapter.convert(copy.deepcopy(theirs)), theirs, x, dtype)
    assert y.stride() == x.stride()


@pytest.mark.parametrize("dtype", HALVES, ids=["float16", "bfloat16"])
@on_modes
def test_parameters_of_half_types(dtype, training):
    theirs = trained(nn.BatchNorm2d(5)).to(dtype).train(training)
    compare(adapter.convert(copy.deepcopy(theirs)), theirs, batch(dtype=dtype), dtype)


@on_dtypes
def test_other_dtype_of_parameters(dtype):
    """PyTorch refuses most of these."""
    x, (w, b), (mean, var) = batch(), parameters(dtype), statistics(dtype)
    adapter.batch_norm(x, mean, var, w, b, training=True).square().sum().backward()
    wide = [t.detach().float().requires_grad_() for t in (x, w, b)]
    y = F.batch_norm(wide[0], None, None, *wide[1:], training=True)
    y.square().sum().backward()
    assert w.grad.dtype is b.grad.dtype is dtype
    for ours, theirs in zip((x, w, b), wide):
        close(ours.grad.float(), theirs.grad, torch.bfloat16 if dtype in HALVES else torch.float32)


@on_modes
def test_no_channels(training):
    found = [f(torch.ones(4, 0, 3), torch.ones(0), torch.ones(0), training=training).shape
             for f in (adapter.batch_norm, F.batch_norm)]
    assert found[0] == found[1]


def test_steps_of_moving_averages_are_the_layers():
    module, layer = adapter.BatchNorm1d(5, momentum=0.25), fastbn.BatchNorm(5, momentum=0.75)
    for _ in range(3):
        x = torch.randn(8, 5)
        y = layer(x.numpy())
        assert np.array_equal(module(x).detach().numpy(), y)
    assert np.array_equal(module.running_mean.numpy(), layer.running_mean)
    assert np.array_equal(module.running_var.numpy(), layer.running_var)


CHANGES = {"transposed": lambda x: x.transpose(0, 2), "strided": lambda x: x[:, :, ::2], "steps": lambda x: x[..., ::2],
           "expanded": lambda x: x[:1].expand(4, 5, 6, 7)}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@on_modes
def test_any_strides(change, training):
    x = batch()
    w, b = parameters(torch.float32, change(x).shape[1])
    stats = statistics(torch.float32, len(w))
    compute = [lambda x, f=f: f(change(x), *(t.clone() for t in stats), w, b, training=training)
               for f in (adapter.batch_norm, F.batch_norm)]
    ours, theirs = (f(x) for f in compute)
    close(ours, theirs)
    dy = torch.randn_like(ours).transpose(2, 3).contiguous().transpose(2, 3)
    for one, other in zip(*(torch.autograd.grad(y, (x, w, b), dy) for y in (ours, theirs))):
        close(one, other)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (1, 2)])
@on_modes
def test_some_gradients(wanted, training):
    tensors = (batch(), *parameters(torch.float32))
    for i, tensor in enumerate(tensors):
        tensor.requires_grad_(i in wanted)
    stats = statistics(torch.float32)
    outputs = [f(tensors[0], *(t.clone() for t in stats), *tensors[1:], training=training)
               for f in (adapter.batch_norm, F.batch_norm)]
    found = [torch.autograd.grad(y.cos().sum(), [tensors[i] for i in wanted]) for y in outputs]
    for one, other in zip(*found, strict=True):
        close(one, other)


@on_layouts
@on_modes
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
def test_gradcheck(layout, training, affine):
    stats = (None, None) if training else statistics()
    inputs = (batch(layout, torch.float64), *(parameters() if affine else ()))

    def call(x, *parameters):
        memory = LAYOUTS[layout][1]
        x = x if memory is None else x.contiguous(memory_format=memory)  # gradcheck makes it contiguous
        return adapter.batch_norm(x, *stats, *parameters, training=training)
    assert gradcheck(call, inputs) and gradgradcheck(call, inputs)


ACTIVATIONS = {"relu": F.relu, "leaky_relu": F.leaky_relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "silu": F.silu,
               "gelu": F.gelu, "hardswish": F.hardswish, "elu": F.elu, "relu6": F.relu6,
               "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}


@pytest.mark.parametrize("activation", [*ACTIVATIONS, ("leaky_relu", -0.5), None], ids=str)
@pytest.mark.parametrize("residual", [True, False], ids=["residual", "alone"])
@pytest.mark.parametrize("layout", ["2d", "contiguous", "channels_last"])
@on_modes
def test_activation_and_residual(activation, residual, layout, training):
    act = ACTIVATIONS.get(activation, (lambda z: F.leaky_relu(z, -0.5)) if activation else (lambda z: z))
    x, (w, b), stats = batch(layout), parameters(torch.float32), statistics(torch.float32)
    z = batch(layout) if residual else None
    y = adapter.batch_norm(x, *(t.clone() for t in stats), w, b, training=training, activation=activation, residual=z)
    expected = F.batch_norm(x, *(t.clone() for t in stats), w, b, training=training)
    expected = act(expected if z is None else expected + z)
    assert y.stride() == x.stride()
    close(y, expected)
    inputs, dy = (x, w, b) if z is None else (x, w, b, z), torch.randn_like(y)
    for one, other in zip(*(torch.autograd.grad(result, inputs, dy) for result in (y, expected)), strict=True):
        close(one, other)


def test_no_double_backward_through_activation_or_residual():
    x, (w, b) = batch(dtype=torch.float64), parameters()
    for more in ({"activation": "silu"}, {"residual": x.detach()}):
        dx, = torch.autograd.grad(adapter.batch_norm(x, None, None, w, b, True, **more).sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="gradient of the backward .* is not offered"):
            dx.sum().backward()


def test_third_derivatives_are_refused():
    x = batch("2d", torch.float64)
    dx, = torch.autograd.grad(adapter.batch_norm(x, None, None, training=True).cos().sum(), x, create_graph=True)
    ddx, = torch.autograd.grad(dx.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        ddx.sum().backward()


# ---- memory ----

@on_dtypes
@on_layouts
def test_no_copies(dtype, layout):
    x = batch(layout, dtype).detach()
    a = tensors._array(x)
    assert a.__array_interface__["data"][0] == x.data_ptr() and a.shape == x.shape
    assert [stride // a.itemsize for stride in a.strides] == list(x.stride())
    back = tensors._tensor(a, dtype)
    assert back.data_ptr() == x.data_ptr() and torch.equal(back, x) and back.stride() == x.stride()


def test_the_exchange_reads_where_the_tensor_lies():
    """Such as a slice that begins in the middle of its storage."""
    whole = torch.randn(6, 5)
    y, _ = eager._exchange.training(whole[2:], None, None, None, None, 1e-5, 0.1, 1, None)
    assert np.array_equal(y, fastbn.batch_norm_training(whole[2:].numpy())[0])


@pytest.mark.parametrize("tensor", [torch.randn(4, 5).to_sparse(), torch.randn(8, 5)[::2], torch.empty(0, 5),
                                    torch.randn(4, 5, device="meta"), torch.randint(3, (4, 5)), torch.ones(1, 1),
                                    torch.randn(4, 5).to(torch.complex64), np.ones((4, 5)), None])
def test_the_exchange_declines(tensor):
    assert eager._exchange.training(tensor, None, None, None, None, 1e-5, 0.1, 1, None) is None


def test_a_changed_input_is_noticed():
    x, z = batch(), batch()
    y = adapter.batch_norm(x, None, None, training=True)
    with torch.no_grad():
        x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    y = adapter.batch_norm(z, None, None, training=True, activation="relu", residual=batch())
    y.add_(1)  # relu's gradient reads y where there is a residual
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_an_output_may_change():
    x = batch()
    adapter.batch_norm(x, None, None, training=True).relu_().sum().backward()
    expected = batch().detach().copy_(x.detach()).requires_grad_()
    F.relu(F.batch_norm(expected, None, None, training=True)).sum().backward()
    close(x.grad, expected.grad)


@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
def test_backward_lets_go_of_the_input(residual):
    """Also while the loss lives on, as it does in most programs until the next step."""
    first, z = batch(), batch() if residual else None
    x = first * 2
    memory = StorageWeakRef(x.untyped_storage())
    loss = adapter.batch_norm(x, None, None, training=True, residual=z, activation="silu").sum()
    del x
    assert not memory.expired()
    loss.backward()
    assert memory.expired()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_autograd_alone_keeps_the_input(layout):
    """So that it may be packed away, as in checkpoints and offloading."""
    first = batch(layout)
    x = first * 2
    memory = StorageWeakRef(x.untyped_storage())
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        y = adapter.batch_norm(x, None, None, training=True).cos()
    expected, = torch.autograd.grad(F.batch_norm(x, None, None, training=True).cos().sum(), first, retain_graph=True)
    del x
    assert memory.expired()
    found, = torch.autograd.grad(y.sum(), first)
    close(found, expected)


def test_backward_again():
    x = batch()
    y = adapter.batch_norm(x, None, None, training=True, activation="relu", residual=batch().detach()).cos()
    first, = torch.autograd.grad(y.sum(), x, retain_graph=True)
    again, = torch.autograd.grad(y.sum(), x)
    assert torch.equal(first, again)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y.sum(), x)


def test_checkpoint():
    x, module = batch(), adapter.BatchNorm2d(5)
    expected, = torch.autograd.grad(copy.deepcopy(module)(x).cos().sum(), x)
    found, = torch.autograd.grad(torch.utils.checkpoint.checkpoint(module, x, use_reentrant=False).cos().sum(), x)
    assert torch.equal(found, expected)


# ---- without gradients, threads ----

@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@on_modes
def test_without_gradients(mode, training):
    theirs = trained(nn.BatchNorm2d(5)).train(training)
    ours = adapter.convert(copy.deepcopy(theirs))
    with mode():
        x = batch()
        y = ours(x)
        close(y, theirs(x))
    assert not y.requires_grad and ours.num_batches_tracked == training
    same_buffers(ours, theirs)


def test_threads_of_torch(small_work_threads):
    before = torch.get_num_threads()
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            adapter.batch_norm(batch(), None, None, training=True).sum().backward()
            assert _core.last_team_size() == min(number, fastbn.get_num_threads())
    finally:
        torch.set_num_threads(before)


# ---- modules and models ----

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3),
                                  nn.BatchNorm2d(8))
        self.again = self.body[1]  # the same module twice
        self.head = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 4))

    def forward(self, x):
        return self.head(self.body(x).relu().mean((2, 3)))


def train(net, steps=5):
    torch.manual_seed(1)
    x, target = torch.randn(16, 3, 8, 8), torch.randint(4, (16,))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, net.eval()(x)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_model_trains_alike(memory):
    theirs = Net().to(memory_format=memory)
    ours = adapter.convert(copy.deepcopy(theirs))
    (losses, y), (expected, y_expected) = train(ours), train(theirs)
    assert losses == pytest.approx(expected, rel=1e-4) and losses[-1] < losses[0]
    torch.testing.assert_close(y, y_expected, rtol=1e-3, atol=1e-3)


def test_convert_and_revert():
    net = Net()
    classes, state = [type(m) for m in net.modules()], net.state_dict()
    parameters, modules, calls = list(net.parameters()), list(net.modules()), []
    net.body[4].register_forward_hook(lambda *_: calls.append(1))
    net.head.eval()
    assert adapter.convert(net) is net
    assert [type(m) for m in net.modules()] == [PAIRS.get(cls, cls) for cls in classes]
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    assert all(a is b for a, b in zip(net.modules(), modules, strict=True)) and net.again is net.body[1]
    assert list(net.state_dict()) == list(state) and net.body[1].training and not net.head[1].training
    net(torch.randn(2, 3, 8, 8))
    assert calls == [1] and adapter.convert(net) is net
    assert adapter.revert(net) is net and [type(m) for m in net.modules()] == classes
    assert net.body[1].num_batches_tracked == 1
    assert type(adapter.convert(nn.BatchNorm1d(3))) is adapter.BatchNorm1d


class Derived(nn.BatchNorm2d):
    pass


def test_what_convert_leaves_alone():
    net = nn.Sequential(Derived(3), nn.SyncBatchNorm(3), nn.GroupNorm(1, 3))
    assert [type(m) for m in adapter.convert(net)] == [Derived, nn.SyncBatchNorm, nn.GroupNorm]


def test_convert_and_revert_refuse():
    net = nn.Sequential(nn.BatchNorm2d(3), nn.LazyBatchNorm2d())
    with pytest.raises(ValueError, match="1 is a LazyBatchNorm2d .* call the model on a batch first"):
        adapter.convert(net)
    assert type(net[0]) is nn.BatchNorm2d
    net = nn.Sequential(adapter.BatchNorm2d(3), adapter.BatchNorm2d(3, activation="relu"))
    with pytest.raises(ValueError, match="1 has activation='relu'"):
        adapter.revert(net)
    assert type(net[0]) is adapter.BatchNorm2d
    for function in (adapter.convert, adapter.revert):
        with pytest.raises(TypeError, match="model is a dict, expected a torch.nn.Module"):
            function({})


@pytest.mark.parametrize("cls", PAIRS)
def test_modules_are_torchs(cls):
    given = {"eps": 1e-3, "momentum": 0.3, "affine": True, "track_running_stats": True, "dtype": torch.float64,
             "bias": False}
    theirs, ours = cls(5, **given), PAIRS[cls](5, **given)
    assert isinstance(ours, cls) and repr(ours) == repr(theirs) and list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(trained(ours).state_dict())
    same_buffers(ours, theirs)
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(copied) is type(ours) and torch.equal(copied.weight, ours.weight)
    assert repr(PAIRS[cls](5, activation="elu")).endswith("activation=('elu', 1.0))")


def test_module_with_activation_and_residual():
    x, z, module = batch(), batch(), trained(adapter.BatchNorm2d(5, activation="relu"))
    expected = F.relu(F.batch_norm(x, None, None, module.weight, module.bias, True) + z)
    close(module(x, z), expected)
    with pytest.raises(ValueError, match="activation is 'relo'"):
        adapter.BatchNorm2d(5, activation="relo")


def test_autocast():
    net = nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5))
    ours = adapter.convert(copy.deepcopy(net))
    with torch.autocast("cpu", torch.bfloat16):
        x = torch.randn(2, 3, 4, 4)
        y, expected = ours(x), net(x)
    assert y.dtype is expected.dtype
    close(y, expected, torch.bfloat16)


# ---- traced ----

@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.full)])
@pytest.mark.parametrize("more", [{}, {"momentum": None}, {"affine": False, "track_running_stats": False},
                                  {"activation": "gelu"}], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@on_modes
def test_compile(backend, more, layout, training):
    """The same bits as the eager module."""
    eager = trained(adapter.BatchNorm2d(5, **more)).train(training)
    module = copy.deepcopy(eager)
    compiled = torch.compile(module, backend=backend, fullgraph=True)
    x = batch(layout)
    x_eager = x.detach().clone().requires_grad_()
    for _ in range(2):
        try:
            y = compiled(x)
        except Exception as error:
            if backend == "inductor" and "compiler" in str(error).lower():
                pytest.skip(f"inductor has no compiler here: {error}")
            raise
        expected, dy = eager(x_eager), torch.randn_like(y)
        y.backward(dy)
        expected.backward(dy)
        assert torch.equal(y, expected) and y.stride() == expected.stride() and torch.equal(x.grad, x_eager.grad)
    for one, other in zip(module.parameters(), eager.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    for one, other in zip(module.buffers(), eager.buffers(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("activation", ["relu", "silu", None])
def test_compile_with_residual(activation):
    x, z = batch(), batch()

    def call(x, z):
        return adapter.batch_norm(x, None, None, training=True, activation=activation, residual=z)
    y, expected = torch.compile(call, backend="aot_eager", fullgraph=True)(x, z), call(x, z)
    dy = torch.randn_like(y)
    assert torch.equal(y, expected)
    for one, other in zip(torch.autograd.grad(y, (x, z), dy), torch.autograd.grad(expected, (x, z), dy)):
        assert torch.equal(one, other)


def test_compile_with_other_batches():
    module = adapter.BatchNorm1d(5)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
    for n in (4, 6, 9):
        x = torch.randn(n, 5)
        close(compiled(x), F.batch_norm(x, None, None, training=True))


@on_modes
def test_export(training):
    net = adapter.convert(Net()).train(training)
    x = torch.randn(4, 3, 8, 8)
    program = torch.export.export(net, (x,))
    assert "fastbn.batch_norm" in str(program.graph)
    exported, before = program.module(), copy.deepcopy(net)
    assert torch.equal(exported(x), before(x))
    assert dict(exported.named_buffers())["body.1.num_batches_tracked"] == training


@pytest.mark.parametrize("layout", ["2d", "channels_last"])
@on_dtypes
def test_operators(layout, dtype):
    x, z = batch(layout, dtype), batch(layout, dtype)
    w, b = parameters(torch.float32)
    for given in ((w, b, None, None, None, 1e-5, "", 0.0), (w, None, z, None, None, 1e-5, "relu", 0.0),
                  (None, None, z, *statistics(torch.float32), 1e-5, "elu", 0.5)):
        torch.library.opcheck(operators._op, (x, *given))
    _, found = operators._op(x, w, b, None, None, None, 1e-5, "", 0.0)
    with torch.no_grad():
        torch.library.opcheck(operators._backward_op, (torch.ones_like(x), x, w, b, None, found, False, "", 0.0, False))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_trace():
    """Its graph computes again: results of eager calls would be constants in it."""
    module, x = trained(adapter.BatchNorm2d(5)).eval(), batch().detach()
    graph = torch.jit.trace(module, x)
    assert torch.equal(graph(x * 2), module(x * 2)) and not torch.equal(graph(x * 2), graph(x))


def test_meta_tensors():
    module = adapter.BatchNorm2d(5, device="meta")
    y = module(torch.empty(2, 5, 3, 3, device="meta"))
    assert y.is_meta and y.shape == (2, 5, 3, 3)
    with pytest.raises(ValueError, match="running_mean is on meta and input on cpu"):
        module(batch())


# ---- errors ----

def test_errors_name_the_argument():
    x, (mean, var), (w, b) = batch(), statistics(torch.float32), parameters(torch.float32)
    norm = adapter.batch_norm
    cases = [
        (TypeError, "input is a ndarray, expected a torch.Tensor", lambda: norm(np.ones((2, 5)), mean, var)),
        (TypeError, r"input has dtype torch.int64, expected .* convert with input.float\(\)",
         lambda: norm(torch.ones(2, 5, dtype=torch.int64), mean, var)),
        (TypeError, "weight has dtype torch.complex64", lambda: norm(x, mean, var, w.to(torch.complex64))),
        (TypeError, "input has layout torch.sparse_coo", lambda: norm(torch.ones(2, 5).to_sparse(), mean, var)),
        (ValueError, "input has shape .5,., expected at least 2 dimensions", lambda: norm(torch.ones(5), mean, var)),
        (RuntimeError, "running_mean should contain 5 elements not 4", lambda: norm(x, mean[:4], var[:4], w, b, True)),
        (RuntimeError, "running_var should contain 5 elements not 4", lambda: norm(x, mean, var[:4], w, b, True)),
        (RuntimeError, "weight should contain 5 elements not 3", lambda: norm(x, mean, var, w[:3], b, True)),
        (RuntimeError, "bias should contain 5 elements not 3", lambda: norm(x, mean, var, w, b[:3])),
        (RuntimeError, "running_mean must be defined in evaluation mode", lambda: norm(x, None, None, w, b)),
        (RuntimeError, "running_mean and running_var", lambda: norm(x, mean, None, w, b, True)),
        (ValueError, "Expected more than 1 value per channel", lambda: norm(torch.ones(1, 5), mean, var, w, b, True)),
        (ValueError, "running_mean requires grad, .* running_mean.detach", lambda: norm(x, w, var, w, b)),
        (ValueError, "running_var requires grad", lambda: norm(x.detach(), mean, w)),
        (ValueError, "residual has shape", lambda: norm(x, mean, var, w, b, residual=x[:1])),
        (TypeError, "residual has dtype torch.float64", lambda: norm(x, mean, var, w, b, residual=x.double())),
        (TypeError, "momentum is None", lambda: norm(x, mean, var, w, b, True, None)),
        (ValueError, "batch_norm eps must be positive, but got 0", lambda: norm(x, mean, var, w, b, True, 0.1, 0)),
        (ValueError, "activation is 'relo'", lambda: norm(x, mean, var, w, b, True, activation="relo")),
    ]
    before = mean.clone(), var.clone()
    for error, message, call in cases:
        with pytest.raises(error, match=message):
            call()
    assert torch.equal(mean, before[0]) and torch.equal(var, before[1])


@pytest.mark.parametrize("channels", [3, 7])
def test_channels_are_said_as_torch_says_it(channels):
    x = torch.randn(4, channels, 3, 3)
    messages = []
    for module in (nn.BatchNorm2d(5), adapter.BatchNorm2d(5)):
        with pytest.raises(RuntimeError) as error:
            module(x)
        messages.append(str(error.value))
    assert messages[1].startswith(messages[0])
    with pytest.raises(ValueError, match="expected 4D input"):
        adapter.BatchNorm2d(5)(torch.randn(4, 5))


def test_the_exchange_needs_its_api():
    with pytest.raises(AttributeError, match="__dlpack_c_exchange_api__"):
        _core.Exchange(int)


def test_other_devices_are_refused():
    with FakeTensorMode():
        x = torch.empty(4, 5, device="cuda")
        with pytest.raises(ValueError, match=r"input is on cuda:0, expected a CPU tensor.*\.cpu\(\).*revert\(model\)"):
            adapter.batch_norm(x, None, None, training=True)


def test_transforms_of_functions_are_refused():
    """By PyTorch, with a page to read."""
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(lambda x: adapter.batch_norm(x, None, None, training=True).cos().sum())(batch())


def run(code):
    return subprocess.run([sys.executable, "-W", "error::ImportWarning", "-c", code], capture_output=True, text=True)


def test_imports():
    found = run("import sys, fastbn, fastbn.interop; assert 'torch' not in sys.modules")
    assert found.returncode == 0, found.stderr
    found = run("import sys; sys.modules['torch'] = None; import fastbn.interop.torch")
    assert found.returncode
    assert "ImportError: fastbn.interop.torch needs PyTorch: pip install 'fastbn[torch]'" in found.stderr


def test_bfloat16_without_ml_dtypes():
    found = run("""
import sys; sys.modules['ml_dtypes'] = None
import torch, fastbn.interop.torch as adapter
x = torch.randn(6, 5, dtype=torch.bfloat16, requires_grad=True)
y = adapter.batch_norm(x, None, None, training=True)
dx, = torch.autograd.grad(y, x, torch.ones_like(y).cos().bfloat16())
expected = torch.nn.functional.batch_norm(x.float(), None, None, training=True)
assert y.dtype is dx.dtype is torch.bfloat16
torch.testing.assert_close(y.float(), expected, rtol=1e-2, atol=1e-2)
assert dx.abs().max() < 1e-2
""")
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("way", ["eager", "strided", "traced"])
def test_steps_have_the_bits_of_the_layers(rng, way):
    """By the eager call that the core reads itself, by one that it does not, and by the operators."""
    batches = [rng.normal(3, 2, (7, 5, 3)).astype(np.float32) for _ in range(3)]
    module = adapter.BatchNorm1d(5)
    call = torch.compile(module, backend="aot_eager", fullgraph=True) if way == "traced" else module
    if way == "strided":
        batches = [np.ascontiguousarray(x.transpose(0, 2, 1)).transpose(0, 2, 1) for x in batches]
    for x in batches:
        call(torch.from_numpy(x))
    for found, expected in zip((module.running_mean, module.running_var), steps_of_layer(batches, ddof=1)):
        np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("residual", [False, True])
def test_an_empty_batch_keeps_its_memory_format(dtype, residual):
    x = torch.empty(0, 5, 3, 4, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = adapter.BatchNorm2d(5)(x, x.detach() if residual else None)
    y.backward(torch.empty_like(y))
    assert y.stride() == x.stride() == x.grad.stride() and y.shape == x.grad.shape == x.shape and y.dtype == dtype
