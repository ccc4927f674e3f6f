"""Draws images/how-it-works.png: one picture on its way through a network, each panel from the tensors of a run.

    python docs/drawing/how_it_works.py RUN

RUN is a run folder of `pretrain` on 8-bit colours; the picture in the docs is of that of `drawing/figures.py`.
"""

import math
import sys
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from convspark import PatchGrid, scatter
from convspark.checkpoints.whole import load_whole
from convspark.data import demo_photographs
from convspark.report.style import MASKED_TONE, in_style, page

PHOTOGRAPH = "coffee"
SIDE = 192
SEED = 3


def main(run: str) -> None:
    whole = load_whole(run)
    model = whole.model.eval()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (whole.mean, whole.std))
    picture = dict(demo_photographs())[PHOTOGRAPH].convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    pixels = to_tensor(picture)
    images = ((pixels - mean) / std)[None]
    shape = model.grid_shape((SIDE, SIDE))
    grid = PatchGrid.random(1, shape, model.mask_ratio, generator=torch.Generator().manual_seed(SEED))
    with torch.no_grad():
        out = model(images, grid)
        painted = model.reconstruct(images, grid).reconstruction[0]
    side = model.patch_size[0]
    visible = grid.visible[0].repeat_interleave(side, 0).repeat_interleave(side, 1)
    panels = [
        (f"a picture\n(3, {SIDE}, {SIDE})", pixels, True),
        (f"its patches, {grid.num_visible} of {grid.visible.numel()} visible", _with_holes(pixels, visible), True),
        (f"what the network gets\n({grid.num_visible}, 3, {side}, {side})", _stack(pixels, grid, side), False),
    ]
    for features in out.features:
        values = features.values
        title = f"stage of stride {SIDE // scatter(features).shape[-1]}\n{tuple(values.shape)}"
        panels.append((title, _components(scatter(features)[0], grid), True))
    panels.append(("what the decoder paints", (painted * std + mean).clamp(0, 1), True))
    with in_style():
        figure = page(3.9)
        for axes, (title, panel, lined) in zip(figure.subplots(2, 4).flat, panels, strict=True):
            axes.imshow(panel.permute(1, 2, 0).numpy(), extent=(0, 1, 1, 0))
            axes.set_title(title)
            axes.axis("off")
            for line in range(1, shape[0]) if lined else ():
                for draw in (axes.axhline, axes.axvline):
                    draw(line / shape[0], color="white", linewidth=0.5)
        figure.savefig(Path(__file__).parents[1] / "images" / "how-it-works.png", dpi=150)


def _with_holes(values: Tensor, visible: Tensor) -> Tensor:
    return torch.where(visible, values, torch.tensor(MASKED_TONE))


def _stack(pixels: Tensor, grid: PatchGrid, side: int) -> Tensor:
    """The visible patches, one after another, with white between them; (3, H, W)."""
    places = grid.visible[0].nonzero().tolist()
    columns = math.ceil(math.sqrt(len(places)))
    step = side + 3
    sheet = torch.ones(3, columns * step, columns * step)
    for number, (y, x) in enumerate(places):
        row, column = divmod(number, columns)
        patch = pixels[:, y * side : (y + 1) * side, x * side : (x + 1) * side]
        sheet[:, row * step : row * step + side, column * step : column * step + side] = patch
    return sheet


def _components(features: Tensor, grid: PatchGrid) -> Tensor:
    """The first three principal components of a map (C, h, w) as colours, over its visible positions; (3, h, w)."""
    times = features.shape[-1] // grid.shape[-1]
    visible = grid.visible[0].repeat_interleave(times, 0).repeat_interleave(times, 1)
    rows = features[:, visible].T
    rows = rows - rows.mean(0)
    axes = torch.linalg.svd(rows, full_matrices=False).Vh[:3]
    scores = rows @ axes.T
    low, high = scores.quantile(0.02, dim=0), scores.quantile(0.98, dim=0)
    colours = torch.zeros(3, *visible.shape)
    colours[:, visible] = ((scores - low) / (high - low)).clamp(0, 1).T
    return _with_holes(colours, visible)


if __name__ == "__main__":
    main(sys.argv[1])
