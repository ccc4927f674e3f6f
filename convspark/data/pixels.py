"""How the samples of picture files become the channels of images: which bands, in which order, on what scale."""

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import UsageError
from .decode import BadPictureError, Shrink, Shrunk, decode_bytes, decode_unquietly, quiet, reason_of, upright_size
from .stored import Axis, Layout, Stored, item_of, opened
from .tiff import NotReadError


@dataclass(frozen=True)
class Pixels:
    """How picture files are read. What is trained with one of these is used with the same.

    Pictures are *plain* if nothing but their number of channels (3 or 1) is set: they are 8-bit colour, or grey made
    of it, as `decode` has it. Else the samples are read as they are stored, and become floats:

    * with `low` and `high`, `low` becomes 0 and `high` 1, and what is beyond is cut off;
    * without, whole numbers are shares of their type's largest value, and floats count as they are.

    What is missing (no finite number, GDAL's value for no data, fully transparent where opacity is no channel) is NaN
    here; the transforms put the channel's mean in its place.

    Attributes:
        channels: of the images.
        bands: which bands of a file they are, counted from 1, in this order; None takes them all.
        band_axis: of arrays and pages of which the file does not tell it.
        low, high: of each channel, in the files' own units; None for plain pictures, and where types tell the scale.
        stored: whether samples are read as they are stored where nothing else asks for it.
    """

    channels: int = 3
    bands: tuple[int, ...] | None = None
    band_axis: Axis | None = None
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    stored: bool = False

    def __post_init__(self) -> None:
        if self.bands is not None:
            if min(self.bands, default=0) < 1:
                raise UsageError(f"bands is {list(self.bands)}: expected numbers of bands, counted from 1, as in 3,2,1")
            if len(self.bands) != self.channels:
                raise UsageError(
                    f"bands are {len(self.bands)}, but the channels of the images {self.channels}: add "
                    f"--channels {len(self.bands)}"
                )
        if (self.low is None) != (self.high is None):
            raise UsageError("low and high belong together: give --low and --high, or neither")
        if self.low is not None and self.high is not None:
            if len(self.low) != self.channels or len(self.high) != self.channels:
                raise UsageError(
                    f"low has {len(self.low)} numbers and high {len(self.high)}: expected {self.channels}, one a "
                    "channel"
                )
            pairs = zip(self.low, self.high, strict=True)
            wrong = [(low, high) for low, high in pairs if not -math.inf < low < high < math.inf]
            if wrong:
                raise UsageError(
                    f"low is {wrong[0][0]:g} where high is {wrong[0][1]:g}: expected low below high, finite numbers"
                )

    @property
    def is_plain(self) -> bool:
        """Whether pictures are 8-bit colour or grey, as `decode` has them."""
        are_unset = self.bands is None and self.band_axis is None and self.low is None
        return self.channels in (1, 3) and not self.stored and are_unset

    def as_dict(self) -> dict[str, Any]:
        """For JSON: without what is not set."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items() if v not in (None, False)}

    @classmethod
    def of_dict(cls, content: Mapping[str, Any]) -> "Pixels":
        """The inverse of `as_dict`."""
        known = [field.name for field in fields(cls)]
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items() if k in known}
        return cls(**values)

    def read(self, path: str | os.PathLike[str], shrink: Shrink | None = None) -> Image.Image | Shrunk | Tensor:
        """A picture: plain as by `decode`, else a float tensor (C, H, W) with NaN where nothing is known.

        Raises:
            BadPictureError: it cannot be read, or has other bands than are wanted.
        """
        with quiet():
            return self.read_unquietly(os.fspath(path), shrink)

    def read_unquietly(
        self, path: str, shrink: Shrink | None = None, content: bytes | None = None
    ) -> Image.Image | Shrunk | Tensor:
        """`read` without silencing warnings, which concerns the whole process.

        Args:
            content: the file's bytes, where it lies in another file or elsewhere; `path` is then for errors.
        """
        if self.is_plain:
            return decode_unquietly(path, shrink) if content is None else decode_bytes(path, content, shrink)
        try:
            with opened(path, content) as stored:
                return self._scaled(*self.known_samples(stored))
        except Exception as error:  # damaged files lead to nearly anything
            raise BadPictureError(path, reason_of(item_of(path)[0], error, content)) from error

    def look(self, path: str, content: bytes | None = None) -> bool | None:
        """Looks at a header alone; whether the file is whole, None where only reading tells. Not for plain pictures.

        Raises:
            Exception: as reading would.
        """
        with opened(path, content) as stored:
            self._band_places(stored.layout)
            return stored.layout.is_whole

    def upright_size(self, path: str, content: bytes | None = None) -> tuple[int, int]:
        """(height, width) of a readable picture, from its header; `content` as for `read_unquietly`."""
        if self.is_plain:
            return upright_size(path, content)
        with opened(path, content) as stored:
            return stored.layout.size(self._axis(stored.layout))[:2]

    def known_samples(self, stored: Stored) -> tuple[np.ndarray, np.ndarray]:
        """The channels (H, W, C) as they are stored, and where they are known, bool (H, W, C).

        C is 1 where a grey picture stands for three channels.
        """
        layout = stored.layout
        places, opacity = self._band_places(layout)
        samples = stored.samples(self._axis(layout))
        chosen = samples[..., places]  # (H, W, bands) -> (H, W, C)
        known = np.isfinite(chosen)
        if layout.missing is not None and np.isfinite(layout.missing):
            known &= chosen != _as_stored(layout.missing, chosen.dtype)
        if opacity is not None:
            known &= samples[..., opacity : opacity + 1] != 0
        return chosen, known

    def _axis(self, layout: Layout) -> Axis:
        return layout.axis(None if self.bands else self.channels, self.band_axis)

    def _band_places(self, layout: Layout) -> tuple[list[int], int | None]:
        """Places of the bands that are taken, and of the one that is opacity, counted from 0.

        Raises:
            NotReadError: it has other bands.
        """
        have = layout.size(self._axis(layout))[2]
        colours = have - layout.opacity
        if self.bands is not None:
            if max(self.bands) <= have:
                return [band - 1 for band in self.bands], None
            demand = f"band {max(self.bands)} is wanted"
        elif have == self.channels:
            return list(range(have)), None
        elif colours == self.channels or (self.channels, colours) == (3, 1):
            return list(range(colours)), colours if layout.opacity else None
        else:
            demand = f"{self.channels} are wanted: choose some of them with --bands, or other --channels"
        raise NotReadError(f"a picture of {have} band{'s' if have > 1 else ''}, where {demand}")

    def _scaled(self, samples: np.ndarray, known: np.ndarray) -> Tensor:
        """(H, W, C) as stored -> float32 (C, H, W)."""
        if not known.any():
            raise ValueError("no value in it, all is missing")
        values = samples.astype(np.float64 if samples.dtype.itemsize > 2 else np.float32)
        if self.low is not None and self.high is not None:
            low, high = np.array(self.low), np.array(self.high)
            if samples.shape[2] == 1:  # grey, which stands for all channels
                low, high = low.mean(keepdims=True), high.mean(keepdims=True)
            values = ((values - low) / (high - low)).clip(0, 1)
        elif samples.dtype.kind in "ui":  # True is 1
            values /= np.iinfo(samples.dtype).max
        values = values.astype(np.float32)
        values[~known] = np.nan
        return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))  # (H, W, C) -> (C, H, W)


PLAIN = Pixels()
"""8-bit colour, as `decode` has it."""


def _as_stored(value: float, kind: np.dtype[Any]) -> Any:
    """A number as samples of a type hold it: GDAL writes those of 32-bit floats with more digits than they have."""
    return kind.type(value) if kind.kind == "f" else value
