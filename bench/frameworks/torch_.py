"""PyTorch: its modules, and the same modules converted by fastbn.interop.torch, through autograd."""
from time import perf_counter

import fastbn

NAME = "PyTorch"
REPLACES = "nn.BatchNorm1d, 2d, 3d"

ROUNDS, CALLS = 300, 50  # of overhead()


def version():
    import torch

    import fastbn.interop.torch  # noqa: F401, since it may refuse this version
    return torch.__version__


def pair(case):
    """A training step of the module each: y and the gradients of x, weight and bias from dy."""
    import torch

    from fastbn.interop.torch import convert
    x, dy = torch.from_numpy(case.x).requires_grad_(), torch.from_numpy(case.dy)

    def module():
        bn = {2: torch.nn.BatchNorm1d, 4: torch.nn.BatchNorm2d}[x.dim()](x.shape[1], eps=case.eps)
        with torch.no_grad():
            bn.weight.copy_(torch.from_numpy(case.gamma))
            bn.bias.copy_(torch.from_numpy(case.beta))
        return bn

    def run(bn):
        y = bn(x)
        return y, torch.autograd.grad(y, (x, bn.weight, bn.bias), dy)
    own, ours = module(), convert(module())
    return (lambda: run(own)), (lambda: run(ours))


def overhead():
    """Forward + backward of a (1, 64) tensor by given statistics (PyTorch trains with no single value per channel).

    batch_norm of fastbn.interop.torch, less an autograd.Function of as many tensors that does nothing of its own: it
    saves x and weight, makes its results with torch.empty_like, and calls fastbn's functions beside, on arrays that lie
    ready. What is left is reading tensors, handing arrays over, checks, and calls in between.
    """
    import torch

    from fastbn.interop.torch import batch_norm
    x, weight, bias = (torch.randn(shape, requires_grad=True) for shape in ((1, 64), 64, 64))
    mean, var, dy = torch.randn(64), torch.rand(64) + 0.5, torch.randn(1, 64)
    nothing = _nothing(torch, [t.detach().numpy() for t in (x, mean, var, weight, bias)], dy.numpy())
    gradients = torch.autograd.grad

    def ours():
        gradients(batch_norm(x, mean, var, weight, bias), (x, weight, bias), dy)

    def bare():
        gradients(nothing.apply(x, weight, bias), (x, weight, bias), dy)
    times = [(_seconds(ours), _seconds(bare)) for _ in range(ROUNDS)]
    return 1e6 * (min(a for a, _ in times) - min(b for _, b in times))


def _nothing(torch, arrays, dy):
    class Nothing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight, bias):
            _, ctx.saved = fastbn.batch_norm_inference(*arrays, return_saved=True)
            ctx.save_for_backward(x, weight)
            return torch.empty_like(x)

        @staticmethod
        def backward(ctx, _):
            x, weight = ctx.saved_tensors
            fastbn.batch_norm_backward(dy, ctx.saved)
            return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
    return Nothing


def _seconds(call):
    start = perf_counter()
    for _ in range(CALLS):
        call()
    return (perf_counter() - start) / CALLS
