"""python -m bench.frameworks: each framework's own batch normalization and fastbn in its place, forward and backward.

Times are medians in milliseconds; a speed-up is the median over paired rounds of own time / fastbn's. overhead us: the
adapter's own cost at (1, 64), beyond fastbn's calls and the framework's machinery, in microseconds.
"""
import argparse
import os
import sys
from pathlib import Path

# What OpenMP, the BLAS libraries, and others read when they are loaded.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def _positive(kind):
    def parse(text):
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value
    parse.__name__ = kind.__name__
    return parse


def make_parser():
    parser = argparse.ArgumentParser(prog="python -m bench.frameworks", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="NAME", help="this framework; may be given several times")
    parser.add_argument("--seconds", type=_positive(float), default=2.0,
                        help="for each case of each framework (default 2; at least five rounds)")
    parser.add_argument("--threads", type=_positive(int), help="for everybody; default: what each takes by itself")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the results as JSON")
    return parser


def limit_threads(threads):
    """Before anything is loaded that starts threads. Some count processors, not variables: those are taken away too."""
    os.environ.update(dict.fromkeys(_THREADS, str(threads)))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def main(arguments=None):
    """The exit status: 1 where a framework failed or disagreed."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    if args.threads is not None:
        limit_threads(args.threads)
    from bench.frameworks import run
    found = run.discover()
    unknown = [name for name in args.only or () if run.key(name) not in found]
    if unknown:
        parser.error(f"--only {unknown[0]}: there are {', '.join(found)}")
    if args.only:
        found = {name: module for name, module in found.items() if name in map(run.key, args.only)}
    return run.run(found, run.SHAPES, args.seconds, args.threads, args.output)


if __name__ == "__main__":
    sys.exit(main())
