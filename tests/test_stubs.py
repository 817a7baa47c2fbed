"""The type stubs name the arguments that the functions have, with the same defaults."""
import ast
import importlib
import inspect
from pathlib import Path

import pytest

import fastbn

FOLDER = Path(fastbn.__file__).parent


def functions_of(node):
    return [inner for inner in node.body if isinstance(inner, ast.FunctionDef)
            and not any(isinstance(d, ast.Name) and d.id == "property" or isinstance(d, ast.Attribute)
                        for d in inner.decorator_list)]


TREE = ast.parse((FOLDER / "__init__.pyi").read_text(encoding="utf-8"))
FUNCTIONS = functions_of(TREE)
CLASSES = {node.name: node for node in TREE.body if isinstance(node, ast.ClassDef)}
METHODS = functions_of(CLASSES["BatchNorm"])
# Those of other modules: (module, name of a class or None, node).
OTHERS = [("fastbn", "Moments", node) for node in functions_of(CLASSES["Moments"]) if node.name != "__init__"]
for path in sorted([*FOLDER.glob("*/*.pyi"), FOLDER / "_core.pyi"]):
    module = "fastbn._core" if path.parent == FOLDER else f"fastbn.{path.parent.name}"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    OTHERS += [(module, None, node) for node in functions_of(tree)]
    OTHERS += [(module, found.name, node) for found in tree.body if isinstance(found, ast.ClassDef)
               and not found.name.startswith("_") for node in functions_of(found) if module != "fastbn._core"]


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


@pytest.mark.parametrize("module, owner, node", OTHERS, ids=lambda value: getattr(value, "name", value))
def test_other_stubs(module, owner, node):
    found = importlib.import_module(module)
    found = inspect.getattr_static(found if owner is None else getattr(found, owner), node.name)
    assert_agrees(node, getattr(found, "__func__", found))


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
