"""Annotation files, as they are written: COCO JSON and Pascal VOC XML, before anything is known of the pictures."""

import glob
import json
import math
import reprlib
import xml.etree.ElementTree as ET
from collections.abc import Container
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ...data.decode import open_regular
from ...data.files import is_left_out
from ...data.tiff import NotReadError
from ...errors import DataError
from ...names import shown, some

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels, from the picture's left and upper edge."""


@dataclass(frozen=True)
class Entry:
    """One annotated object, unchecked.

    Attributes:
        where: what to call it in a message.
        kind: the name of its class.
        box: None where there is none.
        segmentation: COCO's polygons or run-length code, as it is written; None where there is none.
        crowd: COCO's `iscrowd`, VOC's `difficult`: neither trained on nor counted as missed.
    """

    where: str
    kind: str
    box: Box | None
    segmentation: Any
    crowd: bool


@dataclass(frozen=True)
class Annotated:
    """A picture and its objects.

    Attributes:
        name: its file, as it is written.
        stems: names without suffix that its file may have where there is none of that name.
        size: (height, width) that it was annotated at, where the file says it.
    """

    name: str
    size: tuple[int, int] | None
    entries: list[Entry]
    stems: tuple[str, ...] = ()

    def without(self, kinds: Container[str]) -> "Annotated":
        """Without the objects of some classes."""
        return replace(self, entries=[entry for entry in self.entries if entry.kind not in kinds])

    def without_boxes(self) -> "Annotated":
        """With objects that have masks alone."""
        return replace(self, entries=[replace(entry, box=None) for entry in self.entries])


def read_annotations(path: Path) -> tuple[list[Annotated], list[str]]:
    """Pictures with their objects, and the names of all classes.

    COCO's boxes are (left, top, width, height). VOC's name their first and last pixels, counted from 1: the box of a
    whole picture is 1, 1, width, height.

    Args:
        path: COCO .json file; folder of VOC .xml files, flat or nested; .txt list of their names in VOC's ImageSets.

    Raises:
        DataError: it is neither, or an entry lacks or garbles something; names file and entry.
    """
    return _from_json(path) if path.suffix.lower() == ".json" else _from_voc(path)


def _from_json(path: Path) -> tuple[list[Annotated], list[str]]:
    try:
        with open_regular(str(path)) as file:  # no pipe: reading one may never end
            content = json.loads(file.read())  # bytes: their byte order mark says the encoding
    except RecursionError:
        raise DataError(f"{path} is not a COCO file: it is nested too deeply") from None
    except (OSError, NotReadError) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error})") from None
    needed = {"images", "annotations", "categories"}
    if not isinstance(content, dict) or not needed <= set(content):
        has = some(sorted(content)) or "nothing" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise DataError(f"{path} is not a COCO file: expected an object with {some(sorted(needed))}; it has {has}")
    where = ""
    try:
        names: dict[str, str] = {}
        pictures: dict[str, Annotated] = {}
        categories, images, annotations = (_entries(content, of) for of in ("categories", "images", "annotations"))
        for where, entry in categories:
            names[_new_id(names, entry, where)] = str(_needed(entry, "name"))
        for where, entry in images:
            file = _needed(entry, "file_name")
            if not isinstance(file, str) or not file:
                raise ValueError(f"has the file_name {_short(file)}: expected the name of a picture file")
            if _leads_out(file):
                raise ValueError(
                    f"has the file_name {_short(file)}, which leads out of the folder of the pictures: expected its "
                    "place below that folder, as in train/0001.jpg"
                )
            size = _size(entry.get("height"), entry.get("width"))
            pictures[_new_id(pictures, entry, where)] = Annotated(file, size, [])
        for where, entry in annotations:
            image, category = _id(entry, "image_id"), _id(entry, "category_id")
            if image not in pictures:
                raise ValueError(f"belongs to image {image}, which is not in `images`")
            if category not in names:
                raise ValueError(f"has category {category}, which is not in `categories`")
            crowd = str(entry.get("iscrowd", 0)).lower() not in ("0", "0.0", "false", "none", "")
            thing = Entry(where, names[category], _box(entry.get("bbox")), entry.get("segmentation"), crowd)
            pictures[image].entries.append(thing)
    except (ValueError, OverflowError) as error:
        raise DataError(f"{path} is not a COCO file: {f'{where} {error}'.lstrip()}") from None
    order = sorted(names, key=lambda id: (0, len(id.lstrip("0")), id.lstrip("0"), id) if id.isdecimal() else (1, 0, id))
    return list(pictures.values()), list(dict.fromkeys(names[id] for id in order))


def _leads_out(name: str) -> bool:
    """Whether the name of a file, of whatever system, is absolute or goes upwards."""
    path = PureWindowsPath(name)  # which takes slashes, too
    return bool(path.root) or ".." in path.parts


