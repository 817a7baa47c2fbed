"""The progress bars: one line a variant, with the last epoch's loss and test accuracy.

Where the output is no terminal, rich writes the lines once, at the end.
"""

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


def training_progress(console):
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=8),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TextColumn("accuracy {task.fields[accuracy]}"),
        console=console,
    )


def add_variant(progress, history, epochs):
    """Add a line, not yet started; returns its task."""
    return progress.add_task(f"batch norm: {history.variant.name}", total=epochs, start=False, loss="-", accuracy="-")


def show_epoch(progress, task, history):
    progress.update(
        task,
        completed=len(history.losses),
        loss=f"{history.losses[-1]:.4g}",
        accuracy=f"{history.accuracies[-1]:.1%}",
    )
