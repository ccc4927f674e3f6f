"""Pictures with a class at every pixel: mask files, or COCO's objects painted over each other."""

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from ...data import PLAIN, Pixels, Split, list_pictures
from ...data.decode import open_regular
from ...errors import DataError, UsageError
from ...names import shown
from ..detection.annotations import some
from ..detection.data import Scene, read_scenes
from ..detection.masks import decode_mask
from ..pictures import tell_new, upright_sizes, whole_pictures

logger = logging.getLogger(__name__)

IGNORED = 255
"""Label of pixels that count neither for nor against."""

_LARGEST_LABEL = 200  # pictures given for masks have larger values


@dataclass(frozen=True)
class LabelMaps:
    """Pictures and where their labels come from.

    Attributes:
        pictures: paths of the pictures.
        masks: paths of their mask files, or the scene that is painted; empty where the picture is gone.
        held: the values that each picture's mask holds.
        labels: value -> label, an index into `classes`, of the values that count; the others are ignored.
        classes: names of the labels.
        pixels: how the pictures are read.
        bad: (path, reason) of pictures that cannot be read, which are left out.
    """

    pictures: list[str]
    masks: list[str | Scene]
    held: list[frozenset[int]]
    labels: dict[int, int]
    classes: list[str]
    pixels: Pixels = PLAIN
    bad: list[tuple[str, str]] = field(default_factory=list, compare=False)

    def __len__(self) -> int:
        return len(self.pictures)

    def label_map(self, index: int) -> np.ndarray:
        """(H, W) uint8, labels or `IGNORED`."""
        mask = self.masks[index]
        return self._lookup[_painted(mask) if isinstance(mask, Scene) else _values_of(mask)]

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
        rows = {p: (mask, held) for p, mask, held in zip(self.pictures, self.masks, self.held, strict=True)}
        chosen = [(p, *rows.get(p, ("", frozenset[int]()))) for p in pictures]
        return replace(
            self, pictures=[p for p, _, _ in chosen], masks=[m for _, m, _ in chosen], held=[h for *_, h in chosen]
        )

    def whole(self) -> "LabelMaps":
        """Without pictures that are damaged anywhere or not there, which is said. Every picture is decoded."""
        bad = list(self.bad)
        return replace(self.part(whole_pictures(self.pictures, bad, self.pixels)), bad=bad)

    def split(self, train: Iterable[str], val: Iterable[str]) -> tuple["LabelMaps", "LabelMaps"]:
        """The pictures to train on and those to validate with, both with the classes that are trained on.

        Pixels of other classes do not count in validation, which is said.
        """
        trained, measured = self.part(train).of_held_classes(), self.part(val)
        strange = [self.classes[label] for value, label in self.labels.items() if value not in trained.labels]
        if strange:
            logger.warning("No picture to train on shows %s: its pixels do not count in validation", some(strange))
        return trained, replace(measured, labels=trained.labels, classes=trained.classes)

    def of_held_classes(self) -> "LabelMaps":
        """With no other classes than those that its masks hold.

        Raises:
            DataError: it is a single one.
        """
        held = self.all_held
        kept = {value: self.classes[label] for value, label in self.labels.items() if value in held}
        if len(kept) < 2:
            raise DataError(f"the masks have a single class, {some(kept.values())}: there is nothing to tell apart")
        return replace(self, labels={value: i for i, value in enumerate(kept)}, classes=list(kept.values()))

    @property
    def all_held(self) -> frozenset[int]:
        return frozenset[int]().union(*self.held)

    @property
    def _lookup(self) -> np.ndarray:
        table = np.full(256, IGNORED, dtype=np.uint8)
        for value, label in self.labels.items():
            table[value] = label
        return table


