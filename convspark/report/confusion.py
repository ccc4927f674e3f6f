"""The confusion matrix as a picture."""

import os
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..files import written_whole
from .labels import label, of_any_letters

_MOST_NUMBERS = 30  # classes above which cells hold no numbers
_MOST_NAMES = 60


def confusion_matrix(
    labels: np.ndarray, predicted: np.ndarray, names: Sequence[str], path: str | os.PathLike[str]
) -> None:
    """Draws true classes against predicted ones, coloured by the share of the true class, into a PNG file.

    Args:
        labels, predicted: (N,) indices into `names`.
    """
    counts = np.zeros((len(names), len(names)), dtype=int)
    np.add.at(counts, (labels, predicted), 1)
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    side = min(16.0, 3.2 + 0.42 * len(names))
    figure = Figure(figsize=(side + 0.8, side), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, fraction=0.046, label="share of the true class")
    if len(names) <= _MOST_NAMES:
        ticks = [label(name) for name in names]
        axes.set_xticks(range(len(names)), ticks, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
        axes.set_yticks(range(len(names)), ticks, parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(f"{np.trace(counts)} of {len(labels)} right")
    if len(names) <= _MOST_NUMBERS:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[row, column] > 0.55 else "#333333"
                axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
    axes.spines[:].set_visible(False)
    with written_whole(path) as temporary, of_any_letters():
        figure.savefig(temporary, format="png", bbox_inches="tight")  # names of classes may be long
