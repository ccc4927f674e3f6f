"""A look at each of many files: what kind of picture it is, whether it is whole, and what it looks like."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from PIL import Image

from .decode import BadPictureError, Shrunk, deep_colours, open_header, quiet, reason_of
from .duplicates import thumbnail
from .sources import FileSource
from .stored import item_of, opened
from .tiff import Tiff

_CHUNK = 64
_ENOUGH = 64  # pixels of the shorter side that a thumbnail is made of
_GREY = 8  # levels by which red, green and blue of a grey pixel may differ; in JPEG files they do


@dataclass(frozen=True)
class Look:
    """What a file holds and looks like.

    Attributes:
        reason: why it cannot be read; None for a picture.
        format: JPEG, PNG, TIFF, NPY, …
        size: (height, width) in pixels, upright.
        bands: of the file, opacity included.
        opacity: how many of them are.
        kind: type of the samples, as NumPy calls it.
        is_plain: whether it is 8-bit colour or grey.
        is_grey: whether it is grey, however many bands it has.
        hash, thumb: see `duplicates.thumbnail`.
    """

    path: str
    reason: str | None = None
    format: str = ""
    size: tuple[int, int] = (0, 0)
    bands: int = 0
    opacity: int = 0
    kind: str = ""
    is_plain: bool = False
    is_grey: bool = False
    hash: int = 0
    thumb: np.ndarray | None = None


def look_at(source: FileSource, channels: int | None = None, workers: int | None = None) -> Iterator[Look]:
    """A look at each picture, in their order, as it comes; every picture is decoded.

    Args:
        source: of plain pixels.
        channels: how many bands arrays of NumPy have, which do not tell it.
        workers: threads; None for as many as there are cores, and two more, which wait for the disk.
    """
    chunks = [range(start, min(start + _CHUNK, len(source))) for start in range(0, len(source), _CHUNK)]
    with quiet(), ThreadPoolExecutor(workers or (os.cpu_count() or 1) + 2) as pool:
        for looks in pool.map(lambda chunk: [_look(source, index, channels) for index in chunk], chunks):
            yield from looks


def same_content(source: FileSource, indices: Iterable[int]) -> list[list[int]]:
    """Groups of pictures that are the same to the last byte, of some; only files of one length are read."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for index in indices:
        if item_of(source.name(index))[1] is None:
            by_length[int(source.stamps(range(index, index + 1))[0, 0])].append(index)
    by_content: dict[bytes, list[int]] = defaultdict(list)
    for alike in by_length.values():
        for index in alike if len(alike) > 1 else ():
            with source.open(index) as file:
                by_content[hashlib.file_digest(cast(Any, file), "sha256").digest()].append(index)
    return [group for group in by_content.values() if len(group) > 1]


def _look(source: FileSource, index: int, channels: int | None) -> Look:
    path, content = source.name(index), None
    try:
        content = source.content(index)
        return _plain(source, index) or _stored(path, content, channels)
    except BadPictureError as error:
        return Look(path, error.reason)
    except Exception as error:  # damaged files lead to nearly anything
        return Look(path, reason_of(item_of(path)[0], error, content))


def _plain(source: FileSource, index: int) -> Look | None:
    """The look of a picture of 8-bit colour or grey; None for others."""
    path = source.name(index)
    if item_of(path)[1] is not None or path.lower().endswith((".npy", ".npz")):
        return None
    with source.open(index) as file:
        tiff = Tiff.read(file)
        if tiff is not None and not tiff.is_read_by_pillow:
            return None
        picture = open_header(file)
        if deep_colours(picture, file) or picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
            return None
        name, bands = picture.format or "", 3 if picture.mode == "P" else len(picture.getbands())
    shrunk = source.decode(index, lambda height, width: max(1.0, min(height, width) / _ENOUGH))
    small = shrunk.picture if isinstance(shrunk, Shrunk) else shrunk
    assert isinstance(small, Image.Image)
    size = shrunk.full_size if isinstance(shrunk, Shrunk) else (small.height, small.width)
    coarse = np.asarray(small.resize((8, 8), Image.Resampling.BOX, reducing_gap=2), dtype=int)
    number, thumb = thumbnail(small.convert("L"))
    is_grey = bands < 3 or int(np.ptp(coarse, axis=2).max()) <= _GREY
    return Look(path, None, name, size, bands, 0, "uint8", True, is_grey, number, thumb)


def _stored(path: str, content: bytes | None, channels: int | None) -> Look:
    """The look of a picture of any bands and type."""
    with opened(path, content) as file:
        layout = file.layout
        axis = layout.axis(channels)
        height, width, bands = layout.size(axis)
        samples = file.samples(axis)
    grey = brightness(samples, layout.missing).mean(2)  # (H, W, bands) -> (H, W)
    number, thumb = thumbnail(Image.fromarray(np.uint8(255 * grey)))
    size, is_grey = (height, width), bands - layout.opacity == 1
    return Look(path, None, layout.format, size, bands, layout.opacity, layout.kind.name, False, is_grey, number, thumb)


def brightness(samples: np.ndarray, missing: float | None = None) -> np.ndarray:
    """Samples (H, W, C) of any type as float32 from 0 to 1, each band from its 1 % to its 99 % quantile."""
    values = samples.astype(np.float32)
    known = np.isfinite(values) if missing is None else np.isfinite(values) & (samples != missing)
    for band in range(values.shape[2]):
        here = values[..., band][known[..., band]]
        low, high = np.quantile(here, (0.01, 0.99)) if len(here) else (0.0, 1.0)
        values[..., band] = (values[..., band] - low) / max(high - low, 1e-12)
    return np.where(known, values, 0).clip(0, 1)


def displayed(path: str, content: bytes | None = None, channels: int | None = None) -> Image.Image:
    """A picture of any bands in RGB: its first three bands, or its first; `content` as for `opened`."""
    with quiet(), opened(path, content) as file:
        samples, missing = file.samples(file.layout.axis(channels)), file.layout.missing
    colours = brightness(samples[..., : 3 if samples.shape[2] >= 3 else 1], missing)
    return Image.fromarray(np.uint8(255 * np.broadcast_to(colours, (*colours.shape[:2], 3))))
