"""The README's Python examples run, in their order, in one session, as a reader would type them."""
import re
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import fastbn

README = Path(__file__).resolve().parents[1] / "README.md"


def blocks():
    """(line, code) of each Python block."""
    text = README.read_text(encoding="utf-8")
    for found in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield text[:found.start()].count("\n") + 2, found[1]


def readers_own(rng):
    """What the text leaves to the reader: arrays for 64 channels."""
    def array(*shape):
        return rng.normal(size=shape).astype(np.float32)
    shape = (32, 64, 56, 56)
    return {"gamma": array(64), "beta": array(64), "mean": array(64), "var": array(64)**2, "dy": array(*shape),
            "ddx": array(*shape), "ddgamma": array(64), "ddbeta": array(64),
            "batches": [array(8, 64, 4, 4) for _ in range(3)],
            "kernel": array(64, 4, 3, 3), "weight": array(64, 8), "bias": array(64)}


def write_model(path, rng):
    """A .safetensors file with the batch norm that an example reads."""
    from safetensors.numpy import save_file
    names = ("weight", "bias", "running_mean", "running_var")
    save_file({f"layer1.0.bn1.{name}": rng.random(64).astype(np.float32) for name in names}, path)


def test_examples_run(tmp_path, monkeypatch, rng):
    monkeypatch.chdir(tmp_path)
    missing = {name for name in ("ml_dtypes", "safetensors") if find_spec(name) is None}
    if "safetensors" not in missing:
        write_model(tmp_path / "resnet.safetensors", rng)
    session, places = readers_own(rng), {}
    for line, code in blocks():
        if any(name in code for name in missing):
            session["bn"] = fastbn.BatchNorm(64)  # what the example would have left
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            exec(compile("\n" * (line - 1) + code, str(README), "exec"), session)
        if "out=shortcut" in code:
            places = {name: session[name] for name in ("y", "shortcut", "dx", "dy")}
    assert places["y"] is places["shortcut"] and places["dx"] is places["dy"]
    assert len(list(blocks())) > 10


def test_every_module_of_the_source_is_named():
    """Who reads the source finds each file in the table."""
    root, text = README.parent, README.read_text(encoding="utf-8")
    table = text[text.index("## Reading the source"):text.index("How sums are taken")]
    named = set(re.findall(r"[\w<>*]*\w[\w<>*]*\.(?:c|py|pxi|inc)\b", table))
    files = [*(root / "csrc").glob("*.c"), *(root / "csrc" / "kernels").glob("*.inc"), *(root / "fastbn").glob("_*.py"),
             *(root / "fastbn").glob("*.pxi")]
    patterns = [re.escape(name).replace(r"\*", r"\w+").replace("<isa>", r"\w+") for name in named]
    missing = [path.name for path in files if not any(re.fullmatch(pattern, path.name) for pattern in patterns)]
    assert not [name for name in missing if not name.startswith("__")]
