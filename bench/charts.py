"""Charts from the measured cells, each as PNG and SVG. Drawn on Agg, without pyplot, so no display is asked for.

speedup          each peer's time / fastbn's, sorted, over all cells
speedup-fused    the same of what is fused with relu and a residual
speedup-shapes   as speedup, shape by shape, for the shapes of the small grid
speed-*          GB/s over the size of an array, with the machine's limit
cost-size-*      nanoseconds an element over the same sizes
cost-features-*  nanoseconds an element over the number of features

What other processes disturbed is left out: one such point can be off by a factor of a thousand.
"""
import math
import statistics

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from bench.cases import FUSED, OPERATIONS
from bench.grid import QUICK, SMALL
from bench.peers import BASELINE
from bench.report import size_text, threads_text
from bench.verdict import best_output, peers_of

# From the palette of Okabe and Ito, which colour-blind readers can tell apart; the markers do the same in print.
STYLES = {"fastbn": ("#000000", "o"), "torch": ("#D55E00", "s"), "onednn": ("#009E73", "^"),
          "onnxruntime": ("#0072B2", "D"), "numpy": ("#CC79A7", "v"), "sklearn": ("#E69F00", "P")}
OTHER_STYLE = ("#56B4E9", "X")
FRONT_STYLES = [("training", "#0072B2", "o"), ("backward", "#D55E00", "s"), ("inference", "#009E73", "^")]
LIMIT_COLOUR, LINE_COLOUR, GRID_COLOUR = "#C4C4C4", "#444444", "#DDDDDD"
LAYOUT_NAMES = {"first": "channels-first", "last": "channels-last", "table": "tables"}
SHAPES_AT_MOST = 40
LEAST_POINTS = 4  # of a chart: fewer say less than the table does


def draw(folder, cells, machine):
    """Every chart that the cells have data for. Returns the files written."""
    title = machine["cpu"]
    grid = [cell for cell in cells if not cell["sweep"] and cell["operation"] != "call"]
    fused = [cell for cell in grid if cell["operation"] in FUSED]
    grid = [cell for cell in grid if cell["operation"] not in FUSED]
    figures = {"speedup": _enough(grid) and speedup(grid, title), "speedup-fused": _enough(fused) and speedup(fused, title),
               "speedup-shapes": _enough(grid) and speedup_shapes(grid, title)}
    for layout, name in LAYOUT_NAMES.items():
        size = [c for c in cells if c["sweep"] == "size" and c["layout"] == layout]
        features = [c for c in cells if c["sweep"] == "features" and c["layout"] == layout]
        words, caches = f"{title}, {name}, 64 features", machine["caches"]
        figures[f"speed-{name}"] = _enough(size) and over_size(size, words, caches, speed=True)
        figures[f"cost-size-{name}"] = _enough(size) and over_size(size, words, caches, speed=False)
        figures[f"cost-features-{name}"] = _enough(features) and over_features(features, f"{title}, {name}")
    return [_save(folder, name, figure) for name, figure in figures.items() if figure]


def _enough(cells):
    return len(cells) >= LEAST_POINTS


def draw_front(path, ratios, title):
    """The picture of README.md: how many times fastbn's time the fastest peer takes, by row and operation.

    ratios: {(shape, layout): {(operation, threads): ratio or None}}, of one thread alone where there is more.
    """
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for place, (operation, colour, marker) in enumerate(FRONT_STYLES):
        rows = [(row, found.get((operation, 1))) for row, found in enumerate(ratios.values())]
        known = [(ratio, row + 0.2 * (place - 1)) for row, ratio in rows if ratio]
        axes.scatter(*zip(*known), color=colour, marker=marker, label=operation, zorder=3) if known else None
    axes.axvline(1, color=LINE_COLOUR, linewidth=1)
    axes.set(xscale="log", title=f"Time of the fastest other library / fastbn's ({title}, one thread)",
             xlabel="times fastbn's time: to the right of 1 fastbn is faster", ylim=(len(ratios) - 0.5, -0.5))
    axes.xaxis.set_major_locator(FixedLocator([0.5, 1, 2, 5, 10, 20, 50]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(len(ratios)), [f"{' x '.join(map(str, shape))}, {LAYOUT_NAMES[layout]}" for shape, layout in ratios])
    axes.grid(color=GRID_COLOUR, linewidth=0.8)
    axes.legend(loc="lower right", frameon=True)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=100, facecolor="white")


def _save(folder, name, figure):
    FigureCanvasAgg(figure)
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")
    figure.set_layout_engine("none")  # the places are found: no need to look for them twice
    figure.savefig(folder / f"{name}.png", dpi=110, bbox_inches="tight")
    return folder / f"{name}.png"


