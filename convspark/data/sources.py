"""Sources of pictures: files, or any PyTorch dataset, behind one small interface."""

import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, BinaryIO, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Subset

from ..errors import DataError, UsageError
from . import remote
from .addresses import is_url, within
from .decode import BadPictureError, Shrink, decode_bytes, open_regular, quiet, reason_of, to_rgb
from .headers import is_plain
from .names import Names
from .pixels import PLAIN, Pixels
from .shards import Places, neighbours
from .tables import bytes_of, column_of
from .transforms import Picture

_IMAGE_KEYS = ("image", "img", "pixel_values")
_KNOWN_KINDS = re.compile(r"(bool|uint8|u?int16|b?float(8|16|32|64))(?!\d)")


class ImageSource(Protocol):
    """Pictures by index. One that cannot be read raises `BadPictureError`; any other error is a mistake."""

    def __len__(self) -> int: ...

    def read(self, index: int, shrink: Shrink | None = None) -> Picture:
        """Picture `index`; it may come as `Shrunk`, by no more than `shrink` (see `decode`) allows."""
        ...

    def name(self, index: int) -> str:
        """What to call the picture in a list: its path, if it has one."""
        ...


class GonePictureError(BadPictureError):
    """A picture that was there when the run began, and is known to be gone."""


class FileSource:
    """Picture files by address: a path, a URL, or a place in a shard.

    Attributes:
        places: where those in shards lie; None where all are files of this machine.

    Args:
        paths: of the files.
        gone: the places of those that do not belong to the data any more, whether there is a file or not.
        pixels: how they are read.
    """

    def __init__(self, paths: Sequence[str], gone: Iterable[int] = (), pixels: Pixels = PLAIN) -> None:
        if not paths:
            raise DataError("images: the list of paths is empty")
        self._names = Names(paths)
        self._gone = frozenset(gone)
        self.pixels = pixels
        self._elsewhere = np.array([is_url(path) for path in paths])  # not in a file of its own on this machine
        self.places = Places(paths) if self._elsewhere.any() else None

    def __len__(self) -> int:
        return len(self._names)

    @property
    def names(self) -> Names:
        """The names of all pictures."""
        return self._names

    def blocks(self) -> np.ndarray:
        """(N,): equal numbers where pictures lie near each other, which is where they are quickest read together."""
        return neighbours(len(self)) if self.places is None else self.places.blocks()

    def stamps(self, indices: range) -> np.ndarray:
        """(size, time) of the file of each picture, or what stands for them, int64, (n, 2); -1 where not known."""
        if self.places is not None and self._elsewhere[indices.start : indices.stop].any():
            there = self.places
            pairs = [there.stamp(at) if self._elsewhere[at] else _stamp(self.name(at)) for at in indices]
        else:
            pairs = [_stamp(name) for name in self._names.encoded(indices)]
        return np.array(pairs, dtype=np.int64)

    def is_gone(self, index: int) -> bool:
        """Whether it does not belong to the data any more."""
        return index in self._gone

    def read(self, index: int, shrink: Shrink | None = None) -> Picture:
        if self.is_gone(index):
            raise GonePictureError(self.name(index), "no longer among the data")
        with quiet():
            return self.decode(index, shrink)

    def decode(self, index: int, shrink: Shrink | None = None) -> Picture:
        """`read` without silencing warnings, also of a picture that is gone."""
        name = self.name(index)
        try:
            content = self.content(index)
        except OSError as error:
            raise BadPictureError(name, reason_of(name, error)) from error
        return self.pixels.read_unquietly(name, shrink, content)

    def look(self, index: int) -> bool | None:
        """`Pixels.look` at a picture."""
        return self.pixels.look(self.name(index), self.content(index))

    def upright_size(self, index: int) -> tuple[int, int]:
        """(height, width) of a readable picture, from its header."""
        return self.pixels.upright_size(self.name(index), self.content(index))

    def open(self, index: int) -> BinaryIO:
        """The file of a picture.

        Raises:
            OSError: it cannot be read.
        """
        content = self.content(index)
        return open_regular(self.name(index)) if content is None else io.BytesIO(content)

    def is_plain(self, index: int) -> bool:
        """Whether a quick look shows a whole picture of a usual kind; False says nothing."""
        return not self._elsewhere[index] and is_plain(self.name(index))

    def is_remote(self, index: int) -> bool:
        """Whether it is read through a network."""
        if not self._elsewhere[index]:
            return False
        part = within(self.name(index))
        return part is None or is_url(part.shard)

    def content(self, index: int) -> bytes | None:
        """The file of a picture; None where it is a file of its own on this machine, which its name is the path of.

        Raises:
            OSError: it cannot be read.
        """
        if not self._elsewhere[index]:
            return None
        if self.places is not None and self.places.number[index] >= 0:
            return self.places.content(index)
        return remote.read_all(self.name(index))

    def name(self, index: int) -> str:
        return self._names[index]


def _stamp(path: str | bytes) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return -1, -1
    return status.st_size, status.st_mtime_ns


