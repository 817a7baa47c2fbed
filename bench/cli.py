"""python -m bench: fastbn against its peers and against the machine's limit, cell by cell, in one run.

A cell is an operation on a shape in a layout, with a number of threads. A ratio is a peer's time divided by fastbn's:
above 1 fastbn is faster. "fresh" allocates its output on every call, "out=" writes into one array. Everything is kept
in the output folder as it is measured: Ctrl-C ends a run with what it has, and --resume goes on with it.
"""
import argparse
import re
import sys
from datetime import datetime
from pathlib import Path
from time import perf_counter

from bench.cases import ALIGNMENTS, DTYPES, FUSED, HALVES, LAYOUTS, OPERATIONS
from bench.cell import MEASUREMENTS
from bench.grid import SWEEPS, Wanted
from bench.machine import memory_bytes
from bench.peers import BASELINE, CONTENDERS, add_own, load
from bench.store import StoreError
from bench.timing import LEAST_ROUNDS

FOLDER = Path("fastbn-bench")
LARGEST_ARRAY = 3 * 2**29
QUICK_BUDGET = 35  # seconds, imports included; tables and charts come after


class UsageError(Exception):
    """What was asked for cannot be done here; the message says why."""


def _words(allowed):
    def parse(text):
        words = tuple(text.split(","))
        for word in words:
            if word not in allowed:
                raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(allowed)}")
        return tuple(dict.fromkeys(words))
    return parse


def _shapes(text):
    shapes = []
    for word in text.split(","):
        try:
            shape = tuple(int(size) for size in word.split("x"))
        except ValueError:
            shape = ()
        if len(shape) < 2 or min(shape) < 1:
            raise argparse.ArgumentTypeError(f"{word!r} is no shape; write NxC or NxCxHxW, for example 32x64x56x56")
        shapes.append(shape)
    return tuple(shapes)


def _threads(text):
    words = text.split(",")
    for word in words:
        if word != "all" and not (word.isdigit() and int(word) > 0):
            raise argparse.ArgumentTypeError(f"{word!r} is neither a positive number nor 'all'")
    return tuple(words)


