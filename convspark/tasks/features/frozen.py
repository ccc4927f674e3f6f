"""Frozen features: what a backbone makes of pictures, one vector each."""

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ...data import PLAIN, FileSource, HeldOutTransform, Pixels, PretrainImages
from ...model.stages import Stages
from ...runs.loading import MeasuringLoader, end_workers, workers_explained
from ...runs.module import channels_last
from ...runs.processes import ALONE, Processes

logger = logging.getLogger(__name__)


def frozen_features(
    backbone: nn.Module, loader: MeasuringLoader, device: torch.device, tick: Callable[[int], None] | None = None
) -> np.ndarray:
    """(N, C) float32: the mean over positions of the deepest stage that pre-training reaches.

    Of several processes that share the pictures, the first one gets all.

    What comes after that stage (a final norm, a wider last convolution) has random weights after pre-training.

    Args:
        loader: batches of images (B, C, H, W), or of these and labels.
        tick: called with the number of pictures done.
    """
    backbone.to(device).eval()  # what this returns is nothing in some libraries' networks
    return deepest_features(Stages(backbone), loader, device, means, tick)


def means(features: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, C), the means over positions."""
    return features.flatten(2).mean(-1).float()


def deepest_features(
    stages: Stages,
    loader: MeasuringLoader,
    device: torch.device,
    of: Callable[[Tensor], Tensor],
    tick: Callable[[int], None] | None = None,
) -> np.ndarray:
    """What a function makes of the deepest stage, (B, C, h, w), batch by batch, put together; of several processes that
    share the pictures, the first one gets all.

    Args:
        stages: of a backbone in evaluation mode, on the device.
        loader, tick: see `frozen_features`.
    """
    parts: list[tuple[int, np.ndarray]] = []
    done = 0
    try:
        with torch.no_grad(), workers_explained():
            for own, batch in enumerate(loader):
                images = batch[0] if isinstance(batch, list | tuple) else batch
                deepest = stages(channels_last(images.to(device, stages.dtype)))[-1]
                parts.append((loader.number(own), of(deepest).cpu().numpy()))
                done += len(images)
                if tick is not None:
                    tick(done)
    finally:
        end_workers(loader)
    parts = sorted(loader.of_all_for_first(parts), key=lambda pair: pair[0])
    return np.concatenate([features for _, features in parts]) if parts else np.zeros((0, 0), np.float32)


def picture_loader(
    paths: Sequence[str],
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    workers: int = 0,
    here: Processes = ALONE,
    pixels: Pixels = PLAIN,
) -> MeasuringLoader:
    """Centre crops of unlabelled pictures, in their order."""
    transform = HeldOutTransform(size=size, mean=mean, std=std)
    dataset = PretrainImages(FileSource(paths, pixels=pixels), transform, most_bad=1.0)
    return MeasuringLoader(dataset, 64, workers, here)
