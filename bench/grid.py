"""Which cases are measured, and in which order.

The grid: the batch-norm layers of four convolutional networks (layers.json), tables, and shapes that are hard on
vectors and caches (odd numbers of features, odd sizes); and on a few shapes what is fused with what follows, and half
types. The sweeps: one array that grows from 16 KiB to 1 GiB, and one
of 8 MiB whose features go from 1 to 2048; the charts over size and over C are drawn from them.

A whole run takes hours. So groups of cells, each with data of its own, come in the order of the multiples of the
golden ratio: wherever a run is stopped, what it has is spread evenly over layouts, alignments and sizes.
"""
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

from bench.cases import FUSED, Case, data_type, layouts_of

NETS = json.loads(Path(__file__).with_name("layers.json").read_text(encoding="utf-8"))
BATCHES = (1, 32)  # and the batch that the network's layer is listed with
TABLES = ((64, 64), (64, 1024), (256, 256), (1024, 1024), (4096, 512), (16384, 256), (65536, 64), (50000, 30),
          (200000, 4), (1000000, 3))
ODD_FEATURES = tuple((32, c, 28, 28) for c in (3, 7, 17, 33, 63, 64))  # 64 to compare with
ODD_SIZES = tuple((32, c, size, size) for c in (64, 256) for size in (7, 5, 1)) + ((32, 64, 147, 147),)
CALLS = ((1, 64), (64, 64))
FUSED_SHAPES = ((32, 64, 112, 112), (32, 256, 56, 56), (32, 64, 56, 56), (32, 128, 28, 28), (32, 512, 7, 7), (64, 1024),
                (65536, 64))
HALF_SHAPES = ((32, 64, 112, 112), (32, 256, 56, 56))  # beyond every cache
HALF_OPERATIONS = ("inference", "training")

SMALL = ((32, 64, 112, 112), (32, 64, 56, 56), (32, 256, 56, 56), (32, 128, 28, 28), (32, 512, 7, 7), (50, 2048, 7, 7),
         (1, 64, 112, 112), (1, 256, 14, 14), (32, 63, 28, 28), (32, 3, 28, 28), (32, 64, 147, 147),
         (64, 64), (64, 1024), (1024, 1024), (4096, 512), (65536, 64), (50000, 30), (200000, 4), (1000000, 3))
QUICK = ((32, 512, 7, 7), (1, 64, 56, 56), (64, 1024))

SWEEPS = ("size", "features")
SWEEP_BYTES = tuple(2**k for k in range(14, 31))
QUICK_BYTES = tuple(2**k for k in (14, 18, 22, 25))
SWEEP_SIZE_FEATURES = 64
SWEEP_C = (1, 2, 3, 4, 7, 8, 15, 16, 17, 30, 32, 33, 48, 63, 64, 65, 100, 128, 192, 256, 384, 512, 768, 1000, 1024,
           1536, 2048)
QUICK_C = (1, 8, 63, 512)
SWEEP_FEATURES_BYTES = 2**23
QUICK_FEATURES_BYTES = 2**21

GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Job:
    """A cell to measure. sweep is the chart it belongs to, "" for the grid."""
    case: Case
    threads: int
    sweep: str = ""


@dataclass(frozen=True)
class Wanted:
    """What was asked for on the command line."""
    operations: tuple
    layouts: tuple
    dtypes: tuple
    alignments: tuple
    threads: tuple           # numbers
    grid: str | None         # full, small, quick; None: no grid
    sweeps: tuple            # names
    shapes: tuple | None = None  # in place of the grid's
    quick: bool = False          # short sweeps
    halves: tuple = ()           # half types that the full grid has beside dtypes


def net_shapes():
    """Every distinct (C, H, W) of the networks, with a batch of 1, of 32 and of the listed size."""
    return sorted({(n, layer["c"], layer["h"], layer["w"]) for layer in NETS for n in (*BATCHES, layer["n"])})


def grid_shapes(name):
    shapes = {"full": (*net_shapes(), *TABLES, *ODD_FEATURES, *ODD_SIZES), "small": SMALL, "quick": QUICK}[name]
    return tuple(dict.fromkeys(shapes))


