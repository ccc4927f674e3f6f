"""How a run went: losses and learning rate against the epoch."""

import math
import os
from collections.abc import Sequence
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..files import written_whole
from .metrics import read_metrics

_TRAIN, _HELD_OUT, _RATE = "#4c78a8", "#e45756", "#72675b"


def loss_curves(metrics_csv: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Draws training loss, held-out loss and learning rate from a run's `metrics.csv` into a PNG file.

    Cells may be empty (the held-out loss is measured now and then) and the last line cut off (the run may be
    going on); of lines with the same step the last counts (the run may have been resumed).

    Raises:
        DataError: the file is missing, lacks a needed column, or has no complete line yet.
    """
    columns = read_metrics(metrics_csv)
    places = _places(columns["epoch"], columns["step"])
    # No pyplot: it keeps figures and a backend choice in global state.
    figure = Figure(figsize=(7.2, 5.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    losses, rate = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    _curve(losses, places, columns["train_loss"], _TRAIN, "training")
    _curve(losses, places, columns.get("held_out_loss", []), _HELD_OUT, "held out")
    losses.set_ylabel("loss")
    if losses.get_legend_handles_labels()[0]:
        losses.legend(frameon=False)
    _curve(rate, places, columns.get("learning_rate", []), _RATE, "learning rate")
    rate.set_ylabel("learning rate")
    rate.set_ylim(bottom=0)
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    rate.set_xlabel("epoch")
    rate.xaxis.set_major_locator(MaxNLocator(integer=places[-1] > 3))
    for axes in (losses, rate):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png")


def _places(epochs: Sequence[float], steps: Sequence[float]) -> list[float]:
    """Where each line stands on the epoch axis. Several lines an epoch are set apart by their steps."""
    rises = all(later > earlier for earlier, later in pairwise(epochs))
    if rises or not steps[-1] or math.isnan(epochs[-1]):
        return list(epochs) if rises else list(steps)
    return [epochs[-1] * step / steps[-1] for step in steps]


def _curve(axes: Axes, places: Sequence[float], values: Sequence[float], colour: str, label: str) -> None:
    """A line through the values that are there; a dot on each if they are few."""
    points = [(place, value) for place, value in zip(places, values, strict=False) if math.isfinite(value)]
    if points:
        marker = "o" if len(points) <= 40 else ""
        axes.plot(*zip(*points, strict=True), color=colour, label=label, marker=marker, markersize=3, linewidth=1.6)
