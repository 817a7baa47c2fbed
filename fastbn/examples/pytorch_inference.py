"""Inference of a trained PyTorch network's state without PyTorch: batch norms folded into convolutions, or run by fastbn.

    pip install 'fastbn[convert]' && python pytorch_inference.py [model.safetensors]

Without a file the example writes one with the names of a PyTorch ResNet's first block.
"""
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

import fastbn


def write_block(path):
    """What torch.save of a state dict would hold, as .safetensors."""
    rng = np.random.default_rng(0)
    state = {}
    for i in (1, 2):
        state[f"conv{i}.weight"] = rng.normal(0, 0.06, (64, 64, 3, 3)).astype(np.float32)
        for name, low in (("weight", 0.5), ("bias", -0.5), ("running_mean", -0.5), ("running_var", 0.5)):
            state[f"bn{i}.{name}"] = rng.uniform(low, low + 1, 64).astype(np.float32)
        state[f"bn{i}.num_batches_tracked"] = np.array(1000)
    save_file(state, path)


def convolve(x, weight, bias=None):
    """A 3 x 3 convolution of channels-first images, padded by zeros."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    y = np.einsum("nchwij,ocij->nohw", windows, weight, optimize=True).astype(np.float32)
    return y if bias is None else y + bias[:, None, None]


def block(x, state, norms):
    """relu(bn2(conv2(relu(bn1(conv1(x))))) + x), each batch norm with what follows it in one pass over memory."""
    y = convolve(x, state["conv1.weight"])
    y = norms["bn1"](y, out=y)
    y = convolve(y, state["conv2.weight"])
    return norms["bn2"](y, residual=x, out=y)


def folded_block(x, state, norms):
    """The same, with the batch norms folded into the convolutions' weights."""
    y = np.maximum(convolve(x, *fastbn.fold_conv(state["conv1.weight"], None, norms["bn1"])), 0)
    y = convolve(y, *fastbn.fold_conv(state["conv2.weight"], None, norms["bn2"]))
    return np.maximum(y + x, 0)


def main(path):
    state = load_file(path)
    norms = fastbn.convert.from_state_dict(state, training=False, activation="relu")
    x = np.random.default_rng(1).normal(size=(2, 64, 14, 14)).astype(np.float32)
    y = block(x, state, norms)
    plain = fastbn.convert.from_state_dict(state, training=False)          # folding takes no activation
    difference = np.abs(folded_block(x, state, plain) - y).max()
    print(f"{len(norms)} batch norms; folded and not folded differ by {difference:.1e} at most")
    return difference


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as scratch:
            model = Path(scratch, "block.safetensors")
            write_block(model)
            main(model)
