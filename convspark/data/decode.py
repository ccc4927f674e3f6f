"""From a file to an 8-bit RGB picture, the right way up, decoded no larger than it will be needed."""

import errno
import io
import math
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, BinaryIO, TypeAlias, overload

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from ..errors import DataError
from ..names import shown
from .remote import CutOffError, UnreachableError
from .stretch import picture_of
from .tiff import NotReadError, Tiff

# Listed by Pillow but not decoded by it: stubs for other programs, and EPS, which starts Ghostscript. Of FITS it leaves
# out scale, sign and missing values, and before version 13 swaps the bytes.
_NOT_PICTURES = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
_COMMON = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP")  # tried first

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# Formats of which many writers know nothing of opacity, and leave it 0.
_MAY_LACK_OPACITY = ("BMP", "DIB", "CUR", "ICO", "TGA")
# Formats that hold a picture several times, in other sizes or layers.
_OF_ONE_PICTURE = ("MPO", "ICO", "CUR", "ICNS", "PSD")

_DRAFTS = (8, 4, 2)  # factors by which libjpeg decodes a picture smaller

Shrink: TypeAlias = Callable[[int, int], float]
"""From the (height, width) of a picture, upright, to the largest factor by which it may come back smaller."""


@dataclass(frozen=True)
class Shrunk:
    """A picture that was decoded smaller than it is.

    Attributes:
        picture: what was decoded, RGB, upright.
        full_size: (H, W) of the whole, upright, in which crops are placed.
    """

    picture: Image.Image
    full_size: tuple[int, int]


class BadPictureError(DataError):
    """A file that should be a picture and cannot be read as one; `path` and `reason` apart, for lists."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{shown(self.path)}: {shown(self.reason)}"


@overload
def decode(path: str | os.PathLike[str]) -> Image.Image: ...


@overload
def decode(path: str | os.PathLike[str], shrink: Shrink | None) -> Image.Image | Shrunk: ...


def decode(path: str | os.PathLike[str], shrink: Shrink | None = None) -> Image.Image | Shrunk:
    """The picture in a file, as an RGB image, upright.

    * EXIF orientation is applied. Of an animation or a multi-page file, the first picture is taken.
    * Grey is repeated, palettes are looked up, CMYK and YCbCr are converted (colour profiles are ignored).
    * What is transparent becomes white, the paper that cut-out objects, logos and drawings are made for.
    * Samples of more than 8 bits, or with a sign (integers, floats; grey, and colour in TIFF, PNG and PPM), are
      stretched from their own darkest to their own brightest finite value: such files rarely use their whole range,
      and a fixed scale would turn what a 12-bit camera took black. Where there is no number, or GDAL's value for no
      data, the picture is black.
    * Bands after red, green and blue that are no opacity are left out; other pictures of several bands are refused.

    Args:
        path: the file. Its content decides on the format, not its suffix.
        shrink: by what factor the caller can do with a smaller picture. A JPEG may then come as `Shrunk`, decoded
            at 1/2, 1/4 or 1/8 of its size: far cheaper, and nearly the average over blocks. None: full size.

    Raises:
        BadPictureError: missing, empty, truncated, damaged, not a picture, or larger than twice
            `PIL.Image.MAX_IMAGE_PIXELS` (179 million pixels, unless set otherwise), where Pillow suspects a
            decompression bomb.
    """
    with quiet():
        return decode_unquietly(os.fspath(path), shrink)


@contextmanager
def quiet() -> Iterator[None]:
    """Silences Pillow's warnings about damaged metadata, large pictures and palettes, but not errors.

    Swaps process-wide filters, so threads share one `quiet` around them all, with `decode_unquietly` inside.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def decode_unquietly(path: str, shrink: Shrink | None = None) -> Image.Image | Shrunk:
    """`decode` without silencing warnings."""
    try:
        with open_regular(path) as file:
            return decode_open(file, shrink)
    # Damaged files make Pillow's decoders raise nearly anything, from SyntaxError to struct.error.
    except Exception as error:
        raise BadPictureError(path, reason_of(path, error)) from error


def decode_bytes(name: str, content: bytes, shrink: Shrink | None = None) -> Image.Image | Shrunk:
    """`decode` of the content of a file, without silencing warnings; `name` is for its error."""
    try:
        return decode_open(io.BytesIO(content), shrink)
    except Exception as error:
        raise BadPictureError(name, reason_of(name, error, content)) from error


