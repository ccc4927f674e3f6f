"""A few pictures that a user names, as images to look at."""

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import DataError, UsageError
from .files import list_images
from .pixels import Pixels
from .stored import item_of
from .transforms import HeldOutTransform


def few_pictures(
    pictures: Sequence[str],
    pixels: Pixels,
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    most: int,
) -> tuple[Tensor, list[str]]:
    """Images (B, C, H, W), normalised by `mean` and `std`, and a name for each.

    Args:
        pictures: files, or folders of them, whose first pictures are taken.
        pixels: how they are read.
        most: B at most.

    Raises:
        DataError: a picture that is not there or cannot be read.
    """
    paths: list[str] = []
    for picture in pictures:
        listed = os.path.isdir(picture) or (os.path.isfile(picture) and not pixels.is_plain)
        paths += list_images(picture, bands=not pixels.is_plain) if listed else [picture]
    paths = paths[:most]
    for path in paths:
        if not os.path.exists(item_of(path)[0]):
            raise DataError(f"pictures: there is no file {path!r}")
    transform = HeldOutTransform(size=size, mean=mean, std=std)
    images = torch.stack([transform(pixels.read(path, transform.shrink)) for path in paths])
    return images, [os.path.basename(path) for path in paths]


def check_shown(show: Sequence[int] | None, channels: int) -> None:
    """Raise UsageError unless these are the numbers of a channel, or of three."""
    if show is not None and (len(show) not in (1, 3) or not all(1 <= channel <= channels for channel in show)):
        raise UsageError(
            f"show is {list(show)}: expected three channels or one, counted from 1 to {channels}, as in 3,2,1"
        )
