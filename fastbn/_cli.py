"""The command line: ``python -m fastbn`` prints the configuration, ``python -m fastbn COMMAND`` runs a command.

``fastbn`` is the same.

A command is a module with ``HELP`` (one line), ``add_arguments(parser)`` and ``run(arguments)``, which returns the exit
status. It is imported whenever the command line is used, so what is slow to import, or may be missing, belongs into its
``run``. To add a command, add a line to `COMMANDS`.

Exit status: 0 success, 1 a check of the command failed, 2 wrong use (a single line on stderr), 130 interrupted.
"""

import argparse
import contextlib
import importlib
import os
import signal
import sys
import threading
from pathlib import Path

import fastbn

COMMANDS = {"demo": "fastbn.explain.demo_command", "explain": "fastbn.explain.command", "parallel": "fastbn.demo.parallel",
            "standardize": "fastbn.standardize.command"}

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

_ENDING_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


class CommandError(Exception):
    """A mistake of the caller, or of the surroundings, which one line explains; the exit status is 2."""


class _Parser(argparse.ArgumentParser):
    """Errors take one line, without the usage: it would bury them."""

    def error(self, message):
        self.exit(USAGE, _error_line(message))


def _error_line(message):
    return f"fastbn: error: {' '.join(str(message).split())}\n"


def build_parser():
    """The parser of the whole command line; every command leaves its ``run`` in ``arguments.run``."""
    parser = _Parser(
        prog="fastbn" if Path(sys.argv[0]).stem == "fastbn" else "python -m fastbn",
        description="Batch normalization for NumPy arrays. Without a command: print the configuration.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"fastbn {fastbn.__version__}")
    parser.set_defaults(run=_show_config)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, module_name in COMMANDS.items():
        module = importlib.import_module(module_name)
        command = commands.add_parser(name, help=module.HELP, description=module.HELP, allow_abbrev=False)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def _show_config(arguments):
    try:
        fastbn.show_config()
    except (RuntimeError, ValueError) as error:  # such as FASTBN_ISA naming what this machine has not
        raise CommandError(error) from None
    return OK


def main(argv=None):
    """Run the command line on argv (default: ``sys.argv[1:]``) and return the exit status."""
    arguments = build_parser().parse_args(argv)
    try:
        status = arguments.run(arguments)
        sys.stdout.flush()
        return status
    except CommandError as error:
        sys.stderr.write(_error_line(error))
        return USAGE
    except KeyboardInterrupt:
        sys.stderr.write("fastbn: interrupted\n")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of the output went away, as in `python -m fastbn | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


@contextlib.contextmanager
def ending_on_signals():
    """SIGTERM and SIGHUP end the block as Ctrl-C does, so that no temporary file stays; exit status 128 + the signal."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _exit) for number in _ENDING_SIGNALS
              if signal.getsignal(number) not in (signal.SIG_IGN, None)}  # as nohup has it; not ours
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit(number, frame):
    sys.exit(128 + number)
