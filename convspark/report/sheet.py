"""A sheet of many small pictures with a line under each."""

import os
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from ..files import written_whole
from .reconstructions import fitted

_SIDE, _GAP, _LINE, _ACROSS = 176, 10, 16, 8
_MARK = "Software", "convspark: a sheet of pictures"
_INK, _PAPER, _FRAME = (110, 113, 118), (255, 255, 255), (228, 229, 232)


def picture_sheet(pictures: Sequence[Image.Image], captions: Sequence[str], path: str | os.PathLike[str]) -> None:
    """Draws RGB pictures into a PNG file, eight in a row, each as large as fits into its place.

    Args:
        captions: one a picture; cut at their beginning where they are too long.
    """
    across = min(_ACROSS, len(pictures))
    down = -(-len(pictures) // across)
    step = _SIDE + _GAP, _SIDE + _LINE + _GAP
    page = Image.new("RGB", (across * step[0] + _GAP, down * step[1] + _GAP), _PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(11)
    for place, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left, top = _GAP + place % across * step[0], _GAP + place // across * step[1]
        draw.rectangle((left, top, left + _SIDE - 1, top + _SIDE - 1), fill=_FRAME)
        scale = _SIDE / max(picture.size)
        shape = max(1, round(scale * picture.width)), max(1, round(scale * picture.height))
        way = Image.Resampling.NEAREST if scale > 3 else Image.Resampling.BICUBIC  # tiny pictures show their pixels
        small = picture.resize(shape, way, reducing_gap=2 if scale < 1 else None)
        page.paste(small, (left + (_SIDE - shape[0]) // 2, top + (_SIDE - shape[1]) // 2))
        draw.text((left, top + _SIDE + 2), fitted(caption, font, _SIDE), fill=_INK, font=font)
    marked = PngImagePlugin.PngInfo()
    marked.add_text(*_MARK)
    with written_whole(path) as temporary:
        page.save(temporary, format="PNG", pnginfo=marked)


def is_sheet(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a sheet that was drawn earlier, and no picture of a user's."""
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            return picture.info.get(_MARK[0]) == _MARK[1]
    except Exception:  # whatever else it is
        return False