def _size_shapes(array_bytes, itemsize):
    """An array of about so many bytes with 64 features: one plane each, then planes of about 56 x 56."""
    entries = array_bytes // itemsize // SWEEP_SIZE_FEATURES
    samples = max(1, round(entries / 56**2))
    side = math.isqrt(entries // samples)
    return samples, SWEEP_SIZE_FEATURES, side, side


def _features_shapes(c, array_bytes, itemsize):
    """The same bytes as a table, and as planes of 28 x 28."""
    entries = array_bytes // itemsize // c
    return (entries, c), (max(1, round(entries / 28**2)), c, 28, 28)


def sweep_shapes(sweep, dtype, quick=False):
    """Pairs (shape, layout) of a sweep."""
    itemsize = data_type(dtype).itemsize
    if sweep == "size":
        shapes = [_size_shapes(size, itemsize) for size in (QUICK_BYTES if quick else SWEEP_BYTES)]
        return [(shape, layout) for shape in shapes for layout in ("first", "last")]
    size = QUICK_FEATURES_BYTES if quick else SWEEP_FEATURES_BYTES
    pairs = [_features_shapes(c, size, itemsize) for c in (QUICK_C if quick else SWEEP_C)]
    return [(table, "table") for table, _ in pairs] + [(planes, "first") for _, planes in pairs if not quick]


def _pairs(shapes):
    return [(shape, layout) for shape in shapes for layout in layouts_of(shape)]


def _jobs(pairs, wanted, sweep="", fused=False):
    """Every operation, type, alignment and number of threads of the (shape, layout) pairs."""
    operations = [operation for operation in wanted.operations if operation != "call" and (operation in FUSED) == fused]
    return [Job(Case(operation, shape, layout, dtype, alignment), threads, sweep)
            for shape, layout in pairs if layout in wanted.layouts
            for dtype in wanted.dtypes for alignment in wanted.alignments
            for operation in operations for threads in wanted.threads]


def _calls(wanted, shapes):
    if "call" not in wanted.operations or "table" not in wanted.layouts:
        return []
    return [Job(Case("call", shape, "table", dtype), threads)
            for shape in shapes if len(shape) == 2 for dtype in wanted.dtypes for threads in wanted.threads]


def _few(wanted, shapes):
    """What the full grid has on a few shapes alone; of smaller grids, and shapes of one's own, what is asked for."""
    one = replace(wanted, alignments=wanted.alignments[:1])
    if wanted.shapes is not None or wanted.grid != "full":
        return _jobs(_pairs(shapes), wanted, fused=True)
    halves = replace(one, dtypes=wanted.halves, operations=[o for o in wanted.operations if o in HALF_OPERATIONS])
    return _jobs(_pairs(FUSED_SHAPES), one, fused=True) + _jobs(_pairs(HALF_SHAPES), halves)


def make_jobs(wanted):
    """All the cells asked for, once each."""
    shapes = wanted.shapes
    if shapes is None:
        shapes = grid_shapes(wanted.grid) if wanted.grid else ()
    calls = wanted.shapes or (CALLS if wanted.grid else ())
    jobs = _jobs(_pairs(shapes), wanted) + _calls(wanted, calls) + _few(wanted, shapes)
    for sweep in wanted.sweeps:
        for dtype in wanted.dtypes:
            one = replace(wanted, dtypes=(dtype,), alignments=wanted.alignments[:1],
                          threads=wanted.threads[-1:] if wanted.quick else wanted.threads)
            jobs += _jobs(sweep_shapes(sweep, dtype, wanted.quick), one, sweep)
    return list(dict.fromkeys(jobs))


def make_groups(jobs):
    """Lists of jobs on the same data, in golden-ratio order."""
    groups = {}
    for job in jobs:
        case = job.case
        key = case.layout, case.alignment, case.dtype, case.array_bytes, case.shape, job.sweep
        groups.setdefault(key, []).append(job)
    return golden_order([groups[key] for key in sorted(groups)])


def golden_order(items):
    """A permutation of which every beginning is spread evenly over the whole."""
    places = sorted(range(len(items)), key=lambda i: i * GOLDEN % 1)
    return [items[i] for i in places]


def share_time(queues, used):
    """The groups of several queues, always from the one that has used the least of its share of the time.

    queues: {name: (groups, share)}; used: {name: seconds}, which the caller adds to as it measures.
    """
    waiting = {name: iter(groups) for name, (groups, _) in queues.items()}
    while waiting:
        name = min(waiting, key=lambda name: used[name] / queues[name][1])
        group = next(waiting[name], None)
        if group is None:
            del waiting[name]
        else:
            yield name, group