def decode_open(file: BinaryIO, shrink: Shrink | None = None) -> Image.Image | Shrunk:
    """`decode` of an open file; raises whatever its decoder does."""
    tiff = Tiff.read(file)
    if tiff is not None and not tiff.is_read_by_pillow:
        return _upright(tiff.picture().convert("RGB"), tiff.orientation)
    picture = open_header(file)
    stored = width, height = picture.size
    deep = _deep_colour(picture, file)
    if deep is not None:
        return deep
    if shrink is None or picture.format not in ("JPEG", "MPO"):
        return to_rgb(picture)
    full_size = (width, height) if orientation_of(picture) >= 5 else (height, width)
    factor = shrink(*full_size)
    for draft in _DRAFTS:
        if draft <= factor:
            picture.draft(None, (width // draft, height // draft))
            break
    rgb = to_rgb(picture)
    return rgb if picture.size == stored else Shrunk(rgb, full_size)


def open_regular(path: str) -> BinaryIO:
    """The file at `path`; a pipe, which might be waited for without end, is refused."""
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise NotReadError("a pipe, socket or device, not a picture")
    return open(path, "rb")


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any Pillow image as an upright RGB image, by the rules of `decode`."""
    picture.load()
    orientation = orientation_of(picture)
    mode = picture.mode
    if mode in ("I", "F") or mode.startswith("I;16"):
        picture = _of_deep_grey(picture)
    elif mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        picture = ImageCms.profileToProfile(picture, lab, srgb, outputMode="RGB") or picture
    elif picture.has_transparency_data:
        picture = _on_white(picture)
    return _upright(picture.convert("RGB"), orientation)


def sniff(path: str) -> bool:
    """Whether a file begins like one of the common picture formats."""
    try:
        with open_regular(path) as file:
            head = file.read(12)
    except (OSError, NotReadError):
        return False
    return begins_like_a_picture(head)


def begins_like_a_picture(head: bytes) -> bool:
    """Whether the first 12 bytes are those of one of the common picture formats."""
    if head.startswith((b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM")):
        return True
    return head[:4] == b"RIFF" and head[8:] == b"WEBP"


@cache
def readable_formats() -> tuple[str, ...]:
    """The formats that Pillow decodes here, most common first."""
    Image.init()
    return *_COMMON, *(name for name in Image.OPEN if name not in _NOT_PICTURES and name not in _COMMON)


@cache
def picture_suffixes() -> frozenset[str]:
    """File name suffixes, in lower case with their dot, that are taken for pictures."""
    readable = {*readable_formats(), "MPO"}  # several JPEGs in one file, opened as a JPEG
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in readable)


def open_header(file: BinaryIO) -> Image.Image:
    """The picture in an open file, its header read and its pixels not."""
    return Image.open(file, formats=readable_formats())


def upright_size(path: str, content: bytes | None = None) -> tuple[int, int]:
    """(height, width) of a readable picture, a file or of that content, as it is decoded; from its header."""
    with open_regular(path) if content is None else io.BytesIO(content) as file:
        tiff = Tiff.read(file)
        if tiff is not None:  # of which Pillow tells the size the right way up already
            return tiff.upright_size
        picture = open_header(file)
        width, height = picture.size
        return (width, height) if orientation_of(picture) >= 5 else (height, width)


def left_out(picture: Image.Image) -> str | None:
    """What a file holds beside the picture that is taken, in words; None if nothing."""
    several = picture.format not in _OF_ONE_PICTURE and getattr(picture, "is_animated", False)
    return "hold several pictures, of which the first is taken" if several else None


def orientation_of(picture: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 (upright) if there is none, or damage: the pixels may still be good."""
    try:
        orientation = picture.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:
        return 1
    return orientation if orientation in _UPRIGHT else 1


def upright(picture: Image.Image) -> Image.Image:
    """A picture as it is stored, turned as its EXIF says."""
    picture.load()  # after which Pillow has turned a TIFF itself
    return _upright(picture, orientation_of(picture))


def _upright(picture: Image.Image, orientation: int) -> Image.Image:
    return picture.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else picture


def _of_deep_grey(picture: Image.Image) -> Image.Image:
    samples = np.asarray(picture)[..., None]  # (H, W, 1)
    transparent = picture.info.get("transparency")  # a value, in PNG
    opacity = (samples[..., 0] != transparent).astype(np.float32) if isinstance(transparent, int) else None
    return picture_of(samples, opacity)


def deep_colours(picture: Image.Image, file: BinaryIO) -> tuple[int, Callable[[], np.ndarray]] | None:
    """For a PNG or PPM file of 16-bit colours, of which Pillow keeps the upper 8 bits, and a PGM file of 9 to 16 bits,
    whose values it scales: how many bands it has, and a function that reads them, (H, W, bands); None for others.
    """
    tiles = getattr(picture, "tile", [])  # what is to be decoded, and how
    tile: Any = tiles[0] if tiles else ("", None, 0, None)
    decoder, _, place, args = tile
    rawmode = str(args)
    if picture.format == "PNG" and picture.mode != "I;16" and rawmode.endswith(";16B"):
        return len(rawmode.removesuffix(";16B")), lambda: _png_samples(file, rawmode)
    if decoder in ("ppm", "ppm_plain") and picture.mode in ("I", "RGB") and args[-1] > 255:
        size = picture.height, picture.width, len(picture.getbands())
        return size[2], lambda: _ppm_samples(file, place, size, in_words=decoder == "ppm_plain")
    return None


def _deep_colour(picture: Image.Image, file: BinaryIO) -> Image.Image | None:
    """A picture of 16-bit colours as by `to_rgb`; None for other pictures."""
    deep = deep_colours(picture, file)
    if deep is None:
        return None
    orientation = orientation_of(picture) if picture.format == "PNG" else 1  # before others read from the file
    samples = deep[1]()
    colours, transparent, opacity = 3 if samples.shape[2] > 2 else 1, picture.info.get("transparency"), None
    if samples.shape[2] > colours:
        opacity = samples[..., colours].astype(np.float32) / 65535
    elif isinstance(transparent, tuple):
        opacity = (samples != transparent).any(2).astype(np.float32)
    return _upright(picture_of(samples[..., :colours], opacity).convert("RGB"), orientation)


def _ppm_samples(file: BinaryIO, place: int, size: tuple[int, int, int], in_words: bool) -> np.ndarray:
    file.seek(place)
    if in_words:
        words = re.sub(rb"#[^\r\n]*", b"", file.read()).split()[: math.prod(size)]
        return np.array([int(word) for word in words], dtype=np.uint16).reshape(size)
    return np.frombuffer(file.read(2 * math.prod(size)), dtype=">u2").reshape(size)


def _png_samples(file: BinaryIO, rawmode: str) -> np.ndarray:
    """(H, W, bands) of 16 bits. Pillow gives one byte of a sample: the first, or the second where it is said to be the
    higher one; grey and opacity, of four bytes a pixel, pass as RGBA.
    """
    if rawmode == "LA;16B":
        return _decoded_by(file, "RGBA").view(">u2")
    high, low = (_decoded_by(file, rawmode[:-1] + end).astype(np.uint16) for end in "BL")
    return high << 8 | low


def _decoded_by(file: BinaryIO, rawmode: str) -> np.ndarray:
    """The pixels of a PNG file, its bytes taken for what `rawmode` says."""
    file.seek(0)
    picture: Any = Image.open(file, formats=["PNG"])
    picture.tile = [picture.tile[0]._replace(args=rawmode)]
    return np.array(picture)


def _on_white(picture: Image.Image) -> Image.Image:
    if picture.mode == "La":  # premultiplied grey: Pillow converts it to its plain form only
        picture = picture.convert("LA")
    may_lack = picture.format in _MAY_LACK_OPACITY
    picture = picture.convert("RGBA")
    alpha = picture.getchannel("A")
    if alpha.getextrema() == (255, 255) or (may_lack and alpha.getextrema() == (0, 0)):
        return picture.convert("RGB")
    page = Image.new("RGB", picture.size, "white")
    page.paste(picture, mask=alpha)
    return page


def reason_of(path: str, error: Exception, content: bytes | None = None) -> str:
    """Why a file could not be read, in a few words for the list of bad files.

    Args:
        content: the file's bytes, where it lies in another file or elsewhere.
    """
    match error:
        case NotReadError() | UnreachableError() | CutOffError():
            return str(error)
        case FileNotFoundError():
            return "a link that leads nowhere" if os.path.islink(path) else "no such file"
        case IsADirectoryError():
            return "a folder, not a picture"
        case PermissionError():
            return "no permission to read it"
        case Image.DecompressionBombError():
            return f"too large: {error}"
        case UnidentifiedImageError():
            return _what_instead(path, content)
        case OSError() if error.errno == errno.ELOOP:
            return "a link that leads in a circle"
        case OSError() if error.errno is not None:
            return f"cannot be read: {error.strerror}"
    words = str(error) or "no details"
    if "truncated" in words.lower():
        return f"truncated: {words}"
    return f"damaged: {type(error).__name__}: {words}"


def _what_instead(path: str, content: bytes | None) -> str:
    """What a file that Pillow does not know is, judged by its first bytes."""
    try:
        head = _head(path) if content is None else content[:64]
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if not head:
        return "empty (0 bytes)"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer instead of the picture (`git lfs pull` brings it)"
    if head.lstrip().startswith((b"<!DOCTYPE", b"<!doctype", b"<html", b"<?xml", b"<svg")):
        return "a web page or XML instead of a picture"
    if begins_like_a_picture(head[:12]):
        return "damaged in its first bytes, or a kind of this format that Pillow does not read"
    return f"not a picture that Pillow can read (it begins with {head[:8]!r})"


def _head(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(64)
