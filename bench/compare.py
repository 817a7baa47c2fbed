"""python -m bench.compare BEFORE AFTER: two runs of the harness, cell by cell.

A run is its folder, or its run.json. A ratio is the time of the second run divided by that of the first: below 1 the
second is faster. The two were measured at different times, so a ratio of a single cell says little on a noisy machine.
"""
import argparse
import sys
from pathlib import Path

from rich import box
from rich.table import Table

from bench import report
from bench.peers import BASELINE
from bench.store import StoreError, key, read_document
from bench.verdict import entry_of, geometric_mean, outputs_of

SHOWN = 8  # of the best and of the worst cells


def times(document):
    """{(cell's key, output): fastbn's seconds}, without what other processes disturbed."""
    found = {}
    for cell in document["cells"]:
        for output in outputs_of(cell):
            entry = entry_of(cell, BASELINE, output)
            if entry is not None and not entry["disturbed"]:
                found[key(cell), output] = entry["seconds"]
    return found


def ratios(before, after):
    """{(cell's key, output): the second time / the first}, of the cells that both have."""
    return {place: after[place] / before[place] for place in before if place in after}


def place_text(place):
    (shape, operation, layout, dtype, alignment, threads, _), output = place
    return (f"{operation}, {'x'.join(map(str, shape))}, {layout}, {dtype}, {report.threads_text(threads)}, {alignment}, "
            f"{output}")


def operation_of(place):
    return place[0][1], place[0][5]


def print_comparison(console, names, before, after):
    """By operation, then the cells that changed most, then what only one of the runs has."""
    found = ratios(before, after)
    if not found:
        raise StoreError(f"{names[0]} and {names[1]} have no undisturbed cell in common: were they run with the same flags?")
    console.print(f"{names[1]} takes {geometric_mean(found.values()):.3f} times the time of {names[0]} (geometric mean of "
                  f"{len(found)} comparisons).", soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("operation", "comparisons", "mean", "least", "greatest"):
        table.add_column(name, justify="left" if name == "operation" else "right")
    for operation, threads in sorted({operation_of(place) for place in found}):
        group = [ratio for place, ratio in found.items() if operation_of(place) == (operation, threads)]
        table.add_row(f"{operation}, {report.threads_text(threads)}", str(len(group)), f"{geometric_mean(group):.3f}",
                      f"{min(group):.2f}", f"{max(group):.2f}")
    console.print(table)
    print_extremes(console, found)
    for name, alone in ((names[0], before.keys() - after.keys()), (names[1], after.keys() - before.keys())):
        if alone:
            console.print(f"Only {name} has {len(alone)} more, such as {place_text(min(alone, key=str))}.", soft_wrap=True)


def print_extremes(console, found):
    ordered = sorted(found, key=found.get)
    for title, places in (("most gained", ordered[:SHOWN]), ("most lost", ordered[:-SHOWN - 1:-1])):
        console.print(f"{title}:")
        for place in places:
            console.print(f"  {found[place]:.2f}  {place_text(place)}", soft_wrap=True, markup=False)


def document_of(path):
    return read_document(path.parent if path.is_file() else path)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("before", "after"):
        parser.add_argument(name, type=Path, help="a run's folder, or its run.json")
    args = parser.parse_args(argv)
    try:
        runs = [times(document_of(path)) for path in (args.before, args.after)]
        print_comparison(report.console_for(), (str(args.before), str(args.after)), *runs)
    except StoreError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
