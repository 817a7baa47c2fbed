"""The type stub names the arguments that the functions have, with the same defaults."""
import ast
import inspect
from pathlib import Path

import pytest

import fastbn

TREE = ast.parse(Path(fastbn.__file__).with_name("__init__.pyi").read_text(encoding="utf-8"))
FUNCTIONS = [node for node in TREE.body if isinstance(node, ast.FunctionDef)]
CLASSES = {node.name: node for node in TREE.body if isinstance(node, ast.ClassDef)}
METHODS = [node for node in CLASSES["BatchNorm"].body if isinstance(node, ast.FunctionDef)
           and not any(isinstance(d, ast.Name) and d.id == "property" or isinstance(d, ast.Attribute)
                       for d in node.decorator_list)]


def of_stub(node):
    """({name: default's text, "..." where it says nothing}, names by keyword alone); arguments in order."""
    arguments = node.args.args + node.args.kwonlyargs
    missing = [None] * (len(node.args.args) - len(node.args.defaults))
    defaults = [*missing, *node.args.defaults, *node.args.kw_defaults]
    return {a.arg: None if d is None else ast.unparse(d) for a, d in zip(arguments, defaults)}, {
        a.arg for a in node.args.kwonlyargs}


def of_function(function):
    named = [p for p in inspect.signature(function).parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    return {p.name: p.default for p in named}, {p.name for p in named if p.kind == p.KEYWORD_ONLY}


def assert_agrees(node, function):
    stub, stub_keywords = of_stub(node)
    real, keywords = of_function(function)
    overload = any(isinstance(d, ast.Name) and d.id == "overload" for d in node.decorator_list)
    if overload:  # may leave out arguments that have defaults
        assert set(stub) <= set(real) and {n for n, d in real.items() if d is inspect.Parameter.empty} <= set(stub)
    else:
        assert set(stub) == set(real)
    assert stub_keywords == keywords & set(stub)
    for name, text in stub.items():
        if text not in (None, "..."):
            assert ast.literal_eval(text) == real[name], name
        elif not overload:
            assert (text is None) == (real[name] is inspect.Parameter.empty), name


@pytest.mark.parametrize("node", FUNCTIONS, ids=lambda node: node.name)
def test_functions(node):
    assert_agrees(node, getattr(fastbn, node.name))


@pytest.mark.parametrize("node", METHODS, ids=lambda node: node.name)
def test_methods_of_the_layer(node):
    method = inspect.getattr_static(fastbn.BatchNorm, node.name)
    if isinstance(method, classmethod):
        method = method.__func__
    if node.name == "__call__":  # compiled, without a signature
        method = fastbn.BatchNorm.forward
    assert_agrees(node, method)


@pytest.mark.parametrize("name", ["batch_norm_inference", "batch_norm_training", "batch_norm_backward"])
def test_overloads_have_all_arguments_together(name):
    names = set().union(*(of_stub(node)[0] for node in FUNCTIONS if node.name == name))
    assert names == set(of_function(getattr(fastbn, name))[0])


def test_everything_public_is_there():
    names = {node.name for node in FUNCTIONS} | set(CLASSES)
    assert set(fastbn.__all__) <= names


def test_attributes_of_the_layer():
    declared = {node.target.id for node in CLASSES["BatchNorm"].body if isinstance(node, ast.AnnAssign)}
    declared |= {node.name for node in CLASSES["BatchNorm"].body if isinstance(node, ast.FunctionDef)}
    public = {name for name in dir(fastbn.BatchNorm) if not name.startswith("_")}
    assert public <= declared | {"dtype"} and declared - {"__init__", "__call__"} <= set(dir(fastbn.BatchNorm(3)))
