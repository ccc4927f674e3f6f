"""Normalised images of any channels as values that a page can show."""

from collections.abc import Sequence

import torch
from torch import Tensor

_COLOURLESS = 1 / 255  # difference of the channels of a pixel
_STRETCHED = (0.01, 0.99)  # quantiles that become black and white


def displayed(
    images: Sequence[Tensor],
    mean: Sequence[float],
    std: Sequence[float],
    show: Sequence[int] | None = None,
    stretch: bool = False,
) -> list[Tensor]:
    """Of each of several normalised images (B, C, H, W) what is shown, (B, 1 or 3, H, W) from 0 to 1.

    Args:
        images: the originals first, whose range and colours, or lack of them, count for all.
        mean, std: of each channel.
        show: three channels that are red, green and blue, or a single one, counted from 1. By default the first three,
            or where there are two, the first.
        stretch: draw each channel from the 1 % to the 99 % quantile that it has in the original, as channels of unknown
            meaning and range always are: those of other images than of one or three.
    """
    channels = images[0].shape[1]
    chosen = [channel - 1 for channel in show or (range(1, 4) if channels >= 3 else [1])]
    stretch = stretch or channels not in (1, 3)
    mean, std = ([values[channel] for channel in chosen] for values in (mean, std))
    parts = [batch.detach().float().cpu()[:, chosen] for batch in images]
    values = [_unit_range(part, parts[0], mean, std, stretch) for part in parts]
    is_grey = (values[0].amax(1) - values[0].amin(1)).amax((1, 2)) < _COLOURLESS  # (B, C, H, W) -> (B,)
    return [torch.where(is_grey[:, None, None, None], part.mean(1, keepdim=True), part) for part in values]


def _unit_range(images: Tensor, original: Tensor, mean: Sequence[float], std: Sequence[float], stretch: bool) -> Tensor:
    """Normalised (B, 1 or 3, H, W) -> values to show, between 0 and 1."""
    shift, scale = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]  # (C, 1, 1)
    values, truth = images * scale + shift, original * scale + shift
    if stretch:
        ends = truth.new_tensor(_STRETCHED)
        low, high = truth.flatten(2).quantile(ends, dim=2)[..., None, None]  # (B, C, 1, 1) each
        values = (values - low) / (high - low).clamp_min(1e-12)
    return values.nan_to_num().clamp(0, 1)
