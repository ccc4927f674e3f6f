"""What masking does to a network's maps and to the pixels' statistics: the numbers that figures are drawn from.

Two ways to mask are compared: the dense network on a picture whose masked patches are 0, and the same network on the
visible patches alone.
"""

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..model.networks import copied
from ..model.stages import Stages, evaluating
from ..sparse import PatchGrid, VisiblePatches, gather, scatter

_BINS = 48


@dataclass(frozen=True)
class Layer:
    """Where one layer's map holds something of the visible pixels.

    Attributes:
        name: of the module; of several calls, with the number of the call.
        dense, visible: bool (B, h, w), True where the map differs from that of a picture masked as a whole: of the
            dense network on the picture filled with 0, and of the network on visible patches.
    """

    name: str
    dense: np.ndarray
    visible: np.ndarray


@dataclass(frozen=True)
class StageMaps:
    """The features of one stage, at each position the root of the mean square over channels.

    Attributes:
        name: of the stage.
        stride: of its map in pixels, (down, across).
        whole, zeros, visible: (B, h, w), of the whole picture, of the dense network on the picture filled with 0, and
            of the network on visible patches, where masked positions are NaN.
    """

    name: str
    stride: tuple[int, ...]
    whole: np.ndarray
    zeros: np.ndarray
    visible: np.ndarray


@dataclass(frozen=True)
class Intensities:
    """Histograms of pixel values, all channels together; each adds up to 1.

    Attributes:
        edges: (bins + 1,) of the bins, in the images' units.
        whole, zeros, visible: (bins,), of all pixels, of all pixels with masked ones at 0, of visible pixels.
    """

    edges: np.ndarray
    whole: np.ndarray
    zeros: np.ndarray
    visible: np.ndarray

    def moved(self, histogram: np.ndarray) -> float:
        """The share of a histogram that lies elsewhere than in that of all pixels (total variation), 0 to 1."""
        return float(np.abs(histogram - self.whole).sum() / 2)


