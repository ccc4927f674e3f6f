"""Pictures with a class at every pixel: mask files, or COCO's objects painted over each other."""

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError

from ...data import PLAIN, FileSource, Pixels, Split, absolute, is_missing, is_url, list_pictures, masks_of, within
from ...data.decode import upright
from ...data.remote import below
from ...errors import DataError, UsageError
from ...names import shown, some
from ..detection.data import Scene, read_scenes
from ..detection.masks import decode_mask
from ..pictures import composed, tell_new, upright_sizes, whole_pictures

logger = logging.getLogger(__name__)

IGNORED = 255
"""Label of pixels that count neither for nor against."""

_LARGEST_LABEL = 200  # pictures passed as masks have larger values


@dataclass(frozen=True)
class LabelMaps:
    """Pictures and where their labels come from.

    Attributes:
        pictures: addresses of the pictures.
        masks: addresses of their mask files, or the scene that is painted; empty where the picture is gone.
        mask_values: those that each picture's mask holds.
        labels: value -> label, an index into `classes`, of the values that count; the others are ignored.
        classes: names of the labels.
        pixels: how the pictures are read.
        bad: (path, reason) of pictures that cannot be read, which are left out.
    """

    pictures: list[str]
    masks: list[str | Scene]
    mask_values: list[frozenset[int]]
    labels: dict[int, int]
    classes: list[str]
    pixels: Pixels = PLAIN
    bad: list[tuple[str, str]] = field(default_factory=list, compare=False)

    def __len__(self) -> int:
        return len(self.pictures)

    def label_map(self, index: int) -> np.ndarray:
        """(H, W) uint8, labels or `IGNORED`."""
        mask = self.masks[index]
        return self._lookup[_painted(mask) if isinstance(mask, Scene) else _values_of(self._mask_files, index)[0]]

    @cached_property
    def source(self) -> FileSource:
        """The pictures, to be read."""
        return FileSource(self.pictures, self.gone, self.pixels)

    @cached_property
    def _mask_files(self) -> FileSource:
        return FileSource([mask if isinstance(mask, str) else "" for mask in self.masks])

    @property
    def gone(self) -> list[int]:
        """The places of pictures that a run trained on and that are not there any more."""
        return [place for place, mask in enumerate(self.masks) if mask == ""]

    @property
    def values(self) -> list[int]:
        """What each class is in mask files; empty where pictures are painted, whose classes have names."""
        return [] if any(isinstance(mask, Scene) for mask in self.masks) else list(self.labels)

    def part(self, pictures: Iterable[str]) -> "LabelMaps":
        """Of some pictures, in their order; those that are not here have no mask."""
        rows = {p: (mask, values) for p, mask, values in zip(self.pictures, self.masks, self.mask_values, strict=True)}
        chosen = [(p, *rows.get(p, ("", frozenset[int]()))) for p in pictures]
        return replace(
            self,
            pictures=[p for p, _, _ in chosen],
            masks=[m for _, m, _ in chosen],
            mask_values=[v for *_, v in chosen],
        )

    def whole(self) -> "LabelMaps":
        """Without pictures that are damaged anywhere or not there, with a warning. Every picture is decoded."""
        bad = list(self.bad)
        return replace(self.part(whole_pictures(self.pictures, bad, self.pixels)), bad=bad)

    def check_measured(self) -> None:
        """Of pictures to measure with: warn if they show a single class.

        Raises:
            DataError: they show none.
        """
        shown_classes = {self.classes[self.labels[value]] for value in self.all_mask_values & set(self.labels)}
        if not shown_classes:
            raise DataError("no pixel of the masks to validate with counts: there is nothing to measure")
        if len(shown_classes) == 1:
            logger.warning("The masks to validate with show nothing but %s: they measure little", some(shown_classes))

    def split(self, train: Iterable[str], val: Iterable[str]) -> tuple["LabelMaps", "LabelMaps"]:
        """The pictures to train on and those to validate with, both with the classes that are trained on.

        Pixels of other classes do not count in validation, with a warning.
        """
        trained, measured = self.part(train).of_present_classes(), self.part(val)
        known = {name: label for label, name in enumerate(trained.classes)}
        names = {value: self.classes[label] for value, label in self.labels.items()}
        strange = dict.fromkeys(name for name in names.values() if name not in known)
        if strange:
            logger.warning("No picture to train on shows %s: its pixels do not count in validation", some(strange))
        labels = {value: known[name] for value, name in names.items() if name in known}
        return trained, replace(measured, labels=labels, classes=trained.classes)

    def of_present_classes(self) -> "LabelMaps":
        """With no other classes than those that its masks hold.

        Raises:
            DataError: it is a single one.
        """
        present = self.all_mask_values
        names = {value: self.classes[label] for value, label in self.labels.items() if value in present}
        classes = list(dict.fromkeys(names.values()))
        if len(classes) < 2:
            raise DataError(f"the masks have a single class, {some(classes)}: there is nothing to tell apart")
        return replace(self, labels={value: classes.index(name) for value, name in names.items()}, classes=classes)

    @property
    def all_mask_values(self) -> frozenset[int]:
        return frozenset[int]().union(*self.mask_values)

    @property
    def _lookup(self) -> np.ndarray:
        table = np.full(256, IGNORED, dtype=np.uint8)
        for value, label in self.labels.items():
            table[value] = label
        return table


