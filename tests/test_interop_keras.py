"""fastbn.interop.keras: keras_on_numpy.py in a process of its own, and what is said where Keras has another backend.

Keras takes one backend a process, and other tests may have taken another.
"""
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("keras") is None:
    pytest.skip("keras is not installed", allow_module_level=True)


def run(backend, *arguments):
    environment = {**os.environ, "KERAS_BACKEND": backend}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=600)


def test_on_the_numpy_backend():
    tests = Path(__file__).resolve().with_name("keras_on_numpy.py")
    done = run("numpy", "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests))
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr


def test_another_backend_is_refused_with_the_remedy():
    backend = next((name for name in ("jax", "torch", "tensorflow") if find_spec(name)), None)
    if backend is None:
        pytest.skip("no other backend is installed")
    done = run(backend, "-c", "import fastbn.interop.keras as adapter\n"
                              "for make in (adapter.BatchNormalization, lambda: adapter.convert(None)):\n"
                              "    try:\n        make()\n    except RuntimeError as error:\n        print(error)")
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done
    assert all(f"its {backend} backend" in line and "KERAS_BACKEND=numpy" in line for line in lines)


def test_a_missing_backend_is_refused_with_the_remedy():
    backend = next((name for name in ("tensorflow", "torch", "jax") if not find_spec(name)), None)
    if backend is None:
        pytest.skip("every backend is installed")
    done = run(backend, "-c", "import fastbn.interop.keras")
    assert "ImportError: Keras cannot be imported" in done.stderr and "KERAS_BACKEND=numpy" in done.stderr


def test_without_keras():
    done = run("numpy", "-c", "import sys; sys.modules['keras'] = None; import fastbn.interop.keras")
    assert "ImportError" in done.stderr and "pip install 'fastbn[keras]'" in done.stderr
