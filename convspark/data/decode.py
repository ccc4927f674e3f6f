"""From a file to an 8-bit RGB picture, the right way up, decoded no larger than it will be needed."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from ..errors import DataError

# Listed by Pillow but not decoded by it: stubs for other programs, and EPS, which starts Ghostscript.
_NOT_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
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


class BadPictureError(DataError):
    """A file that should be a picture and cannot be read as one; `path` and `reason` apart, for lists."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def decode(path: str | os.PathLike[str], size_hint: tuple[int, int] | None = None) -> Image.Image:
    """The picture in a file, as an RGB image, upright.

    * EXIF orientation is applied. Of an animation or a multi-page file, the first picture is taken.
    * Grey is repeated, palettes are looked up, CMYK and YCbCr are converted (colour profiles are ignored).
    * What is transparent becomes white, the paper that cut-out objects, logos and drawings are made for.
    * Grey of more than 8 bits (16 and 32 bit integers, floats) is stretched from its own darkest to its own
      brightest finite value: such files rarely use their whole range, and a fixed scale would turn what a
      12-bit microscope took black. Colour of 16 bits keeps its upper 8.

    Args:
        path: the file. Its content decides on the format, not its suffix.
        size_hint: (H, W) that the caller needs at least. A larger picture may come back smaller, by a whole
            factor, but not below the hint on either side: a JPEG is then decoded at 1/2, 1/4 or 1/8 (far
            cheaper), anything else is averaged over blocks after decoding. None: full size.

    Raises:
        BadPictureError: missing, empty, truncated, damaged, not a picture, or larger than twice
            `PIL.Image.MAX_IMAGE_PIXELS` (179 million pixels, unless set otherwise), where Pillow suspects a
            decompression bomb.
    """
    with quiet():
        return decode_unquietly(os.fspath(path), size_hint)


@contextmanager
def quiet() -> Iterator[None]:
    """Silences Pillow's warnings about damaged metadata, large pictures and palettes; errors remain errors.

    Swaps process-wide filters, so threads share one `quiet` around them all, with `decode_unquietly` inside.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def decode_unquietly(path: str, size_hint: tuple[int, int] | None = None) -> Image.Image:
    """`decode` without the silence."""
    try:
        with open(path, "rb") as file:
            picture = Image.open(file, formats=readable_formats())
            if size_hint is not None and picture.format in ("JPEG", "MPO"):
                height, width = size_hint
                picture.draft(None, (height, width) if _orientation(picture) >= 5 else (width, height))
            picture.load()
            return to_rgb(picture, size_hint)
    # Damaged files make Pillow's decoders raise nearly anything, from SyntaxError to struct.error.
    except Exception as error:
        raise BadPictureError(path, _reason(path, error)) from error


def to_rgb(picture: Image.Image, size_hint: tuple[int, int] | None = None) -> Image.Image:
    """Any loaded Pillow image as an upright RGB image, by the rules of `decode`."""
    orientation = _orientation(picture)
    mode = picture.mode
    if mode in ("I", "F") or mode.startswith("I;16"):
        picture = _stretch(picture)
    elif mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        picture = ImageCms.profileToProfile(picture, lab, srgb, outputMode="RGB") or picture
    elif picture.has_transparency_data:
        picture = _on_white(picture)
    if picture.mode != "RGB":
        picture = picture.convert("RGB")
    if size_hint is not None:
        height, width = size_hint if orientation < 5 else size_hint[::-1]
        factor = min(picture.height // height, picture.width // width)
        if factor > 1:
            picture = picture.reduce(factor)
    return picture.transpose(_UPRIGHT[orientation]) if orientation > 1 else picture


def sniff(path: str) -> bool:
    """Whether a file begins like one of the common picture formats."""
    try:
        with open(path, "rb") as file:
            head = file.read(12)
    except OSError:
        return False
    if head.startswith((b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*", b"BM")):
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


def _orientation(picture: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 (upright) if there is none, or damage: the pixels may still be good."""
    try:
        orientation = picture.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _stretch(picture: Image.Image) -> Image.Image:
    values = np.asarray(picture).astype(np.float64)  # (H, W)
    finite = np.isfinite(values)
    if not finite.any():
        raise ValueError("no finite value")
    low, high = values[finite].min(), values[finite].max()
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    scale = 255.0 / (high - low) if high > low else 0.0
    return Image.fromarray(np.rint((values - low) * scale).astype(np.uint8))


def _on_white(picture: Image.Image) -> Image.Image:
    if picture.mode == "La":  # premultiplied grey: Pillow converts it to its plain form only
        picture = picture.convert("LA")
    picture = picture.convert("RGBA")
    alpha = picture.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return picture.convert("RGB")
    page = Image.new("RGB", picture.size, "white")
    page.paste(picture, mask=alpha)
    return page


def _reason(path: str, error: Exception) -> str:
    """Why a file could not be read, in a few words for the list of bad files."""
    match error:
        case FileNotFoundError():
            return "no such file"
        case IsADirectoryError():
            return "a folder, not a picture"
        case PermissionError():
            return "no permission to read it"
        case Image.DecompressionBombError():
            return f"too large: {error}"
        case UnidentifiedImageError():
            return _what_instead(path)
    words = str(error) or "no details"
    if "truncated" in words.lower():
        return f"truncated: {words}"
    return f"damaged: {type(error).__name__}: {words}"


def _what_instead(path: str) -> str:
    """What a file that Pillow does not know is, as far as its first bytes tell."""
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if not head:
        return "empty (0 bytes)"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer instead of the picture (`git lfs pull` brings it)"
    if head.lstrip().startswith((b"<!DOCTYPE", b"<!doctype", b"<html", b"<?xml", b"<svg")):
        return "a web page or XML instead of a picture"
    if sniff(path):
        return "damaged in its first bytes, or a kind of this format that Pillow does not read"
    return f"not a picture that Pillow can read (it begins with {head[:8]!r})"
