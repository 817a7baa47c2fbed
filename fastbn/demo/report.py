"""The demo's tables and lines, for an ordinary terminal of 80 columns, and plain ASCII."""

from rich import box
from rich.table import Table

import fastbn
from fastbn.demo.inference import LOGIT_TOLERANCE
from fastbn.demo.settings import SGD_MOMENTUM, TARGET_ACCURACY
from fastbn.demo.training import layer_sizes


def say(console, text):
    """A line as it is: no markup, no colours guessed from its words, no breaks."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def describe_network(settings, data):
    return f"{'-'.join(map(str, layer_sizes(data)))} {settings.activation}"


def describe_training(settings):
    return (
        f"SGD with learning rate {settings.rate:g} and momentum {SGD_MOMENTUM:g}, batches of {settings.batch_size}, "
        f"seed {settings.seed}"
    )


def print_start(console, settings, data):
    threads = fastbn.get_num_threads()
    say(console, f"fastbn {fastbn.__version__}, up to {threads} thread{'s' if threads > 1 else ''}")
    say(console, f"Digits: {len(data.train_images)} images to train on, {len(data.test_images)} to test")
    say(console, f"Network: {describe_network(settings, data)}, float32")
    say(console, f"Training: {describe_training(settings)}")


def print_results(console, histories, settings):
    """A row for every variant, also for those that an interrupt left without an epoch."""
    table = Table(
        title="Training",
        caption=f"The same initial weights, mini-batches and learning rate ({settings.rate:g}) for all.",
        box=box.ASCII2,
    )
    table.add_column("Batch norm", no_wrap=True)
    for heading in ("Epochs", "Training\nloss", "Test\naccuracy", f"Epochs to\n{TARGET_ACCURACY:.0%}", "Seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for history in histories:
        table.add_row(*_result_row(history))
    console.print(table, highlight=False)


def _result_row(history):
    epochs = len(history.losses)
    reached = history.epochs_to(TARGET_ACCURACY)
    loss, accuracy = (f"{history.losses[-1]:.4g}", f"{history.accuracies[-1]:.1%}") if epochs else ("-", "-")
    if history.diverged:
        loss = "diverged"
    target = str(reached) if reached else "not reached" if epochs else "-"
    return history.variant.name, str(epochs), loss, accuracy, target, f"{history.seconds:.1f}"


def print_checks(console, checks):
    """The single-sample checks, by the name of the variant."""
    say(console, "Inference from the moving averages, each test image alone against all at once")
    for name, check in checks.items():
        _print_check(console, name, check)
    say(console, "  (Only NumPy's matrix products may differ: they round differently for one row.)")


def _print_check(console, name, check):
    verdict = "ok" if check.passed else "FAILED"
    say(console, f"  {name}: {verdict}")
    say(console, f"    batch norm layers: largest difference {check.norm_difference:g} (allowed: 0)")
    say(console, f"    whole network: {check.logit_difference:.1e} of the largest logit (allowed: {LOGIT_TOLERANCE:g})")


def print_timing(console, contestants):
    fast, plain = contestants
    table = Table(title="Time per training step, batch norm before activation", box=box.ASCII2,
                  caption=f"Medians of {len(fast.step_seconds)} steps each, taken in turns.")
    table.add_column("Batch norm by")
    for heading in ("in batch norm, ms", "whole step, ms"):
        table.add_column(heading, justify="right")
    for contestant in contestants:
        table.add_row(contestant.name, f"{contestant.norm_ms:.3f}", f"{contestant.step_ms:.3f}")
    table.add_row("plain / fastbn", f"{plain.norm_ms / fast.norm_ms:.1f}", f"{plain.step_ms / fast.step_ms:.1f}")
    console.print(table, highlight=False)
