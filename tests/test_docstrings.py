"""Docstrings of public names are numpydoc's, their examples run, and what tools ask of an object is answered."""
import doctest
import importlib
import inspect
from pathlib import Path

import numpy as np
import pytest

import fastbn
from fastbn import _core

ADAPTERS = sorted(path.stem for path in Path(fastbn.__file__).parent.glob("interop/[a-z]*.py"))
MODULES = ["fastbn", "fastbn.convert", "fastbn.distributed", "fastbn.standardize", "fastbn.sklearn",
           *(f"fastbn.interop.{name}" for name in ADAPTERS)]
# What public functions return: public too, though nobody makes one.
RESULTS = {"fastbn._core.Saved": _core.Saved}
WRONG = {"GL08", "SS01",  # no docstring, no summary
         "PR01", "PR02", "PR03", "PR04",  # parameters: missing, unknown, in another order, without a type
         "RT01", "RT03",  # results: missing, not described
         "GL03", "GL07", "SS06"}  # blank lines, the order of sections, a summary of several lines
COMPILED = sorted(name for name, value in vars(_core).items() if inspect.isroutine(value) and not name.startswith("_"))


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
    for name, found in RESULTS.items():
        yield name, found
        yield from members(name, found)


def members(name, found):
    """Of a class: what is written in fastbn, inherited from its own bases too, but for what BatchNorm has."""
    for word in dir(found) if inspect.isclass(found) else []:
        value = inspect.getattr_static(found, word)
        inherited = found is not fastbn.BatchNorm and value is inspect.getattr_static(fastbn.BatchNorm, word, None)
        if not word.startswith("_") and not inherited and owner(found, word).startswith("fastbn") and is_ours(value):
            yield f"{name}.{word}", value


def is_ours(value):
    inner = getattr(value, "__func__", value)
    return ((getattr(inner, "__module__", None) or "").startswith("fastbn") or isinstance(value, property)
            or inspect.isgetsetdescriptor(value))


def owner(found, word):
    """The module of the class that defines it."""
    return next(base.__module__ for base in found.__mro__ if word in vars(base))


def is_routine(found):
    return inspect.isroutine(found) and not inspect.isdatadescriptor(found)


OBJECTS = dict(sorted(public_names()))
NAMES = list(OBJECTS)
EXAMPLES = [name for name in NAMES if ">>> " in (inspect.getdoc(OBJECTS[name]) or "")]


@pytest.mark.parametrize("name", NAMES)
def test_docstrings_are_numpydoc(name):
    validate = pytest.importorskip("numpydoc.validate", reason="numpydoc is not installed: the extra 'test' has it")
    errors = [error for error in validate.validate(name)["errors"] if error[0] in WRONG]
    assert errors == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_of_docstrings_run(name):
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    with np.printoptions(legacy=False):
        for test in doctest.DocTestFinder(recurse=False).find(OBJECTS[name], name, globs={}):
            runner.run(test)
    assert runner.summarize(verbose=False).attempted and runner.summarize(verbose=False).failed == 0


def test_all_functions_and_methods_have_examples():
    """But those of the communicator, a protocol, and of the inner part of what a forward call leaves."""
    without = {name for name in NAMES if is_routine(OBJECTS[name])} - set(EXAMPLES)
    assert {name.rpartition(".")[0] for name in without} <= {"fastbn.distributed.Communicator", "fastbn._core.Saved"}


@pytest.mark.parametrize("name", ["count", "squares", "mean"])
def test_slots_have_docstrings(name):
    """Which numpydoc does not find, but help() does."""
    assert inspect.getdoc(getattr(fastbn.Moments, name)).endswith(".")


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_functions_have_signatures(name):
    assert "args" not in inspect.signature(getattr(_core, name)).parameters


@pytest.mark.parametrize("layer", [fastbn.BatchNorm(2), fastbn.BatchNorm(2).eval()], ids=repr)
def test_the_layer_has_the_signature_of_its_call(layer):
    assert inspect.signature(layer) == inspect.signature(layer.forward)
    assert "momentum" in inspect.signature(type(layer)).parameters


def test_no_name_of_cython_is_shown():
    y, saved = fastbn.batch_norm_training(np.ones((4, 2)))
    layer = fastbn.BatchNorm(2)
    shown = [layer, type(layer), saved, type(saved), saved.moments, layer.drift(y)]
    shown += [importlib.import_module(name) for name in MODULES[:4]]
    assert [name for value in shown for name in dir(value) if name.startswith("__pyx")] == []


def test_statistics_of_many_features_are_short_to_print():
    x = np.random.default_rng(0).normal(size=(10, 1000))
    found = fastbn.moments(x)
    for value in (found, fastbn.moments(x, nan_policy="omit"), fastbn.BatchNorm(1000).drift(found)):
        assert len(repr(value).splitlines()) <= 4 and len(repr(value)) < 300
