"""TIFF pictures of other samples than plain bytes: Pillow reads some of them wrong, and some not at all.

Pillow's libtiff undoes their compression all the same: for it the picture is a grey one, as many times wider as a
pixel has bytes, and what the bytes mean is worked out here.
"""

import io
import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from .stretch import picture_of

_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BIG_HEADS = _HEADS[2:]  # with offsets of 8 bytes
_FIRST_SEGMENT = 8  # where the data begin in what libtiff reads

# Numbers of tags.
_KIND, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 254, 256, 257, 258, 259, 262, 266
_STRIPS, _ORIENTATION, _SAMPLES, _ROWS, _STRIP_BYTES, _PLANAR, _PREDICTOR = 273, 274, 277, 278, 279, 284, 317
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES, _EXTRA, _FORMAT, _NO_DATA = 322, 323, 324, 325, 338, 339, 42113
_SUBSAMPLING, _DESCRIPTION = 530, 270

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK = 0, 1, 2, 3, 5  # photometric interpretations
_YCBCR, _CIELAB = 6, 8
_GREY = (_WHITE_IS_ZERO, _BLACK_IS_ZERO)
_KNOWN_TO_PILLOW = (*_GREY, _RGB, _PALETTE, _CMYK, _YCBCR, _CIELAB)
_KINDS = {1: "u", 2: "i", 3: "f", 4: "u"}  # of sample formats; 4 does not say
_PREMULTIPLIED, _STRAIGHT = 1, 2  # kinds of opacity among the extra samples
_PLAIN_COMPRESSIONS = (1, 32773)  # none, PackBits
_PREDICTING_COMPRESSIONS = (5, 8, 32946, 34925, 50000)  # LZW, deflate by two numbers, LZMA, Zstandard
_HORIZONTAL, _OF_FLOATS = 2, 3  # predictors
_LARGEST_RATIO = 20_000  # of what compressions come to
_MOST_BYTES_A_PIXEL = 24  # where there are `PIL.Image.MAX_IMAGE_PIXELS`


class NotReadError(ValueError):
    """A kind of picture that is known and not read; the message says what to do."""