Places: TypeAlias = str | Sequence[str] | None
"""Of pictures: what `list_pictures` takes."""


def read_label_maps(
    images: Places, masks: str | None, like: LabelMaps | None = None, pixels: Pixels = PLAIN
) -> LabelMaps:
    """Pictures and their masks, matched by their places below two folders or in the same file, and checked.

    Args:
        images: folder of pictures, here or at a URL; without `masks`, tar or parquet files and the like.
        masks: folder of 8-bit mask files (grey or palette), each where its picture lies in `images` but for the suffix.
            Each value is a class: 0 and 255 for a single one, else 0, 1, 2, … with 255 for pixels that do not count.
            Or a COCO .json file. None where the masks are in the same files: `a.mask.png` or `a.seg.png` beside `a.jpg`
            in a tar, a column `mask`, `annotation` or `label` in a table.
        like: those trained on, whose classes these must have.
        pixels: how the pictures are read.

    Raises:
        UsageError: no such folder.
        DataError: pictures without masks, masks of another size, no class or unknown ones.
    """
    where = masks or _called(images)
    maps = _read(images, masks, pixels)
    if not maps.classes:
        _tell_of_two_ways([*maps.mask_values, *(like.mask_values if like else [])], where)
        labels, classes = (
            _labels_of(maps.all_mask_values, where) if like is None else _labels_like(maps.all_mask_values, like)
        )
        maps = replace(maps, labels=labels, classes=classes)
    if like is None:
        return maps.of_present_classes()
    known = {name: label for label, name in enumerate(like.classes)}
    names = {value: maps.classes[label] for value, label in maps.labels.items()}
    strange = [names[value] for value in sorted(maps.all_mask_values & set(names)) if names[value] not in known]
    if strange:
        raise DataError(f"{where} has {some(strange)}, which the masks trained on do not have")
    labels = {value: known[name] for value, name in names.items() if name in known}
    return replace(maps, labels=labels, classes=like.classes)


def read_maps_again(
    images: Places, masks: str | None, split: Split, pictures: Sequence[str], pixels: Pixels = PLAIN
) -> LabelMaps:
    """Those `pictures` of a run that goes on which are still there, with the run's classes, whatever was deleted or
    added since.

    Pixels of other classes do not count, with a warning.

    Raises:
        UsageError: no such folder.
        DataError: masks of another size than their pictures, or no picture is left.
    """
    maps = _read(images, masks, pixels, pictures)
    names = {value: maps.classes[label] for value, label in maps.labels.items()}
    if not names:
        names = {value: f"value {value}" for value in maps.all_mask_values - {IGNORED}}
        names |= dict(zip(split.values, split.classes, strict=True))
    known = {name: label for label, name in enumerate(split.classes)}
    strange = [name for value, name in sorted(names.items()) if value in maps.all_mask_values and name not in known]
    if strange:
        logger.warning(
            "%s has %s, no classes of the run: their pixels do not count", masks or _called(images), some(strange)
        )
    labels = {value: known[name] for value, name in names.items() if name in known}
    return replace(maps, labels=labels, classes=split.classes)


def _read(images: Places, masks: str | None, pixels: Pixels, run_pictures: Sequence[str] | None = None) -> LabelMaps:
    """Pictures and their masks; where these are files, without labels.

    Args:
        run_pictures: those of a run that goes on: no others are taken, and those that are not there are left out.
    """
    if not images or (isinstance(images, str) and is_missing(images)):
        raise UsageError(f"images is {images!r}: expected a folder of pictures, or files with pictures and masks")
    if masks is None:
        return _from_pairs(_pairs_beside(images, not pixels.is_plain, run_pictures), pixels)
    if is_missing(masks):
        raise UsageError(f"masks is {masks!r}: expected a folder of mask files, or a COCO .json file")
    coco = os.path.isfile(masks)
    if not isinstance(images, str) or not (os.path.isdir(images) or (is_url(images) and not coco)):
        raise UsageError(
            f"images is {_called(images)!r}: expected a folder of pictures{' on this machine' if coco else ''} for the "
            f"masks {masks!r}"
        )
    if coco:
        return _from_scenes(masks, images, pixels, run_pictures)
    return _from_pairs(_pairs_by_place(images, masks, not pixels.is_plain, run_pictures), pixels)


