"""Tables and JSON from the measured cells. rich draws the tables where it is installed."""
import json
import os
import platform
from dataclasses import dataclass

from bench.cases import Case
from bench.contenders import BASELINE, gigabytes_per_second
from bench.timing import Entry, ratio

BASE_FRESH, BASE_OUT = (BASELINE, "fresh"), (BASELINE, "out=")


@dataclass
class Cell:
    """One case with one number of threads, and its timed entries."""
    case: Case
    threads: int
    entries: list[Entry]

    def entry(self, key):
        return next((e for e in self.entries if e.key == key), None)

    def ratio(self, peer_key, base_key):
        """(ratio, disturbed), or None where one of the two is not there."""
        peer, base = self.entry(peer_key), self.entry(base_key)
        return ratio(peer, base) if peer and base else None


def _threads_text(threads):
    return "1 thread" if threads == 1 else f"{threads} threads"


def _number(value, digits, disturbed=False):
    return f"{value:.{digits}f}" + ("*" if disturbed else "")


def _microseconds(entry):
    if entry is None:
        return ""
    value = entry.seconds * 1e6
    return _number(value, 2 if value < 100 else 0, entry.disturbed)


def _rate(case, entry):
    return "" if entry is None else _number(gigabytes_per_second(case, entry.seconds), 1)


def _ratio(found):
    return "" if found is None else _number(found[0], 2, found[1])


def _comparisons(cells):
    """Pairs (peer, baseline) to divide: like with like, and a peer that has no out= also with the baseline's."""
    keys = list(dict.fromkeys(e.key for cell in cells for e in cell.entries))
    pairs = []
    for contender, output in keys:
        if contender == BASELINE:
            continue
        pairs.append(((contender, output), (BASELINE, output)))
        if (contender, "out=") not in keys and BASE_OUT in keys:
            pairs.append(((contender, output), BASE_OUT))
    return pairs


def _title(key):
    contender, output = key
    return contender if output == "fresh" else f"{contender} {output}"


def _columns(cells):
    """(title, function of a cell) for every column after the shape."""
    columns, shown = [], set()
    for key in (BASE_FRESH, BASE_OUT):
        if any(cell.entry(key) for cell in cells):
            columns.append((f"{_title(key)} us", lambda cell, key=key: _microseconds(cell.entry(key))))
            columns.append(("GB/s", lambda cell, key=key: _rate(cell.case, cell.entry(key))))
    for peer, base in _comparisons(cells):
        if peer not in shown:
            columns.append((f"{_title(peer)} us", lambda cell, peer=peer: _microseconds(cell.entry(peer))))
            shown.add(peer)
        columns.append(("ratio" if base[1] == peer[1] else "ratio to out=",
                        lambda cell, peer=peer, base=base: _ratio(cell.ratio(peer, base))))
    return columns


def tables(cells):
    """(title, header, rows), one for each operation and number of threads."""
    groups = {}
    for cell in cells:
        groups.setdefault((cell.case.operation, cell.threads), []).append(cell)
    for (operation, threads), group in groups.items():
        columns = _columns(group)
        header = ["shape", "layout"] + [title for title, _ in columns]
        rows = [[c.case.shape_text, c.case.layout] + [text(c) for _, text in columns] for c in group]
        yield f"{operation}, {_threads_text(threads)}", header, rows


def print_tables(cells):
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        for table in tables(cells):
            _print_plain(*table)
        return
    console = Console()
    if not console.is_terminal:  # a file has no width to fold columns to
        console = Console(width=200)
    for title, header, rows in tables(cells):
        table = Table(title=title, title_justify="left")
        for i, name in enumerate(header):
            table.add_column(name, justify="left" if i < 2 else "right")
        for row in rows:
            table.add_row(*row)
        console.print(table)


def _print_plain(title, header, rows):
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    print(title)
    for row in [header, *rows]:
        cells = [t.ljust(w) if i < 2 else t.rjust(w) for i, (t, w) in enumerate(zip(row, widths))]
        print("  " + "  ".join(cells).rstrip())
    print()


def _print_disturbance(cells):
    clean = [undisturbed for cell in cells for entry in cell.entries for undisturbed in entry.clean]
    if not all(clean):
        print(f"* disturbed by other processes ({clean.count(False)} of {len(clean)} blocks of this run were): "
              "measure again on an idle machine")


def judge(cells, peer):
    """(lost, compared, disturbed), fresh against fresh: lost are (ratio, cell) with the peer faster, worst first."""
    found = [(cell.ratio((peer, "fresh"), BASE_FRESH), cell) for cell in cells]
    found = [(*r, cell) for r, cell in found if r is not None]
    lost = [(value, cell) for value, disturbed, cell in found if value < 1 and not disturbed]
    disturbed = sum(disturbed for _, disturbed, _ in found)
    return sorted(lost, key=lambda pair: pair[0]), len(found) - disturbed, disturbed


def print_verdict(cells, peers):
    _print_disturbance(cells)
    for peer in peers:
        lost, compared, disturbed = judge(cells, peer)
        print(f"{peer} is faster than {BASELINE} in {len(lost)} of {compared} cells, fresh against fresh"
              + (f"; {disturbed} more were disturbed" if disturbed else "") + (":" if lost else ""))
        for value, cell in lost:
            print(f"  {cell.case}, {_threads_text(cell.threads)}: ratio {value:.2f}")


def _cpu_model():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith(("model name", "Model")):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine(contenders):
    described = {
        "cpu": _cpu_model(),
        "processors": os.cpu_count(),
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {contender.name: contender.version() for contender in contenders},
    }
    for contender in contenders:
        if contender.name == BASELINE:
            described[BASELINE] = contender.fastbn.get_config()
    return described


def _entry_dict(cell, entry):
    ratios = [cell.ratio(entry.key, base) for base in (BASE_FRESH, BASE_OUT)]
    return {
        "contender": entry.contender, "output": entry.output, "expression": entry.expression,
        "seconds": entry.seconds, "gigabytes_per_second": gigabytes_per_second(cell.case, entry.seconds),
        "ratio_to_fresh": ratios[0] and ratios[0][0], "ratio_to_out": ratios[1] and ratios[1][0],
        "disturbed": entry.disturbed, "blocks": entry.blocks, "clean": entry.clean,
    }


def _cell_dict(cell):
    case = cell.case
    return {"operation": case.operation, "shape": case.shape, "layout": case.layout, "dtype": case.dtype,
            "threads": cell.threads, "bytes": case.bytes, "entries": [_entry_dict(cell, e) for e in cell.entries]}


def write_json(path, cells, described, settings):
    document = {"machine": described, "settings": settings, "cells": [_cell_dict(cell) for cell in cells]}
    with open(path, "w", encoding="utf-8") as file:
        json.dump(document, file, indent=1, default=str)
        file.write("\n")
