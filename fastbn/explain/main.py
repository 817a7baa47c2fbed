"""Makes the page: section by section, under a progress bar."""
import importlib
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from threadpoolctl import threadpool_limits

import fastbn
from fastbn.demo.report import say
from fastbn.explain.page import Page

# The modules in the page's order, with what they take in seconds, of a full and a quick run: the steps of the progress bar.
SECTIONS = {
    "standardizing": (1, 1),
    "descent": (1, 1),
    "activations": (8, 2),
    "parameters": (1, 1),
    "five_steps": (2, 1),
    "moving_averages": (4, 2),
    "inference": (4, 1),
    "placement": (40, 5),
    "accuracy": (6, 2),
    "speed": (10, 3),
}


def make_page(settings, threads=None, sections=SECTIONS):
    """(the page as HTML, the seconds that it took).

    NumPy's matrix products get one thread, as in the demo: they are too small to gain from more.
    """
    if threads is not None:
        fastbn.set_num_threads(threads)
    start = time.perf_counter()
    page = Page()
    with threadpool_limits(limits=1, user_api="blas"), _progress() as progress:
        task = progress.add_task("", total=sum(seconds[settings.quick] for seconds in sections.values()))
        for name, seconds in sections.items():
            progress.update(task, description=name.replace("_", " "))
            page.add(name, importlib.import_module(f"fastbn.explain.{name}").make(settings))
            progress.advance(task, seconds[settings.quick])
        progress.update(task, description="done")
    seconds = time.perf_counter() - start
    return page.render(settings, seconds, _command(settings, threads)), seconds


def _progress():
    """On stderr; where that is no terminal, rich writes one line, at the end."""
    return Progress(TextColumn("{task.description:15}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
                    TimeElapsedColumn(), console=Console(stderr=True))


def _command(settings, threads):
    """How to make the page again."""
    parts = ["python -m fastbn explain", f"--seed {settings.seed}", "--quick" if settings.quick else "",
             f"--threads {threads}" if threads is not None else ""]
    return " ".join(part for part in parts if part)


def say_written(path, page, seconds):
    say(Console(), f"{path}: {len(page.encode()) / 1000:.0f} KB, {seconds:.1f} s; open it in a browser")
