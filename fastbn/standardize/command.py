"""The command `python -m fastbn standardize`: its flags, and what it prints."""
import sys
import time

import numpy as np

from fastbn._cli import OK, CommandError, ending_on_signals
from fastbn.standardize.files import standardize_file

HELP = "standardize a .npy file of any size: (x - mean) / std of each feature"


def add_arguments(parser):
    add = parser.add_argument
    add("source", metavar="in.npy", help="float16, float32 or float64; NaN are missing values, and stay")
    add("target", metavar="out.npy", help="of the same shape and type; appears under this name when it is complete")
    add("--axis", type=int, nargs="+", metavar="N",
        help="the feature axis, or several (default: that of --use-stats, or the last: the columns of a table)")
    statistics = parser.add_mutually_exclusive_group()
    statistics.add_argument("--stats", metavar="STATS.npz",
                            help="write count, mean, var, scale (the std, 1 where that is 0) and axis to this file")
    statistics.add_argument("--use-stats", metavar="STATS.npz",
                            help="standardize by the mean and scale that --stats wrote, of training data for example")
    add("--force", action="store_true", help="replace files that exist; in.npy and out.npy may be the same")
    add("--quiet", action="store_true", help="no progress bar, no summary")


def run(arguments):
    start = time.perf_counter()
    axis = None if arguments.axis is None else tuple(arguments.axis)
    with ending_on_signals():
        try:
            outcome = standardize_file(arguments.source, arguments.target, axis=axis, statistics=arguments.use_stats,
                                       save_statistics=arguments.stats, overwrite=arguments.force,
                                       progress=not arguments.quiet)
        except OSError as error:
            raise CommandError(f"{error.filename}: {error.strerror}" if error.filename else error) from None
        except (TypeError, ValueError) as error:
            raise CommandError(error) from None
    if not arguments.quiet:
        print(_printable(_summary(arguments.target, outcome, time.perf_counter() - start)))
    return OK


def _printable(text):
    """With escapes for what stdout cannot show: a name may have any bytes, and the file is there by now."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _summary(target, outcome, seconds):
    statistics = outcome.statistics
    size = f"{' x '.join(map(str, outcome.shape))} {outcome.dtype}"
    parts = [f"{statistics.mean.size} features"]
    if outcome.fitted:
        entries = int(np.prod(outcome.shape)) // statistics.mean.size
        constant, missing = np.count_nonzero(statistics.var == 0), int(np.sum(entries - statistics.count))
        parts += [f"{constant} of them constant"] * bool(constant) + [f"{missing} NaN left as they are"] * bool(missing)
    return f"{target}: {size}, {', '.join(parts)}; {seconds:.1f} s, {outcome.nbytes / 1e6 / seconds:.0f} MB/s"
