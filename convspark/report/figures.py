"""The paper's figures of any network, drawn from arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from .labels import label
from .style import DARK, FAINT, INK, LIGHT, MAGNITUDE, MASKED, PATTERN, WIDTH, bare, page

_MOST_MAPS = 6
_LETTERS = 15  # of a module's name that a title has room for
_LETTER = 0.056  # inches, of a name beside a row


def draw_pattern(names: Sequence[str], dense: Sequence[np.ndarray], visible: Sequence[np.ndarray]) -> Figure:
    """Where each layer's map holds something of the visible pixels: maps of some layers above, shares of all below.

    Args:
        names: of the layers, in their order.
        dense, visible: of each, bool (B, h, w); the first picture is drawn, the shares are of all.
    """
    figure = page(4.3)
    parts: Any = figure.subfigures(2, 1, height_ratios=(3, 2))
    above, below = parts
    shares = [[float(map_.mean()) for map_ in maps] for maps in (dense, visible)]
    chosen = _evenly_risen(shares[0])
    grid = above.subplots(2, len(chosen), squeeze=False)
    for column, layer in enumerate(chosen):
        for row, maps in enumerate((dense, visible)):
            axes, is_visible = grid[row, column], visible[layer][0]
            axes.imshow(np.where(is_visible & maps[layer][0], 2, maps[layer][0]), cmap=PATTERN, vmin=0, vmax=2)
            bare(axes)
        grid[0, column].set_title(f"{layer + 1}. {_short(names[layer])}", parse_math=False, fontsize=7)
    grid[0, 0].set_ylabel("dense")
    grid[1, 0].set_ylabel("visible only")
    keys = (DARK, "visible"), (LIGHT, "filled, though masked"), ("white", "nothing")
    handles = [Patch(facecolor=colour, edgecolor=FAINT, linewidth=0.5, label=text) for colour, text in keys]
    above.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    axes = below.subplots()
    places = range(1, len(names) + 1)
    for values, text, colour, marker in zip(shares, ("dense", "visible only"), (LIGHT, DARK), "os", strict=True):
        axes.plot(places, [100 * v for v in values], color=colour, marker=marker, ms=3.5, lw=1.4, label=text)
    axes.set_ylim(0, 105)
    axes.set_xlabel("convolutions and poolings, in their order")
    axes.set_ylabel("positions filled, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, loc="lower right", ncols=2)
    return figure


def draw_intensities(
    edges: np.ndarray, whole: np.ndarray, zeros: np.ndarray, visible: np.ndarray, moved: tuple[float, float]
) -> Figure:
    """Histograms of pixel values before and after masking, each with the first as a line.

    Args:
        edges: (bins + 1,)
        whole, zeros, visible: (bins,), shares of the pixels.
        moved: the shares of the last two that lie elsewhere than in the first.
    """
    figure = page(2.2)
    top = 1.3 * max(float(whole.max()), float(visible.max()))
    titles = (
        "whole pictures",
        f"masked patches set to 0\n{100 * moved[0]:.0f} % of the distribution moved",
        f"masked patches left out\n{100 * moved[1]:.0f} % of the distribution moved",
    )
    for axes, shares, title in zip(figure.subplots(1, 3, sharey=True), (whole, zeros, visible), titles, strict=True):
        axes.stairs(100 * shares, edges, fill=True, color=LIGHT if shares is not whole else MASKED)
        axes.stairs(100 * whole, edges, color=DARK, lw=1.0)
        axes.set_ylim(0, 100 * top)
        axes.set_title(title)
        axes.set_xlabel("normalised intensity")
        if shares.max() > top:
            at = int(shares.argmax())
            text = f"{100 * shares[at]:.0f} % ↑"
            is_left = at < len(shares) / 2
            axes.text(
                edges[at + 1 if is_left else at], 97 * top, text, ha="left" if is_left else "right", va="top", color=INK
            )
    figure.axes[0].set_ylabel("pixels, %")
    return figure


def draw_features(
    pictures: Sequence[np.ndarray],
    names: Sequence[str],
    whole: Sequence[np.ndarray],
    zeros: Sequence[np.ndarray],
    visible: Sequence[np.ndarray],
) -> Figure:
    """The magnitude of each stage's features: of the whole picture, of visible patches, and filled with 0.

    The colours of a column are those of its first row, from its 1 % to its 99 % quantile.

    Args:
        pictures: (H, W, 3) from 0 to 1, one a row: whole, without masked patches, with 0 there.
        names: of the stages.
        whole, zeros, visible: of each, (h, w), NaN where there is nothing.
    """
    columns = len(names) + 1
    figure = page((WIDTH - 0.3) / columns * 3 * pictures[0].shape[0] / pictures[0].shape[1] + 0.2)
    grid = figure.subplots(3, columns, squeeze=False)
    rows = ("whole picture", "visible patches only", "dense, filled with 0")
    for axes, text, picture in zip(grid[:, 0], rows, pictures, strict=True):
        axes.imshow(picture)
        axes.set_ylabel(text)
    for column, (name, *maps) in enumerate(zip(names, whole, visible, zeros, strict=True), start=1):
        low, high = np.quantile(maps[0], (0.01, 0.99))
        for axes, values in zip(grid[:, column], maps, strict=True):
            axes.imshow(values, cmap=MAGNITUDE, vmin=low, vmax=max(high, low + 1e-12))
        grid[0, column].set_title(name, parse_math=False)
    for axes in grid.flat:
        bare(axes)
    return figure


@dataclass(frozen=True)
class Column:
    """A column of pictures under a title, (H, W, 3) each, from 0 to 1."""

    title: str
    pictures: Sequence[np.ndarray]


def draw_pictures(columns: Sequence[Column], names: Sequence[str]) -> Figure:
    """Rows of pictures, a row for each name."""
    height, width = columns[0].pictures[0].shape[:2]
    row = (WIDTH - 0.2) / len(columns) * height / width  # inches
    figure = page(len(names) * row + 0.2)
    grid: Any = figure.subplots(len(names), len(columns), squeeze=False)
    for place, column in enumerate(columns):
        grid[0, place].set_title(column.title)
        for axes, picture in zip(grid[:, place], column.pictures, strict=True):
            axes.imshow(picture)
            bare(axes)
    for axes, name in zip(grid[:, 0], names, strict=True):
        axes.set_ylabel(_end(label(name), int(row / _LETTER)), parse_math=False, fontsize=6, color=FAINT)
    return figure


def _evenly_risen(shares: Sequence[float]) -> list[int]:
    """Up to six layers between whose shares are steps of about equal size; the first and the last are among them."""
    levels = np.linspace(shares[0], max(shares), _MOST_MAPS)
    risen = np.maximum.accumulate(shares)
    chosen = {int(np.argmax(risen >= level - 1e-9)) for level in levels} | {len(shares) - 1}
    return [*sorted(chosen)[: _MOST_MAPS - 1], max(chosen)] if len(chosen) > _MOST_MAPS else sorted(chosen)


def _end(name: str, letters: int) -> str:
    """A name, cut at its beginning where it has more letters."""
    return name if len(name) <= letters else f"…{name[len(name) + 1 - max(2, letters) :]}"


def _short(name: str) -> str:
    """The end of a module's name, for a title: as many of its parts as there is room for."""
    name, parts = label(name), label(name).split(".")
    fitting = next((n for n in range(len(parts)) if len(".".join(parts[n:])) <= _LETTERS), len(parts) - 1)
    return name if fitting == 0 else f"…{'.'.join(parts[fitting:])[-_LETTERS:]}"
