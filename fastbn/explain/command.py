"""The command `python -m fastbn explain`: its flags, and the checks before the run. Needs only the standard library."""
import tempfile
from pathlib import Path

from fastbn._cli import OK, CommandError, ending_on_signals
from fastbn.demo import command as demo
from fastbn.explain.section import Settings

HELP = "write a page that explains batch norm, by pictures from runs on this machine"
REQUIRED = {**demo.REQUIRED, "jinja2": "Jinja2"}


def add_arguments(parser):
    add = parser.add_argument
    add("--output", type=Path, default=Path("report.html"), metavar="FILE",
        help="the page, one file; replaced when a new one is complete (default: %(default)s)")
    add("--seed", type=demo.whole_number(0, 2**32 - 1), default=Settings.seed, metavar="N",
        help="the same seed gives the same page, but for times (default: %(default)s)")
    add("--quick", action="store_true", help="fewer steps and repetitions: some 8 seconds in place of 20")
    add("--threads", type=demo.whole_number(1, 1024), metavar="N",
        help="threads that fastbn may use; NumPy's matrix products take one (default: fastbn's choice)")


def run(arguments):
    check_packages()
    check_target(arguments.output, "--output")
    write(arguments.output, Settings(seed=arguments.seed, quick=arguments.quick), arguments.threads)
    return OK


def check_packages():
    """CommandError if a package of the extra is missing."""
    demo.check_packages("the report", REQUIRED)


def check_target(path, flag):
    """CommandError where the page could not be written, so that a long run does not end in an error."""
    path = path.resolve()
    if path.is_dir():
        example = str(path / "report.html")
        raise CommandError(f"argument {flag}: {str(path)!r} is a folder, expected a file such as {example!r}")
    if path.exists() and not path.is_file():  # such as /dev/stdout: it would be replaced
        raise CommandError(f"argument {flag}: {str(path)!r} is no ordinary file, expected one, or a new name")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise _cannot_write(path, flag, error) from None


def write(path, settings, threads=None, flag="--output"):
    """Make the page and write it whole or not at all; also where a signal ends the run."""
    from fastbn._data.atomic_write import replacing
    from fastbn.explain.main import make_page, say_written

    with ending_on_signals():
        page, seconds = make_page(settings, threads)
        try:
            with replacing(path) as file:
                file.write(page.encode())
        except OSError as error:
            raise _cannot_write(path, flag, error) from None
    say_written(path, page, seconds)


def _cannot_write(path, flag, error):
    return CommandError(f"argument {flag}: cannot write {str(path)!r}: {error.strerror}")
