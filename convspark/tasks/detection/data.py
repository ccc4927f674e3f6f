"""Annotated pictures: COCO JSON or Pascal VOC XML become scenes with boxes and, where there are some, masks."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...data import PLAIN, Pixels
from ...errors import DataError, UsageError
from ...names import shown, some
from ..pictures import find_pictures, upright_sizes, whole_pictures
from .annotations import Annotated, Box, read_annotations
from .masks import Mask, box_around, read_mask

logger = logging.getLogger(__name__)

_MOST_BAD = 0.05
_LEAST_SIDE = 1e-3  # of a box, in pixels
_NO_SIZE = (0, 0)  # of a picture that is gone


@dataclass(frozen=True)
class Thing:
    """One annotated object: its box (left, top, right, bottom) in pixels, class from 1, and mask.

    Attributes:
        mask: None where no masks are read.
        crowd: whether it is neither trained on nor counted as missed: a box that holds many, or one called difficult.
    """

    box: Box
    label: int
    mask: Mask | None
    crowd: bool


@dataclass(frozen=True)
class Scene:
    """A picture file of (height, width) pixels and what is in it."""

    path: str
    size: tuple[int, int]
    things: list[Thing]


@dataclass(frozen=True)
class Scenes:
    """Annotated pictures and the names of their classes; label 1 is the first.

    Attributes:
        bad: (path, reason) of pictures that cannot be read, which are left out.
    """

    scenes: list[Scene]
    classes: list[str]
    source: str = field(default="", compare=False)
    bad: list[tuple[str, str]] = field(default_factory=list, compare=False)

    @property
    def pictures(self) -> list[str]:
        """Paths of the pictures."""
        return [scene.path for scene in self.scenes]

    @property
    def gone(self) -> list[int]:
        """The places of pictures that a run trained on and that are not there any more."""
        return [place for place, scene in enumerate(self.scenes) if scene.size == _NO_SIZE]

    @property
    def counts(self) -> tuple[int, int]:
        """How many objects count, and how many are crowds."""
        crowds = [thing.crowd for scene in self.scenes for thing in scene.things]
        return crowds.count(False), crowds.count(True)

    def part(self, pictures: Sequence[str]) -> "Scenes":
        """Of some pictures, in their order; those that are not here are without size and objects."""
        by_path = {scene.path: scene for scene in self.scenes}
        return replace(self, scenes=[by_path.get(path, Scene(path, _NO_SIZE, [])) for path in pictures])

    def whole(self) -> "Scenes":
        """Without pictures that are damaged anywhere, with a warning. Every picture is decoded.

        Raises:
            DataError: no object is in those that are left.
        """
        bad = list(self.bad)
        undamaged = set(whole_pictures(self.pictures, bad))
        scenes = [scene for scene in self.scenes if scene.path in undamaged]
        _check_objects(self.source, scenes, " of a picture that can be read")
        return replace(self, scenes=scenes, bad=bad)

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
    source: str | None,
    images: str | None,
    classes: list[str] | None = None,
    masks: bool = False,
    run_pictures: Sequence[str] | None = None,
    pixels: Pixels = PLAIN,
    boxes: bool = True,
) -> Scenes:
    """Read annotations, and check them against their pictures.

    Boxes that reach over the picture's edge are cut there; they are an error where more than 5 % do, as such files have
    corners where COCO has sizes. Objects without area, outside their picture, or whose mask cannot be used are left out
    and named, and are an error where they are more than 5 % of all. So are pictures that cannot be read.

    Args:
        source: a COCO .json file; a folder of Pascal VOC .xml files, or a .txt list of their names in VOC's ImageSets.
        images: folder of the pictures; nothing outside it is opened. Names of other folders are matched by their last
            part, where it is that of one picture only, with a warning.
        classes: names that are allowed, in order; None takes those that the file has.
        masks: whether every object needs a mask. Else masks are read only to make boxes of them where there are none.
        run_pictures: those of a run that goes on: no others are taken, those that are not there are left out, and so
            are objects of other classes, with a warning.
        pixels: how the pictures are read.
        boxes: whether the file's boxes count; else they are made of the masks.

    Raises:
        DataError: not such a file, missing pictures, pictures or masks of another size, unknown classes, or no object.
    """
    if not source or not Path(source).exists():
        raise UsageError(f"annotations {source!r} do not exist: give a COCO .json file, or a folder of VOC .xml files")
    if not images or not Path(images).is_dir():
        raise UsageError(f"images is {images!r}: expected the folder that holds the annotated pictures")
    annotated, names = read_annotations(Path(source))
    if not annotated:
        raise DataError(f"{source} names no picture")
    if not boxes:
        annotated = [picture.without_boxes() for picture in annotated]
    known = classes or names
    pictures = find_pictures(annotated, source, images, run_pictures, not pixels.is_plain)
    unknown = sorted({entry.kind for picture in pictures.values() for entry in picture.entries} - set(known))
    if unknown and run_pictures is None:
        raise DataError(f"{source} has classes that were not trained on: {some(unknown)}; known are {some(known)}")
    if unknown:
        logger.warning("%s has %s, no classes of the run: their objects are left out", source, some(unknown))
        pictures = {path: picture.without(unknown) for path, picture in pictures.items()}
    damaged: list[tuple[str, str]] = []
    sizes = upright_sizes(list(pictures), damaged, pixels)
    readable = [(path, picture, sizes[path]) for path, picture in pictures.items() if path in sizes]
    _check_sizes(source, readable)
    label_of = {name: i for i, name in enumerate(known, start=1)}
    total = sum(len(picture.entries) for _, picture, _ in readable)
    bad: list[str] = []
    over: list[str] = []
    scenes: list[Scene] = []
    for path, picture, size in readable:
        things: list[Thing] = []
        for entry in picture.entries:
            where = f"{entry.where} of {shown(picture.name)}"
            if masks and entry.segmentation is None:
                raise DataError(
                    f"{source}: {where} has no mask: expected `segmentation`; boxes alone are for detect --task boxes"
                )
            faults: list[str] = []
            mask = read_mask(entry.segmentation, size, faults) if masks or entry.box is None else None
            box = box_around(mask) if entry.box is None and mask is not None else entry.box
            cut = None if box is None else _cut(box, size)
            if box is not None and cut is None:
                faults.append(f"its box has no area or lies outside the picture: {_in_words(box, size)}")
            elif box is not None and _reaches_over(box, size):
                over.append(f"{where}: {_in_words(box, size)}")
            if faults:
                bad.append(f"{where}: {faults[0]}")
            if cut is not None and (mask is not None or not masks):
                things.append(Thing(cut, label_of[entry.kind], mask if masks else None, entry.crowd))
        scenes.append(Scene(path, size, things))
    stated = [entry.box for _, picture, _ in readable for entry in picture.entries if entry.box is not None]
    if stated and all(0 <= side <= 1 for box in stated for side in box):
        raise DataError(
            f"{source}: all of the {len(stated)} boxes lie within their picture's first pixel. Are they shares of its "
            "width and height? Expected pixels"
        )
    if over:
        beyond = f"{source}: {len(over)} of {total} boxes reach over their picture's edge: {some(over)}"
        if len(over) > _MOST_BAD * total:
            raise DataError(
                f"{beyond}. Are they corners (left, top, right, bottom) where COCO has left, top, width, height, or of "
                "pictures of another size?"
            )
        logger.warning("%s; they are cut there", beyond)
    if bad:
        faulty = f"{source}: {len(bad)} of {total} objects have faults: {some(bad)}"
        if len(bad) > _MOST_BAD * total:
            raise DataError(f"{faulty}. That is more than {_MOST_BAD:.0%}: something is wrong with the file as a whole")
        logger.warning("%s; what is faulty is left out", faulty)
    _check_objects(source, scenes)
    return Scenes(scenes, known, source, damaged)


def _check_objects(source: str, scenes: Sequence[Scene], of: str = "") -> None:
    """Raise DataError if nothing is there to train on or to measure with."""
    crowds = [thing.crowd for scene in scenes for thing in scene.things]
    if all(crowds):
        but = f" but {len(crowds)} crowds (`iscrowd`) or difficult ones (`difficult`), which do not count"
        raise DataError(f"{source} holds no annotated object{of}{but if crowds else ''}")


def _check_sizes(source: str, readable: Sequence[tuple[str, Annotated, tuple[int, int]]]) -> None:
    """Boxes and masks of a picture that was shrunk or turned since would be silently wrong."""
    wrong = [(p.name, p.size, size) for _, p, size in readable if p.size not in (None, size)]
    if not wrong:
        return
    name, stated, size = wrong[0]
    turned = all(stated == size[::-1] for _, stated, size in wrong)
    why = "turned by its EXIF orientation since?" if turned else "shrunk or cut since?"
    raise DataError(
        f"{len(wrong)} of the {len(readable)} pictures of {source} have another size than it says: {shown(name)} has "
        f"{size[1]}x{size[0]} pixels, annotated were {stated[1]}x{stated[0]}; {why} Give the pictures that were "
        "annotated"
    )


def _reaches_over(box: Box, size: tuple[int, int]) -> bool:
    """By more than a pixel, which counting from 0 or from 1 may come to."""
    return min(box[:2]) < -1 or box[2] > size[1] + 1 or box[3] > size[0] + 1


def _cut(box: Box, size: tuple[int, int]) -> Box | None:
    """The part of a box within the picture; None if it has no area."""
    left, top, right, bottom = box
    cut = max(0.0, left), max(0.0, top), min(float(size[1]), right), min(float(size[0]), bottom)
    has_area = all(map(math.isfinite, box)) and cut[2] - cut[0] >= _LEAST_SIDE and cut[3] - cut[1] >= _LEAST_SIDE
    return cut if has_area else None


def _in_words(box: Box, size: tuple[int, int]) -> str:
    return f"{[round(side, 1) for side in box]} in {size[1]}x{size[0]} pixels"
