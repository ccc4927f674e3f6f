"""From a picture to a normalised tensor: random crops to train on, centre crops for all that is compared."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import default_collate

from ..errors import DataError, UsageError
from ..imagenet import IMAGENET_MEAN, IMAGENET_STD
from ..seeds import Counter
from .decode import Shrunk

Box: TypeAlias = tuple[int, int, int, int]
"""(top, left, height, width) of a part of a picture, in pixels of its full size."""


@dataclass(frozen=True)
class Undecoded:
    """The content of a picture's file, and the (H, W) of the picture."""

    content: bytes
    full_size: tuple[int, int]


@dataclass(frozen=True)
class Coded:
    """A crop of a picture that is yet to be decoded; `key` is that of the example."""

    content: bytes
    box: Box
    mirrored: bool
    key: Any


Picture: TypeAlias = Image.Image | Shrunk | Tensor
"""A Pillow image, one decoded smaller than it is, or a tensor (C, H, W) of bytes, 16-bit integers, or floats, which are
NaN where nothing is known."""

# Pillow's recommendation for its `reducing_gap`: averaging over blocks that leave twice the pixels that come out hardly
# differs from resampling all of them, and is much faster.
_GAP = 2


class Normalise(nn.Module):
    """Pictures (..., C, H, W) to float32, (value - mean) / std; a single channel is repeated for each mean.

    Bytes and 16-bit integers are shares of their largest value; floats count as they are. The same numbers of a picture
    as of a batch, and on any device.
    """

    scales: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        means, stds = torch.tensor([mean, std], dtype=torch.float64)
        scale = stds.reciprocal()[:, None, None].float()  # (C, 1, 1)
        # Divided here: a GPU multiplies by the rounded reciprocal of a number.
        scales = torch.stack([scale / unit for unit in (1.0, *_UNITS.values())])
        self.register_buffer("scales", scales, persistent=False)
        self.register_buffer("shift", (-means / stds)[:, None, None].float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        channels = len(self.shift)
        *batch, have, _, _ = images.shape
        if have not in (1, channels):
            raise UsageError(f"mean: {channels} channels, but the images have {have}; give one mean and std a channel")
        values = images.expand(*batch, channels, -1, -1)
        values = values.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        kind = 1 + list(_UNITS).index(images.dtype) if images.dtype in _UNITS else 0
        return values.mul_(self.scales[kind]).add_(self.shift)


@dataclass(frozen=True, kw_only=True)
class _Normalised:
    """What all transforms share: the size that comes out, how a part is cut out, and the values.

    Args:
        size: (H, W) that comes out, or one number for a square.
        mean, std: one number a channel, for values between 0 and 1. Their count is the number of channels: 3
            for RGB, 1 makes grey of coloured pictures; other counts need tensors that have as many.
    """

    size: int | tuple[int, int] = 224
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if min(self.shape) < 1:
            raise UsageError(f"size: expected positive numbers, got {self.size}")
        if len(self.mean) != len(self.std) or not self.mean:
            raise UsageError(f"mean, std: expected one of each per channel, got {len(self.mean)} and {len(self.std)}")
        if min(self.std) <= 0:
            raise UsageError(f"std: expected positive numbers, got {tuple(self.std)}")

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) that comes out."""
        height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
        return height, width

    @cached_property
    def normalise(self) -> Normalise:
        """Makes values of a picture, or of a batch, on the CPU."""
        return Normalise(self.mean, self.std)

    def _cut(self, picture: Picture, box: Box) -> Tensor:
        """The part of a picture in `box`, resized to `size`: (C, H, W), bytes stay bytes, all else is floats.

        Of a shrunk picture it is the nearest part of whole pixels.
        """
        if isinstance(picture, Shrunk):
            full, picture = picture.full_size, picture.picture
            box = _scaled(box, full, (picture.height, picture.width))
        top, left, height, width = box
        if isinstance(picture, Tensor):
            return _resize(filled(picture[:, top : top + height, left : left + width], self.mean), self.shape)
        if len(self.mean) not in (1, 3):
            raise UsageError(
                f"mean: {len(self.mean)} channels, but a picture file has 3 (RGB) or 1 (grey); "
                "read files with `Pixels`, or pass a Dataset of tensors"
            )
        mode = "L" if len(self.mean) == 1 else "RGB"
        picture = picture if picture.mode == mode else picture.convert(mode)
        corners = left, top, left + width, top + height
        factor = min(height // self.shape[0], width // self.shape[1]) // _GAP
        part = picture.reduce(factor, corners) if factor > 1 else picture.crop(corners)
        values = torch.from_numpy(np.array(part))  # (h, w) or (h, w, C)
        return _resize(values[None] if values.ndim == 2 else values.permute(2, 0, 1), self.shape)

    def collate(self, examples: Sequence[Tensor]) -> Tensor:
        """Examples as a batch (B, C, H, W): of bytes where all of them are alike, else of normalised values."""
        if len({(one.dtype, one.shape) for one in examples}) > 1:
            examples = [self.normalise(one) if one.dtype == torch.uint8 else one for one in examples]
        return default_collate(list(examples))


def filled(part: Tensor, mean: Sequence[float]) -> Tensor:
    """(C, h, w) with each channel's mean in place of what is missing, NaN: 0, once it is normalised."""
    if not part.is_floating_point():
        return part
    missing = part.isnan()
    if not missing.any():
        return part
    means = mean if part.shape[0] == len(mean) else [sum(mean) / len(mean)]  # grey that stands for colours
    return torch.where(missing, torch.tensor(means, dtype=part.dtype)[:, None, None], part)


