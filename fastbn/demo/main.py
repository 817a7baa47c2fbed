"""Runs the demo: train the variants, check inference, measure the time, and report, after an interrupt too."""

from dataclasses import dataclass, field

import numpy as np
from rich.console import Console
from threadpoolctl import threadpool_limits

import fastbn
from fastbn._cli import FAILED, INTERRUPTED, OK, CommandError
from fastbn.demo.chart import save_chart
from fastbn.demo.data import load_data
from fastbn.demo.inference import check_single_samples
from fastbn.demo.progress import add_variant, show_epoch, training_progress
from fastbn.demo.report import (
    describe_network,
    describe_training,
    print_checks,
    print_results,
    print_start,
    print_timing,
    say,
)
from fastbn.demo.timing import time_norms
from fastbn.demo.training import VARIANTS, History, train_variant

CHART_NAME = "curves.png"


@dataclass
class Results:
    """What a run has so far."""

    histories: list = field(default_factory=lambda: [History(variant) for variant in VARIANTS])
    checks: dict = field(default_factory=dict)
    contestants: list | None = None


def run_demo(settings):
    """Run the demo and return the exit status."""
    console = Console()
    if settings.threads is not None:
        fastbn.set_num_threads(settings.threads)
    data = load_data(settings.seed)
    results = Results()
    print_start(console, settings, data)
    interrupted = False
    try:
        measure(console, data, settings, results)
    except KeyboardInterrupt:
        interrupted = True
    report(console, settings, data, results)
    if interrupted:
        say(console, "interrupted: the above covers what was finished")
        return INTERRUPTED
    return OK if all(check.passed for check in results.checks.values()) else FAILED


def measure(console, data, settings, results):
    """Fill in the results.

    NumPy's matrix products get one thread: they are too small to gain from more, and on a busy machine waiting for each
    other costs them many times what they take. A learning rate that makes a network diverge is reported as that, not by
    NumPy's warnings.
    """
    with threadpool_limits(limits=1, user_api="blas"), np.errstate(over="ignore", invalid="ignore"):
        networks = train_all(console, data, settings, results.histories)
        check_all(data, results, networks)
        results.contestants = time_norms(data, settings)


def train_all(console, data, settings, histories):
    """Train every variant under a progress bar; the networks, by the order of the histories."""
    with training_progress(console) as progress:
        tasks = [add_variant(progress, history, settings.epochs) for history in histories]
        networks = []
        for task, history in zip(tasks, histories):
            progress.start_task(task)
            networks.append(train_variant(data, settings, history, lambda: show_epoch(progress, task, history)))
            progress.stop_task(task)
    return networks


def check_all(data, results, networks):
    """Check single-sample inference wherever there is batch norm and the training came to an end."""
    for history, network in zip(results.histories, networks):
        if network.norms() and not history.diverged:
            results.checks[history.variant.name] = check_single_samples(network, data.test_images)


def report(console, settings, data, results):
    print_results(console, results.histories, settings)
    if results.checks:
        print_checks(console, results.checks)
    if results.contestants:
        print_timing(console, results.contestants)
    if any(history.losses for history in results.histories):
        write_chart(console, settings, data, results.histories)
    else:
        say(console, "No epoch was finished: no chart.")


def write_chart(console, settings, data, histories):
    path = settings.output / CHART_NAME
    title = f"Handwritten digits: {describe_network(settings, data)}, {describe_training(settings)}"
    try:
        save_chart(path, histories, title)
    except OSError as error:
        raise CommandError(f"argument --output: cannot write {str(path)!r}: {error.strerror}") from None
    say(console, f"Chart: {path}")
