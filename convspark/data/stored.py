"""What a picture file holds, as it is stored: any number of bands, of any type, bit for bit.

`decode` makes 8-bit colour of a file; this leaves its samples as they are. The header tells a `Layout`, quickly, and
`Stored.samples` reads them. Arrays of NumPy count as pictures here; one of four axes is several of them, each with a
name of its own, `scenes.npy[3]`.
"""

import io
import json
import math
import os
import re
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, Literal, TypeAlias

import numpy as np
from PIL import Image

from .decode import deep_colours, open_header, open_regular, orientation_of
from .remote import CutOffError
from .tiff import NotReadError, Tiff

Axis: TypeAlias = Literal["first", "last"]
"""Which axis of samples (bands, H, W) or (H, W, bands) the bands are."""

ARRAY_SUFFIXES = (".npy", ".npz")
BAND_SUFFIXES = frozenset({*ARRAY_SUFFIXES, ".gtif", ".gtiff", ".geotiff"})
"""Suffixes of files that are no pictures for `decode` and may be of several bands."""

_MOST_BYTES_A_PIXEL = 24  # where there are `PIL.Image.MAX_IMAGE_PIXELS`
_ITEM = re.compile(r"(.*\.np[yz])\[(\d+)\]$", re.DOTALL | re.IGNORECASE)
_NPZ = re.compile(r"\.npz(?![a-z0-9])", re.IGNORECASE)  # of a file, in a tar, or before a URL's question mark
# NumPy's type and the number of bands of Pillow's modes that hold what is stored; others are made RGB.
_MODES = {
    "1": ("u1", 1),
    "L": ("u1", 1),
    "LA": ("u1", 2),
    "RGB": ("u1", 3),
    "RGBA": ("u1", 4),
    "I;16": ("u2", 1),
    "I;16B": ("u2", 1),
    "I;16L": ("u2", 1),
    "I": ("i4", 1),
    "F": ("f4", 1),
}
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda samples: samples[:, ::-1],
    3: lambda samples: samples[::-1, ::-1],
    4: lambda samples: samples[::-1],
    5: lambda samples: samples.swapaxes(0, 1),
    6: lambda samples: samples[::-1].swapaxes(0, 1),
    7: lambda samples: samples[::-1, ::-1].swapaxes(0, 1),
    8: lambda samples: samples.swapaxes(0, 1)[::-1],
}


@dataclass(frozen=True)
class Layout:
    """What a file holds, as its header tells.

    Attributes:
        shape: of two or three axes, as stored.
        kind: type of the samples.
        bands_axis: which axis the bands are, where the file tells.
        opacity: how many of the bands, the last ones, are opacity.
        missing: value that stands for no data; what is no finite number always does.
        format: TIFF, PNG, NPY, …
        orientation: EXIF's, 1 to 8, of samples (H, W, bands).
        is_whole: whether the end of the file is there; None where only reading tells.
    """

    shape: tuple[int, ...]
    kind: np.dtype[Any]
    format: str
    bands_axis: Axis | None = None
    opacity: int = 0
    missing: float | None = None
    orientation: int = 1
    is_whole: bool | None = None

    def axis(self, bands: int | None = None, default: Axis | None = None) -> Axis:
        """Which axis the bands are: as the file tells, or `default`; else the first or the last, whichever is `bands`
        long, or else is the shortest of the three.

        Args:
            bands: how many there should be; None where any number will do.
            default: which axis it is where the file does not tell; None to judge by the lengths.

        Raises:
            NotReadError: it could be either, or neither.
        """
        if len(self.shape) == 2:
            return "last"
        known = self.bands_axis or default
        if known is not None:
            return known
        ends: tuple[tuple[Axis, int], ...] = ("first", self.shape[0]), ("last", self.shape[-1])
        fits: list[Axis] = [axis for axis, size in ends if size == bands]
        if not fits:  # the shortest side, as pictures have more pixels than bands
            shortest, second, _ = sorted(self.shape)
            fits = [axis for axis, size in ends if size == shortest < second]
        if len(fits) == 1:
            return fits[0]
        shape = " x ".join(map(str, self.shape))
        raise NotReadError(
            f"an array of {shape}, of which the first axis or the last may be the bands: tell by --band-axis first or "
            "last"
        )

    def size(self, axis: Axis) -> tuple[int, int, int]:
        """(height, width, bands), upright."""
        shape = (*self.shape, 1) if len(self.shape) == 2 else self.shape
        height, width, bands = shape if axis == "last" else (*shape[1:], shape[0])
        return (width, height, bands) if self.orientation >= 5 else (height, width, bands)


