"""python -m bench: fastbn against its peers, cell by cell, in one run.

A ratio is the peer's time divided by fastbn's: above 1 fastbn is faster. "fresh" allocates its output on every call,
"out=" writes into one array. GB/s counts the bytes that must move (one read of every input, one write of the output),
not those that do. NumPy uses one thread whatever --threads says.
"""
import argparse
import os
import sys
from functools import partial

from bench import cases as cases_module
from bench import report
from bench.cases import LAYOUTS, OPERATIONS, check, make_cases, make_data, reference
from bench.contenders import BASELINE, CONTENDERS, load, variants
from bench.timing import Entry, measure


def run_cell(case, threads, contenders, seconds, least_rounds):
    """Prepare, check against the reference, and time every contender on one case."""
    data = make_data(case)
    expected = reference(case, data)
    entries = []
    for contender, output in variants(case, contenders):
        session = partial(contender.session, threads)
        with session():
            work = contender.work(case, data, output, threads)
            check(case, f"{contender.name} ({output})", contender.arrays(case, work.function()()), expected)
        entries.append(Entry(contender.name, output, work.expression, work.timer(), session))
    del expected
    measure(entries, seconds, least_rounds)
    return report.Cell(case, threads, entries)


def _words(allowed):
    def parse(text):
        words = tuple(text.split(","))
        for word in words:
            if word not in allowed:
                raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(allowed)}")
        return words
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
    return words


def _seconds(text):
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return value


def _parser():
    peers = [name for name in CONTENDERS if name != BASELINE]
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", type=_words(OPERATIONS), default=OPERATIONS, metavar="A,B",
                        help=f"of {', '.join(OPERATIONS)} (call: the cost of one small call of a layer)")
    parser.add_argument("--shapes", type=_shapes, metavar="32x64x56x56,64x1024",
                        help="(N, C, ...) whatever the layout; default: the list in cases.py")
    parser.add_argument("--layouts", type=_words(LAYOUTS), default=LAYOUTS, metavar="A,B",
                        help=f"of {', '.join(LAYOUTS)} (channels-first, channels-last, (N, C) tables)")
    parser.add_argument("--threads", type=_threads, default=["1", "all"], metavar="1,all")
    parser.add_argument("--peers", type=_words(peers), default=peers, metavar="A,B", help=f"of {', '.join(peers)}")
    parser.add_argument("--seconds", type=_seconds, help="for each cell (default 0.5; at least five rounds)")
    parser.add_argument("--quick", action="store_true", help="0.1 s and three rounds a cell, three shapes")
    parser.add_argument("--json", metavar="FILE", help="write every measured block to FILE as well")
    return parser


def _thread_counts(words):
    """'all' is what fastbn may use by the settings of the OpenMP runtime; more would not be equal for everyone."""
    import fastbn
    most = fastbn.get_num_threads()
    counts = [most if word == "all" else int(word) for word in words]
    if max(counts) > most:
        raise ValueError(f"--threads {max(counts)}: fastbn may use {most} here (processors, OMP_NUM_THREADS, "
                         "FASTBN_NUM_THREADS, or a build without OpenMP)")
    return list(dict.fromkeys(counts))


def _select(args):
    shapes = args.shapes
    if shapes is None and args.quick:
        wanted = make_cases(args.operations, None, args.layouts)
        return [case for case in wanted if case.shape in cases_module.QUICK]
    return make_cases(args.operations, shapes, args.layouts)


def _progress(jobs):
    """One line on the terminal, nothing in a file."""
    for index, (case, threads) in enumerate(jobs, 1):
        if sys.stderr.isatty():
            print(f"\r\033[K{index}/{len(jobs)} {case}, threads {threads}", end="", file=sys.stderr, flush=True)
        yield case, threads
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def _run(jobs, contenders, seconds, least_rounds):
    """The cells measured until the end or until Ctrl-C, and whether the end was reached."""
    cells = []
    try:
        for case, threads in _progress(jobs):
            cells.append(run_cell(case, threads, contenders, seconds, least_rounds))
    except KeyboardInterrupt:
        print(f"\ninterrupted after {len(cells)} of {len(jobs)} cells", file=sys.stderr)
        return cells, False
    return cells, True


def _print_head(described):
    print(f"{described['cpu']}, {described['processors']} processors, Python {described['python']}, "
          + ", ".join(f"{name} {version}" for name, version in described["versions"].items()))
    print("us: median time; GB/s: bytes that must move / time; ratio: peer / fastbn, above 1 fastbn is faster.")
    if described["load"] and described["load"][0] > 0.5:
        print(f"The load average is {described['load'][0]:.1f}: other work on this machine disturbs the times.")
    print()


def main(argv=None):
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        contenders, missing = load([BASELINE, *args.peers])
        counts = _thread_counts(args.threads)
    except (ImportError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    if args.json and not os.access(os.path.dirname(os.path.abspath(args.json)), os.W_OK):
        parser.exit(2, f"{parser.prog}: --json {args.json}: the folder does not exist or cannot be written to\n")
    for name, reason in missing.items():
        print(f"{name} left out: {reason}")
    jobs = [(case, threads) for case in _select(args) for threads in counts]
    if not jobs:
        parser.exit(2, f"{parser.prog}: no case has these operations, shapes and layouts\n")
    seconds = args.seconds if args.seconds is not None else 0.1 if args.quick else 0.5
    described = report.machine(contenders)
    _print_head(described)
    cells, complete = _run(jobs, contenders, seconds, 3 if args.quick else 5)
    report.print_tables(cells)
    report.print_verdict(cells, [c.name for c in contenders if c.name != BASELINE])
    if args.json:
        report.write_json(args.json, cells, described, {"seconds": seconds, "threads": counts, "complete": complete})
    return 0 if complete else 130
