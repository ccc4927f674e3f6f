"""Predictions beside the truth, drawn into pictures."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..data import decode
from ..files import written_whole
from .labels import label, legend, of_any_letters

_COLOURS = ("#e45756", "#4c78a8", "#f2b134", "#54a24b", "#b279a2", "#ff9da6")


def draw_detections(
    scenes: Any, detections: Sequence[dict[str, Any]], path: str | os.PathLike[str], count: int = 4, least: float = 0.5
) -> None:
    """Draws a few scenes, truth on the left and predictions of at least a score of `least` on the right, into a PNG.

    Args:
        scenes: annotated pictures, with `scenes` and `classes`.
        detections: COCO's result entries, with image ids from 1 in the order of the scenes.
    """
    places = sorted({round(i) for i in np.linspace(0, len(scenes.scenes) - 1, min(count, len(scenes.scenes)))})
    figure = Figure(figsize=(9, 3.6 * len(places)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(places), 2, squeeze=False)
    for row, place in zip(grid, places, strict=True):
        scene = scenes.scenes[place]
        pixels = np.asarray(decode(scene.path))
        detections_here = [d for d in detections if d["image_id"] == place + 1]
        likely = [d for d in detections_here if d["score"] >= least]
        truth = [
            ((t.box[0], t.box[1], t.box[2] - t.box[0], t.box[3] - t.box[1]), t.label, t.mask) for t in scene.things
        ]
        guess = [(tuple(d["bbox"]), d["category_id"], d.get("segmentation")) for d in likely]
        titles = (
            f"{label(os.path.basename(scene.path))}, truth: {len(truth)}",
            f"predicted with a score of {least:g} or more: {len(guess)} (of {len(detections_here)})",
        )
        for axes, things, title in zip(row, (truth, guess), titles, strict=True):
            _draw(axes, pixels, things)
            axes.set_title(title, fontsize=9, parse_math=False)
    handles = [Rectangle((0, 0), 1, 1, color=_colour(i)) for i in range(1, len(scenes.classes) + 1)]
    legend(figure, handles, scenes.classes, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    with written_whole(path) as temporary, of_any_letters():
        figure.savefig(temporary, format="png")


def _draw(axes: Axes, pixels: np.ndarray, things: Sequence[Any]) -> None:
    from faster_coco_eval.core import mask as coding

    axes.set_axis_off()
    canvas = pixels.astype(np.float32) / max(1, int(pixels.max()))  # dark microscope pictures become visible
    for box, kind, mask in things:
        if mask is None:
            axes.add_patch(Rectangle(box[:2], box[2], box[3], fill=False, edgecolor=_colour(kind), linewidth=1.0))
            continue
        inside = np.asarray(coding.decode(mask), dtype=bool)
        colour = np.array([int(_colour(kind)[i : i + 2], 16) / 255 for i in (1, 3, 5)], dtype=np.float32)
        canvas[inside] = 0.5 * canvas[inside] + 0.5 * colour
        axes.contour(inside, [0.5], colors="white", linewidths=0.5)
    axes.imshow(canvas)


def _colour(label: int) -> str:
    return _COLOURS[(label - 1) % len(_COLOURS)]
