"""Colours and shapes that all pictures share. Drawn without pyplot, so no display is asked for.

The colours of text, lines and grounds are stand-ins, of which the page makes CSS variables: so a picture follows the
reader's light or dark scheme (svg.py). The palette is that of Okabe and Ito, without its black, which colour-blind
readers can tell apart; lines differ by their dashes as well.
"""
from matplotlib import rc_context
from matplotlib.figure import Figure

INK, FAINT, GROUND = "#010203", "#7f8081", "#fdfcfb"  # text and axes; grids; what lies under them
BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"
SERIES = ((BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), (PURPLE, ":"), (SKY, (0, (5, 1))), (YELLOW, (0, (1, 1))))

WIDTH = 7.2  # inches, of a picture as wide as the text; the page scales it down on a phone
RC = {
    "font.size": 10, "axes.titlesize": 10.5, "axes.labelsize": 10, "legend.fontsize": 9, "legend.frameon": False,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": FAINT, "grid.alpha": 0.35,
    "grid.linewidth": 0.6, "axes.axisbelow": True, "figure.facecolor": "none", "axes.facecolor": "none",
    "lines.linewidth": 1.7,
}
styled = rc_context(RC)  # a decorator of functions that draw: the page's style holds while they do


@styled
def new_figure(rows=1, columns=1, *, height=3.2, width=WIDTH, **subplots):
    """(figure, axes) of that size in inches; axes as Figure.subplots gives them. To be called by a `styled` function."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **subplots)
