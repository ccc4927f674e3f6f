"""Annotated pictures: COCO JSON or Pascal VOC XML become scenes with boxes and, where there are some, masks."""

import json
import logging
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import DataError, UsageError

logger = logging.getLogger(__name__)

_MOST_BAD = 0.05
_SHOWN = 3


@dataclass(frozen=True)
class Thing:
    """One annotated object: its box (left, top, right, bottom) in pixels, class from 1, and mask.

    Attributes:
        mask: a COCO run-length code with compressed counts, or None.
        crowd: whether the box holds many, which are neither trained on nor counted as missed.
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

    Boxes that reach over the picture's edge are cut there; boxes without area and those that lie outside are left out
    and told, and are an error where they are more than 5 % of all.

    Args:
        source: a COCO .json file; a folder of Pascal VOC .xml files, or a .txt list of their names in VOC's ImageSets.
        images: folder of the pictures.
        classes: names that are allowed, in order; None takes those that the file has.
        masks: whether every object needs a mask.

    Raises:
        DataError: not such a file, missing pictures, unknown classes, masks of another size, or no object at all.
    """
    if not source or not Path(source).exists():
        raise UsageError(f"annotations {source!r} do not exist: give a COCO .json file, or a folder of VOC .xml files")
    if not images or not Path(images).is_dir():
        raise UsageError(f"images is {images!r}: expected the folder that holds the annotated pictures")
    path = Path(source)
    raw, names = _from_json(path) if path.suffix.lower() == ".json" else _from_voc(path)
    known = classes or names
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise DataError(f"{source} has classes that were not trained on: {_some(unknown)}; known are {_some(known)}")
    root = Path(images)
    missing = [name for name, *_ in raw if not (root / name).is_file()]
    if missing:
        raise DataError(f"{len(missing)} of the {len(raw)} pictures of {source} are not in {images}: {_some(missing)}")
    label_of = {name: i for i, name in enumerate(known, start=1)}
    bad: list[str] = []
    scenes: list[Scene] = []
    total = 0
    for name, things in raw:
        with Image.open(root / name) as picture:
            size = picture.height, picture.width
        kept: list[Thing] = []
        for where, kind, box, segmentation, crowd in things:
            total += 1
            cut = _cut(box, size)
            if cut is None:
                bad.append(f"{where} of {name}: box {[round(v, 1) for v in box]} in {size[1]}x{size[0]} pixels")
                continue
            mask = None if segmentation is None else _mask(segmentation, size, f"{where} of {name}")
            if masks and mask is None:
                raise DataError(
                    f"{source}: {where} of {name} has no mask: expected `segmentation`; or use --task boxes"
                )
            kept.append(Thing(cut, label_of[kind], mask, crowd))
        scenes.append(Scene(str(root / name), size, kept))
    if bad:
        told = f"{source}: {len(bad)} of {total} boxes have no area or lie outside their picture: {_some(bad)}"
        if len(bad) > _MOST_BAD * total:
            raise DataError(f"{told}. That is more than {_MOST_BAD:.0%}: something is wrong with the file as a whole")
        logger.warning("%s; they are left out", told)
    if not any(scene.things for scene in scenes):
        raise DataError(f"{source} holds no annotated object")
    return Scenes(scenes, known, source)


_Raw = list[tuple[str, list[tuple[str, str, tuple[float, float, float, float], Any, bool]]]]


def _from_json(path: Path) -> tuple[_Raw, list[str]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not JSON ({error})") from None
    needed = {"images", "annotations", "categories"}
    if not isinstance(content, dict) or not needed <= set(content):
        has = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise DataError(f"{path} is not a COCO file: expected an object with {_some(sorted(needed))}; it has {has}")
    try:
        names = {each["id"]: each["name"] for each in sorted(content["categories"], key=lambda each: each["id"])}
        files = {each["id"]: each["file_name"] for each in content["images"]}
        things: dict[Any, list[Any]] = {image: [] for image in files}
        for each in content["annotations"]:
            where = f"annotation {each['id']}"
            if each["image_id"] not in files:
                raise DataError(f"{path}: {where} belongs to image {each['image_id']}, which is not in `images`")
            if each["category_id"] not in names:
                raise DataError(f"{path}: {where} has category {each['category_id']}, which is not in `categories`")
            left, top, width, height = map(float, each["bbox"])
            box = (left, top, left + width, top + height)
            segmentation = each.get("segmentation") or None
            things[each["image_id"]].append(
                (where, names[each["category_id"]], box, segmentation, bool(each.get("iscrowd", 0)))
            )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not a COCO file: an entry lacks or garbles {error}") from None
    return [(files[image], found) for image, found in things.items()], list(names.values())


def _from_voc(path: Path) -> tuple[_Raw, list[str]]:
    if path.is_dir():
        files = sorted(path.glob("*.xml"))
    else:
        folder = next((p / "Annotations" for p in path.resolve().parents if (p / "Annotations").is_dir()), None)
        if path.suffix != ".txt" or folder is None:
            raise DataError(
                f"{path}: expected a COCO .json file, a folder of VOC .xml files, or a .txt list in ImageSets"
            )
        files = [folder / f"{line.split()[0]}.xml" for line in path.read_text().splitlines() if line.strip()]
    if not files:
        raise DataError(f"{path} holds no .xml file")
    raw: _Raw = []
    names: set[str] = set()
    for file in files:
        try:
            root = ET.parse(file).getroot()
            things = []
            for number, each in enumerate(root.iter("object"), start=1):
                kind = (each.findtext("name") or "").strip()
                bounds = each.find("bndbox")
                if not kind or bounds is None:
                    raise ValueError(f"object {number} has no name or no bndbox")
                box = tuple(float(bounds.findtext(key) or "") for key in ("xmin", "ymin", "xmax", "ymax"))
                things.append((f"object {number}", kind, box, None, False))
                names.add(kind)
            raw.append(((root.findtext("filename") or "").strip(), things))
        except (ET.ParseError, ValueError, OSError) as error:
            raise DataError(f"{file} is not a VOC annotation ({error})") from None
    return raw, sorted(names)


def _cut(box: Iterable[float], size: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """The part of a box within the picture; None if it has no area."""
    left, top, right, bottom = box
    cut = max(0.0, left), max(0.0, top), min(float(size[1]), right), min(float(size[0]), bottom)
    return cut if cut[2] - cut[0] >= 1e-3 and cut[3] - cut[1] >= 1e-3 else None


def _mask(segmentation: Any, size: tuple[int, int], where: str) -> dict[str, Any]:
    """Polygons or a run-length code as a compressed code of the picture's size."""
    from faster_coco_eval.core import mask as coding

    height, width = size
    try:
        if isinstance(segmentation, list):
            parts: Any = coding.frPyObjects([[float(v) for v in polygon] for polygon in segmentation], height, width)
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


def decode_mask(mask: dict[str, Any]) -> np.ndarray:
    """(H, W) uint8, 1 inside."""
    from faster_coco_eval.core import mask as coding

    return np.asarray(coding.decode(mask), dtype=np.uint8)


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(str, names[:_SHOWN])) + more
