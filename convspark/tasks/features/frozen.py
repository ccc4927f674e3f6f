"""Frozen features: what a backbone makes of pictures, one vector each."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from ...data import PLAIN, FileSource, HeldOutTransform, Pixels, PretrainImages
from ...model.stages import Stages
from ...runs.loading import end_workers, ordered_loader, workers_explained
from ...runs.module import channels_last

logger = logging.getLogger(__name__)


def frozen_features(
    backbone: nn.Module, loader: DataLoader[Any], device: torch.device, tick: Callable[[int], None] | None = None
) -> np.ndarray:
    """(N, C) float32: the mean over positions of the deepest stage that pre-training reaches.

    What lies behind that stage (a final norm, a wider last convolution) has random weights after pre-training.

    Args:
        loader: batches of images (B, C, H, W), or of these and labels.
        tick: called with the number of pictures done.
    """
    stages = Stages(backbone.to(device).eval())
    found: list[np.ndarray] = []
    try:
        with torch.no_grad(), workers_explained():
            for batch in loader:
                images = batch[0] if isinstance(batch, list | tuple) else batch
                deepest = stages(channels_last(images.to(device)))[-1]
                found.append(deepest.flatten(2).mean(-1).float().cpu().numpy())
                if tick is not None:
                    tick(sum(map(len, found)))
    finally:
        end_workers(loader)
    return np.concatenate(found)


def picture_loader(
    paths: Sequence[str],
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    workers: int = 0,
    pixels: Pixels = PLAIN,
) -> DataLoader[Any]:
    """Centre crops of unlabelled pictures, in their order."""
    transform = HeldOutTransform(size=size, mean=mean, std=std)
    dataset = PretrainImages(FileSource(paths, pixels=pixels), transform, most_bad=1.0)
    return ordered_loader(dataset, 64, workers)
