"""Who computes it. A contender is one file here with one class, and a line in CONTENDERS. The class has

    name                                    as on the command line
    version()                               for the report
    session(threads)                        a context in which exactly that many threads are used, restored after it
    can(case, output)                       whether it does that operation at all, into a "fresh" array or into "out="
    work(case, data, output, threads)       the expression to time, to be made and run within session(threads)
    arrays(case, result)                    what the expression gave, as NumPy arrays laid out as the reference is
    reference_data(case, data)              optional: the data it really computes on, where that differs

Importing the peer belongs in __init__, so that a missing one is an ImportError there.

All get the same arrays, and for "out=" data.empty(). What a user would prepare once (layers, bindings, descriptors) is
prepared in work(); for "fresh", the expression makes its output as a user of that library would get it. Where a library
has several functions for an operation, the fastest is taken, on the data in their own shape.
"""
import importlib
import os
import sys

from bench.peers.fastbn_ import Fastbn
from bench.peers.numpy_ import NumPy
from bench.peers.onednn import OneDNN
from bench.peers.onnxruntime_ import OnnxRuntime
from bench.peers.sklearn_ import ScikitLearn
from bench.peers.torch_ import Torch
from bench.peers.work import Work

__all__ = ["BASELINE", "CONTENDERS", "Work", "add_own", "load", "variants"]

CONTENDERS = {contender.name: contender for contender in (Fastbn, NumPy, Torch, OneDNN, OnnxRuntime, ScikitLearn)}
BASELINE = Fastbn.name


def add_own(place):
    """Takes module:Class, found from the working folder, among the contenders; returns its name.

    Raises ValueError where there is no such class, or where it lacks what a contender has.
    """
    module_name, _, class_name = place.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        contender = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{place!r} cannot be imported ({error}): write module:Class, the module lying in the working "
                         "folder or installed") from error
    finally:
        del sys.path[0]
    lacking = [part for part in ("name", "version", "session", "can", "work", "arrays") if not hasattr(contender, part)]
    if lacking:
        raise ValueError(f"{place!r} lacks {', '.join(lacking)}: see bench/peers/__init__.py for what a contender has")
    if contender.name in CONTENDERS:
        raise ValueError(f"{place!r} has the name {contender.name!r}, which is taken: give it another one")
    CONTENDERS[contender.name] = contender
    return contender.name


def load(names):
    """The contenders that can be imported, and for the others the reason. The baseline has to be there."""
    present, missing = [], {}
    for name in names:
        try:
            present.append(CONTENDERS[name]())
        except ImportError as error:
            if name == BASELINE:
                raise ImportError(f"{name} cannot be imported ({error}); in a checkout: pip install -e .") from error
            missing[name] = str(error)
    return present, missing


def variants(case, contenders):
    """(contender, output) for everything that can be timed on a case."""
    return [(contender, output) for contender in contenders for output in case.outputs if contender.can(case, output)]
