"""The tables, drawn by rich."""
from rich import box
from rich.table import Table

from bench.distributed import model

LEGEND = ("A step is forward and backward of (rows, C, 7, 7) in float32 on each rank, medians of the slowest rank. alone: "
          "BatchNorm on the rank's own batch. In messages: the share of the step in the communicator, waiting included. "
          "*: more ranks than processors, which wait for each other: not part of the fit.")


def _draw(console, title, header, rows):
    drawn = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    for name in header:
        drawn.add_column(name, justify="right")
    for row in rows:
        drawn.add_row(*row)
    console.print(drawn)


def print_steps(console, document):
    rows = [[f"{run['ranks']}{'*' * (run['ranks'] > document['processors'])}", str(step["features"]),
             f"{1e3 * step['alone']:.3f}", f"{1e3 * step['step']:.3f}", f"{step['communicating'] / step['step']:.0%}",
             f"{step['sent']:,}", f"{step['received']:,}"] for run in document["runs"] for step in run["steps"]]
    header = ["ranks", "C", "alone, ms", "step, ms", "in messages", "bytes sent", "bytes received"]
    _draw(console, f"{document['rows']} rows a rank", header, rows)
    console.print(LEGEND, markup=False)


def print_model(console, costs, features, ranks):
    for way, (start, byte) in costs.items():
        console.print(f"{way}: {1e6 * start:.2f} us a hop and {1e9 * byte:.3f} ns a byte", markup=False, highlight=False)
    rows = [[f"{size:,}", str(c), *(f"{1e3 * model.step_seconds(way, size, c, costs[way]):.3f}" for way in costs),
             *(f"{model.received_bytes(way, size, c) / 1e6:.3f}" for way in costs)] for size in ranks for c in features]
    header = ["ranks", "C", *(f"{way}, ms" for way in costs), *(f"{way}, MB received" for way in costs)]
    _draw(console, "A step's messages and merging, by the model", header, rows)
