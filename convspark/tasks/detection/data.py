"""Annotated pictures: COCO JSON or Pascal VOC XML become scenes with boxes and, where there are some, masks."""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError, UsageError
from ..pictures import upright_sizes
from .annotations import Annotated, read_annotations, some

logger = logging.getLogger(__name__)

_MOST_BAD = 0.05


@dataclass(frozen=True)
class Thing:
    """One annotated object: its box (left, top, right, bottom) in pixels, class from 1, and mask.

    Attributes:
        mask: a COCO run-length code with compressed counts, or None.
        crowd: whether it is neither trained on nor counted as missed: a box that holds many, or one called difficult.
    """

    box: tuple[float, float, float, float]
    label: int
    mask: dict[str, Any] | None
    crowd: bool


@dataclass(frozen=True)
class Scene:
    """A picture file of (height, width) pixels and what is in it."""

    path: str
    size: tuple[int, int]
    things: list[Thing]


@dataclass(frozen=True)
class Scenes:
    """Annotated pictures and the names of their classes; label 1 is the first."""

    scenes: list[Scene]
    classes: list[str]
    source: str = field(default="", compare=False)

    def as_coco(self) -> dict[str, Any]:
        """As the content of a COCO file, for evaluation; image ids are places in `scenes`, from 1."""
        images = [
            {"id": i, "file_name": scene.path, "height": scene.size[0], "width": scene.size[1]}
            for i, scene in enumerate(self.scenes, start=1)
        ]
        annotations: list[dict[str, Any]] = []
        for i, scene in enumerate(self.scenes, start=1):
            for thing in scene.things:
                left, top, right, bottom = thing.box
                entry: dict[str, Any] = {
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": thing.label,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": int(thing.crowd),
                }
                if thing.mask is not None:
                    from faster_coco_eval.core import mask as coding

                    entry |= {"segmentation": thing.mask, "area": float(coding.area(thing.mask))}
                annotations.append(entry)
        categories = [{"id": i, "name": name} for i, name in enumerate(self.classes, start=1)]
        return {"images": images, "annotations": annotations, "categories": categories}


def read_scenes(
    source: str | None, images: str | None, classes: list[str] | None = None, masks: bool = False
) -> Scenes:
    """Read annotations, and check them against their pictures.

    Boxes that reach over the picture's edge are cut there; boxes and masks without area and those that lie outside are
    left out and told, and are an error where they are more than 5 % of all. So are pictures that cannot be read.

    Args:
        source: a COCO .json file; a folder of Pascal VOC .xml files, or a .txt list of their names in VOC's ImageSets.
        images: folder of the pictures.
        classes: names that are allowed, in order; None takes those that the file has.
        masks: whether every object needs a mask.

    Raises:
        DataError: not such a file, missing pictures, pictures or masks of another size, unknown classes, or no object.
    """
    if not source or not Path(source).exists():
        raise UsageError(f"annotations {source!r} do not exist: give a COCO .json file, or a folder of VOC .xml files")
    if not images or not Path(images).is_dir():
        raise UsageError(f"images is {images!r}: expected the folder that holds the annotated pictures")
    annotated, names = read_annotations(Path(source))
    known = classes or names
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise DataError(f"{source} has classes that were not trained on: {some(unknown)}; known are {some(known)}")
    root = Path(images)
    missing = [each.name for each in annotated if not (root / each.name).is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of the {len(annotated)} pictures of {source} are not in {images}: {some(missing)}"
        )
    sizes = upright_sizes([str(root / each.name) for each in annotated])
    readable = [(each, sizes[str(root / each.name)]) for each in annotated if str(root / each.name) in sizes]
    _check_sizes(source, readable)
    label_of = {name: i for i, name in enumerate(known, start=1)}
    bad: list[str] = []
    scenes: list[Scene] = []
    for each, size in readable:
        kept: list[Thing] = []
        for entry in each.entries:
            where = f"{entry.where} of {each.name}"
            box = _cut(entry.box, size)
            mask = None if entry.segmentation is None else _mask(entry.segmentation, size, where)
            if masks and mask is None:
                raise DataError(
                    f"{source}: {where} has no mask: expected `segmentation`; boxes alone are for detect --task boxes"
                )
            if box is None:
                bad.append(f"{where}: box {[round(v, 1) for v in entry.box]} in {size[1]}x{size[0]} pixels")
            elif mask is not None and _is_empty(mask):
                bad.append(f"{where}: its mask holds no pixel")
            else:
                kept.append(Thing(box, label_of[entry.kind], mask, entry.crowd))
        scenes.append(Scene(str(root / each.name), size, kept))
    total = sum(len(each.entries) for each, _ in readable)
    if bad:
        told = f"{source}: {len(bad)} of {total} objects have no area or lie outside their picture: {some(bad)}"
        if len(bad) > _MOST_BAD * total:
            raise DataError(f"{told}. That is more than {_MOST_BAD:.0%}: something is wrong with the file as a whole")
        logger.warning("%s; they are left out", told)
    if all(thing.crowd for scene in scenes for thing in scene.things):
        raise DataError(f"{source} holds no annotated object")
    return Scenes(scenes, known, source)


