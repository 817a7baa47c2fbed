"""Docstrings of public names are numpydoc's, and their examples run."""
import doctest
import importlib
import inspect
from pathlib import Path

import numpy as np
import pytest

import fastbn

ADAPTERS = sorted(path.stem for path in Path(fastbn.__file__).parent.glob("interop/[a-z]*.py"))
MODULES = ["fastbn", "fastbn.convert", "fastbn.distributed", "fastbn.standardize", "fastbn.sklearn",
           *(f"fastbn.interop.{name}" for name in ADAPTERS)]
WRONG = {"GL08", "PR01", "PR02", "RT01", "SS01"}  # no docstring, parameters, returns, summary


def public_names():
    """(qualified name, object) of functions, classes, and what classes define themselves."""
    for name in MODULES:
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue  # what an adapter is for is not installed
        for word in module.__all__:
            found = getattr(module, word)
            if inspect.isclass(found) or inspect.isroutine(found):
                yield f"{name}.{word}", found
                yield from members(f"{name}.{word}", found)


def members(name, found):
    """Of a class: what is written in fastbn, inherited from its own bases too."""
    for word in dir(found) if inspect.isclass(found) else []:
        value = inspect.getattr_static(found, word)
        inner = getattr(value, "__func__", value)
        ours = (getattr(inner, "__module__", None) or "").startswith("fastbn") or isinstance(value, property)
        if not word.startswith("_") and ours and owner(found, word).startswith("fastbn"):
            yield f"{name}.{word}", value


def owner(found, word):
    """The module of the class that defines it."""
    return next(base.__module__ for base in found.__mro__ if word in vars(base))


NAMES = sorted({name for name, _ in public_names()})


@pytest.mark.parametrize("name", NAMES)
def test_docstrings_are_numpydoc(name):
    validate = pytest.importorskip("numpydoc.validate", reason="numpydoc is not installed: the extra 'test' has it")
    errors = [error for error in validate.validate(name)["errors"] if error[0] in WRONG]
    assert errors == []


@pytest.mark.parametrize("name", NAMES)
def test_examples_of_docstrings_run(name):
    found = dict(public_names())[name]
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    with np.printoptions(legacy=False):
        for test in doctest.DocTestFinder(recurse=False).find(found, name, globs={}):
            runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


def test_the_main_functions_have_examples():
    for name in fastbn.__all__:
        if inspect.isclass(getattr(fastbn, name)) or name.startswith(("batch_norm", "fold", "moments")):
            assert ">>> " in getattr(fastbn, name).__doc__, name