def _called(images: Places) -> str:
    return images if isinstance(images, str) else "images"


def _from_scenes(file: str, images: str, pixels: Pixels, run_pictures: Sequence[str] | None = None) -> LabelMaps:
    source = read_scenes(file, images, masks=True, run_pictures=run_pictures, pixels=pixels, boxes=False)
    if len(source.classes) >= IGNORED:
        raise DataError(f"{file} has {len(source.classes)} classes: expected fewer than {IGNORED}")
    mask_values = [
        frozenset({0, *(thing.label for thing in scene.things if not thing.crowd)}) for scene in source.scenes
    ]
    # Objects of a class that is called so are background, as is what no object covers: one class, one label.
    names = list(dict.fromkeys(["background", *source.classes]))
    paths = [scene.path for scene in source.scenes]
    labels = {value: names.index(name) for value, name in enumerate(["background", *source.classes])}
    return LabelMaps(paths, list(source.scenes), mask_values, labels, names, pixels, source.bad)


def _pairs_beside(images: str | Sequence[str], bands: bool, run_pictures: Sequence[str] | None) -> dict[str, str]:
    """Mask of each picture, by address, of files that hold both."""
    pictures = [absolute(picture) for picture in list_pictures(images, bands)]
    pairs = dict(zip(pictures, masks_of(pictures), strict=True))
    lacking = [picture for picture, mask in pairs.items() if not mask]
    if run_pictures is not None:
        return _of_run({picture: mask for picture, mask in pairs.items() if mask}, run_pictures, _called(images))
    if lacking:
        raise DataError(
            f"{len(lacking)} of the {len(pairs)} pictures in {_called(images)} have no mask beside them: "
            f"{some(lacking)}; expected `a.mask.png` or `a.seg.png` beside `a.jpg` in a tar file, or a column mask, "
            "annotation or label of pictures in a parquet file or saved dataset; for pictures in a folder, name the "
            "folder of their masks with --masks"
        )
    return pairs


def _of_run(pairs: dict[str, str], run_pictures: Sequence[str], where: str) -> dict[str, str]:
    """Those of a run that goes on; of others, a warning."""
    of_run = frozenset(run_pictures)
    tell_new([picture for picture in pairs if picture not in of_run], where)
    pairs_left = {picture: mask for picture, mask in pairs.items() if picture in of_run}
    if not pairs_left:
        raise DataError(f"none of the run's pictures is left in {where} with a mask")
    return pairs_left


def _pairs_by_place(images: str, masks: str, bands: bool, run_pictures: Sequence[str] | None) -> dict[str, str]:
    """Mask of each picture, by address, of two folders with the same places in them."""
    files, pictures = _by_place(masks), _by_place(images, bands)
    if run_pictures is not None:
        pairs = {path: files[place] for place, path in pictures.items() if place in files}
        return _of_run(pairs, run_pictures, f"{images} and {masks}")
    lacking = [place for place in pictures if place not in files]
    if lacking:
        elsewhere = {os.path.basename(place): file for place, file in files.items()}.get(os.path.basename(lacking[0]))
        raise DataError(
            f"{len(lacking)} of the {len(pictures)} pictures in {images} have no mask in {masks}: "
            f"{some(pictures[place] for place in lacking)}; a mask lies in its folder where its picture lies, under "
            f"the same name: {os.path.join(masks, lacking[0])}.png" + (f", and not {elsewhere}" if elsewhere else "")
        )
    idle = [file for place, file in files.items() if place not in pictures]
    if idle:
        logger.warning(
            "%d of the %d masks in %s have no picture in %s; they are left out: %s",
            len(idle),
            len(files),
            masks,
            images,
            some(idle),
        )
    return {picture: files[place] for place, picture in pictures.items()}


def _from_pairs(pairs: dict[str, str], pixels: Pixels) -> LabelMaps:
    bad: list[tuple[str, str]] = []
    sizes = upright_sizes(list(pairs), bad, pixels)
    chosen = [pairs[picture] for picture in sizes]
    files = FileSource(chosen)
    mask_values: list[frozenset[int]] = []
    colours: dict[int, dict[tuple[int, ...], str]] = {}  # of values in palettes, and a mask with each
    for place, (height, width) in enumerate(sizes.values()):
        values, palette = _values_of(files, place)
        if (height, width) != values.shape:
            raise DataError(
                f"the mask {shown(chosen[place])} has {values.shape[1]}x{values.shape[0]} pixels, its picture "
                f"{width}x{height}"
            )
        mask_values.append(frozenset(np.bincount(values.reshape(-1)).nonzero()[0].tolist()))
        for value in mask_values[-1] if palette else ():
            colours.setdefault(value, {}).setdefault(tuple(palette[3 * value : 3 * value + 3]), shown(chosen[place]))
    differ = [f"value {value} is {_first_two(of)}" for value, of in sorted(colours.items()) if len(of) > 1]
    if differ:
        logger.warning(
            "Masks have other colours for the same values: %s. Classes are values here, whatever their colours: if the "
            "colours tell the classes, save all masks with the same palette",
            some(differ),
        )
    return LabelMaps(list(sizes), list(chosen), mask_values, {}, [], pixels, bad)