@dataclass(frozen=True)
class Stored:
    """An open file: its layout, and what reads its samples, of the layout's shape and type."""

    layout: Layout
    load: Callable[[], np.ndarray]

    def samples(self, axis: Axis) -> np.ndarray:
        """(H, W, bands), upright, as they are stored."""
        samples = self.load()
        if samples.shape != self.layout.shape or samples.dtype != self.layout.kind:
            raise ValueError(f"{samples.dtype} of {samples.shape} where {self.layout.shape} was announced")
        samples = samples[..., None] if samples.ndim == 2 else samples
        samples = np.moveaxis(samples, 0, 2) if axis == "first" else samples  # (bands, H, W) -> (H, W, bands)
        turn = _UPRIGHT.get(self.layout.orientation)
        return turn(samples) if turn else samples


@contextmanager
def opened(path: str, content: bytes | None = None) -> Iterator[Stored]:
    """The file at `path`, or of this content, its header read.

    Raises:
        Exception: whatever Pillow and NumPy raise on files that are missing, damaged or of another kind.
    """
    name, item = item_of(path) if content is None else (path, None)
    with open_regular(name) if content is None else io.BytesIO(content) as file:
        head = file.read(6)
        if head == b"\x93NUMPY" or (head[:4] == b"PK\3\4" and _NPZ.search(name)):
            yield _of_array(file, name, item)
        elif (tiff := Tiff.read(file)) is not None and tiff.are_samples_read and not _is_looked_up(tiff):
            yield _of_tiff(tiff)
        else:
            yield _of_picture(file, tiff)


def item_of(path: str) -> tuple[str, int | None]:
    """The file that a name stands for, and which of the pictures in it; `scenes.npy[3]` is the fourth."""
    match = None if os.path.exists(path) else _ITEM.match(path)
    return (match[1], int(match[2])) if match else (path, None)


def items_in(path: str) -> list[str]:
    """The names of the pictures in a file of an array, as it is where it holds a single one or cannot be read."""
    try:
        with open_regular(path) as file:
            shape = _header(file, path)[0]
    except Exception:  # reading says why
        return [path]
    return [f"{path}[{item}]" for item in range(shape[0] if len(shape) == 4 else 0)] or [path]


def _is_looked_up(tiff: Tiff) -> bool:
    """Whether samples are places in a palette, or the like, which Pillow turns into colours."""
    return tiff.is_read_by_pillow and not tiff.is_of_amounts


def _of_tiff(tiff: Tiff) -> Stored:
    height, width = tiff.stored_size
    pages, bands = tiff.pages(), tiff.bands
    layout = Layout(
        (height, width, bands),
        tiff.kind,
        "TIFF",
        "last",
        opacity=int(tiff.has_opacity and bands in (2, 4)),
        missing=tiff.missing,
        orientation=tiff.orientation,
        is_whole=all(page.is_whole for page in pages),
    )
    if tiff.pictures_without_tags and bands == 1:
        raise NotReadError(
            f"a TIFF of {tiff.pictures_without_tags + 1} pictures in one page, as ImageJ writes files over 4 GB: save "
            "each picture in its own file"
        )
    if len(pages) == 1 or bands > 1:  # of several pictures of several bands the first is taken, as by `decode`
        return Stored(layout, tiff.samples)
    shape, axis = _pages_as(tiff.description, (len(pages), height, width))

    def load() -> np.ndarray:
        return np.stack([page.samples()[..., 0] for page in pages]).reshape(shape)

    stacked = replace(layout, shape=shape, bands_axis=axis, opacity=0)
    if tiff.orientation != 1:
        raise NotReadError("a TIFF of several pages that are to be turned: save it with one page, upright")
    return Stored(stacked, load)


