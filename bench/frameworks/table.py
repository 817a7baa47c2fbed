"""The table of all frameworks, drawn by rich."""
from rich import box
from rich.markup import escape
from rich.table import Table

LEGEND = ("own ms, fastbn ms: median times; speed-up: own / fastbn, the median of paired rounds, above 1 fastbn is "
          "faster.\noverhead us: the adapter's own cost at (1, 64). *: disturbed by other processes.")


def _milliseconds(value):
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _cells(row, case):
    found = row["cases"].get(case)
    if found is None:
        return ["", "", "failed" if case in row["failed"] else ""]
    return [_milliseconds(found["own_ms"]), _milliseconds(found["fastbn_ms"]),
            f"{found['speedup']:.2f}" + ("*" if found["disturbed"] else "")]


def lines(document):
    """(header, rows) of texts."""
    cases = list(dict.fromkeys(case for row in document["rows"] for case in (*row["cases"], *row["failed"])))
    header = ["framework", "version", "replaces"]
    for case in cases:
        header += [f"{case}\nown ms", "\nfastbn ms", "\nspeed-up"]
    rows = []
    for row in document["rows"]:
        overhead = row["overhead_us"]
        rows.append([row["framework"], row["version"], row["replaces"],
                     *(text for case in cases for text in _cells(row, case)),
                     "" if overhead is None else f"{overhead:.2f}"])
    return [*header, "overhead us"], rows


def print_document(console, document):
    machine = document["machine"]
    threads = "own settings of threads" if document["threads"] is None else f"threads: {document['threads']}"
    console.print(escape(f"{machine['cpu']}, {machine['processors']} processors; {threads}; "
                         f"Python {machine['python']}, fastbn {machine['versions']['fastbn']}"), LEGEND, sep="\n")
    header, rows = lines(document)
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(header):
        drawn.add_column(name, justify="left" if index < 3 else "right", no_wrap=index != 2)
    for row in rows:
        drawn.add_row(*map(escape, row))
    console.print(drawn)
    for row in document["rows"]:
        for case, reason in row["failed"].items():
            console.print(f"{row['framework']}, {case}: {reason}", markup=False)
