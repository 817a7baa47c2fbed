"""python -m bench.busy: the default number of threads against one, where others want the processors too.

This program starts busy loops and worker processes by itself. A ratio of times is the default's divided by one thread's: below 1 the
default is faster. A ratio of work is the default's divided by one thread's: above 1 it does more.
"""
import argparse
import math
import os
import statistics
import sys

import numpy as np
from rich import box
from rich.table import Table

import fastbn
from bench import machine, report
from bench.busy import callers, idle, loops, network, workers

PARTS = ("idle", "loops", "workers", "callers", "network")  # network last: the OpenBLAS threads it wakes spin for 20 ms


def make_parser():
    parser = argparse.ArgumentParser(prog="python -m bench.busy", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--only", choices=PARTS, nargs="+", default=PARTS, help="of the parts (default: all)")
    add("--loops", type=int, default=os.cpu_count(), help="busy loops beside the calls (default: one a processor)")
    add("--workers", type=int, default=4, help="processes, and calling threads, at once (default: %(default)s)")
    add("--seconds", type=float, default=2.0, help="for each setting of each cell (default: %(default)s)")
    add("--work-seconds", type=float, default=10.0, help="for the workers (default: %(default)s)")
    return parser


def _microseconds(seconds):
    return f"{1e6 * seconds:.4g}"


def _table(*columns):
    table = Table(columns[0], box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table


def _mean_of(ratios):
    return math.exp(statistics.fmean(map(math.log, ratios)))


def show_loops(console, args):
    table = _table("beside busy loops", "default us", "mean", "one thread us", "mean", "ratio", "of means", "peer, ratio")
    medians, means, peers = [], [], []
    with loops.busy_loops(args.loops):
        for name, turns in loops.cells(args.seconds):
            if not turns:
                continue
            default, one, *others = turns
            ratios = default.median / one.median, default.mean / one.mean
            if not name.startswith("standardize"):
                medians.append(ratios[0])
                means.append(ratios[1])
            notes = [f"{peer.name} {peer.median / default.median:.3g}, {peer.mean / default.mean:.3g}" for peer in others]
            peers += [(peer.name, min(peer.median / default.median, peer.mean / default.mean)) for peer in others]
            table.add_row(name, _microseconds(default.median), _microseconds(default.mean), _microseconds(one.median),
                          _microseconds(one.mean), *(f"{ratio:.2f}" for ratio in ratios), "; ".join(notes))
    console.print(table)
    console.print(f"geometric means of {len(medians)} cells: medians {_mean_of(medians):.3f}, means {_mean_of(means):.3f}; "
                  f"this process backed off {fastbn.get_config()['backoffs']} times", markup=False)
    for name in dict.fromkeys(name for name, _ in peers):
        console.print(f"{name}: its time / fastbn's, the least of all medians and means: "
                      f"{min(ratio for peer, ratio in peers if peer == name):.3g}", markup=False)


def show_workers(console, args):
    done = {threads: workers.rounds_of(args.workers, args.work_seconds, threads) for threads in (None, 1)}
    console.print(f"{args.workers} processes at once, rounds of the mix in {args.work_seconds:g} s: default {done[None]}, "
                  f"FASTBN_NUM_THREADS=1 {done[1]}, ratio {done[None] / done[1]:.3f}", markup=False)


def show_callers(console, args):
    default, one = callers.calls_of(args.workers, 2 * args.seconds)
    console.print(f"{args.workers} calling threads, calls a second: default {default:.0f}, num_threads=1 {one:.0f}, ratio "
                  f"{default / one:.3f}", markup=False)


def show_network(console, args):
    for batch, (default, one) in network.steps(args.seconds):
        console.print(f"training step of matrix products and batch norms, batch {batch}: default "
                      f"{_microseconds(default.median)} us, one thread {_microseconds(one.median)}, ratio "
                      f"{default.median / one.median:.3f}, of means {default.mean / one.mean:.3f}", markup=False)


def show_idle(console, args):
    console.print("processor time in {:.0f} ms after a call: median {:.3f} ms, at most {:.3f} ms ({})".format(
        1e3 * idle.GAP_SECONDS, *idle.milliseconds(), fastbn.get_config()["idle_threads"]), markup=False)


def main(arguments=None):
    """The exit status."""
    args = make_parser().parse_args(arguments)
    console = report.console_for()
    console.print(f"{machine.describe([], None)['cpu']}; {report.threads_text(fastbn.get_num_threads())} by default; "
                  f"{args.loops} busy loops; NumPy {np.__version__}, fastbn {fastbn.__version__}", markup=False)
    shows = {"loops": show_loops, "workers": show_workers, "callers": show_callers, "network": show_network,
             "idle": show_idle}
    for part in PARTS:
        if part in args.only:
            shows[part](console, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