def read_label_maps(
    images: str | None, masks: str | None, like: LabelMaps | None = None, pixels: Pixels = PLAIN
) -> LabelMaps:
    """Pictures and their masks, matched by their places below the two folders, and checked.

    Args:
        images: folder of pictures.
        masks: folder of 8-bit mask files (grey or palette), each where its picture lies in `images` but for the suffix.
            Each value is a class: 0 and 255 for a single one, else 0, 1, 2, … with 255 for pixels that do not count.
            Or a COCO .json file.
        like: what was trained on, whose classes these must be.
        pixels: how the pictures are read.

    Raises:
        UsageError: no such folder.
        DataError: pictures without masks, masks of another size, no class or unknown ones.
    """
    images, masks = _checked(images, masks)
    if os.path.isfile(masks):
        maps = _from_scenes(masks, images, pixels)
    else:
        maps = _from_folders(images, masks, pixels)
        labels, classes = _labels_of(maps.all_held, masks) if like is None else _labels_like(maps.all_held, like)
        maps = replace(maps, labels=labels, classes=classes)
    if like is None:
        return maps.of_held_classes()
    known = {name: label for label, name in enumerate(like.classes)}
    names = {value: maps.classes[label] for value, label in maps.labels.items()}
    strange = [names[value] for value in sorted(maps.all_held & set(names)) if names[value] not in known]
    if strange:
        raise DataError(f"{masks} has {some(strange)}, which the masks trained on do not have")
    labels = {value: known[name] for value, name in names.items() if name in known}
    return replace(maps, labels=labels, classes=like.classes)


def read_maps_again(
    images: str | None, masks: str | None, split: Split, pictures: Sequence[str], pixels: Pixels = PLAIN
) -> LabelMaps:
    """Those `pictures` of a run that goes on which are still there, with the run's classes, whatever was deleted or
    added since.

    Pixels of other classes do not count, which is said.

    Raises:
        UsageError: no such folder.
        DataError: masks of another size than their pictures, or no picture is left.
    """
    images, masks = _checked(images, masks)
    if os.path.isfile(masks):
        maps = _from_scenes(masks, images, pixels, pictures)
        names = {value: maps.classes[label] for value, label in maps.labels.items()}
    else:
        maps = _from_folders(images, masks, pixels, pictures)
        names = {value: f"value {value}" for value in maps.all_held - {IGNORED}}
        names |= dict(zip(split.values, split.classes, strict=True))
    known = {name: label for label, name in enumerate(split.classes)}
    strange = [name for value, name in sorted(names.items()) if value in maps.all_held and name not in known]
    if strange:
        logger.warning("%s has %s, no classes of the run: their pixels do not count", masks, some(strange))
    labels = {value: known[name] for value, name in names.items() if name in known}
    return replace(maps, labels=labels, classes=split.classes)


def _checked(images: str | None, masks: str | None) -> tuple[str, str]:
    if not images or not os.path.isdir(images):
        raise UsageError(f"images is {images!r}: expected a folder of pictures")
    if not masks or not os.path.exists(masks):
        raise UsageError(f"masks is {masks!r}: expected a folder of mask files, or a COCO .json file")
    return images, masks


def _from_scenes(file: str, images: str, pixels: Pixels, kept: Sequence[str] | None = None) -> LabelMaps:
    source = read_scenes(file, images, masks=True, kept=kept, pixels=pixels)
    if len(source.classes) >= IGNORED:
        raise DataError(f"{file} has {len(source.classes)} classes: expected fewer than {IGNORED}")
    held = [frozenset({0, *(thing.label for thing in scene.things if not thing.crowd)}) for scene in source.scenes]
    names = ["background", *source.classes]
    paths = [scene.path for scene in source.scenes]
    labels = {i: i for i in range(len(names))}
    return LabelMaps(paths, list(source.scenes), held, labels, names, pixels, source.bad)


