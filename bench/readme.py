"""python -m bench.readme FOLDER: writes a run's figures into the documents.

The whole table goes into bench/README.md; ten rows of it, the worst among them, into README.md, each between two marks
of its own; and a picture of these rows into .github/. Times and shares are those into an array that exists (moments
apart, which have none); the peer is the one that comes nearest to fastbn, or goes ahead of it, in either kind of output.
"""
import argparse
import sys
import textwrap
from pathlib import Path

from bench.cases import LAYOUTS
from bench.grid import SMALL
from bench.peers import BASELINE
from bench.report import OWN_HEADER, lost_text, microseconds, own_rows, threads_text
from bench.store import StoreError, read_document
from bench.verdict import best_output, fastest_peer, outputs_of

ROOT = Path(__file__).resolve().parents[1]
MARKS = {"whole": ("<!-- bench:begin -->", "<!-- bench:end -->"), "short": ("<!-- speed:begin -->", "<!-- speed:end -->")}
ROWS = [((32, 64, 56, 56), "first"), ((32, 64, 56, 56), "last"), ((32, 256, 56, 56), "first"), ((32, 512, 7, 7), "first"),
        ((32, 512, 7, 7), "last"), ((1, 256, 14, 14), "last"), ((64, 1024), "table"), ((4096, 512), "table"),
        ((50000, 30), "table"), ((1000000, 3), "table")]
OPERATIONS = ("training", "backward", "inference")
LAYOUT_NAMES = {"first": "channels-first", "last": "channels-last", "table": "table"}
LOST_AT_MOST = 30


def _text_of(cell):
    """1491 (0.93; torch 1.5): microseconds, share of the limit, the fastest peer and its time / fastbn's."""
    base = cell and best_output(cell, BASELINE)
    if not base:
        return ""
    found = min((pair for pair in (fastest_peer(cell, output) for output in outputs_of(cell)) if pair), default=None)
    notes = [f"{base['share']:.2f}"] if base["share"] is not None else []
    notes += [f"{found[1]} {found[0]:.2g}"] if found else []
    return microseconds(base["seconds"]) + (f" ({'; '.join(notes)})" if notes else "")


def cells_by_place(cells):
    """{(shape, layout, operation, threads): cell} of what the tables show."""
    return {(tuple(c["shape"]), c["layout"], c["operation"], c["threads"]): c for c in cells
            if not c["sweep"] and c["alignment"] == "numpy" and c["dtype"] == "float32" and c["operation"] in OPERATIONS}


def ratio_of(cell):
    """The fastest peer's time / fastbn's; None where no peer was measured."""
    return min((pair[0] for pair in (fastest_peer(cell, output) for output in outputs_of(cell)) if pair), default=None)


def short_rows(found):
    """ROWS, the last one replaced by that of the worst cell where it is missing."""
    ratios = {key: ratio_of(cell) for key, cell in found.items()}
    worst = min((key for key in ratios if ratios[key] is not None), key=ratios.get)[:2]
    return ROWS if worst in ROWS else [*ROWS[:-1], worst]


def short_lines(document):
    """Microseconds and the fastest peer's time / fastbn's, for ten rows."""
    machine, found = document["machine"], cells_by_place(document["cells"])
    threads = sorted({key[3] for key in found})
    columns = [(operation, count) for operation in OPERATIONS for count in threads]
    yield (f"Measured on {document['runs'][-1]['date']} on {machine['cpu']}, {machine['processors']} processors, float32: "
           f"microseconds of fastbn by number of threads, and in brackets the time of the fastest other library divided "
           f"by it. Above 1 fastbn is faster.")
    yield ""
    yield "| shape, layout | " + " | ".join(f"{name}, {count}" for name, count in columns) + " |"
    yield "|---" * (1 + len(columns)) + "|"
    for shape, layout in short_rows(found):
        cells = [found.get((shape, layout, *column)) for column in columns]
        yield f"| {'x'.join(map(str, shape))} {layout} | " + " | ".join(map(_short_text, cells)) + " |"
    yield ""
    verdict = document["verdict"]["grid"]
    yield (f"Over all {verdict['cells']} cells of the run the fastest other library takes {verdict['geometric_mean']:.2f} "
           f"times fastbn's time (geometric mean). It is faster in {verdict['under_1']}, by more than 5 % in "
           f"{len(verdict['lost'])}.")


def _short_text(cell):
    base, ratio = cell and best_output(cell, BASELINE), cell and ratio_of(cell)
    return "" if not base else microseconds(base["seconds"]) + (f" ({ratio:.2g})" if ratio else "")


