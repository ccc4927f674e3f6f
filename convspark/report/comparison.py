"""Accuracy against the number of labels, a line for each initialisation."""

import os
import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ..files import written_whole
from .labels import legend, of_any_letters

_COLOURS = ("#e45756", "#4c78a8", "#72675b", "#54a24b", "#b279a2")


def accuracy_against_labels(scores: Sequence[Any], path: str | os.PathLike[str]) -> None:
    """Draws each run as a dot and the mean as a line into a PNG file.

    Args:
        scores: with `arm`, `labels`, and `values["top1"]`, one value a run, from 0 to 1.
    """
    figure = Figure(figsize=(6.4, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    lines: dict[str, Any] = {}
    for arm, colour in zip(dict.fromkeys(score.arm for score in scores), _COLOURS * 9, strict=False):
        own = sorted((score for score in scores if score.arm == arm), key=lambda score: score.labels)
        labels = [score.labels for score in own]
        means = [100 * statistics.fmean(s.values["top1"]) for s in own]
        (lines[arm],) = axes.plot(labels, means, color=colour, marker="o")
        for score in own:
            values = [100 * value for value in score.values["top1"]]
            axes.scatter([score.labels] * len(values), values, color=colour, s=14, alpha=0.45, linewidths=0)
    ticks = sorted({score.labels for score in scores})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("labelled pictures")
    axes.set_ylabel("top-1 accuracy, %")
    runs = max(len(score.values["top1"]) for score in scores)
    if runs > 1:
        axes.set_title(f"lines: mean of {runs} runs; small dots: single runs", fontsize=9, color="#555555")
    legend(axes, list(lines.values()), list(lines), frameon=False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    with written_whole(path) as temporary, of_any_letters():
        figure.savefig(temporary, format="png")