_UNITS = {torch.uint8: 255.0, torch.uint16: 65535.0, torch.int16: 32767.0}


@dataclass(frozen=True, kw_only=True)
class PretrainTransform(_Normalised):
    """Random resized crop and horizontal flip, the whole augmentation of masked pre-training.

    `transform(picture, counter)` draws nothing from any global state: the same counter gives the same crop,
    whatever worker it runs in. The crop has a share `scale` of the area and an aspect ratio within `ratio`
    (its logarithm drawn uniformly); after ten draws that do not fit, the largest central crop within `ratio`
    is taken, as in torchvision. It is placed in the full picture, also where only a shrunk one was decoded.

    Args:
        scale: smallest and largest share of the picture's area, within (0, 1].
        ratio: smallest and largest width / height of the crop.
        flip: whether half of the crops are mirrored.
        in_bytes: whether crops of bytes stay bytes, a quarter of the memory on their way to the device that makes
            numbers of them, by `Normalise`.
    """

    scale: tuple[float, float] = (0.67, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    in_bytes: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UsageError(f"scale: expected 0 < smallest <= largest <= 1, got {tuple(self.scale)}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise UsageError(f"ratio: expected 0 < smallest <= largest, got {tuple(self.ratio)}")

    def shrink(self, height: int, width: int, counter: Counter) -> float:
        """The factor by which a picture may be shrunk so that this counter's crop of it is still not blown up."""
        if height < 2 * self.shape[0] or width < 2 * self.shape[1]:
            return 1.0  # whatever the crop: most pictures are small, and drawing it twice takes time
        _, (_, _, crop_height, crop_width) = self._draw(np.random.default_rng(counter), height, width)
        return min(crop_height / self.shape[0], crop_width / self.shape[1])

    def __call__(self, picture: Picture, counter: Counter) -> Tensor:
        """A picture of any size -> float32 (C, H, W), or bytes."""
        crop = self.crop(picture, np.random.default_rng(counter))
        return crop.contiguous() if self.in_bytes and crop.dtype == torch.uint8 else self.normalise(crop)

    def place(self, picture: Undecoded, counter: Counter, key: Any) -> Coded:
        """The crop of a picture that this counter draws, to be cut out where it is decoded."""
        mirrored, box = self._draw(np.random.default_rng(counter), *picture.full_size)
        return Coded(picture.content, box, mirrored, key)

    def crop(self, picture: Picture, rng: np.random.Generator) -> Tensor:
        """A random crop, resized, half of them mirrored; not normalised yet. (C, H, W), bytes or floats."""
        flip, box = self._draw(rng, *_height_width(picture))
        crop = self._cut(picture, box)
        return crop.flip(2) if flip else crop

    def _draw(self, rng: np.random.Generator, height: int, width: int) -> tuple[bool, Box]:
        """Whether to mirror, and the place of a crop of a picture of height × width pixels."""
        flip = self.flip and rng.random() < 0.5
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            area = height * width * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(low, high))
            crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                top = int(rng.integers(height - crop_height + 1))
                left = int(rng.integers(width - crop_width + 1))
                return flip, (top, left, crop_height, crop_width)
        crop_height = min(height, max(1, round(width / self.ratio[0])))
        crop_width = min(width, max(1, round(height * self.ratio[1])))
        return flip, ((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)


@dataclass(frozen=True, kw_only=True)
class HeldOutTransform(_Normalised):
    """The centre of a picture, resized (bicubic) so that it just covers `size`. No randomness.

    Args:
        share: of the side of that centre that is kept; 0.95 crops a little closer. None takes the whole picture,
            squeezed into `size` whatever its shape.
    """

    share: float | None = 1.0

    def shrink(self, height: int, width: int, counter: Counter = 0) -> float:
        """The factor by which a picture may be shrunk: its centre keeps twice what comes out, to be shrunk smoothly."""
        _, _, part_height, part_width = self._centre(height, width)
        return min(part_height / self.shape[0], part_width / self.shape[1]) / 2

    def __call__(self, picture: Picture, counter: Counter = 0) -> Tensor:
        """A picture of any size -> float32 (C, H, W); called like `PretrainTransform`, `counter` unused."""
        return self.normalise(self._cut(picture, self._centre(*_height_width(picture))))

    def _centre(self, have_height: int, have_width: int) -> Box:
        """The part of a picture that is shown."""
        if self.share is None:
            return 0, 0, have_height, have_width
        height, width = self.shape
        scale = max(height / have_height, width / have_width)
        # The central part first: a panorama is not resized as a whole to be thrown away. Never less than a
        # pixel.
        part_height = min(have_height, max(1, round(self.share * height / scale)))
        part_width = min(have_width, max(1, round(self.share * width / scale)))
        return (have_height - part_height) // 2, (have_width - part_width) // 2, part_height, part_width


def _height_width(picture: Picture) -> tuple[int, int]:
    if isinstance(picture, Shrunk):
        return picture.full_size
    if isinstance(picture, Image.Image):
        return picture.height, picture.width
    if picture.ndim != 3 or 0 in picture.shape:
        raise DataError(f"images: expected tensors (C, H, W) with at least one pixel, got shape {tuple(picture.shape)}")
    return picture.shape[1], picture.shape[2]


def _scaled(box: Box, full: tuple[int, int], have: tuple[int, int]) -> Box:
    """A box in a picture of (H, W) `full`, in the one of (H, W) `have` that it was shrunk to; at least a pixel."""
    top, left, height, width = box
    down, across = have[0] / full[0], have[1] / full[1]
    new_top, new_left = min(round(top * down), have[0] - 1), min(round(left * across), have[1] - 1)
    return (
        new_top,
        new_left,
        max(1, round((top + height) * down) - new_top),
        max(1, round((left + width) * across) - new_left),
    )


def _resize(image: Tensor, shape: tuple[int, int]) -> Tensor:
    """(C, h, w) -> (C, H, W), bicubic, antialiased; bytes stay bytes, all else becomes floats."""
    if image.dtype in (torch.uint16, torch.int16):
        image = image.to(torch.float32) / _UNITS[image.dtype]
    elif image.dtype != torch.uint8:
        image = image.to(torch.float32)
    # On bytes this is Pillow's algorithm (within a rounding, 1 of 255), vectorised: several times as fast.
    return functional.interpolate(image[None], shape, mode="bicubic", antialias=True)[0]