@dataclass(frozen=True)
class Tiff:
    """The first picture of a TIFF file that is no smaller copy or mask of another, as its tags describe it.

    Attributes:
        is_opened: whether it is what Pillow opens of the file.
    """

    file: BinaryIO
    tags: ImageFileDirectory_v2
    is_opened: bool = True

    @classmethod
    def read(cls, file: BinaryIO) -> "Tiff | None":
        """None where the file does not begin like one."""
        file.seek(0)
        head = file.read(4)
        if head not in _HEADS:
            return None
        first = _directory(file)
        tags = next((tags for tags in _directories(file, first) if not _is_copy(tags)), first)
        is_opened = tags is first and head != b"MM\0+"
        return cls(file, tags, is_opened) if _WIDTH in tags and _HEIGHT in tags else None

    @property
    def upright_size(self) -> tuple[int, int]:
        """(height, width)."""
        height, width = self._number(_HEIGHT), self._number(_WIDTH)
        return (width, height) if 5 <= self.orientation <= 8 else (height, width)

    @property
    def stored_size(self) -> tuple[int, int]:
        """(height, width) before it is turned upright."""
        return self._number(_HEIGHT), self._number(_WIDTH)

    @property
    def orientation(self) -> int:
        return self._number(_ORIENTATION, 1)

    @property
    def is_of_amounts(self) -> bool:
        """Whether samples are amounts of a colour or a band: no places in a palette, inks, or colour differences."""
        return self._photometric not in (_PALETTE, _CMYK, _YCBCR, _CIELAB)

    @property
    def is_read_by_pillow(self) -> bool:
        """Whether Pillow reads it, and reads it right."""
        bits = set(self._bits)
        if not self.is_opened or self._photometric not in _KNOWN_TO_PILLOW or set(self._list(_FORMAT, [1])) != {1}:
            return False
        if self._photometric == _CMYK and bits == {16}:
            return not self._is_planar
        if self._photometric == _YCBCR and self._compression not in (6, 7) and self._list(_SUBSAMPLING, []) != [1, 1]:
            return False  # only of JPEGs the colours of neighbours may be shared
        few = bits == {8} or (bits <= {1, 2, 4} and self.bands == 1)
        return few and not (self._extra and (self._is_planar or self._photometric in _GREY))

    @property
    def is_whole(self) -> bool:
        """Whether the file reaches to the end of the picture."""
        offsets, counts = self._segments
        size = self.file.seek(0, io.SEEK_END)
        return 0 < max((sum(pair) for pair in zip(offsets, counts, strict=True)), default=0) <= size

    @property
    def left_out(self) -> str | None:
        """What of the file is not in the picture, in words; None if all is."""
        if self._photometric == _RGB and len(self._extra) > self.has_opacity:
            return "have further bands, of which the first three are taken as red, green and blue"
        others = (tags for tags in _directories(self.file, self.tags) if tags is not self.tags)
        if self.pictures_without_tags or not all(map(_is_copy, others)):
            return "hold several pictures, of which the first is taken"
        return None

    @property
    def pictures_without_tags(self) -> int:
        """How many pictures follow the data of this one without tags of their own, as in ImageJ's files over 4 GB."""
        one = self._number(_HEIGHT) * self._number(_WIDTH) * self.bands
        said = 0
        if images := re.search(r"^ImageJ=.*^images=(\d+)", self.description, re.M | re.S):
            said = int(images[1])
        elif shape := re.match(r'\{"shape": \[([\d, ]+)\], .*"truncated": true', self.description):  # tifffile's
            said = math.prod(map(int, shape[1].split(","))) // max(1, one)
        if said < 2 or self.tags.next:
            return 0
        room = self.file.seek(0, io.SEEK_END) - min(self._segments[0], default=0)
        return max(0, min(said, 8 * room // max(1, one * self._bits[0])) - 1)

    def check(self) -> None:
        """Raises NotReadError if it is of a kind that is not read, and an error of Pillow's if it is too large."""
        height, width = self.upright_size
        most = Image.MAX_IMAGE_PIXELS
        if most is not None and height * width > 2 * most:
            raise Image.DecompressionBombError(f"{height * width} pixels; {2 * most} are the most that are read")
        bits, is_rgb = self._bits[0], self._photometric == _RGB
        if why := self._strange_numbers:
            pass
        elif not (self._photometric in _GREY or (is_rgb and self.bands >= 3)):
            why = f"colours (photometric interpretation {self._photometric}) that are not read at {bits} bits"
        elif not is_rgb and self.bands > 1 + self.has_opacity:
            raise NotReadError(
                f"a TIFF with {self.bands} bands, which are not said to be red, green and blue: give --channels "
                f"{self.bands} --stats auto to take them all, or --bands with the three to take; or save it as grey or "
                "RGB of 8 bits, or pass a Dataset of arrays"
            )
        else:
            why = self._strange_packing
        if why:
            raise NotReadError(f"a TIFF with {why}: save it as grey or RGB of 8 bits, or pass a Dataset of arrays")

    @property
    def are_samples_read(self) -> bool:
        """Whether `samples` gives what is stored."""
        return not (self._strange_numbers or self._strange_packing)

    @property
    def _strange_numbers(self) -> str | None:
        """Why its numbers are not read; None if they are."""
        bits, kind = self._bits[0], self._kind
        if len(set(self._bits)) > 1 or kind is None:
            return "bands of different types, or of complex numbers"
        if bits > 64 or (bits % 8 == 0 and bits not in (8, 16, 32, 64)) or (kind == "f" and bits not in (16, 32, 64)):
            return f"numbers of {bits} bits"
        return None

    @property
    def _strange_packing(self) -> str | None:
        """Why its compression is not read; None if it is."""
        fitting = _OF_FLOATS if self._kind == "f" else 0 if self._bits[0] % 8 else _HORIZONTAL  # predictor
        if self._compression not in (*_PLAIN_COMPRESSIONS, *_PREDICTING_COMPRESSIONS):
            return f"compression {self._compression}, which is not read for samples of this type"
        if self._predictor != 1 and (self._predictor != fitting or self._compression in _PLAIN_COMPRESSIONS):
            return f"predictor {self._predictor}, which is not read for samples of this type"
        return None

    @property
    def kind(self) -> np.dtype[Any]:
        """NumPy's type of `samples`."""
        bits, kind = self._bits[0], self._kind
        if bits % 8 == 0:
            return np.dtype(f"{kind}{bits // 8}")
        return np.dtype(f"{kind}{next(size for size in (1, 2, 4, 8) if 8 * size >= bits)}")

    @property
    def description(self) -> str:
        """What the writer says of the picture; ImageJ, OME and tifffile tell there what several pages are."""
        return str(self.tags.get(_DESCRIPTION, ""))

    def pages(self) -> list["Tiff"]:
        """Itself and the pictures after it, less smaller copies and masks; itself alone where they differ in kind."""
        pages: list[Tiff] = [self]
        for tags in _directories(self.file, self.tags):
            if tags is not self.tags and not _is_copy(tags):
                pages.append(Tiff(self.file, tags))
                if pages[-1]._form != self._form:
                    return pages[:1]
        return pages

    @property
    def _form(self) -> tuple[object, ...]:
        return (*self.upright_size, self.orientation, self.bands, tuple(self._bits), self._kind)

    def samples(self) -> np.ndarray:
        """(H, W, bands), turned as they are stored, of the type `kind`, bit for bit."""
        return self._samples().astype(self.kind, copy=False)

    def picture(self) -> Image.Image:
        """What is stored, turned as it is, as 8-bit grey or RGB.

        Raises:
            NotReadError: see `check`.
        """
        self.check()
        samples, bits = self._samples(), self._bits[0]
        colours = 3 if self._photometric == _RGB else 1
        values, opacity = samples[..., :colours], None
        most = {"u": (1 << bits) - 1, "i": (1 << (bits - 1)) - 1}.get(self._kind or "", 1)
        if self.has_opacity:
            opacity = (samples[..., colours] / most).astype(np.float32).clip(0, 1)
            if self._extra[0] == _PREMULTIPLIED:
                values = values / np.where(opacity > 0, opacity, 1)[..., None]
        few = self._kind == "u" and bits <= 8
        return picture_of(
            values,
            opacity,
            white=most if few else None,
            missing=None if few else self.missing,
            inverted=self._photometric == _WHITE_IS_ZERO,
        )

    def _samples(self) -> np.ndarray:
        """(H, W, bands), as they are stored."""
        height, width = self._number(_HEIGHT), self._number(_WIDTH)
        planes = self.bands if self._is_planar else 1
        tile_width = self._number(_TILE_WIDTH, width)
        tile_height = self._number(_TILE_HEIGHT, min(height, self._number(_ROWS, height)))
        across, down = -(-width // tile_width), -(-height // tile_height)
        bands = self.bands // planes  # of a plane
        row_bytes = -(-tile_width * bands * self._bits[0] // 8)  # of a tile
        count, most = down * tile_height * across * row_bytes * planes, Image.MAX_IMAGE_PIXELS
        if most is not None and count > _MOST_BYTES_A_PIXEL * most:
            raise Image.DecompressionBombError(
                f"{count} bytes; {_MOST_BYTES_A_PIXEL * most} are the most that are read"
            )
        offsets, counts = self._segments
        if count > _LARGEST_RATIO * self.file.seek(0, io.SEEK_END):  # before so much memory is taken
            raise OSError("the picture is truncated")
        if len(offsets) < planes * across * down:
            raise OSError(f"{len(offsets)} strips or tiles of {planes * across * down}")
        samples: list[np.ndarray] = []
        for plane in range(planes):
            part = slice(plane * across * down, (plane + 1) * across * down)
            rows = self._decompressed(
                offsets[part], counts[part], (height, across * row_bytes), (tile_height, row_bytes)
            )
            tiles = [self._unpacked(tile, bands) for tile in np.split(rows, across, axis=1)]
            samples.append(np.concatenate(tiles, axis=1)[:, :width])
        return np.concatenate(samples, axis=2)

    def _decompressed(
        self, offsets: list[int], counts: list[int], shape: tuple[int, int], tile: tuple[int, int]
    ) -> np.ndarray:
        """The bytes (H, bytes of a row) of strips or tiles, by libtiff, for which they are a grey picture."""
        segments: list[bytes] = []
        for offset, count in zip(offsets, counts, strict=True):
            self.file.seek(offset)
            segments.append(self.file.read(count))
            if len(segments[-1]) < count or not count:
                raise OSError("the picture is truncated")
        starts = np.cumsum([_FIRST_SEGMENT, *counts[:-1]]).tolist()
        is_tiled = _TILES in self.tags
        tags = {
            _WIDTH: [shape[1]],
            _HEIGHT: [shape[0]],
            _BITS: [8],
            _COMPRESSION: [self._compression],
            _PHOTOMETRIC: [_BLACK_IS_ZERO],
            _FILL_ORDER: [self._number(_FILL_ORDER, 1)],
            _SAMPLES: [1],
            **({_TILE_WIDTH: [tile[1]], _TILE_HEIGHT: [tile[0]]} if is_tiled else {_ROWS: [tile[0]]}),
            (_TILES if is_tiled else _STRIPS): starts,
            (_TILE_BYTES if is_tiled else _STRIP_BYTES): counts,
        }
        # Not by Image.open, for which a picture of so many bytes may have too many pixels.
        return np.asarray(TiffImageFile(io.BytesIO(_tiff_of(b"".join(segments), tags))))

    def _unpacked(self, rows: np.ndarray, bands: int) -> np.ndarray:
        """The samples (H, W, bands) in the bytes (H, bytes) of a strip or tile, predictors undone."""
        bits, height = self._bits[0], len(rows)
        if bits % 8:  # packed, the highest bit first
            single = np.unpackbits(rows, axis=1)
            single = single[:, : single.shape[1] // (bits * bands) * bits * bands].reshape(height, -1, bands, bits)
            values = single @ (1 << np.arange(bits - 1, -1, -1, dtype=np.int64))
            return values - (values >> (bits - 1) << bits) if self._kind == "i" else values
        kind = np.dtype(f"{self._kind}{bits // 8}")
        order = "<" if self.tags.prefix == b"II" else ">"
        if self._predictor == _OF_FLOATS:  # differences of bytes, which lie sorted by their rank, the highest first
            rows = rows.reshape(height, -1, bands).cumsum(axis=1, dtype=np.uint8)
            rows, order = rows.reshape(height, kind.itemsize, -1).transpose(0, 2, 1).reshape(height, -1), ">"
        values = np.ascontiguousarray(rows).view(kind.newbyteorder(order)).astype(kind).reshape(height, -1, bands)
        return values.cumsum(axis=1, dtype=kind) if self._predictor == _HORIZONTAL else values

    @property
    def _segments(self) -> tuple[list[int], list[int]]:
        """Offsets and counts of bytes of the strips or tiles."""
        if _TILES in self.tags:
            return self._list(_TILES, []), self._list(_TILE_BYTES, [])
        return self._list(_STRIPS, []), self._list(_STRIP_BYTES, [])

    @property
    def _bits(self) -> list[int]:
        return self._list(_BITS, [1])

    @property
    def _kind(self) -> str | None:
        """NumPy's letter for the samples' type; None where it has none or they differ."""
        kinds = {_KINDS.get(number) for number in self._list(_FORMAT, [1])}
        return kinds.pop() if len(kinds) == 1 else None

    @property
    def bands(self) -> int:
        return self._number(_SAMPLES, 1)

    @property
    def _compression(self) -> int:
        return self._number(_COMPRESSION, 1)

    @property
    def _predictor(self) -> int:
        return self._number(_PREDICTOR, 1)

    @property
    def _extra(self) -> list[int]:
        """The kinds of the bands that are no colours; 0 where the file does not say."""
        colours = {_RGB: 3, _CMYK: 4, _YCBCR: 3, _CIELAB: 3}.get(self._photometric, 1)
        count = self.bands - colours
        stated = self._list(_EXTRA, [_STRAIGHT] if (self._photometric, count) == (_RGB, 1) else [])
        return (stated + [0] * count)[: max(0, count)]

    @property
    def has_opacity(self) -> bool:
        return self._extra[:1] in ([_PREMULTIPLIED], [_STRAIGHT])

    @property
    def _photometric(self) -> int:
        return self._number(_PHOTOMETRIC, 0)

    @property
    def _is_planar(self) -> bool:
        return self._number(_PLANAR, 1) == 2 and self.bands > 1

    @property
    def missing(self) -> float | None:
        """GDAL's value for no data."""
        try:
            return float(str(self.tags[_NO_DATA]).strip("\0 "))
        except (KeyError, ValueError):
            return None

    def _number(self, tag: int, default: int | None = None) -> int:
        return self._list(tag, [] if default is None else [default])[0]

    def _list(self, tag: int, default: list[int]) -> list[int]:
        value = self.tags.get(tag, default)
        return [int(v) for v in (value if isinstance(value, tuple | list) else [value])]


def _directory(file: BinaryIO, offset: int | None = None) -> ImageFileDirectory_v2:
    """The tags at `offset`, by default the first."""
    file.seek(0)
    head = file.read(16)
    if head[:4] in _BIG_HEADS:
        tags = ImageFileDirectory_v2(b"II+\0" + head[4:], prefix=head[:2])  # Pillow takes MM for one of 4 bytes
    else:
        tags = ImageFileDirectory_v2(head[:8])
    file.seek(tags.next if offset is None else offset)
    tags.load(file)
    return tags


def _directories(file: BinaryIO, tags: ImageFileDirectory_v2) -> Iterator[ImageFileDirectory_v2]:
    """Tags, and those after them."""
    offsets = {0}
    yield tags
    while tags.next not in offsets:
        offsets.add(tags.next)
        tags = _directory(file, tags.next)
        yield tags


def _is_copy(tags: ImageFileDirectory_v2) -> bool:
    """Whether they are of a smaller copy or of a mask of another picture in the file."""
    return bool(int(tags.get(_KIND, 0)) & 5)


def _tiff_of(data: bytes, tags: dict[int, list[int]]) -> bytes:
    """A TIFF file of data, which begin at `_FIRST_SEGMENT`, and of tags."""
    end = _FIRST_SEGMENT + len(data)
    long, entries = b"", b""
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            packed, long = struct.pack("<I", end + len(long)), long + packed
        entries += struct.pack("<HHI", tag, 4, len(values)) + packed
    head = b"II*\0" + struct.pack("<I", end + len(long))
    return head + data + long + struct.pack("<H", len(tags)) + entries + bytes(4)
