"""Pictures of a run within a page: as data addresses, small enough together."""

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_WAYS = ((1100, 76), (860, 70), (640, 62), (480, 50))  # (widest in pixels, quality): the first that fits is taken
_MOST_SHOWN = 12
_HIGHEST = 16_000  # pixels; WebP has no more than 16,383


@dataclass(frozen=True)
class Inline:
    """A picture: its address, `data:...`, how large it is in pixels, and which epoch it is of, where it is of one."""

    name: str
    address: str
    width: int
    height: int
    epoch: int | None = None


def over_time(folder: Path, budget: int) -> list[Inline]:
    """The reconstructions of a run, oldest first: at most twelve, from the first to the last, in so many bytes."""
    matches = ((path, re.fullmatch(r"epoch_(\d+)\.png", path.name)) for path in folder.glob("epoch_*.png"))
    paths = [path for _, path in sorted((int(match[1]), path) for path, match in matches if match is not None)]
    if len(paths) > _MOST_SHOWN:
        step = (len(paths) - 1) / (_MOST_SHOWN - 1)
        paths = [paths[round(i * step)] for i in range(_MOST_SHOWN)]
    return inline(paths, budget)


def of_results(folder: Path, budget: int) -> list[Inline]:
    """Whatever else a run has drawn: confusion, predictions, comparison."""
    paths = (*sorted(folder.glob("*.png")), *sorted((folder / "pictures").glob("*.png")))
    left_out = r"(epoch_\d+|last|curves)\.png"
    return inline([path for path in paths if not re.fullmatch(left_out, path.name)], budget)


def inline(paths: Sequence[Path], budget: int) -> list[Inline]:
    """Pictures, scaled down until all of them take no more bytes than the budget; those that cannot be read are left
    out, and where even the smallest are too many, the last ones.
    """
    pictures: list[Inline] = []
    for width, quality in _WAYS:
        pictures = [picture for path in paths if (picture := _inline(path, width, quality)) is not None]
        if sum(len(picture.address) for picture in pictures) <= budget:
            return pictures
    fitting: list[Inline] = []
    for picture in pictures:
        budget -= len(picture.address)
        if budget < 0:
            break
        fitting.append(picture)
    return fitting


def _inline(path: Path, widest: int, quality: int) -> Inline | None:
    from PIL import Image  # not before it is needed: `--help` is quick

    try:
        if not path.is_file():  # a pipe would be waited for
            return None
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except Exception:  # Pillow's decoders raise nearly anything of a damaged file
        return None
    scale = min(widest / picture.width, _HIGHEST / picture.height)
    if scale < 1:
        sides = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        picture = picture.resize(sides, Image.Resampling.LANCZOS)
    data = io.BytesIO()
    picture.save(data, "WEBP", quality=quality, method=4)
    address = "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode("ascii")
    epoch = re.fullmatch(r"epoch_(\d+)", path.stem)
    return Inline(path.stem, address, picture.width, picture.height, int(epoch[1]) if epoch else None)
