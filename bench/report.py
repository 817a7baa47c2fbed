"""Tables from the measured cells, drawn by rich: on the terminal, and in the run's folder as text."""
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.cases import DTYPES, FUSED, OPERATIONS
from bench.peers import BASELINE
from bench.verdict import entry_of, outputs_of, peers_of

FILE_WIDTH = 200      # of text that no terminal folds
ROWS_ON_TERMINAL = 80  # more than this is for tables.txt
LOST_ON_TERMINAL = 40

LEGEND = ("us: median time of fastbn. GB/s: the bytes that must move / time. limit: share of the speed of a loop that "
          "only moves those bytes, over the same buffers.\n"
          "Peers: their time / fastbn's with the same kind of output, above 1 fastbn is faster. error: the largest, "
          "relative to the largest number of the answer in float64.\n"
          "own: fastbn's time / that of its own plain call, of half types / that of its float32 call.\n"
          "*: disturbed by other processes. !: before and after, the memory's speed differs by more than 15 %, or the time "
          "in which two threads hand over a cache line by a factor of two.")


def console_for(file=None):
    """The terminal, or a file, in which nothing is folded."""
    console = Console(file=file, highlight=False)
    return console if console.is_terminal else Console(file=file, highlight=False, width=FILE_WIDTH)


def threads_text(threads):
    return "1 thread" if threads == 1 else f"{threads} threads"


def microseconds(seconds):
    value = seconds * 1e6
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def size_text(size):
    """1024 -> 1 KiB, as axis labels and notes have it."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size:.0f} B"


def _number(value, digits, star=False):
    return "" if value is None else f"{value:.{digits}f}" + ("*" if star else "")


def _own_text(cell, output):
    found = next((own for own in cell["own"] if own["output"] == output), None)
    return "" if found is None else _number(found["ratio"], 2, found["disturbed"])


def _row(cell, output, peers, with_own):
    base = entry_of(cell, BASELINE, output)
    others = [entry_of(cell, peer, output) for peer in peers]
    errors = [e["error"] for e in others if e is not None]
    mark = "!" if cell["flagged"] else ""
    own = ["", "", "", ""] if base is None else [
        microseconds(base["seconds"]) + ("*" if base["disturbed"] else ""), _number(base["gbps"], 1),
        _number(base["share"], 2, cell["limit_disturbed"]), f"{base['error']:.0e}"]
    return ["x".join(map(str, cell["shape"])) + mark, cell["layout"], cell["dtype"], cell["alignment"], output,
            *own[:3], *([_own_text(cell, output)] * with_own),
            *("" if e is None else _number(e["ratio"], 2, e["disturbed"]) for e in others),
            own[3], f"{max(errors):.0e}" if errors else ""]


def tables(cells):
    """(title, header, rows), one for each operation, number of threads and sweep."""
    peers, groups = peers_of(cells), {}
    for cell in cells:
        groups.setdefault((cell["sweep"], cell["operation"], cell["threads"]), []).append(cell)
    words = ["shape", "layout", "type", "align", "output", "us", "GB/s", "limit"]
    for (sweep, operation, threads), group in sorted(groups.items()):
        group.sort(key=lambda cell: [cell[name] for name in ("layout", "dtype", "alignment", "array_bytes", "shape")])
        with_own = any(cell["own"] for cell in group)
        header = [*words, *["own"] * with_own, *peers, "error", "peers' error"]
        rows = [_row(cell, output, peers, with_own) for cell in group for output in outputs_of(cell)]
        yield f"{operation}, {threads_text(threads)}" + (f", sweep over {sweep}" if sweep else ""), header, rows


def _table(title, header, rows, words):
    """words: how many columns at the left are not numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index < words else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def print_tables(console, cells):
    console.print(LEGEND, "")
    for title, header, rows in tables(cells):
        console.print(_table(title, header, rows, words=5))


def rows_of(cells):
    return sum(len(outputs_of(cell)) for cell in cells)


def print_head(console, machine):
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    caches = ", ".join(f"{name} {size_text(size)}" for name, size in
                       (("L2", machine["caches"]["l2"]), ("last level", machine["caches"]["llc"])) if size)
    console.print(escape(f"{machine['cpu']}, {machine['processors']} processors"
                         + (f" ({caches})" if caches else "") + f"; Python {machine['python']}, {versions}"))


def print_headline(console, verdicts):
    """One line, of the grid, or of the sweeps where there is no grid."""
    verdict = next((found for found in verdicts.values() if found["comparisons"]), None)
    if verdict is None:
        console.print("No peer was measured, so that nothing is compared.")
        return
    won = verdict["comparisons"] - verdict["under_1"]
    console.print(f"fastbn is the fastest in {won} of {verdict['comparisons']} comparisons; the fastest peer takes "
                  f"{verdict['geometric_mean']:.2f} times its time (geometric mean).")