def _first_two(colours: dict[tuple[int, ...], str]) -> str:
    return " and ".join(f"{colour} in {mask}" for colour, mask in list(colours.items())[:2])


def _by_place(root: str, bands: bool = False) -> dict[str, str]:
    """Address of each picture by its place below `root`, without the suffix."""
    by_place: dict[str, str] = {}
    for path in list_pictures(root, bands):
        if within(path):
            raise DataError(
                f"{shown(root)} holds files of many pictures, such as {shown(path)}, whose masks lie in the same "
                "files: leave --masks out"
            )
        place = composed(os.path.splitext(below(path, root))[0])
        if place in by_place:
            raise DataError(
                f"{shown(by_place[place])} and {shown(path)} differ by nothing but their suffix, so that it is not "
                "clear which picture and which mask belong together: rename or remove one of them"
            )
        by_place[place] = absolute(path)
    return by_place


def _tell_of_two_ways(mask_values: Sequence[frozenset[int]], masks: str) -> None:
    """Warn of a class that is 1 in some masks and 255 in others, where it would not count."""
    if frozenset[int]().union(*mask_values) <= {0, 1, IGNORED} and not any({1, IGNORED} <= of for of in mask_values):
        ones, others = (sum(value in of for of in mask_values) for value in (1, IGNORED))
        if ones and others:
            logger.warning(
                "%s: %d masks hold 1 and no 255, %d others 255 and no 1. Pixels of 255 are taken for such that do not "
                "count: if they are of the class, write all masks with 0 and 1, or all with 0 and 255",
                masks,
                ones,
                others,
            )


def _labels_of(values: frozenset[int], masks: str) -> tuple[dict[int, int], list[str]]:
    """Which value stands for which label, and the names of the labels."""
    if values <= {0, 255}:
        if 255 not in values:
            raise DataError(f"the masks in {masks} are empty: every pixel is 0")
        return {0: 0, 255: 1}, ["background", "class 1"]
    classes = sorted(values - {IGNORED})
    if classes[-1] > _LARGEST_LABEL or classes[-1] >= 2 * len(classes):  # a few classes may have no pixel here
        raise DataError(
            f"the masks in {masks} have {len(classes)} values up to {classes[-1]}: expected 0 and 255, or classes "
            "counted 0, 1, 2, …; are they pictures, saved as JPEG, or colour-coded?"
        )
    labels = {value: label for label, value in enumerate(classes)}
    return labels, ["background" if value == 0 else f"class {value}" for value in classes]


def _labels_like(mask_values: frozenset[int], like: LabelMaps) -> tuple[dict[int, int], list[str]]:
    """The same for masks whose values must be those of the masks trained on."""
    known = {value: label for label, value in enumerate(like.values)}
    values = sorted(mask_values if IGNORED in known else mask_values - {IGNORED})
    names = [like.classes[known[value]] if value in known else f"value {value}" for value in values]
    return {value: label for label, value in enumerate(values)}, names


def _painted(scene: Scene) -> np.ndarray:
    """(H, W) uint8: the class of the last object that covers a pixel, 0 where none does."""
    painted = np.zeros(scene.size, dtype=np.uint8)
    for thing in scene.things:
        if thing.mask is not None:
            painted[decode_mask(thing.mask) > 0] = IGNORED if thing.crowd else thing.label
    return painted


def _values_of(files: FileSource, place: int) -> tuple[np.ndarray, list[int]]:
    """(H, W) uint8, upright: grey values, or indices of a palette; and that: red, green and blue of each."""
    name = files.name(place)
    try:
        with files.open(place) as content, Image.open(content) as opened:
            mode, kind, picture = opened.mode, opened.format, upright(opened)
            values, palette = np.array(picture.convert("L") if mode == "1" else picture), picture.getpalette() or []
    except UnidentifiedImageError:  # which names the open file
        raise DataError(f"the mask {shown(name)} is not a picture that Pillow can read") from None
    except Exception as error:  # Pillow raises nearly anything on damaged files
        raise DataError(f"the mask {shown(name)} cannot be read ({error})") from None
    if mode not in ("L", "P", "1"):
        raise DataError(f"the mask {shown(name)} is a picture of mode {mode}: expected 8-bit grey or a palette")
    if kind in ("JPEG", "MPO"):
        raise DataError(
            f"the mask {shown(name)} is a JPEG, which changes values at the edges: expected a format that keeps them, "
            "such as PNG; write the masks again from where they come"
        )
    return values, palette