def pixel_mask(grid: PatchGrid, sides: Sequence[int]) -> Tensor:
    """bool (B, *sides), True at the positions of visible patches, of maps of any stride that divides the patch."""
    mask = grid.visible
    for axis, (side, cells) in enumerate(zip(sides, grid.shape, strict=True), start=1):
        mask = mask.repeat_interleave(side // cells, axis)
    return mask


def intensities(images: Tensor, grid: PatchGrid, bins: int = _BINS) -> Intensities:
    """Histograms of images (B, C, H, W) before and after masking, over the range of all their values and 0."""
    mask = pixel_mask(grid, images.shape[2:])[:, None]
    zeros = images * mask
    visible = images.movedim(1, -1)[mask[:, 0]]  # (B, C, H, W) -> (visible pixels, C)
    edges = np.linspace(float(images.min().clamp_max(0)), float(images.max().clamp_min(0)), bins + 1)
    return Intensities(edges, *(_shares(values, edges) for values in (images, zeros, visible)))


def _shares(values: Tensor, edges: np.ndarray) -> np.ndarray:
    counts, _ = np.histogram(values.numpy(), edges.astype(values.numpy().dtype))
    return counts / max(1, counts.sum())


@torch.no_grad()
def mask_pattern(stages: Stages, images: Tensor, grid: PatchGrid) -> list[Layer]:
    """How far the visible pixels reach in each map on the way to the deepest stage, in the order of the calls.

    The layers are those that look around: convolutions and poolings with a kernel of more than one position. Where the
    network has none that are modules, its stages stand for them. In evaluation mode and float64 (whose convolutions are
    computed position by position, so that a difference is one of what they read), on a copy.

    Args:
        images: (B, C, H, W).
        grid: which of their patches are visible.

    Raises:
        NotExactError: the network cannot be run on visible patches.
    """
    stages, images = _in_double(stages), images.double()
    zeros = images * pixel_mask(grid, images.shape[2:])[:, None]
    names = _layers_that_look_around(stages.backbone)
    dense = _reached(stages, names, zeros, torch.zeros_like(zeros))
    visible = _reached(stages, names, gather(images, grid), gather(torch.zeros_like(images), grid))
    return [Layer(name, dense[name], visible[name]) for name in dense if name in visible]


@torch.no_grad()
def stage_maps(stages: Stages, images: Tensor, grid: PatchGrid) -> list[StageMaps]:
    """The features of each stage, finest first, of whole and of masked pictures, in evaluation mode."""
    _check_pictures(stages)
    images, grid = images.to(stages.device, stages.dtype), grid.to(stages.device)
    mask = pixel_mask(grid, images.shape[2:])[:, None]
    with evaluating(stages.backbone):
        runs = [stages(images), stages(images * mask), [_whole(maps) for maps in stages(gather(images, grid))]]
    all_maps = []
    for name, stride, maps in zip(stages.names, stages.strides, zip(*runs, strict=True), strict=True):
        # (B, C, h, w) -> (B, h, w)
        whole, zeros, visible = (features.double().square().mean(1).sqrt().cpu() for features in maps)
        visible = visible.masked_fill(~pixel_mask(grid, visible.shape[1:]).cpu(), torch.nan)
        all_maps.append(StageMaps(name, stride, whole.numpy(), zeros.numpy(), visible.numpy()))
    return all_maps


def _check_pictures(stages: Stages) -> None:
    if stages.dims != 2:
        raise UsageError(f"backbone={type(stages.backbone).__name__} takes no pictures, but {stages.dims}-D images")


def _in_double(stages: Stages) -> Stages:
    _check_pictures(stages)
    twin = copy.copy(stages)
    twin.backbone = copied(stages.backbone).cpu().double()
    twin.backbone.eval()
    return twin


def _layers_that_look_around(network: nn.Module) -> dict[str, nn.Module]:
    def kernel(module: nn.Module) -> int:
        size = getattr(module, "kernel_size", 1)
        sides = size if isinstance(size, tuple) else (size,)
        return max((side for side in sides if isinstance(side, int)), default=1)

    inner = {name: module for name, module in network.named_modules() if kernel(module) > 1}
    return {name: module for name, module in inner.items() if not any(True for _ in module.children())}


def _reached(stages: Stages, layers: dict[str, nn.Module], images: Tensor, blank: Tensor) -> dict[str, np.ndarray]:
    """Where the maps of two runs differ, by the layer's name."""
    without = _maps(stages, layers, blank, lambda _, map_: map_.clone())
    return _maps(stages, layers, images, lambda name, map_: _differs(map_, without[name]))


def _differs(one: Tensor, other: Tensor) -> np.ndarray:
    """(B, C, h, w) twice -> (B, h, w), True where a bit differs: what is computed from the same is the same."""
    return (one != other).any(1).numpy()


def _maps(
    stages: Stages, layers: dict[str, nn.Module], images: Tensor, keep: Callable[[str, Tensor], Any]
) -> dict[str, Any]:
    """What is kept of the map of each call of the layers, and of the stages if no layer is called."""
    by_call: dict[str, Any] = {}
    calls: Counter[str] = Counter()

    def listen(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: object, output: object) -> None:
            calls[name] += 1
            called = name if calls[name] == 1 else f"{name} ({calls[name]})"
            if isinstance(output, Tensor) and output.ndim == images.ndim:
                by_call[called] = keep(called, _whole(output))

        return hook

    handles = [module.register_forward_hook(listen(name)) for name, module in layers.items()]
    try:
        features = stages(images)
    finally:
        for handle in handles:
            handle.remove()
    return by_call or {name: keep(name, _whole(maps)) for name, maps in zip(stages.names, features, strict=True)}


def _whole(features: Tensor) -> Tensor:
    """Visible patches as whole maps, 0 where masked; whole maps as they are."""
    return scatter(features) if isinstance(features, VisiblePatches) else features
