"""The programs of fastbn/examples/ run, and do what they say."""
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "fastbn" / "examples"


def example(name):
    spec = spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_network_learns():
    pytest.importorskip("sklearn")
    assert example("numpy_network").main(3) > 0.9


def test_the_gradients_of_the_network_against_central_differences(rng):
    pytest.importorskip("sklearn")
    network = example("numpy_network")
    layers = [network.Conv(2, 3, rng), network.Linear(4 * 5 * 3, 10, rng)]
    x, dy = rng.normal(size=(2, 4, 5, 2)), rng.normal(size=(2, 10))
    network.run(layers, x)
    dx = layers[0].backward(layers[1].backward(dy))
    for at in list(np.ndindex(x.shape))[::7]:
        up, down = x.copy(), x.copy()
        up[at] += 1e-4
        down[at] -= 1e-4
        slope = ((network.run(layers, up) - network.run(layers, down)) * dy).sum() / 2e-4
        assert abs(slope - dx[at]) < 1e-5 * (1 + abs(slope))


def test_a_network_of_pytorch_without_pytorch(tmp_path):
    pytest.importorskip("safetensors")
    inference = example("pytorch_inference")
    inference.write_block(tmp_path / "block.safetensors")
    assert inference.main(tmp_path / "block.safetensors") < 2e-5


def test_a_table_larger_than_memory(tmp_path, monkeypatch):
    larger = example("larger_than_memory")
    monkeypatch.setattr(larger, "ROWS", 60_000)
    monkeypatch.setattr(larger, "CHUNK", 20_000)
    check = larger.main(tmp_path)
    assert np.abs(check.mean).max() < 1e-6 and np.abs(check.var() - 1).max() < 1e-5


def test_every_example_is_listed_and_tested():
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    tested = Path(__file__).read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert f"[{path.name}]({path.name})" in listed and f'example("{path.stem}")' in tested
