"""From a picture to a normalised tensor: random crops to train on, centre crops for all that is compared."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from ..errors import DataError, UsageError
from .counters import Counter

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Picture: TypeAlias = Image.Image | Tensor
"""A Pillow image, or a tensor (C, H, W) of bytes, 16-bit integers, or floats."""


@dataclass(frozen=True, kw_only=True)
class _Normalised:
    """What both transforms share: the size that comes out, and the values.

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
            raise UsageError(f"mean, std: expected one of each a channel, got {len(self.mean)} and {len(self.std)}")
        if min(self.std) <= 0:
            raise UsageError(f"std: expected positive numbers, got {tuple(self.std)}")

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) that comes out."""
        height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
        return height, width

    @cached_property
    def _shift(self) -> Tensor:  # (C, 1, 1)
        mean, std = torch.tensor([self.mean, self.std], dtype=torch.float64)
        return (-mean / std)[:, None, None].float()

    @cached_property
    def _scale(self) -> Tensor:  # (C, 1, 1)
        return torch.tensor(self.std, dtype=torch.float64).reciprocal()[:, None, None].float()

    def _normalise(self, picture: Picture) -> Tensor:
        """Picture -> float32 (C, H, W), contiguous, (value - mean) / std."""
        channels = len(self.mean)
        if isinstance(picture, Image.Image):
            if channels not in (1, 3):
                raise UsageError(
                    f"mean: {channels} channels, but a picture file has 3 (RGB) or 1 (grey); "
                    "for other images pass a Dataset of tensors"
                )
            picture = picture.convert("L" if channels == 1 else "RGB")
            values = torch.from_numpy(np.array(picture))  # (H, W) or (H, W, C)
            values = values[None] if values.ndim == 2 else values.permute(2, 0, 1)
            unit = 255.0
        else:
            values = picture.expand(channels, -1, -1) if picture.shape[0] == 1 else picture
            if values.shape[0] != channels:
                raise UsageError(
                    f"mean: {channels} channels, but the images have {picture.shape[0]}; "
                    "give one mean and std a channel"
                )
            unit = _UNITS.get(picture.dtype, 1.0)
        values = values.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        return values.mul_(self._scale / unit).add_(self._shift)


# Bytes and 16-bit integers are shares of their largest value; floats count as they are.
_UNITS = {torch.uint8: 255.0, torch.uint16: 65535.0, torch.int16: 32767.0}


@dataclass(frozen=True, kw_only=True)
class PretrainTransform(_Normalised):
    """Random resized crop and horizontal flip, the whole augmentation of masked pre-training.

    `transform(picture, counter)` draws nothing from any global state: the same counter gives the same crop,
    whatever worker it runs in. The crop has a share `scale` of the area and an aspect ratio within `ratio`
    (its logarithm drawn uniformly); after ten draws that do not fit, the largest central crop within `ratio`
    is taken, as in torchvision.

    Args:
        scale: smallest and largest share of the picture's area, within (0, 1].
        ratio: smallest and largest width / height of the crop.
        flip: whether half of the crops are mirrored.
    """

    scale: tuple[float, float] = (0.67, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UsageError(f"scale: expected 0 < smallest <= largest <= 1, got {tuple(self.scale)}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise UsageError(f"ratio: expected 0 < smallest <= largest, got {tuple(self.ratio)}")

    @property
    def size_hint(self) -> tuple[int, int]:
        """(H, W) from which on the smallest crop still has the pixels that come out, so that none is blown
        up.

        A crop of share s and ratio r has sides sqrt(s H W r) and sqrt(s H W / r), and H W is at least the
        shorter side's square.
        """
        height, width = self.shape
        side = max(
            width / math.sqrt(self.scale[0] * self.ratio[0]),
            height * math.sqrt(self.ratio[1] / self.scale[0]),
        )
        return math.ceil(side), math.ceil(side)

    def __call__(self, picture: Picture, counter: Counter) -> Tensor:
        """A picture of any size -> float32 (C, H, W)."""
        return self._normalise(self.crop(picture, np.random.default_rng(counter)))

    def crop(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """A random crop, resized, half of them mirrored; not normalised yet."""
        out_height, out_width = self.shape
        flip = self.flip and rng.random() < 0.5
        top, left, height, width = self._place(rng, *_height_width(picture))
        if isinstance(picture, Image.Image):
            cropped = picture.crop((left, top, left + width, top + height))
            crop: Picture = cropped.resize((out_width, out_height), Image.Resampling.BICUBIC)
            if flip:
                crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        else:
            crop = _resize(picture[:, top : top + height, left : left + width], self.shape)
            if flip:
                crop = crop.flip(2)
        return crop

    def _place(self, rng: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
        """(top, left, height, width) of a crop of a picture of height × width pixels."""
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            area = height * width * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(low, high))
            crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                top = int(rng.integers(height - crop_height + 1))
                left = int(rng.integers(width - crop_width + 1))
                return top, left, crop_height, crop_width
        crop_height = min(height, max(1, round(width / self.ratio[0])))
        crop_width = min(width, max(1, round(height * self.ratio[1])))
        return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


@dataclass(frozen=True, kw_only=True)
class HeldOutTransform(_Normalised):
    """The centre of a picture, resized (bicubic) so that it just covers `size`. No randomness.

    Args:
        share: of the side of that centre that is kept; 0.95 crops a little closer.
    """

    share: float = 1.0

    @property
    def size_hint(self) -> tuple[int, int]:
        """(H, W) that a decoded picture should keep: twice what comes out, so that shrinking is smooth."""
        height, width = self.shape
        return 2 * height, 2 * width

    def __call__(self, picture: Picture, counter: Counter = 0) -> Tensor:
        """A picture of any size -> float32 (C, H, W); called like `PretrainTransform`, `counter` unused."""
        height, width = self.shape
        have_height, have_width = _height_width(picture)
        scale = max(height / have_height, width / have_width)
        # The central part first: a panorama is not resized as a whole to be thrown away. Never less than a
        # pixel.
        part_height = min(have_height, max(1, round(self.share * height / scale)))
        part_width = min(have_width, max(1, round(self.share * width / scale)))
        top, left = (have_height - part_height) // 2, (have_width - part_width) // 2
        if isinstance(picture, Image.Image):
            part = picture.crop((left, top, left + part_width, top + part_height))
            return self._normalise(part.resize((width, height), Image.Resampling.BICUBIC))
        return self._normalise(_resize(picture[:, top : top + part_height, left : left + part_width], self.shape))


def _height_width(picture: Picture) -> tuple[int, int]:
    if isinstance(picture, Image.Image):
        return picture.height, picture.width
    if picture.ndim != 3 or 0 in picture.shape:
        raise DataError(f"images: expected tensors (C, H, W) with at least one pixel, got shape {tuple(picture.shape)}")
    return picture.shape[1], picture.shape[2]


def _resize(image: Tensor, shape: tuple[int, int]) -> Tensor:
    """(C, h, w) -> (C, H, W), bicubic, antialiased; bytes stay bytes, all else becomes floats."""
    if image.dtype in (torch.uint16, torch.int16):
        image = image.to(torch.float32) / _UNITS[image.dtype]
    elif image.dtype != torch.uint8:
        image = image.to(torch.float32)
    return tv.resize_image(image, list(shape), interpolation=InterpolationMode.BICUBIC, antialias=True)