def _check_sizes(source: str, readable: Sequence[tuple[Annotated, tuple[int, int]]]) -> None:
    """Boxes and masks of a picture that was shrunk or turned since would be silently wrong."""
    wrong = [(each.name, each.size, size) for each, size in readable if each.size not in (None, size)]
    if not wrong:
        return
    name, told, size = wrong[0]
    turned = all(told == size[::-1] for _, told, size in wrong)
    why = "turned by its EXIF orientation since?" if turned else "shrunk or cut since?"
    raise DataError(
        f"{len(wrong)} of the {len(readable)} pictures of {source} have another size than it says: {name} has "
        f"{size[1]}x{size[0]} pixels, annotated were {told[1]}x{told[0]}; {why} Give the pictures that were annotated"
    )


def _cut(box: Iterable[float], size: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """The part of a box within the picture; None if it has no area."""
    left, top, right, bottom = box
    if not all(map(math.isfinite, (left, top, right, bottom))):
        return None
    cut = max(0.0, left), max(0.0, top), min(float(size[1]), right), min(float(size[0]), bottom)
    return cut if cut[2] - cut[0] >= 1e-3 and cut[3] - cut[1] >= 1e-3 else None


def _mask(segmentation: Any, size: tuple[int, int], where: str) -> dict[str, Any]:
    """Polygons or a run-length code as a compressed code of the picture's size."""
    from faster_coco_eval.core import mask as coding

    height, width = size
    try:
        if isinstance(segmentation, list):
            polygons = [[float(v) for v in polygon] for polygon in segmentation]
            if any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
                raise ValueError("a polygon needs three corners, x and y of each")
            parts: Any = coding.frPyObjects(polygons, height, width)
            return coding.merge(parts)
        if tuple(segmentation["size"]) != size:
            raise DataError(
                f"{where}: its mask has {segmentation['size'][1]}x{segmentation['size'][0]} pixels, "
                f"the picture {width}x{height}"
            )
        if isinstance(segmentation["counts"], list):
            code: Any = coding.frPyObjects(segmentation, height, width)
            return code
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"{where}: its segmentation is neither polygons nor a run-length code ({error})") from None
    return {"size": [height, width], "counts": segmentation["counts"]}


def _is_empty(mask: dict[str, Any]) -> bool:
    from faster_coco_eval.core import mask as coding

    return int(coding.area(mask)) == 0


def decode_mask(mask: dict[str, Any]) -> np.ndarray:
    """(H, W) uint8, 1 inside."""
    from faster_coco_eval.core import mask as coding

    return np.asarray(coding.decode(mask), dtype=np.uint8)
