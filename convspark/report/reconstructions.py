"""Pictures of what a network makes of masked images: original, masked and reconstruction side by side."""

import os
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..files import written_whole
from .display import displayed

_TITLES = ("original", "masked", "reconstruction")
_MASKED_GREY = 0.5
_INK, _FAINT_INK, _PAPER = (32, 33, 36), (110, 113, 118), (255, 255, 255)
_LEAST_SIDE = 192  # pixels on the page; smaller images are enlarged by a whole factor
_MOST_ROWS = 8
_ROWS_A_BLOCK = 4  # from five rows on, two blocks stand side by side: the page stays about as wide as high


def reconstruction_grid(
    original: Tensor,
    masked: Tensor,
    reconstruction: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    path: str | os.PathLike[str],
    captions: Sequence[str] | None = None,
    visible: Tensor | None = None,
    *,
    show: Sequence[int] | None = None,
    stretch: bool = False,
) -> None:
    """Draws a row a picture, original | masked | reconstruction, into a PNG file, which appears whole or not
    at all.

    Args:
        original, masked, reconstruction: (B, C, H, W), normalised by `mean` and `std`; the first eight are
            drawn. One channel is shown in grey, three in colour, but those of a grey original in grey.
        mean, std: of each channel, as the images were normalised.
        path: of the file to write.
        captions: one a row, for example the names of the pictures.
        visible: bool (B, h, w), True = visible, whose masked patches are drawn in mid-grey. Without it,
            masked are the pixels that are 0 in every channel of `masked`, which no pixel of a picture is
            after normalising.
        show, stretch: see `displayed`.
    """
    count = min(len(original), _MOST_ROWS)
    original, masked, reconstruction = (
        images[:count].detach().float().cpu() for images in (original, masked, reconstruction)
    )
    if visible is None:
        mask = (masked != 0).any(dim=1, keepdim=True)  # (B, 1, H, W)
    else:
        height, width = original.shape[-2:]
        patches = visible[:count].cpu()
        mask = patches.repeat_interleave(height // patches.shape[1], 1)  # (B, h, w) -> (B, H, w)
        mask = mask.repeat_interleave(width // patches.shape[2], 2)[:, None]  # -> (B, 1, H, W)
    columns = displayed((original, masked, reconstruction), mean, std, show, stretch)
    columns[1] = torch.where(mask, columns[1], torch.tensor(_MASKED_GREY))
    rows = [[_to_pillow(column[row]) for column in columns] for row in range(count)]
    page = _layout(rows, list(captions or [])[:count])
    with written_whole(path) as temporary:
        page.save(temporary, format="PNG")


def _to_pillow(image: Tensor) -> Image.Image:
    """(1 or 3, H, W) between 0 and 1 -> RGB, enlarged if small."""
    pixels = (image * 255).round().to(torch.uint8).expand(3, -1, -1).permute(1, 2, 0)  # (H, W, 3)
    picture = Image.fromarray(np.ascontiguousarray(pixels.numpy()))
    factor = max(1, -(-_LEAST_SIDE // max(picture.size)))
    size = picture.width * factor, picture.height * factor
    return picture.resize(size, Image.Resampling.BICUBIC) if factor > 1 else picture


def _layout(rows: list[list[Image.Image]], captions: list[str]) -> Image.Image:
    """A page with `rows` of equally large pictures, titles above, captions below."""
    width, height = rows[0][0].size
    gap = max(6, width // 32)
    margin = 3 * gap
    title_size = max(14, width // 14)
    title_font = ImageFont.load_default(title_size)
    caption_font = ImageFont.load_default(round(0.8 * title_size))
    caption_height = round(1.4 * title_size) if captions else 0

    half = -(-len(rows) // 2)
    blocks = [rows] if len(rows) <= _ROWS_A_BLOCK else [rows[:half], rows[half:]]
    block_width = 3 * width + 2 * gap
    row_height = height + caption_height + gap
    head = margin + round(1.5 * title_size)
    page_width = 2 * margin + len(blocks) * block_width + (len(blocks) - 1) * 2 * margin
    page = Image.new("RGB", (page_width, head + len(blocks[0]) * row_height - gap + margin), _PAPER)
    draw = ImageDraw.Draw(page)

    number = 0
    for index, block in enumerate(blocks):
        left = margin + index * (block_width + 2 * margin)
        for column, title in enumerate(_TITLES):
            middle = left + column * (width + gap) + width / 2
            draw.text((middle, head - 0.5 * title_size), title, fill=_INK, font=title_font, anchor="ms")
        for place, pictures in enumerate(block):
            top = head + place * row_height
            for column, picture in enumerate(pictures):
                page.paste(picture, (left + column * (width + gap), top))
            if number < len(captions):
                text = fitted(captions[number], caption_font, block_width)
                draw.text((left, top + height + gap / 2), text, fill=_FAINT_INK, font=caption_font, anchor="la")
            number += 1
    return page


def fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """`text`, cut at its beginning (paths differ at their end) until it is at most `width` pixels wide."""
    text = text.encode("utf-8", "replace").decode()
    if font.getlength(text) <= width:
        return text
    while text and font.getlength("… " + text) > width:
        text = text[1:]
    return "… " + text