def _panels(cells, title, width, height):
    """(figure, {(operation, threads): (axes, its cells)}): operations side by side, thread counts below each other.

    None without cells.
    """
    if not cells:
        return None, {}
    operations = [name for name in (*OPERATIONS, *FUSED) if any(cell["operation"] == name for cell in cells)]
    threads = sorted({cell["threads"] for cell in cells})
    size = (width * len(operations) + 0.6, height * len(threads) + 1.1)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=11)
    grid = figure.subplots(len(threads), len(operations), sharex=True, sharey=True, squeeze=False)
    panels = {}
    for row, count in enumerate(threads):
        for column, operation in enumerate(operations):
            axes = grid[row][column]
            axes.set_title(f"{operation}, {threads_text(count)}", fontsize=10)
            axes.grid(True, color=GRID_COLOUR, linewidth=0.6)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
            panels[operation, count] = axes, [
                cell for cell in cells if (cell["operation"], cell["threads"]) == (operation, count)]
    return figure, panels


def _label(figure, panels, x, y):
    """Names at the outer edges alone, and one legend of everything that any panel shows."""
    handles = {}
    for axes, _ in panels.values():
        place = axes.get_subplotspec()
        if place.is_last_row():
            axes.set_xlabel(x, fontsize=10)
        if place.is_first_col():
            axes.set_ylabel(y, fontsize=10)
        for handle, label in zip(*axes.get_legend_handles_labels()):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(8, len(handles)), fontsize=9,
                  frameon=False)


def _style(name):
    colour, marker = STYLES.get(name, OTHER_STYLE)
    return {"color": colour, "marker": marker, "label": name, "zorder": 3 if name == BASELINE else 2,
            "linewidth": 2.0 if name == BASELINE else 1.3}


def _plain(value, _=None):
    """3 rather than 3.0, and no powers of ten."""
    return f"{value:g}"


def _log(axis):
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(10, subs=(1, 2, 5) if high < 1000 * low else (1,), numticks=12))
    axis.set_major_formatter(FuncFormatter(_plain))
    axis.set_minor_locator(NullLocator())


def _ratio_lines(axes, direction):
    """At 1 both are equally fast; below 0.95 a cell counts as lost."""
    line = axes.axhline if direction == "y" else axes.axvline
    line(1.0, color=LINE_COLOUR, linewidth=1.2, zorder=1)
    line(0.95, color=LINE_COLOUR, linewidth=0.9, linestyle=":", zorder=1)