class DatasetSource:
    """A map-style dataset whose items are images, or begin with one, or hold one by the name of "image".

    Images may be Pillow images (turned upright, made RGB), arrays (H, W) or (H, W, C), or tensors (H, W) or
    (C, H, W). Bytes count from 0 to 255, 16-bit integers from 0 to their largest value, floats as they are.
    What the dataset's own transform draws at random is drawn from the global generators, and so is not
    counted by (seed, epoch, index).
    """

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def read(self, index: int, shrink: Shrink | None = None) -> Picture:
        try:
            image = _image_of(self._dataset[index])
            if isinstance(image, Image.Image):
                return to_rgb(image)
        # What Pillow raises on damaged files. Other errors are mistakes in the dataset and must be seen.
        except (OSError, SyntaxError, Image.DecompressionBombError, BadPictureError) as error:
            raise BadPictureError(self.name(index), f"{type(error).__name__}: {error}") from error
        masked = np.ma.count_masked(image) if isinstance(image, np.ma.MaskedArray) else 0
        if masked:
            raise BadPictureError(
                self.name(index), f"{masked} values are masked; put a number in their place, as array.filled(0) does"
            )
        tensor = _tensor_of(image)
        absent = (~tensor.isfinite()).flatten(1).sum(1)  # of each channel; a single one would end the training
        if absent.any():
            channel = int(absent.nonzero()[0, 0])
            raise BadPictureError(
                self.name(index),
                f"{int(absent[channel])} values of channel {channel} (counted from 0) are NaN or infinite; put a "
                "number in their place",
            )
        return tensor

    def name(self, index: int) -> str:
        samples = getattr(self._dataset, "samples", None)  # torchvision's ImageFolder: (path, class)
        if isinstance(samples, Sequence) and len(samples) == len(self):
            sample = samples[index]
            return str(sample[0] if isinstance(sample, tuple) else sample)
        return f"item {index}"


class HubSource:
    """Items of a map-style dataset of Hugging Face's `datasets`: files in a column, decoded like all others."""

    def __init__(self, dataset: Any, column: str, items: Sequence[int]) -> None:
        from datasets import Image as Feature

        self._rows = dataset.select_columns([column]).cast_column(column, Feature(decode=False))
        self._column = column
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def read(self, index: int, shrink: Shrink | None = None) -> Picture:
        name = self.name(index)
        try:
            content = bytes_of(self._rows[int(self._items[index])][self._column])
        except OSError as error:
            raise BadPictureError(name, reason_of(name, error)) from error
        with quiet():
            return decode_bytes(name, content, shrink)

    def name(self, index: int) -> str:
        return f"item {self._items[index]}"


def adapt(dataset: Any) -> ImageSource:
    """Any map-style dataset of images as a source; see `DatasetSource` for what its items may be.

    To hold some items out, adapt two `torch.utils.data.Subset`s of it.

    Raises:
        UsageError: it has no length or no items by index, or its first item is no image.
        DataError: it is empty.
    """
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise UsageError(
            f"images: {type(dataset).__name__} has no length or cannot be indexed; expected a "
            "map-style dataset (`__len__` and `__getitem__`), a folder, a text file, or a list of paths"
        )
    if isinstance(dataset, Mapping):
        raise UsageError(
            f"images: the {type(dataset).__name__} has the parts {', '.join(map(str, dataset)) or 'none'}; expected "
            "one of them, as in dataset['train']"
        )
    if not len(dataset):
        raise DataError(f"images: the {type(dataset).__name__} is empty")
    items = dataset.indices if isinstance(dataset, Subset) else range(len(dataset))
    whole = dataset.dataset if isinstance(dataset, Subset) else dataset
    column = column_of(whole)
    source = DatasetSource(dataset) if column is None else HubSource(whole, column, items)
    with suppress(BadPictureError):
        source.read(0)  # an item of the wrong kind is better found now than in a worker
    return source


def _image_of(item: Any) -> Any:
    if isinstance(item, Mapping):
        for key in _IMAGE_KEYS:
            if key in item:
                return item[key]
        raise UsageError(f"images: an item with keys {list(item)}; expected one of them to be {_IMAGE_KEYS}")
    return item[0] if isinstance(item, tuple | list) and item else item


def _tensor_of(image: Any) -> Tensor:
    """(C, H, W) of an array (H, W[, C]) or a tensor ([C,] H, W)."""
    if not isinstance(image, np.ndarray | Tensor):
        raise UsageError(
            f"images: an item of type {type(image).__name__}; expected a Pillow image, an array or a tensor, "
            "alone or followed by its label"
        )
    if image.ndim not in (2, 3):
        raise UsageError(
            f"images: an item of shape {tuple(image.shape)}; expected an array (H, W) or (H, W, C), "
            "or a tensor (H, W) or (C, H, W)"
        )
    if isinstance(image, np.ndarray):
        image = image.astype(image.dtype.newbyteorder("="), copy=False)  # torch knows no other
    kind = str(image.dtype).removeprefix("torch.")
    if not _KNOWN_KINDS.match(kind):
        raise UsageError(
            f"images: an item of type {kind}, of which nothing says what is white; expected bytes (uint8), 16-bit "
            "integers, or floats, which count as they are"
        )
    if isinstance(image, Tensor):
        return image if image.ndim == 3 else image[None]
    tensor = torch.from_numpy(np.ascontiguousarray(image))
    return tensor.permute(2, 0, 1) if tensor.ndim == 3 else tensor[None]
