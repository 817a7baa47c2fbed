"""python -m bench.scaler: scikit-learn's StandardScaler and fastbn.sklearn's, both checked first, then timed in turn.

Times are medians; a speed-up is the median over paired rounds of scikit-learn's time / fastbn's. scikit-learn computes on
one thread. Results are new arrays but for "in place" (copy=False). *: disturbed by other processes.
"""
import argparse
import copy
import sys

import numpy as np
import sklearn
from rich import box
from rich.table import Table
from sklearn.preprocessing import StandardScaler

import fastbn
from bench import machine, report
from bench.frameworks.compare import check
from bench.timing import entry_of, measure, ratio
from fastbn.sklearn import StandardScaler as FastScaler

SHAPES = ((1_000_000, 30), (200_000, 4))
SMALL = (1, 64)
DTYPES = (np.float32, np.float64)


def data(shape, dtype):
    return np.random.default_rng(0).normal(1, 2, shape).astype(dtype)


def _attributes(scaler):
    return scaler.mean_, scaler.var_, scaler.scale_


def _fit(kind, x):
    return lambda: _attributes(kind().fit(x))


def _partial_fit(kind, x):
    """The second chunk of two: the first is small."""
    begun = kind().fit(x[:100])
    return lambda: _attributes(copy.copy(begun).partial_fit(x))


def _weighted(kind, x):
    weights = np.random.default_rng(1).random(len(x)).astype(x.dtype)
    return lambda: _attributes(kind().fit(x, sample_weight=weights))


def _missing(kind, x):
    x = x.copy()
    x[::10, 0] = np.nan
    return lambda: _attributes(kind().fit(x))


def _transform(kind, x):
    scaler = kind().fit(x if len(x) > 1 else data((100, x.shape[1]), x.dtype))
    return lambda: scaler.transform(x)


def _inverse_transform(kind, x):
    scaler = kind().fit(x)
    return lambda: scaler.inverse_transform(x)


def _in_place(kind, x):
    """Again and again of one array, whose entries converge."""
    scaler, x = kind(copy=False).fit(x), x.copy()
    return lambda: scaler.transform(x)


OPERATIONS = {"fit": _fit, "partial_fit": _partial_fit, "fit, sample_weight": _weighted, "fit, NaN": _missing,
              "transform": _transform, "transform in place": _in_place, "inverse_transform": _inverse_transform}


def measured(make, x, seconds):
    """(scikit-learn's seconds, fastbn's, speed-up, whether disturbed). Raises Disagreement."""
    theirs, ours = (make(kind, x) for kind in (StandardScaler, FastScaler))
    check(theirs(), ours())
    entries = [entry_of(name, function) for name, function in (("scikit-learn", theirs), ("fastbn", ours))]
    measure(entries, seconds)
    return entries[0].seconds, entries[1].seconds, *ratio(*entries)


def rows(shapes, seconds):
    """Rows of texts: shape, dtype, operation, both times in milliseconds, speed-up."""
    for shape in (*shapes, SMALL):
        for dtype in DTYPES:
            x = data(shape, dtype)
            for name, make in OPERATIONS.items() if shape != SMALL else [("transform", _transform)]:
                theirs, ours, speedup, disturbed = measured(make, x, seconds)
                yield (" x ".join(map(str, shape)), np.dtype(dtype).name, name, f"{1e3 * theirs:.3g}", f"{1e3 * ours:.3g}",
                       f"{speedup:.2f}{'*' * disturbed}")


def main(arguments=None):
    """The exit status. Whoever disagrees with scikit-learn gets a traceback."""
    parser = argparse.ArgumentParser(prog="python -m bench.scaler", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each row (default 2; at least three rounds)")
    parser.add_argument("--threads", type=int, default=2, help="of fastbn (default 2)")
    parser.add_argument("--quick", action="store_true", help="small tables")
    args = parser.parse_args(arguments)
    fastbn.set_num_threads(args.threads)
    console = report.console_for()
    console.print(f"{machine.describe([], None)['cpu']}; {report.threads_text(fastbn.get_num_threads())}; scikit-learn "
                  f"{sklearn.__version__}, NumPy {np.__version__}, fastbn {fastbn.__version__}", markup=False)
    table = Table("shape", "dtype", "what", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("scikit-learn ms", "fastbn ms", "speed-up"):
        table.add_column(name, justify="right")
    for row in rows([(shape[0] // 100, shape[1]) for shape in SHAPES] if args.quick else SHAPES, args.seconds):
        table.add_row(*row)
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
