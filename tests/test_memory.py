"""What a call takes beyond its arrays: the growth of the process's peak, read from the system."""
import subprocess
import sys
from pathlib import Path

import pytest

STATUS = Path("/proc/self/status")
pytestmark = pytest.mark.skipif(not STATUS.exists() or "VmHWM" not in STATUS.read_text(), reason="no VmHWM here")

# A first call on little data loads and warms up whatever stays: code, the thread pool.
SCRIPT = """
import sys
import numpy as np
import fastbn

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

def all_calls(x, dy, out, axis):
    gamma = np.ones(x.shape[axis], np.float32)
    y, saved = fastbn.batch_norm_training(x, gamma, gamma, axis=axis, out=out)
    fastbn.batch_norm_backward(dy, saved, out=out)
    fastbn.batch_norm_inference(x, gamma, gamma, gamma, gamma, axis=axis, out=out)
    fastbn.moments(x, axis=axis)

shape, axis = eval(sys.argv[1])
small = np.ones([min(n, 8) for n in shape], np.float32)
all_calls(small, small, small.copy(), axis)
x = np.ones(shape, np.float32)
x += np.arange(x.size, dtype=np.float32).reshape(shape) % 7
dy, out = x[::-1].copy(), np.zeros_like(x)
out += 1
before = peak()
all_calls(x, dy, out, axis)
print(peak() - before)
"""


@pytest.mark.parametrize("shape, axis", [
    ((64, 64, 56, 56), 1), ((64, 56, 56, 64), -1), ((16, 1024, 14, 14), 1), ((64, 512, 7, 7), 1), ((1_000_003, 3), 1),
    ((8192, 1024), 1), ((64, 65536), 1), ((1, 3, 1500, 1500), 1),
], ids=str)
def test_scratch_memory_is_small(shape, axis):
    """2 MiB, and what grows with the features; the allocator and the interpreter round up."""
    command = [sys.executable, "-c", SCRIPT, repr((shape, axis))]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)
    features = shape[axis]
    assert grown <= 2 * 2**20 + 400 * features, f"{grown / 2**20:.2f} MiB more for {shape}"
