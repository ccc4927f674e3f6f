"""Annotation files, as they are written: COCO JSON and Pascal VOC XML, before anything is known of the pictures."""

import json
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import DataError

_SHOWN = 3


@dataclass(frozen=True)
class Entry:
    """One annotated object, unchecked.

    Attributes:
        where: what to call it in a message.
        kind: the name of its class.
        box: left, top, right, bottom in pixels.
        segmentation: COCO's polygons or run-length code, or None.
        crowd: COCO's `iscrowd`, VOC's `difficult`: neither trained on nor counted as missed.
    """

    where: str
    kind: str
    box: tuple[float, float, float, float]
    segmentation: Any
    crowd: bool


@dataclass(frozen=True)
class Annotated:
    """A picture's file name, the (height, width) it was annotated at, if told, and its objects."""

    name: str
    size: tuple[int, int] | None
    entries: list[Entry]


def read_annotations(path: Path) -> tuple[list[Annotated], list[str]]:
    """Pictures with their objects, and the names of all classes.

    Args:
        path: COCO .json file; folder of VOC .xml files, or a .txt list of their names in VOC's ImageSets.

    Raises:
        DataError: it is neither, lacks something, or names a picture twice.
    """
    found, names = _from_json(path) if path.suffix.lower() == ".json" else _from_voc(path)
    doubled = [name for name, n in Counter(each.name for each in found).items() if n > 1]
    if doubled:
        raise DataError(f"{path} names {len(doubled)} pictures more than once: {some(doubled)}")
    return found, names


def some(names: Iterable[str]) -> str:
    """The first few of many names."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(str, names[:_SHOWN])) + more


def _from_json(path: Path) -> tuple[list[Annotated], list[str]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not JSON ({error})") from None
    needed = {"images", "annotations", "categories"}
    if not isinstance(content, dict) or not needed <= set(content):
        has = sorted(content) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise DataError(f"{path} is not a COCO file: expected an object with {some(sorted(needed))}; it has {has}")
    try:
        names = {each["id"]: each["name"] for each in sorted(content["categories"], key=lambda each: each["id"])}
        pictures = {
            each["id"]: Annotated(each["file_name"], _size(each.get("height"), each.get("width")), [])
            for each in content["images"]
        }
        for each in content["annotations"]:
            where = f"annotation {each['id']}"
            if each["image_id"] not in pictures:
                raise DataError(f"{path}: {where} belongs to image {each['image_id']}, which is not in `images`")
            if each["category_id"] not in names:
                raise DataError(f"{path}: {where} has category {each['category_id']}, which is not in `categories`")
            left, top, width, height = map(float, each["bbox"])
            pictures[each["image_id"]].entries.append(
                Entry(
                    where,
                    names[each["category_id"]],
                    (left, top, left + width, top + height),
                    each.get("segmentation") or None,
                    bool(each.get("iscrowd", 0)),
                )
            )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path} is not a COCO file: an entry lacks or garbles {error}") from None
    return list(pictures.values()), list(names.values())


def _from_voc(path: Path) -> tuple[list[Annotated], list[str]]:
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
    found: list[Annotated] = []
    names: set[str] = set()
    for file in files:
        try:
            root = ET.parse(file).getroot()
            entries = []
            for number, each in enumerate(root.iter("object"), start=1):
                kind = (each.findtext("name") or "").strip()
                bounds = each.find("bndbox")
                if not kind or bounds is None:
                    raise ValueError(f"object {number} has no name or no bndbox")
                left, top, right, bottom = (
                    float(bounds.findtext(key) or "") for key in ("xmin", "ymin", "xmax", "ymax")
                )
                difficult = (each.findtext("difficult") or "0").strip() == "1"
                entries.append(Entry(f"object {number}", kind, (left, top, right, bottom), None, difficult))
                names.add(kind)
            name = (root.findtext("filename") or "").strip() or f"{file.stem}.jpg"
            found.append(Annotated(name, _size(root.findtext("size/height"), root.findtext("size/width")), entries))
        except (ET.ParseError, ValueError, OSError) as error:
            raise DataError(f"{file} is not a VOC annotation ({error})") from None
    return found, sorted(names)


def _size(height: Any, width: Any) -> tuple[int, int] | None:
    """None where the file does not tell, or has 0 as some tools write."""
    sides = (int(height or 0), int(width or 0))
    return sides if min(sides) > 0 else None