def _pages_as(description: str, shape: tuple[int, int, int]) -> tuple[tuple[int, ...], Axis | None]:
    """The shape of pages (pages, H, W) and the axis of the bands, as ImageJ, OME or tifffile describe them; else each
    page is a band.

    Raises:
        NotReadError: the pages are no bands, but slices of a volume, say.
    """
    counts: dict[str, int] = {}
    if description.startswith("ImageJ="):
        counts = {name: int(n) for name, n in re.findall(r"^(channels|slices|frames)=(\d+)", description, re.M)}
        counts = {"Z": counts.get("slices", 1), "T": counts.get("frames", 1)}
    elif element := re.search(r"<(?:\w+:)?Pixels\b[^>]*>", description):
        counts = {axis: int(n) for axis, n in re.findall(r'Size([ZT])="(\d+)"', element[0])}
    elif description.startswith('{"shape"'):
        notes = json.loads(description)
        stored = tuple(int(side) for side in notes["shape"])
        axes = str(notes.get("axes") or "?" * len(stored))
        dimensions = [(axis, side) for axis, side in zip(axes, stored, strict=True) if side > 1 or axis in "YXCS"]
        if math.prod(stored) == math.prod(shape) and len(dimensions) == 3:
            named = [axis for axis, _ in dimensions]
            if named[0] in "CS" or named[-1] in "CS":
                return tuple(side for _, side in dimensions), "first" if named[0] in "CS" else "last"
            if "?" in named:
                return tuple(side for _, side in dimensions), None
            counts = {named[0]: shape[0]}
    if any(count > 1 for count in counts.values()):
        words = {"Z": "slices of a volume", "T": "moments of a film"}
        what = " and ".join(words.get(axis, f"places along {axis}") for axis, count in counts.items() if count > 1)
        raise NotReadError(f"a TIFF of {shape[0]} pages, which it calls {what}, not bands: save each in its own file")
    return shape, "first"


def _of_picture(file: BinaryIO, tiff: Tiff | None) -> Stored:
    """A file that Pillow reads."""
    picture = open_header(file)
    if tiff is not None and not tiff.is_read_by_pillow:
        tiff.check()  # raises
    width, height = picture.size
    name = picture.format or ""
    deep = deep_colours(picture, file)
    # Of TIFF, Pillow turns what it reads itself. Asking a PNG reads it to its end: another object is asked.
    orientation = 1 if name == "TIFF" else orientation_of(open_header(file))
    key = picture.info.get("transparency")  # a colour, which is no other pixel's
    mode = picture.mode
    if mode == "I;16" and isinstance(key, int):
        deep = 1, lambda: np.asarray(picture)[..., None]
    if deep is not None:
        bands, load_deep = deep
        is_keyed = isinstance(key, int | tuple)
        shape, opacity = (height, width, bands + is_keyed), int(bands in (2, 4) or is_keyed)
        layout = Layout(shape, np.dtype("u2"), name, "last", opacity)

        def load_samples() -> np.ndarray:
            samples = load_deep().astype(np.uint16)
            if not is_keyed:
                return samples
            opacity = np.where((samples != key).any(2, keepdims=True), 65535, 0)
            return np.concatenate([samples, opacity], axis=2, dtype=np.uint16, casting="unsafe")

        return Stored(replace(layout, orientation=orientation), load_samples)
    if picture.has_transparency_data:
        mode = "LA" if mode in ("L", "LA", "La") else "RGBA"
    kind, bands = _MODES.get(mode, ("u1", 3))
    if mode == "I" and name == "PPM":
        kind = "u2"

    def load() -> np.ndarray:
        file.seek(0)
        picture.load()
        target = "L" if mode == "1" else mode if mode in _MODES else "RGB"
        return np.asarray(picture if picture.mode == target else picture.convert(target)).astype(kind, copy=False)

    shape = (height, width) if bands == 1 else (height, width, bands)
    layout = Layout(shape, np.dtype(kind), name, "last", int(mode in ("LA", "RGBA")))
    return Stored(replace(layout, orientation=orientation), load)


