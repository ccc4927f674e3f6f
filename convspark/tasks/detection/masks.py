"""Masks of objects: COCO's polygons and run-length codes, checked before the library's C code reads them."""

import math
import reprlib
from typing import Any

import numpy as np

from .annotations import Box

Mask = dict[str, Any]
"""A COCO run-length code with compressed counts."""

_MOST_DIGITS = 10  # of 5 bits, of a run: more than any picture has pixels


def read_mask(segmentation: Any, size: tuple[int, int], faults: list[str]) -> Mask | None:
    """Polygons or a run-length code as a mask of a picture of (height, width) pixels; None if no pixel is in it.

    Whatever cannot be used is left out, and described in `faults`.
    """
    from faster_coco_eval.core import mask as coding

    if isinstance(segmentation, list):
        polygons = _usable_polygons(segmentation, size, faults)
        mask = coding.merge(coding.frPyObjects(polygons, *size)) if polygons else None  # type: ignore[arg-type]
    elif isinstance(segmentation, dict):
        mask = _checked_code(segmentation, size, faults)
    elif segmentation is None:
        faults.append("it has neither a bbox nor a segmentation")
        mask = None
    else:
        faults.append(f"its segmentation {reprlib.repr(segmentation)} is neither polygons nor a run-length code")
        mask = None
    if mask is not None and int(coding.area(mask)) == 0:
        faults.append("its mask holds no pixel")
        mask = None
    return mask


def box_around(mask: Mask) -> Box:
    """The smallest box that holds a mask."""
    from faster_coco_eval.core import mask as coding

    left, top, width, height = (float(side) for side in coding.toBbox(mask))
    return left, top, left + width, top + height


def decode_mask(mask: Mask) -> np.ndarray:
    """(H, W) uint8, 1 inside."""
    from faster_coco_eval.core import mask as coding

    return np.asarray(coding.decode(mask), dtype=np.uint8)


def _usable_polygons(polygons: list[Any], size: tuple[int, int], faults: list[str]) -> list[list[float]]:
    """Those of three corners or more, at most a picture's side away from it."""
    side = max(size)
    usable: list[list[float]] = []
    for polygon in polygons or [[]]:
        try:
            corners = [float(value) for value in polygon]
        except (TypeError, ValueError, OverflowError):
            faults.append(
                f"{reprlib.repr(polygon)} in its segmentation is no polygon: expected a list of lists x, y, x, y, …"
            )
            continue
        if len(corners) < 6 or len(corners) % 2:
            faults.append(f"its polygon {reprlib.repr(polygon)} has less than three corners, x and y of each")
        elif not all(-side <= value <= 2 * side for value in corners):  # false for what is not a number, too
            faults.append(f"its polygon {reprlib.repr(polygon)} reaches far out of the picture")
        else:
            usable.append(corners)
    return usable


def _checked_code(code: dict[str, Any], size: tuple[int, int], faults: list[str]) -> Mask | None:
    """A run-length code of just the picture's pixels: of others the library reads and writes where it must not."""
    from faster_coco_eval.core import mask as coding

    stated, counts = code.get("size"), code.get("counts")
    if not isinstance(stated, list) or stated != list(size):
        of = f"{stated[1]!r}x{stated[0]!r}" if isinstance(stated, list) and len(stated) == 2 else reprlib.repr(stated)
        faults.append(f"its mask has {of} pixels, the picture {size[1]}x{size[0]}")
        return None
    runs = _uncompressed(counts) if isinstance(counts, str) else counts
    is_code = isinstance(runs, list) and all(type(run) is int and run >= 0 for run in runs)
    if not is_code or sum(runs or ()) != math.prod(size):
        faults.append(f"its run-length code {reprlib.repr(counts)} is not one of {math.prod(size)} pixels")
        return None
    checked: Mask = {"size": list(size), "counts": counts}
    return checked if isinstance(counts, str) else coding.frPyObjects(checked, *size)  # type: ignore[return-value]


def _uncompressed(counts: str) -> list[int] | None:
    """Run lengths of a compressed code: little-endian groups of 5 bits from character 48 on; from the fourth run on,
    differences to the last but one. None if it is no such code.
    """
    digits = np.frombuffer(counts.encode("latin-1", "replace"), dtype=np.uint8).astype(np.int64) - 48
    last = (digits & 32) == 0  # of its number
    if not len(digits) or digits.min() < 0 or digits.max() > 63 or not last[-1]:
        return None
    starts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    lengths = np.diff([*starts, len(digits)])
    if lengths.max() > _MOST_DIGITS:
        return None
    place = np.arange(len(digits)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((digits & 31) << (5 * place), starts)
    runs[(digits[last] & 16) > 0] -= 1 << (5 * lengths[(digits[last] & 16) > 0])  # the highest bit is the sign
    for first in (1, 2):
        runs[first::2] = runs[first::2].cumsum()
    return runs.tolist()
