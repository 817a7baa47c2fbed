"""The command `python -m fastbn demo`: the demo's own, and with --report the page of the command explain after it."""
from pathlib import Path

from fastbn._cli import INTERRUPTED
from fastbn.demo import command as demo
from fastbn.explain import command as explain
from fastbn.explain.section import Settings

HELP = demo.HELP


def add_arguments(parser):
    demo.add_arguments(parser)
    parser.add_argument("--report", type=Path, metavar="FILE",
                        help="then write the page of the command explain, with the same seed and threads")


def run(arguments):
    """The page's packages and its place are checked before the demo starts."""
    if arguments.report is None:
        return demo.run(arguments)
    demo.check_packages()
    explain.check_packages()
    demo.prepare_folder(arguments.output)
    explain.check_target(arguments.report, "--report")
    status = demo.run(arguments)
    if status != INTERRUPTED:
        explain.write(arguments.report, Settings(seed=arguments.seed), arguments.threads, "--report")
    return status
