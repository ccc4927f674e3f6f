"""A glance at some of many pictures: how large they are, and whether all of them are grey; from their headers."""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median

from PIL import Image

from ..seeds import Use, counted
from .decode import Shrunk, open_header, open_regular, quiet
from .sources import FileSource, ImageSource

_FILES, _FAR_FILES, _ITEMS = 256, 32, 16
_THREADS = 8
_GREY_MODES = ("1", "L", "LA")


@dataclass(frozen=True)
class Glance:
    """What some pictures are like.

    Attributes:
        short: median of the shorter sides, in pixels.
        area: median of the areas, in pixels.
        are_grey: whether the headers of all say that they are grey; False for items of a dataset.
    """

    short: float
    area: float
    are_grey: bool

    @classmethod
    def of(cls, sizes: Sequence[tuple[int, int]], are_grey: bool) -> "Glance":
        """From (height, width) of one picture or more."""
        return cls(float(median(map(min, sizes))), float(median(h * w for h, w in sizes)), are_grey)


def sample(count: int, *, are_files: bool) -> list[int]:
    """Indices of the pictures to glance at, among `count`: the same ones each time."""
    most = _FILES if are_files else _ITEMS  # items are decoded, and may take any time
    return sorted(counted(0, Use.STATISTICS, 3).permutation(count)[:most].tolist())


def glance(source: ImageSource) -> Glance | None:
    """A glance at the pictures of a source; None where none of them could be read."""
    indices = range(len(source))
    if isinstance(source, FileSource):
        if source.is_remote(0):
            indices = indices[:: -(-len(source) // _FAR_FILES)]
        with quiet(), ThreadPoolExecutor(_THREADS) as pool:
            facts = list(pool.map(lambda index: _header(source, index), indices))
    else:
        facts = [_item(source, index) for index in indices]
    known = [one for one in facts if one is not None]
    return Glance.of([size for size, _ in known], all(is_grey for _, is_grey in known)) if known else None


def _header(source: FileSource, index: int) -> tuple[tuple[int, int], bool] | None:
    """((height, width), whether it is grey) of a picture in a file; None if it cannot be read."""
    name = source.name(index)
    try:
        content = source.content(index)
        size = source.pixels.upright_size(name, content)
        if not source.pixels.is_plain:
            return size, False
        with open_regular(name) if content is None else io.BytesIO(content) as file:
            return size, open_header(file).mode in _GREY_MODES
    except Exception:  # training says why, and counts it
        return None


def _item(source: ImageSource, index: int) -> tuple[tuple[int, int], bool] | None:
    try:
        picture = source.read(index)
    except Exception:  # training says why
        return None
    if isinstance(picture, Shrunk):
        return picture.full_size, False
    if isinstance(picture, Image.Image):
        return (picture.height, picture.width), False
    return (int(picture.shape[-2]), int(picture.shape[-1])), False
