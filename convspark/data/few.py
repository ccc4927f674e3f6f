"""A few pictures that a user names, as images to look at."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import UsageError
from .addresses import base_name
from .pixels import Pixels
from .places import list_pictures
from .sources import FileSource
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
        pictures: files, or folders, lists and archives of them, whose first pictures are taken.
        pixels: how they are read.
        most: B at most.

    Raises:
        DataError: a picture does not exist or cannot be read.
    """
    places = [pictures] if isinstance(pictures, str) else pictures
    paths = [path for place in places for path in list_pictures(place, bands=not pixels.is_plain)][:most]
    source, transform = FileSource(paths, pixels=pixels), HeldOutTransform(size=size, mean=mean, std=std)
    images = torch.stack([transform(source.read(index, transform.shrink)) for index in range(len(paths))])
    return images, [base_name(path) for path in paths]


def check_shown(show: Sequence[int] | None, channels: int) -> None:
    """Raise UsageError unless these are the numbers of one channel or of three, counted from 1."""
    if show is not None and (len(show) not in (1, 3) or not all(1 <= channel <= channels for channel in show)):
        raise UsageError(
            f"show is {list(show)}: expected three channels or one, counted from 1 to {channels}, as in 3,2,1"
        )