def _of_array(file: BinaryIO, path: str, item: int | None) -> Stored:
    shape, kind, whole, load = _header(file, path)
    if len(shape) == 4:
        if item is None or item >= shape[0]:
            only = ", which are read from files on this machine alone: save each in its own" if item is None else ""
            raise NotReadError(f"an array of {' x '.join(map(str, shape))}, which holds {shape[0]} pictures{only}")
        shape = shape[1:]
    elif item is not None:
        raise NotReadError(f"an array of {' x '.join(map(str, shape))}, which holds a single picture")
    if len(shape) not in (2, 3) or 0 in shape:
        raise NotReadError(
            f"an array of shape {shape}: expected (H, W), (H, W, bands) or (bands, H, W), or several of these"
        )
    if kind.kind not in "buif":
        raise NotReadError(f"an array of {kind}: expected whole numbers or floats")
    native = kind.newbyteorder("=")
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and math.prod(shape) * kind.itemsize > _MOST_BYTES_A_PIXEL * most:
        raise Image.DecompressionBombError(f"{shape} of {kind}; {_MOST_BYTES_A_PIXEL * most} bytes are the most")

    def load_item() -> np.ndarray:
        array = load()
        return np.array(array if item is None else array[item]).astype(native)

    return Stored(Layout(shape, native, "NPZ" if _NPZ.search(path) else "NPY", is_whole=whole), load_item)


def _header(file: BinaryIO, path: str) -> tuple[tuple[int, ...], np.dtype[Any], bool | None, Callable[[], Any]]:
    """Shape and type of an array, whether it is whole (None where only reading tells), and what reads it.

    Raises:
        CutOffError: there is less than the header says.
    """
    file.seek(0)
    if file.read(2) != b"PK":
        file.seek(0)
        shape, order, kind = _npy_header(file)
        start, count = file.tell(), math.prod(shape)
        _check_length(file.seek(0, os.SEEK_END) - start, shape, kind)
        if isinstance(file, io.BytesIO):
            content = file.getvalue()  # not copied
            return shape, kind, True, lambda: np.frombuffer(content, kind, count, start).reshape(shape, order=order)
        return shape, kind, True, lambda: np.memmap(path, kind, "r", start, shape, order)
    with zipfile.ZipFile(file) as archive:
        pictures: list[tuple[str, int, tuple[int, ...], Literal["C", "F"], np.dtype[Any]]] = []
        for info in archive.infolist():
            with archive.open(info) as member:
                shape, order, kind = _npy_header(member)
                if len(shape) in (2, 3, 4):
                    pictures.append((info.filename, info.file_size - member.tell(), shape, order, kind))
    if len(pictures) != 1:
        names = ", ".join(name.removesuffix(".npy") for name, *_ in pictures[:6]) or "none"
        raise NotReadError(f"a .npz file with {len(pictures)} arrays of 2 to 4 axes ({names}): expected one")
    name, length, shape, order, kind = pictures[0]
    _check_length(length, shape, kind)

    def load() -> np.ndarray:
        again = io.BytesIO(file.getvalue()) if isinstance(file, io.BytesIO) else path
        with zipfile.ZipFile(again) as archive, archive.open(name) as member:
            _npy_header(member)
            content = member.read(math.prod(shape) * kind.itemsize)  # no more, however much may follow
            return np.frombuffer(content, kind).reshape(shape, order=order)

    return shape, kind, None, load


def _check_length(have: int, shape: tuple[int, ...], kind: np.dtype[Any]) -> None:
    """Raise CutOffError for an array of which less is there; of objects nothing tells their length."""
    if have < math.prod(shape) * kind.itemsize and not kind.hasobject:
        raise CutOffError(f"truncated: {have} of the {math.prod(shape) * kind.itemsize} bytes of an array {shape}")


# NumPy reads a header with Python's own parser. Up to Python 3.11.7 two threads in it at once disturb each other, and a
# sound file looks damaged (https://github.com/python/cpython/issues/106905).
_PARSING = threading.Lock()


def _npy_header(file: Any) -> tuple[tuple[int, ...], Literal["C", "F"], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with _PARSING:
        shape, by_columns, kind = read_header(file)
    return shape, "F" if by_columns else "C", kind
