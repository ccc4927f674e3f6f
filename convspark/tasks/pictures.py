"""Picture files that annotations and masks belong to: which are readable, and how large they are."""

from collections.abc import Sequence

from ..data import scan
from ..data.decode import open_header, quiet

_ORIENTATION_TAG, _FIRST_LYING = 0x0112, 5  # EXIF: from 5 on, height and width change places


def upright_sizes(paths: Sequence[str]) -> dict[str, tuple[int, int]]:
    """(height, width) in pixels of each readable picture, the right way up, as it is decoded.

    Raises:
        DataError: no picture, or more than 5 % of them, can be read; fewer are left out and told.
    """
    with quiet():
        return {path: _upright_size(path) for path in scan(paths).good}


def _upright_size(path: str) -> tuple[int, int]:
    with open(path, "rb") as file:
        picture = open_header(file)
        try:
            lies = int(picture.getexif().get(_ORIENTATION_TAG, 1)) >= _FIRST_LYING
        except Exception:  # damaged metadata: decoding takes such a picture as it lies, too
            lies = False
        return (picture.width, picture.height) if lies else (picture.height, picture.width)