def speedup(cells, title):
    """Sorted curves: how much of the grid is won by how much, readable with any number of cells."""
    figure, panels = _panels(cells, f"{title}: sorted speed-ups over all cells; above 1 fastbn is faster", 3.2, 3.0)
    for axes, inside in panels.values():
        for peer in peers_of(cells):
            ratios = sorted((e["ratio"] for cell in inside for e in cell["entries"]
                             if e["contender"] == peer and _has_ratio(e)), reverse=True)
            if ratios:
                shares = [100 * (i + 0.5) / len(ratios) for i in range(len(ratios))]
                axes.plot(shares, ratios, markersize=3.5, markevery=max(1, len(ratios) // 12), **_style(peer))
        axes.set_yscale("log")
        axes.set_xlim(0, 100)
        _log(axes.yaxis)
        _ratio_lines(axes, "y")
    if figure:
        _label(figure, panels, "% of the comparisons", "time of peer / time of fastbn")
    return figure


def _shapes_to_name(cells):
    """Pairs (shape, layout): of the small and the quick grid, or, where the run has none of those, the smallest."""
    pairs = {(tuple(cell["shape"]), cell["layout"]): cell["array_bytes"] for cell in cells}
    found = [pair for pair in pairs if pair[0] in SMALL + QUICK] or sorted(pairs, key=pairs.get)[:SHAPES_AT_MOST]
    return sorted(found, key=lambda pair: (pair[1], pairs[pair], pair[0]), reverse=True)


def speedup_shapes(cells, title):
    """Dots in named rows, for NumPy's own alignment; of two kinds of output the less favourable."""
    cells = [cell for cell in cells if cell["alignment"] == "numpy" and cell["dtype"] == "float32"]
    rows = {pair: place for place, pair in enumerate(_shapes_to_name(cells))}
    figure, panels = _panels([c for c in cells if (tuple(c["shape"]), c["layout"]) in rows],
                             f"{title}: speed-up by shape (N x C x ...); above 1 fastbn is faster",
                             3.3, 0.6 + 0.22 * len(rows))
    for axes, inside in panels.values():
        for peer in peers_of(cells):
            points = [(_worst_ratio(cell, peer), rows[tuple(cell["shape"]), cell["layout"]]) for cell in inside]
            points = [point for point in points if point[0] is not None]
            if points:
                axes.plot(*zip(*points), linestyle="none", markersize=5, **_without_line(peer))
        axes.set_xscale("log")
        _log(axes.xaxis)
        names = [f"{'x'.join(map(str, shape))} {layout}" for shape, layout in rows]
        axes.set_yticks(range(len(rows)), names, fontsize=8)
        axes.set_ylim(-0.7, len(rows) - 0.3)
        _ratio_lines(axes, "x")
    if figure:
        _label(figure, panels, "time of peer / time of fastbn", "")
    return figure


def _without_line(name):
    return {key: value for key, value in _style(name).items() if key != "linewidth"}


def _worst_ratio(cell, peer):
    return min((e["ratio"] for e in cell["entries"] if e["contender"] == peer and _has_ratio(e)), default=None)


def _has_ratio(entry):
    return entry["ratio"] is not None and not entry["disturbed"]


def _labels(cells):
    """{name: label}: those that cannot write into an array that exists pay for a fresh one, as the legend says."""
    return {name: _label_of(name, cells) for name in (BASELINE, *peers_of(cells))}


def _label_of(name, cells):
    own = {c["operation"]: best_output(c, name)["output"] for c in cells if best_output(c, name)}
    wanted = {c["operation"]: best_output(c, BASELINE)["output"] for c in cells if best_output(c, BASELINE)}
    compared = [operation for operation in own if wanted.get(operation) == "out="]
    fresh = [operation for operation in compared if own[operation] == "fresh"]
    if not fresh:
        return name
    return f"{name} (fresh output)" if fresh == compared else f"{name} ({', '.join(fresh)}: fresh output)"


def _lines(axes, cells, x_of, y_of, labels):
    """A line for each contender and for the limit; y_of(cell, seconds)."""
    ordered = sorted(cells, key=x_of)
    limit = [(x_of(cell), y_of(cell, cell["limit_seconds"])) for cell in ordered
             if cell["limit_seconds"] and not cell["limit_disturbed"]]
    if limit:
        axes.plot(*zip(*limit), color=LIMIT_COLOUR, linewidth=5, marker="o", markersize=5, zorder=1,
                  label="the machine's limit")
    for name, label in labels.items():
        found = [(x_of(cell), best_output(cell, name)) for cell in ordered]
        points = [(x, y_of(cell, e["seconds"])) for cell, (x, e) in zip(ordered, found)
                  if e is not None and not e["disturbed"]]
        if points:
            axes.plot(*zip(*points), markersize=3.5, **{**_style(name), "label": label})
    axes.set_xscale("log")
    axes.set_yscale("log")
    _log(axes.yaxis)


def _gigabytes_per_second(cell, seconds):
    return cell["bytes"] / seconds / 1e9


def _nanoseconds_an_element(cell, seconds):
    return seconds * 1e9 / math.prod(cell["shape"])


def over_size(cells, title, caches, speed):
    """GB/s, or the time of an element, over the size of one array."""
    what = "bytes that must move / time" if speed else "time / elements of x"
    note = "dotted: all arrays of a call fill its threads' L2, and the last-level cache"
    figure, panels = _panels(cells, f"{title}: {what} ({note})", 3.4, 2.9)
    for (_, threads), (axes, inside) in panels.items():
        _lines(axes, inside, lambda cell: cell["array_bytes"],
               _gigabytes_per_second if speed else _nanoseconds_an_element, _labels(cells))
        ticks = [2**k for k in range(14, 31, 4)]
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_major_formatter(FixedFormatter([size_text(tick) for tick in ticks]))
        axes.xaxis.set_minor_locator(FixedLocator([2**k for k in range(14, 31)]))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="x", labelsize=8)
        _mark_caches(axes, inside, caches, threads)
    if figure:
        _label(figure, panels, "size of one array", "GB/s" if speed else "ns an element")
    return figure


def _mark_caches(axes, cells, caches, threads):
    arrays = max((cell["bytes"] / cell["array_bytes"] for cell in cells), default=0)
    low, high = axes.get_xlim()
    for size in (caches["l2"] and caches["l2"] * threads, caches["llc"]):
        if size and arrays and low < size / arrays < high:
            axes.axvline(size / arrays, color=LINE_COLOUR, linewidth=0.9, linestyle=":", zorder=1)


def over_features(cells, title):
    """The time of an element over C, the size of the array about the same."""
    size = size_text(2**round(math.log2(statistics.median(c["array_bytes"] for c in cells)))) if cells else ""
    figure, panels = _panels(cells, f"{title}, arrays of about {size}: time / elements of x", 3.4, 2.9)
    for axes, inside in panels.values():
        _lines(axes, inside, lambda cell: cell["shape"][1], _nanoseconds_an_element, _labels(cells))
        ticks = [4**k for k in range(6)]
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_major_formatter(FixedFormatter([str(tick) for tick in ticks]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.tick_params(axis="x", labelsize=8)
    if figure:
        _label(figure, panels, "features C", "ns an element")
    return figure
