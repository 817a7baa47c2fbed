"""The demo's flags, and the checks that come before it starts: quick to import, needs only the standard library."""

import argparse
import contextlib
import importlib.util
import math
import tempfile
from dataclasses import fields
from pathlib import Path

from fastbn._cli import CommandError
from fastbn.demo.settings import LEARNING_RATES, Settings

HELP = "train a small network on handwritten digits, with and without batch norm"
REQUIRED = {"sklearn": "scikit-learn", "matplotlib": "matplotlib", "rich": "rich", "threadpoolctl": "threadpoolctl"}


def whole_number(lowest, highest):
    """An argparse type: a whole number from lowest to highest."""

    def parse(text):
        with contextlib.suppress(ValueError):
            if lowest <= (number := int(text)) <= highest:
                return number
        raise argparse.ArgumentTypeError(f"expected a whole number from {lowest} to {highest}, got {text!r}")

    return parse


def positive_number(text):
    """An argparse type: a finite number above 0."""
    with contextlib.suppress(ValueError):
        if 0 < (number := float(text)) < math.inf:
            return number
    raise argparse.ArgumentTypeError(f"expected a finite number above 0, got {text!r}")


def add_arguments(parser):
    rates = ", ".join(f"{rate} for {name}" for name, rate in LEARNING_RATES.items())
    add = parser.add_argument
    add("--epochs", type=whole_number(1, 100_000), default=Settings.epochs, metavar="N",
        help="passes over the training images (default: %(default)s)")
    add("--seed", type=whole_number(0, 2**32 - 1), default=Settings.seed, metavar="N",
        help="decides the split, the initial weights and the order of the images (default: %(default)s)")
    add("--output", type=Path, default=Settings.output, metavar="FOLDER",
        help="where the chart goes; made if it does not exist (default: %(default)s)")
    add("--threads", type=whole_number(1, 1024), default=Settings.threads, metavar="N",
        help="threads that fastbn may use; NumPy's matrix products take one (default: fastbn's choice)")
    add("--activation", choices=tuple(LEARNING_RATES), default=Settings.activation,
        help="of the hidden layers (default: %(default)s)")
    add("--batch-size", type=whole_number(2, 1_000), default=Settings.batch_size, metavar="N",
        help="images in a mini-batch (default: %(default)s)")
    add("--learning-rate", type=positive_number, default=Settings.learning_rate, metavar="X",
        help=f"the same for all variants (default: {rates}; good rates for the network without batch norm)")


def run(arguments):
    check_packages()
    prepare_folder(arguments.output)
    from fastbn.demo.main import run_demo

    return run_demo(Settings(**{field.name: getattr(arguments, field.name) for field in fields(Settings)}))


def check_packages(needing="the demo", required=REQUIRED):
    """CommandError if a package of the extra is missing. One that is there but broken shows its own error."""
    missing = [name for module, name in required.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise CommandError(f"{needing} needs {', '.join(missing)}: pip install 'fastbn[demo]'")


def prepare_folder(folder):
    """Make the folder and try to write into it, so that a long run does not end in an error."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CommandError(f"argument --output: cannot write to {str(folder)!r}: {error.strerror}") from None
