"""Pictures with a class at every pixel: mask files, or COCO's objects painted over each other."""

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ...data import list_images
from ...errors import DataError, UsageError
from ..detection.data import Scene, decode_mask, read_scenes
from ..pictures import upright_sizes

logger = logging.getLogger(__name__)

IGNORED = 255
"""Label of pixels that count neither for nor against."""

_LARGEST_LABEL = 200  # pictures given for masks have larger values
_SHOWN = 3


@dataclass(frozen=True)
class LabelMaps:
    """Pictures and where their labels come from.

    Attributes:
        pictures: paths of the pictures.
        masks: paths of their mask files, or the scene that is painted.
        classes: names; a label is an index into them, 0 is the background.
        values: of the mask files, value -> label; empty where masks are painted.
    """

    pictures: list[str]
    masks: list[str | Scene]
    classes: list[str]
    values: dict[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pictures)

    def label_map(self, index: int) -> np.ndarray:
        """(H, W) uint8, labels or `IGNORED`."""
        mask = self.masks[index]
        if isinstance(mask, Scene):
            painted = np.zeros(mask.size, dtype=np.uint8)
            for thing in mask.things:
                if thing.mask is not None:
                    painted[decode_mask(thing.mask) > 0] = IGNORED if thing.crowd else thing.label
            return painted
        return self._lookup[_values_of(mask)]

    def part(self, indices: Iterable[int]) -> "LabelMaps":
        """Some of the pictures."""
        chosen = list(indices)
        return LabelMaps([self.pictures[i] for i in chosen], [self.masks[i] for i in chosen], self.classes, self.values)

    @property
    def _lookup(self) -> np.ndarray:
        table = np.full(256, IGNORED, dtype=np.uint8)
        for value, label in self.values.items():
            table[value] = label
        return table


def read_label_maps(images: str | None, masks: str | None, like: LabelMaps | None = None) -> LabelMaps:
    """Pictures and their masks, matched by name and checked.

    Args:
        images: folder of pictures.
        masks: folder of 8-bit mask files (grey or palette) named like the pictures, each value a class: 0 and 255 for a
            single one, else 0, 1, 2, … with 255 for pixels that do not count; or a COCO .json file.
        like: what was trained on, whose classes these must be.

    Raises:
        UsageError: no such folder.
        DataError: pictures without masks, masks of another size, no class or unknown ones.
    """
    if not images or not os.path.isdir(images):
        raise UsageError(f"images is {images!r}: expected a folder of pictures")
    if not masks or not os.path.exists(masks):
        raise UsageError(f"masks is {masks!r}: expected a folder of mask files, or a COCO .json file")
    if os.path.isfile(masks):
        known = like.classes[1:] if like is not None else None
        scenes = read_scenes(masks, images, known, masks=True)
        paths = [scene.path for scene in scenes.scenes]
        return LabelMaps(paths, list(scenes.scenes), ["background", *scenes.classes])
    found = {Path(path).stem: path for path in list_images(masks)}
    pictures = list_images(images)
    lacking = [path for path in pictures if Path(path).stem not in found]
    if lacking:
        raise DataError(
            f"{len(lacking)} of the {len(pictures)} pictures in {images} have no mask in {masks}: "
            f"{', '.join(lacking[:_SHOWN])}; a mask has its picture's name"
        )
    sizes = upright_sizes(pictures)
    pictures = list(sizes)
    files = [found[Path(path).stem] for path in pictures]
    idle = len(found) - len(set(files))
    if idle:
        logger.warning(
            "%d of the %d masks in %s have no picture in %s; they are left out", idle, len(found), masks, images
        )
    seen: set[int] = set()
    for (height, width), file in zip(sizes.values(), files, strict=True):
        values = _values_of(file)
        if (height, width) != values.shape:
            raise DataError(
                f"the mask {file} has {values.shape[1]}x{values.shape[0]} pixels, its picture {width}x{height}"
            )
        seen.update(np.unique(values).tolist())
    values = like.values if like is not None else _labels_of(seen, masks)
    unknown = sorted(seen - set(values) - {IGNORED})
    if unknown:
        raise DataError(f"{masks} has the values {unknown[:10]}, which the masks trained on do not have")
    names = (
        like.classes
        if like is not None
        else ["background", *(f"class {i}" for i in range(1, max(values.values()) + 1))]
    )
    return LabelMaps(pictures, list(files), names, values)


def _labels_of(seen: set[int], masks: str) -> dict[int, int]:
    """Which value stands for which label."""
    if seen <= {0, 255}:
        if 255 not in seen:
            raise DataError(f"the masks in {masks} are empty: every pixel is 0")
        return {0: 0, 255: 1}
    classes = sorted(seen - {IGNORED})
    if classes[-1] > _LARGEST_LABEL or classes[-1] >= 2 * len(classes):  # a few classes may have no pixel here
        raise DataError(
            f"the masks in {masks} have {len(classes)} values up to {classes[-1]}: expected 0 and 255, or classes "
            "counted 0, 1, 2, …; are they pictures, saved as JPEG, or colour-coded?"
        )
    if len(classes) < 2:
        raise DataError(f"the masks in {masks} have a single class, {classes[0]}: there is nothing to tell apart")
    return {value: value for value in range(classes[-1] + 1)}


def _values_of(file: str) -> np.ndarray:
    """(H, W) uint8: grey values, or palette indices."""
    try:
        with Image.open(file) as opened:
            if opened.mode not in ("L", "P", "1"):
                raise DataError(f"the mask {file} is a picture of mode {opened.mode}: expected 8-bit grey or a palette")
            return np.array(opened.convert("L") if opened.mode == "1" else opened)
    except OSError as error:
        raise DataError(f"the mask {file} cannot be read ({error})") from None
