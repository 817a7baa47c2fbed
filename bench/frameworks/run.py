"""All frameworks that are there: each case checked, then timed in rounds in which own and fastbn alternate."""
import importlib
import json
import pkgutil
from datetime import datetime

import fastbn
from bench import frameworks, machine, report
from bench.frameworks import table
from bench.frameworks.cases import SHAPES, make_case
from bench.frameworks.compare import check
from bench.store import rounded
from bench.timing import entry_of, measure, ratio


def key(name):
    """A framework's name as --only takes it: that of its file."""
    return name.lower().removesuffix("_")


def discover():
    """{name: module} of the files here whose names end with an underscore."""
    names = [found.name for found in pkgutil.iter_modules(frameworks.__path__)]
    names = sorted(name for name in names if name.endswith("_") and not name.startswith("_"))
    return {key(name): importlib.import_module(f"{frameworks.__name__}.{name}") for name in names}


def measure_case(module, case, seconds):
    """Checked first. Raises what the framework raises, and Disagreement."""
    functions = dict(zip(("own", "fastbn"), module.pair(case), strict=True))
    check(functions["own"](), functions["fastbn"]())
    entries = [entry_of(name, function) for name, function in functions.items()]
    measure(entries, seconds)
    speedup, disturbed = ratio(*entries)
    return {"own_ms": 1e3 * entries[0].seconds, "fastbn_ms": 1e3 * entries[1].seconds, "speedup": speedup,
            "disturbed": disturbed}


def measure_framework(module, shapes, seconds):
    """A row. ImportError where the framework is absent."""
    row = {"framework": module.NAME, "version": module.version(), "replaces": module.REPLACES, "cases": {},
           "failed": {}}
    for shape in shapes:
        case = make_case(shape)
        try:
            row["cases"][str(case)] = measure_case(module, case, seconds)
        except Exception as error:  # whatever a framework raises: the others are measured all the same
            row["failed"][str(case)] = f"{type(error).__name__}: {error}"
    overhead = getattr(module, "overhead", lambda: None)()
    return {**row, "overhead_us": overhead}


def document_of(rows, seconds, threads):
    return {"date": datetime.now().strftime("%Y-%m-%d"), "seconds": seconds, "threads": threads,
            "machine": {**machine.describe([], None), "versions": {"fastbn": fastbn.__version__},
                        "fastbn": fastbn.get_config()}, "rows": rows}


def run(found, shapes, seconds, threads, output, console=None):
    """The exit status. found: {name: module}; threads: for the record; output: a path for JSON, or None."""
    console = console or report.console_for()
    rows = []
    for name, module in found.items():
        try:
            rows.append(measure_framework(module, shapes, seconds))
        except ImportError as error:
            console.print(f"{name} left out: {error}", markup=False)
    document = rounded(document_of(rows, seconds, threads))
    table.print_document(console, document)
    if output is not None:
        output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return int(any(row["failed"] for row in rows))
