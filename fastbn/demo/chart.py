"""The chart: training loss and test accuracy by epoch. Drawn on Agg, without pyplot, so no display is asked for."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fastbn.demo.settings import TARGET_ACCURACY

# From the palette of Okabe and Ito, which colour-blind readers can tell apart; the dashes do the same in print.
STYLES = (("#000000", "-"), ("#0072B2", "--"), ("#D55E00", "-."))
GREY = "#767676"


def save_chart(path, histories, title):
    """Write a PNG of every variant that has finished an epoch."""
    figure = Figure(figsize=(10, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    loss, accuracy = figure.subplots(1, 2)
    for history, (colour, dashes) in zip(histories, STYLES):
        epochs = range(1, len(history.losses) + 1)
        style = {"color": colour, "linestyle": dashes, "linewidth": 1.8, "label": history.variant.name}
        if len(epochs) == 1:
            style["marker"] = "o"
        if epochs:
            loss.plot(epochs, history.losses, **style)
            accuracy.plot(epochs, history.accuracies, **style)
    _finish_loss(loss)
    _finish_accuracy(accuracy)
    figure.savefig(path)


def _finish_loss(axes):
    axes.set(yscale="log", ylabel="training loss (cross-entropy, nats)")
    _finish(axes)


def _finish_accuracy(axes):
    axes.axhline(TARGET_ACCURACY, color=GREY, linewidth=1, linestyle=":")
    axes.set(ylim=(0, 1.02), ylabel="test accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axes.annotate(f"{TARGET_ACCURACY:.0%}", (1, TARGET_ACCURACY), xycoords=("axes fraction", "data"), color=GREY,
                  xytext=(4, 0), textcoords="offset points", va="center", fontsize=9)
    _finish(axes)
    axes.legend(title="batch norm", loc="lower right")


def _finish(axes):
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.grid(True, color="#DDDDDD", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