def _entries(content: dict[str, Any], part: str) -> list[tuple[str, dict[str, Any]]]:
    """What to call each entry, and the entry; some tools write an object, keyed by id, where COCO has a list."""
    entries, kind = content[part], {"categories": "category", "images": "image"}.get(part, "annotation")
    if not isinstance(entries, list | dict):
        raise ValueError(f"`{part}` is {_short(entries)}: expected a list of {kind} entries")
    pairs = list(entries.items() if isinstance(entries, dict) else enumerate(entries))
    for place, entry in pairs:
        if not isinstance(entry, dict):
            raise ValueError(f"{part}[{_short(place)}] is {_short(entry)}: expected an object")
    return [
        (f"{kind} {_short(entry['id'])}" if "id" in entry else f"{part}[{_short(place)}]", entry)
        for place, entry in pairs
    ]


def _needed(entry: dict[str, Any], key: str) -> Any:
    if entry.get(key) is None:
        raise ValueError(f"has no {key}")
    return entry[key]


def _id(entry: dict[str, Any], key: str) -> str:
    """An id as text: 7, "7" and 7.0 are the same."""
    value = _needed(entry, key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int | str):
        raise ValueError(f"has the {key} {_short(value)}: expected a number or a text")
    return str(value).strip()


def _new_id(known: dict[str, Any], entry: dict[str, Any], where: str) -> str:
    """The id of a category or an image, or what to call it: without one, no annotation belongs to it."""
    new = where if entry.get("id") is None else _id(entry, "id")
    if new in known:
        raise ValueError("has the id of another one")
    return new


def _box(bbox: Any) -> Box | None:
    """COCO's left, top, width, height as a box; None where it is missing or empty."""
    if bbox is None or bbox == []:
        return None
    try:
        left, top, width, height = (float(value) for value in bbox if isinstance(bbox, list))
    except (TypeError, ValueError):
        raise ValueError(f"has the bbox {_short(bbox)}: expected four numbers: left, top, width, height") from None
    return left, top, left + width, top + height


def _short(value: Any) -> str:
    return reprlib.repr(value)


def _from_voc(path: Path) -> tuple[list[Annotated], list[str]]:
    if path.is_dir():
        folder = path
        names_below = glob.glob("**/*", root_dir=path, recursive=True)  # follows links, as the pictures' folder does
        files = sorted(path / name for name in names_below if name.lower().endswith(".xml") and not is_left_out(name))
    else:
        folder = next((p / "Annotations" for p in path.resolve().parents if (p / "Annotations").is_dir()), None)
        if path.suffix != ".txt" or folder is None:
            raise DataError(
                f"{path}: expected a COCO .json file, a folder of VOC .xml files, or a .txt list in ImageSets"
            )
        lines = [
            line.strip()
            for line in path.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")
            if line.strip()
        ]
        whole = [folder / f"{line}.xml" for line in lines]  # lists of a class have its presence after the name
        files = [file if file.is_file() else folder / f"{file.stem.rsplit(maxsplit=1)[0]}.xml" for file in whole]
    if not files:
        raise DataError(f"{path} holds no .xml file")
    pictures: list[Annotated] = []
    names: set[str] = set()
    for file in files:
        try:
            with open_regular(str(file)) as opened:
                root = ET.parse(opened).getroot()
            if root.tag != "annotation":  # whose objects would not be found
                raise ValueError(f"it is of {root.tag!r}: expected 'annotation'")
            entries = [_voc_entry(number, thing) for number, thing in enumerate(root.iter("object"), start=1)]
            size = _size(root.findtext("size/height"), root.findtext("size/width"))
        except (ET.ParseError, ValueError, LookupError, OSError, NotReadError) as error:
            raise DataError(f"{shown(file)} is not a VOC annotation ({error})") from None
        names.update(entry.kind for entry in entries)
        name = (root.findtext("filename") or "").strip()
        stated = PurePosixPath(name.replace("\\", "/"))
        stems = stated.name, stated.stem, file.stem
        if len(stated.parts) < 2:  # a/0.xml and b/0.xml may both say 0.jpg
            name = str(PurePosixPath(file.relative_to(folder).parent.as_posix(), name or file.stem))
        pictures.append(Annotated(name, size, entries, stems))
    return pictures, sorted(names)


def _voc_entry(number: int, entry: ET.Element) -> Entry:
    kind = (entry.findtext("name") or "").strip()
    bounds = entry.find("bndbox")
    if not kind or bounds is None:
        raise ValueError(f"object {number} has no name or no bndbox")
    sides: list[float] = []
    for key in ("xmin", "ymin", "xmax", "ymax"):
        try:
            sides.append(float(bounds.findtext(key) or ""))
        except ValueError:
            raise ValueError(f"object {number} has the {key} {bounds.findtext(key)!r}: expected a number") from None
    left, top, right, bottom = sides
    difficult = (entry.findtext("difficult") or "0").strip().lower() in ("1", "true")
    return Entry(f"object {number}", kind, (left - 1, top - 1, right, bottom), None, difficult)


def _size(height: Any, width: Any) -> tuple[int, int] | None:
    """None where the file does not say, or has 0 as some tools write."""
    try:
        sides = tuple(float(side or 0) for side in (height, width))
    except (TypeError, ValueError):
        raise ValueError(f"has the size {_short((height, width))}: expected height and width in pixels") from None
    if not all(map(math.isfinite, sides)):
        raise ValueError(f"has the size {_short((height, width))}: expected height and width in pixels")
    return (int(sides[0]), int(sides[1])) if min(sides) > 0 else None
