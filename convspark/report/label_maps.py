"""Predicted classes of pixels beside the truth."""

import os
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from ..data.transforms import Picture
from ..files import written_whole
from .labels import label, legend, of_any_letters


def draw_label_maps(
    samples: Sequence[tuple[str, Picture, np.ndarray, np.ndarray]], classes: Sequence[str], path: str | os.PathLike[str]
) -> None:
    """Draws rows of picture, true and predicted classes into a PNG file; a class called background is not coloured.

    Args:
        samples: (name of the picture, the picture, true labels (H, W), predicted labels (H, W)). Of bands, the first
            three are shown, each from black to white.
    """
    coloured = [value for value, name in enumerate(classes) if (value, name) != (0, "background")]
    palette = colormaps["tab10" if len(coloured) <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    colours = {value: palette[place % len(palette)] for place, value in enumerate(coloured)}
    figure = Figure(figsize=(9, 3.2 * len(samples)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(samples), 3, squeeze=False)
    for row, (name, picture, truth, predicted) in zip(grid, samples, strict=True):
        values = _displayed(picture)
        titles = (label(name), "truth", "predicted")
        for axes, labels, title in zip(row, (None, truth, predicted), titles, strict=True):
            view = values.copy()
            for value, colour in colours.items() if labels is not None else ():
                view[labels == value] = 0.45 * view[labels == value] + 0.55 * np.array(colour)
            axes.imshow(view)
            axes.set_title(title, fontsize=9, parse_math=False)
            axes.set_axis_off()
    handles = [Rectangle((0, 0), 1, 1, color=colour) for colour in colours.values()]
    names = [classes[value] for value in coloured]
    if len(coloured) < len(classes):
        handles.append(Rectangle((0, 0), 1, 1, fill=False, edgecolor="grey"))
        names.append(f"{classes[0]} (not coloured)")
    legend(figure, handles, names, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    with written_whole(path) as temporary, of_any_letters():
        figure.savefig(temporary, format="png")


def _displayed(picture: Picture) -> np.ndarray:
    """(H, W, 3), from 0 to 1."""
    if not isinstance(picture, Tensor):
        values = np.asarray(picture, dtype=np.float32)
        return values / max(1.0, float(values.max()))  # dark microscope pictures become visible
    chosen = picture[: 3 if len(picture) >= 3 else 1].numpy()  # (C, H, W)
    low, high = np.nanquantile(chosen, (0.01, 0.99), axis=(1, 2), keepdims=True)
    values = np.nan_to_num((chosen - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    return np.broadcast_to(values.transpose(1, 2, 0), (*values.shape[1:], 3)).astype(np.float32)
