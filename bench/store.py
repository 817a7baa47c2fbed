"""A run's folder: cells.jsonl grows by a line with every measured cell, run.json is the whole at the end.

A run that is stopped, or killed, keeps what it has; --resume measures only what is missing. A line is {"run": ...}, one
at every start, or {"cell": ...}.
"""
import json
import math

CELLS, DOCUMENT = "cells.jsonl", "run.json"


class StoreError(Exception):
    """The folder cannot be used; the message says why."""


def key(cell):
    """What makes a cell the same as one measured before."""
    names = "operation", "layout", "dtype", "alignment", "threads", "sweep"
    return (tuple(cell["shape"]), *(cell[name] for name in names))


def key_of_job(job):
    case = job.case
    return case.shape, case.operation, case.layout, case.dtype, case.alignment, job.threads, job.sweep


def read(folder):
    """(runs, cells) so far."""
    path = folder / CELLS
    if not path.exists():
        return [], []
    runs, cells = [], {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # the line that was being written when the run was killed
            continue
        if "run" in record:
            runs.append(record["run"])
        elif "cell" in record:
            cells[key(record["cell"])] = record["cell"]
    return runs, list(cells.values())


def read_document(folder):
    path = folder / DOCUMENT
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"{path} does not exist: is {folder} the folder of a run that came to its end?") from None
    except ValueError as error:
        raise StoreError(f"{path} is no JSON ({error}): was it cut short?") from None


class Store:
    """Appends to the folder's cells.jsonl; open() and close(), or a with statement."""

    def __init__(self, folder):
        self.folder = folder
        self._file = None

    def __enter__(self):
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = open(self.folder / CELLS, "a", encoding="utf-8")
        except OSError as error:
            raise StoreError(f"{self.folder}: nothing can be written there ({error})") from error
        if self._file.tell():
            self._file.write("\n")  # ends a line that was cut short; empty lines are read over
        return self

    def __exit__(self, *error):
        self._file.close()

    def add(self, kind, record):
        """kind: "run" or "cell"."""
        self._file.write(json.dumps({kind: rounded(record)}) + "\n")
        self._file.flush()

    def write_document(self, document):
        """A line for each cell and for each of the other items."""
        items = {name: item for name, item in document.items() if name != "cells"}
        lines = [f"{json.dumps(name)}: {json.dumps(rounded(item))}" for name, item in items.items()]
        cells = ",\n".join(json.dumps(rounded(cell)) for cell in document["cells"])
        text = "{\n" + ",\n".join([*lines, f'"cells": [\n{cells}\n]']) + "\n}\n"
        (self.folder / DOCUMENT).write_text(text, encoding="utf-8")


def rounded(value):
    """JSON-ready, floats with six digits, which no time is worth more than."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): rounded(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return value