def _quantity(text, units, what):
    found = re.fullmatch(rf"(\d+\.?\d*|\.\d+)\s*({'|'.join(filter(None, units))})?", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no {what}")
    return float(found[1]) * units[found[2] or ""]


def _seconds(text):
    return _quantity(text, {"": 1, "s": 1, "m": 60, "h": 3600}, "time; write 90, 90s, 40m or 2h")


def _bytes(text):
    units = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    return int(_quantity(text, units, "size; write bytes, or 512MiB, or 1.5GiB"))


def _own_peer(place):
    try:
        return add_own(place)
    except ValueError as error:
        raise UsageError(f"--peer {error}") from None


def make_parser():
    peers = tuple(name for name in CONTENDERS if name != BASELINE)
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_argument_group("what is measured")
    what.add_argument("--quick", action="store_true", help="an impression in under a minute: few shapes, short sweeps")
    what.add_argument("--grid", choices=("full", "small"), default="full",
                      help="full: every batch-norm layer of four networks, tables, odd shapes; small: the README's")
    what.add_argument("--shapes", type=_shapes, metavar="32x64x56x56,64x1024",
                      help="in place of the grid, and without sweeps; (N, C, ...) whatever the layout")
    what.add_argument("--operations", type=_words((*OPERATIONS, *FUSED)), metavar="A,B",
                      help=f"of {', '.join(OPERATIONS)} (call: the cost of one small call of a layer), the default; "
                           f"and of {', '.join(FUSED)}, which the full grid has on a few shapes; no sweeps of these")
    what.add_argument("--layouts", type=_words(LAYOUTS), default=LAYOUTS, metavar="A,B",
                      help=f"of {', '.join(LAYOUTS)} (channels-first, channels-last, (N, C) tables)")
    what.add_argument("--dtypes", type=_words(DTYPES), metavar="A,B",
                      help=f"of {', '.join(DTYPES)} (half types with float32 parameters); default {DTYPES[0]}, and in "
                           "the full grid the half types on a few large shapes")
    what.add_argument("--alignments", type=_words(ALIGNMENTS), metavar="A,B",
                      help="of numpy (as it allocates), 64 (whole cache lines); default: both, with --quick numpy")
    what.add_argument("--threads", type=_threads, default=("1", "all"), metavar="1,all")
    what.add_argument("--peers", type=_words(peers), default=peers, metavar="A,B", help=f"of {', '.join(peers)}")
    what.add_argument("--peer", action="append", default=[], metavar="module:Class",
                      help="a class of your own beside them, as bench/README.md shows; may be given several times")
    what.add_argument("--sweeps", action=argparse.BooleanOptionalAction, default=True,
                      help="growing sizes and growing C, for the charts")
    what.add_argument("--only", choices=("grid", "sweeps"), help="one of the two")
    _add_run_flags(parser.add_argument_group("how"))
    return parser


def _add_run_flags(how):
    how.add_argument("--budget", type=_seconds, metavar="40m",
                     help="for the whole run, grid and sweeps; default: no limit")
    how.add_argument("--seconds", type=_seconds, help="for each cell (default 0.3; at least five rounds)")
    how.add_argument("--max-bytes", type=_bytes, metavar="1.5GiB",
                     help="larger arrays are left out; default 1.5GiB, or an eighth of the memory if that is less")
    how.add_argument("--out", type=Path, metavar="FOLDER", help=f"for the results; default {FOLDER}/DATE-TIME")
    how.add_argument("--resume", action="store_true",
                     help="keep what the folder has and measure what is missing; without --out: the newest run's")
    how.add_argument("--charts", action=argparse.BooleanOptionalAction, default=True, help="PNG and SVG")
    how.add_argument("--tables", action="store_true", help="all tables on the terminal too, however long")


def folder_of(args):
    """Where the run's results go."""
    if args.out is not None:
        return args.out
    if not args.resume:
        return FOLDER / datetime.now().strftime("%Y%m%d-%H%M%S")
    runs = sorted(FOLDER.glob("*/cells.jsonl"))
    if not runs:
        raise UsageError(f"--resume: no run in {FOLDER}; name its folder with --out")
    return runs[-1].parent


def thread_counts(words):
    """'all' is what fastbn may use by the settings of the OpenMP runtime; more would not be equal for everyone."""
    import fastbn
    most = fastbn.get_num_threads()
    counts = [most if word == "all" else int(word) for word in words]
    if max(counts) > most:
        raise UsageError(f"--threads {max(counts)}: fastbn may use {most} here (processors, OMP_NUM_THREADS, "
                         "FASTBN_NUM_THREADS, or a build without OpenMP)")
    return tuple(dict.fromkeys(counts))


def wanted(args):
    """Sweeps come with the grid, not with shapes of one's own."""
    sweeps = args.only == "sweeps" or (args.sweeps and args.only is None and args.shapes is None)
    is_full = args.only != "sweeps" and args.shapes is None and args.grid == "full" and not args.quick
    return Wanted(
        operations=args.operations or (*OPERATIONS, *(FUSED if is_full else ())), layouts=args.layouts,
        dtypes=args.dtypes or DTYPES[:1], halves=HALVES if is_full and args.dtypes is None else (),
        threads=thread_counts(args.threads),
        alignments=args.alignments or (ALIGNMENTS[:1] if args.quick else ALIGNMENTS),
        grid=None if args.only == "sweeps" else "quick" if args.quick else args.grid,
        sweeps=SWEEPS if sweeps else (), shapes=args.shapes, quick=args.quick)


def arguments_text(argv):
    """The flags that say what was measured, as the README shows them: without those on the folder."""
    kept, words = [], iter(argv)
    for word in words:
        if word == "--out":
            next(words, None)
        elif not word.startswith("--out=") and word != "--resume":
            kept.append(word)
    return " ".join(kept)


def _plan(args, argv, begin):
    from bench.run import Plan
    memory = memory_bytes()
    return Plan(
        folder=folder_of(args), resume=args.resume, arguments=arguments_text(argv), wanted=wanted(args),
        largest=args.max_bytes or min(LARGEST_ARRAY, memory // 8 if memory else LARGEST_ARRAY),
        seconds=args.seconds if args.seconds is not None else 0.1 if args.quick else 0.3,
        least_rounds=3 if args.quick else LEAST_ROUNDS, measurements=1 if args.quick else MEASUREMENTS,
        budget=args.budget if args.budget is not None else QUICK_BUDGET if args.quick else None,
        begin=begin, charts=args.charts, tables=args.tables)


def main(argv=None):
    begin, parser = perf_counter(), make_parser()
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    if args.only == "sweeps" and (args.shapes is not None or not args.sweeps):
        parser.error("--only sweeps: it excludes --shapes and --no-sweeps")
    try:
        from bench.run import run
        load([BASELINE])
        plan = _plan(args, argv, begin)  # before the peers: importing them takes seconds
        return run(plan, *load([BASELINE, *args.peers, *map(_own_peer, args.peer)]))
    except ModuleNotFoundError as error:
        if error.name != "rich":
            raise
        parser.exit(2, f"{parser.prog}: rich is not installed; in a checkout: pip install -e '.[bench]'\n")
    except (UsageError, StoreError, ImportError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