def _from_folders(images: str, masks: str, pixels: Pixels, kept: Sequence[str] | None = None) -> LabelMaps:
    """Pictures and the masks in the same places, without labels.

    Args:
        kept: the pictures of a run that goes on: no others are taken, and those that are not there are left out.
    """
    files, pictures = _by_place(masks), _by_place(images, bands=not pixels.is_plain)
    if kept is not None:
        of_run = frozenset(kept)
        tell_new([path for path in pictures.values() if path not in of_run], images)
        pictures = {place: path for place, path in pictures.items() if place in files and path in of_run}
        files = {place: files[place] for place in pictures}
        if not pictures:
            raise DataError(f"of the pictures of the run, none is left in {images} with a mask in {masks}")
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
    file_of = {picture: files[place] for place, picture in pictures.items()}
    bad: list[tuple[str, str]] = []
    sizes = upright_sizes(list(file_of), bad, pixels)
    held: list[frozenset[int]] = []
    for picture, (height, width) in sizes.items():
        values = _values_of(file_of[picture])
        if (height, width) != values.shape:
            raise DataError(
                f"the mask {shown(file_of[picture])} has {values.shape[1]}x{values.shape[0]} pixels, its picture "
                f"{width}x{height}"
            )
        held.append(frozenset(np.bincount(values.reshape(-1)).nonzero()[0].tolist()))
    return LabelMaps(list(sizes), [file_of[path] for path in sizes], held, {}, [], pixels, bad)


def _by_place(root: str, bands: bool = False) -> dict[str, str]:
    """Path of each picture by its place below `root`, without the suffix."""
    by_place: dict[str, str] = {}
    for path in list_pictures(root, bands):
        place = os.path.splitext(os.path.relpath(path, root))[0]
        if place in by_place:
            raise DataError(
                f"{shown(by_place[place])} and {shown(path)} differ by nothing but their suffix, so that it is not "
                "clear which picture and which mask belong together: rename or remove one of them"
            )
        by_place[place] = os.path.abspath(path)
    return by_place


def _labels_of(seen: frozenset[int], masks: str) -> tuple[dict[int, int], list[str]]:
    """Which value stands for which label, and the names of the labels."""
    if seen <= {0, 255}:
        if 255 not in seen:
            raise DataError(f"the masks in {masks} are empty: every pixel is 0")
        return {0: 0, 255: 1}, ["background", "class 1"]
    classes = sorted(seen - {IGNORED})
    if classes[-1] > _LARGEST_LABEL or classes[-1] >= 2 * len(classes):  # a few classes may have no pixel here
        raise DataError(
            f"the masks in {masks} have {len(classes)} values up to {classes[-1]}: expected 0 and 255, or classes "
            "counted 0, 1, 2, …; are they pictures, saved as JPEG, or colour-coded?"
        )
    labels = {value: label for label, value in enumerate(classes)}
    return labels, ["background" if value == 0 else f"class {value}" for value in classes]


def _labels_like(seen: frozenset[int], like: LabelMaps) -> tuple[dict[int, int], list[str]]:
    """The same for masks whose values must be those of the masks trained on."""
    known = {value: label for label, value in enumerate(like.values)}
    values = sorted(seen if IGNORED in known else seen - {IGNORED})
    names = [like.classes[known[value]] if value in known else f"value {value}" for value in values]
    return {value: label for label, value in enumerate(values)}, names


def _painted(scene: Scene) -> np.ndarray:
    """(H, W) uint8: the class of the last object that covers a pixel, 0 where none does."""
    painted = np.zeros(scene.size, dtype=np.uint8)
    for thing in scene.things:
        if thing.mask is not None:
            painted[decode_mask(thing.mask) > 0] = IGNORED if thing.crowd else thing.label
    return painted


def _values_of(file: str) -> np.ndarray:
    """(H, W) uint8: grey values, or palette indices."""
    try:
        with open_regular(file) as content, Image.open(content) as opened:
            mode, values = opened.mode, np.array(opened.convert("L") if opened.mode == "1" else opened)
    except Exception as error:  # Pillow raises nearly anything on damaged files
        raise DataError(f"the mask {shown(file)} cannot be read ({error})") from None
    if mode not in ("L", "P", "1"):
        raise DataError(f"the mask {shown(file)} is a picture of mode {mode}: expected 8-bit grey or a palette")
    return values
