"""A network's encoder, to be measured: a forward and a backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from convspark import PatchGrid


def encoder_step(name: str) -> Callable[[Tensor, PatchGrid | None], None]:
    """What takes images (B, 3, H, W) through timm's network and back: whole without a grid, else visible patches."""
    import timm
    import torch

    from convspark import gather
    from convspark.model.stages import Stages
    from convspark.sparse import VisiblePatches

    stages = Stages(timm.create_model(name).train().to(memory_format=torch.channels_last))

    def step(images: Tensor, grid: PatchGrid | None) -> None:
        inputs = images.to(memory_format=torch.channels_last) if grid is None else gather(images, grid)
        features = [f.values if isinstance(f, VisiblePatches) else f for f in stages(inputs)]
        torch.stack([f.sum() for f in features]).sum().backward()

    return step
