"""Progress bars on stderr, by the package rich, which is optional."""
import contextlib
import sys


def tracked(iterator, description, total=None):
    """The iterator under a bar, of steps; total: how many they are, or None. Raises ImportError without rich."""
    try:
        from rich.console import Console
        from rich.progress import track
    except ImportError as error:
        raise ImportError("progress=True needs the package rich: pip install 'fastbn[demo]'") from error
    return track(iterator, description=description, total=total, console=Console(stderr=True))


@contextlib.contextmanager
def counted_bytes(description, total=None, shown=True):
    """Gives a function that takes the bytes just done, and shows them as a bar, which is gone at the end.

    total: all the bytes, or None where nobody knows. Nothing is shown where stderr is no terminal or rich is missing.
    """
    bar = _bar_of_bytes() if shown and _is_terminal(sys.stderr) else None
    if bar is None:
        yield lambda nbytes: None
        return
    with bar:
        task = bar.add_task(description, total=total)
        yield lambda nbytes: bar.advance(task, nbytes)


def _is_terminal(stream):
    return stream is not None and not stream.closed and stream.isatty()


def _bar_of_bytes():
    """None without rich."""
    try:
        from rich import progress
        from rich.console import Console
    except ImportError:
        return None
    return progress.Progress(progress.TextColumn("{task.description}"), progress.BarColumn(), progress.DownloadColumn(),
                             progress.TransferSpeedColumn(), progress.TimeRemainingColumn(),
                             console=Console(stderr=True), transient=True)