def print_verdict(console, name, verdict):
    """The verdict on the grid or on the sweeps."""
    if verdict["comparisons"]:
        _print_peers(console, name, verdict)
        console.print(
            f"{name}: the fastest peer takes {verdict['geometric_mean']:.2f} times fastbn's time (geometric mean of "
            f"{verdict['comparisons']} comparisons in {verdict['cells']} cells); under 1 in {verdict['under_1']}, "
            f"under {verdict['lost_below']} in {len(verdict['lost'])}" + (":" if verdict["lost"] else "."))
        _print_lost(console, verdict["lost"])
    if verdict["disturbed"]:
        console.print(f"{name}: {verdict['disturbed']} more comparisons were disturbed by other processes: they count "
                      "nowhere.")
    if verdict["shares"]:
        _print_shares(console, name, verdict["shares"])
    if verdict["own"]:
        _print_own(console, name, verdict["own"])
    if verdict["flagged"]:
        console.print(f"{name}: {verdict['flagged']} of {verdict['cells']} cells are flagged: before and after, the "
                      "memory's speed, or the time of a handover between threads, differed: measure again on an idle machine.")
    if verdict["handover"]:
        console.print("{name}: two threads hand over a cache line in {least:.0f} to {greatest:.0f} ns, in the median "
                      "{median:.0f}.".format(name=name, **verdict["handover"]))
    for failed in verdict["failed"]:
        console.print(escape(f"{failed['contender']} left out of {failed['operation']}, {failed['times']} times: "
                             f"{failed['reason'][:300]}"))


def _print_peers(console, name, verdict):
    rows = [[peer, str(v["comparisons"]), *(f"{v[key]:.2f}" for key in ("geometric_mean", "least", "greatest")),
             str(v["under_1"])] for peer, v in verdict["peers"].items()]
    header = ["peer", "comparisons", "geometric mean", "least", "greatest", "under 1"]
    console.print(_table(f"{name}: each peer's time / fastbn's", header, rows, words=1))


def lost_text(lost):
    """One line on a comparison that a peer wins."""
    words = [lost["operation"], "x".join(map(str, lost["shape"])), lost["layout"], threads_text(lost["threads"]),
             lost["output"] if lost["output"] != "fresh" else "fresh output"]
    words += [lost["dtype"]] * (lost["dtype"] != "float32")
    if lost["handover"]:
        words.append(f"handover {lost['handover']:.0f} ns")
    words += ["64-byte aligned"] * (lost["alignment"] == "64") + ["flagged"] * lost["flagged"]
    return f"{', '.join(words)}: {lost['ratio']:.2f} ({lost['peer']})"


def _print_lost(console, lost):
    for item in lost[:LOST_ON_TERMINAL]:
        console.print("  " + escape(lost_text(item)))
    if len(lost) > LOST_ON_TERMINAL:
        console.print(f"  and {len(lost) - LOST_ON_TERMINAL} more, in run.json")


def _print_shares(console, name, shares):
    shares = sorted(shares, key=lambda s: (*_order(s), s["layout"], s["threads"], s["regime"]))
    rows = [[s["operation"], s["dtype"], s["layout"], s["regime"], str(s["threads"]), str(s["cells"]),
             *(f"{s[key]:.2f}" for key in ("least", "median", "greatest"))] for s in shares]
    header = ["operation", "type", "layout", "data fit", "threads", "cells", "least", "median", "greatest"]
    console.print(_table(f"{name}: fastbn's share of the limit, into arrays that exist", header, rows, words=4))


def _order(row):
    return (*OPERATIONS, *FUSED).index(row["operation"]), DTYPES.index(row["dtype"])


def own_rows(own):
    """The rows of a verdict's "own", as text: operation, type, layout, where the data fit, comparisons, ratios, the aim."""
    for row in sorted(own, key=lambda row: (*_order(row), row["layout"], row["regime"])):
        aim = "" if row["bar"] is None else f"{row['bar']:.3f}"
        yield [row["operation"], row["dtype"], row["layout"], row["regime"], str(row["comparisons"]),
               *(f"{row[key]:.2f}" for key in ("least", "median", "greatest")), aim, str(row["above"]) if aim else ""]


OWN_HEADER = ["operation", "type", "layout", "data fit", "comparisons", "least", "median", "greatest", "aim: at most",
              "above"]


def _print_own(console, name, own):
    title = f"{name}: fastbn's time / that of its own plain call, of half types / that of its float32 call"
    console.print(_table(title, OWN_HEADER, own_rows(own), words=4))
