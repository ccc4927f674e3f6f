"""How figures for a page of print look: one size of letters, tones that differ in grey too, vector PDF and PNG."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from ..files import written_whole
from .labels import of_any_letters

WIDTH = 7.0  # inches, of a page's text
INK, FAINT, MASKED = "#202124", "#6e7176", "#e4e5e8"
MASKED_TONE = 0.894  # the same, from 0 to 1
DARK, LIGHT = "#1f4e79", "#f28e2b"  # grey 0.27 and 0.63
PATTERN = ListedColormap(["#ffffff", LIGHT, DARK])
"""Of 0: nothing, 1: filled though masked, 2: visible."""
MAGNITUDE = ListedColormap(mpl.colormaps["cividis"](np.linspace(0, 0.82, 256))).with_extremes(bad=MASKED)
"""From dark to bright in grey, too; what is not there is light grey, brighter than all that is."""

_LETTERS: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "image.interpolation": "none",
    "image.composite_image": False,
    "pdf.fonttype": 42,  # letters stay letters
}


@contextmanager
def in_style() -> Iterator[None]:
    """Within it, figures are drawn and written in this style."""
    with mpl.rc_context(_LETTERS), of_any_letters():
        yield


def page(height: float) -> Figure:
    """An empty figure as wide as a page's text.

    Args:
        height: in inches.
    """
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def bare(axes: Any) -> None:
    """Axes for a picture: a thin frame, no ticks."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color(MASKED)


def write(figure: Figure, stem: Path) -> list[Path]:
    """Write STEM.pdf, whose letters and lines are vectors, and STEM.png, of 200 dots an inch; neither has a date."""
    paths = [stem.with_name(f"{stem.name}.{ending}") for ending in ("pdf", "png")]
    for path, metadata in zip(paths, ({"CreationDate": None}, {"Software": None}), strict=True):
        with written_whole(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], dpi=200, metadata=metadata)
    return paths