def table_lines(cells):
    """The shapes of the small grid, as far as the run has them."""
    found = cells_by_place(cells)
    threads = sorted({key[3] for key in found})
    columns = [(operation, count) for operation in OPERATIONS for count in threads]
    yield "| shape | layout | " + " | ".join(f"{name}, {threads_text(count)}" for name, count in columns) + " |"
    yield "|---" * (2 + len(columns)) + "|"
    for shape in SMALL:
        for layout in LAYOUTS:
            row = [_text_of(found.get((shape, layout, *column))) for column in columns]
            if any(row):
                yield f"| {' x '.join(map(str, shape))} | {LAYOUT_NAMES[layout]} | " + " | ".join(row) + " |"


def _head_lines(document):
    machine = document["machine"]
    peers = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if name != BASELINE)
    command = f"python -m bench {document['runs'][-1]['arguments']}".rstrip()
    yield (f"Measured on {document['runs'][-1]['date']} on {machine['cpu']}, {machine['processors']} processors, with "
           f"`{command}`, against {peers}.")
    yield ("float32; microseconds of fastbn into an array that exists; in brackets its share of the machine's limit, "
           "and the fastest peer with its time divided by fastbn's: above 1 fastbn is faster.")


def _verdict_lines(verdict):
    """verdict of the grid: every cell of the run, not only those in the table."""
    yield (f"Over all {verdict['cells']} cells of the run (operations, shapes, layouts, alignments, threads; "
           f"{verdict['comparisons']} comparisons, fresh and existing outputs apart), the fastest peer takes "
           f"{verdict['geometric_mean']:.2f} times fastbn's time (geometric mean); it is faster in "
           f"{verdict['under_1']}, and by more than 5 % in {len(verdict['lost'])}"
           + (" (measured five times each, the median):" if verdict["lost"] else "."))
    yield from [""] * bool(verdict["lost"])
    for lost in verdict["lost"][:LOST_AT_MOST]:
        yield f"- {lost_text(lost)}"
    if len(verdict["lost"]) > LOST_AT_MOST:
        yield f"- and {len(verdict['lost']) - LOST_AT_MOST} more above {verdict['lost'][LOST_AT_MOST - 1]['ratio']:.2f}"


def _own_lines(own):
    if own:
        yield from ("", "fastbn's time with an activation, and with a residual, divided by that of its own plain call; "
                        "of half types, by that of its float32 call:", "")
        yield "| " + " | ".join(OWN_HEADER) + " |"
        yield "|---" * len(OWN_HEADER) + "|"
        yield from (f"| {' | '.join(row)} |" for row in own_rows(own))


def section(document):
    """Everything between the marks."""
    verdict = document["verdict"]["grid"]
    if not verdict["comparisons"]:
        raise StoreError("the run has no cell of the grid in which a peer was measured: was it one of sweeps alone?")
    return "\n".join([*_head_lines(document), "", *table_lines(document["cells"]), "", *_verdict_lines(verdict),
                      *_own_lines(verdict["own"])])


def replace_section(text, new, kind):
    """text with `new` between the marks."""
    first, last = MARKS[kind]
    begin, end = text.find(first), text.find(last)
    if begin < 0 or end < begin:
        raise StoreError(f"the document has no line {first} with {last} after it: put them where the figures belong")
    return f"{text[:begin + len(first)]}\n{new}\n{text[end:]}"


def write(document, root):
    """Into the documents of a checkout: all or none."""
    from bench import charts  # needs matplotlib, the rest of this file does not

    sections = {"whole": section(document), "short": "\n".join(wrapped(short_lines(document)))}
    paths = {"whole": root / "bench" / "README.md", "short": root / "README.md"}
    texts = {kind: replace_section(paths[kind].read_text(encoding="utf-8"), sections[kind], kind) for kind in paths}
    found = cells_by_place(document["cells"])
    ratios = {place: {key[2:]: ratio_of(cell) for key, cell in found.items() if key[:2] == place} for place in short_rows(found)}
    (root / ".github").mkdir(exist_ok=True)
    charts.draw_front(root / ".github" / "speed.png", ratios, document["machine"]["cpu"])
    for kind, path in paths.items():
        path.write_text(texts[kind], encoding="utf-8")


def wrapped(lines, width=110):
    """Lines of text at that width; tables as they are."""
    for line in lines:
        yield from [line] if line.startswith("|") or not line else textwrap.wrap(line, width)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m bench.readme", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of a run, with its run.json")
    parser.add_argument("--root", type=Path, default=ROOT, metavar="FOLDER", help="default: the checkout")
    args = parser.parse_args(argv)
    try:
        write(read_document(args.folder), args.root)
    except (StoreError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
