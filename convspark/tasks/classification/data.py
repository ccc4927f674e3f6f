"""DATA, as the commands for classification take it: labelled pictures, split, checked and numbered."""

import logging
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...data import PLAIN, Pixels, Split, as_place, blaming, list_labelled, scan, tell_gone
from ...data.labelled import LabelledPicture, is_text
from ...errors import DataError, UsageError
from ...files import csv_text
from ...names import some
from ...seeds import Use, counted

logger = logging.getLogger(__name__)

_MOST_DAMAGED = 0.5  # of the pictures to measure with, which may be few

GONE = -1
"""Label of a picture that a run trained on and that is not there any more."""

Labelled = list[tuple[str, int]]
"""(address, index of the class)."""


@dataclass(frozen=True)
class LabelledData:
    """Pictures with a class each.

    Attributes:
        classes: their names, sorted, as numbers where all are such; a label is an index into them.
        train, val, test: pictures of each part; `test` may be empty. Of a run that goes on, `train` holds those that
            are `GONE`, too: others stand in for them, so that the order of the others stays.
        bad: (address, reason) of pictures that cannot be read, which are left out.
        val_is_split: whether `val` was taken from the training pictures.
    """

    classes: list[str]
    train: Labelled
    val: Labelled
    test: Labelled
    bad: list[tuple[str, str]]
    val_is_split: bool

    @property
    def final(self) -> tuple[str, Labelled]:
        """What the result is measured on, and its name: the test pictures, where there are some."""
        return ("test", self.test) if self.test else ("val", self.val)

    @property
    def split(self) -> Split:
        """The pictures of each part, by address, and the classes."""
        parts = ([path for path, _ in part] for part in (self.train, self.val, self.test))
        return Split(*parts, classes=self.classes)

    def as_csv(self) -> str:
        """As a CSV file for `read_labelled`, with the parts that the pictures have here.

        Raises:
            DataError: names of classes that would not come back as they are.
        """
        lost = [name for name in self.classes if not is_text(name) or name != name.strip()]
        if lost:
            raise DataError(
                f"data: the classes {some(lost, repr)} have names that are no UTF-8, or begin or end with a blank: "
                "rename their folders"
            )
        parts = (("train", self.train), ("val", self.val), ("test", self.test))
        rows = [[path, self.classes[label], part] for part, labelled in parts for path, label in labelled]
        return csv_text([["path", "label", "split"], *rows])

    def with_fraction(self, fraction: float, seed: int) -> "LabelledData":
        """With a share of each class's training labels, drawn by `seed`, at least one a class.

        A smaller share is a part of a larger one with the same seed.
        """
        if not 0 < fraction <= 1:
            raise UsageError(f"fraction is {fraction}: expected a share of the labels, above 0 and at most 1")
        return self if fraction == 1 else replace(self, train=_draw_share(self.train, fraction, seed)[0])


@blaming("data")
def read_labelled(
    data: str | None,
    val_share: float = 0.2,
    seed: int = 0,
    whole: bool = False,
    pixels: Pixels = PLAIN,
    most: tuple[int, int] | None = None,
) -> LabelledData:
    """Find pictures and their classes, leaving out what cannot be read.

    Args:
        data: what `list_labelled` takes.
        val_share: of the training pictures of each class that become `val` where there is none.
        seed: of that choice.
        whole: decode the pictures to train on to their last pixel, too, where none can stand in for a damaged one.
        pixels: how files are read.
        most: pictures to train and to validate with, where a part of them is enough; test pictures are then left out.

    Raises:
        DataError: no pictures, a class without pictures, missing files, a picture named twice, a single class, or
            classes in val or test that train does not have.
        UsageError: no such folder or file.
    """
    named = list_labelled(data, bands=not pixels.is_plain)
    parts = {
        part: [(path, label) for path, label, split in named if split == part] for part in ("train", "val", "test")
    }
    if not parts["train"]:
        raise DataError(f"data: {data!r} holds no pictures to train on")
    _check_twins(named)
    classes = _in_order({label for _, label in parts["train"]})
    if len(classes) < 2:
        raise DataError(f"data: {data!r} has a single class, {classes[0]!r}: there is nothing to tell apart")
    for part in ("val", "test"):
        unknown = sorted({label for _, label in parts[part]} - set(classes))
        if unknown:
            raise DataError(
                f"data: {part} has classes that train does not have: {some(unknown, repr)}; train has "
                f"{some(classes, repr)}"
            )
    result = scan([path for labelled in parts.values() for path, _ in labelled], pixels=pixels)
    bad = {path for path, _ in result.bad}
    index = {name: i for i, name in enumerate(classes)}
    readable = {part: [(p, index[name]) for p, name in labelled if p not in bad] for part, labelled in parts.items()}
    _check_left(readable["train"], classes)
    _check_measured(parts, readable, data)
    val_is_split = not parts["val"]
    if val_is_split:
        if not 0 < val_share < 1:
            raise UsageError(f"val_share is {val_share}: expected a share above 0 and below 1")
        few = [classes[label] for label, n in Counter(label for _, label in readable["train"]).items() if n < 2]
        if few:
            raise DataError(f"data: {some(few, repr)}: a single picture cannot be both trained on and validated with")
        readable["val"], readable["train"] = _draw_share(readable["train"], val_share, seed, left=1)
    if most is not None:
        readable["train"] = _draw_share(readable["train"], min(1.0, most[0] / len(readable["train"])), seed)[0]
        readable["val"] = readable["val"][:: -(-len(readable["val"]) // most[1])]
        readable["test"] = []
    # No picture to measure with may be damaged anywhere: nothing can stand in for it.
    checked = ("train", "val", "test") if whole else ("val", "test")
    examined = [path for part in checked for path, _ in readable[part]]
    decoded = scan(examined, whole=True, most_bad=_MOST_DAMAGED, pixels=pixels, again=True)
    damaged = {path for path, _ in decoded.bad}
    train, val, test = (
        [(p, label) for p, label in readable[part] if p not in damaged] for part in ("train", "val", "test")
    )
    if whole:
        _check_left(train, classes)
    _check_measured(readable, {"val": val, "test": test}, data)
    return LabelledData(classes, train, val, test, result.bad + decoded.bad, val_is_split)


@blaming("data")
def read_again(data: str | None, split: Split, pixels: Pixels = PLAIN) -> LabelledData:
    """The pictures of a run that goes on, in the parts and with the classes that they had, whatever was deleted or
    added since.

    Those that are not there any more are left out of what is measured with, and others stand in for them in training,
    with a warning; so are pictures of classes that the run does not have.

    Raises:
        DataError: too few of them are left.
        UsageError: no such folder or file.
    """
    named = list_labelled(data, lenient=bool(split.classes), bands=not pixels.is_plain)
    classes = split.classes or sorted({label for _, label, part in named if part == "train"})
    index = {name: i for i, name in enumerate(classes)}
    strange = sorted({label for _, label, _ in named} - set(classes))
    if strange:
        logger.warning("data: the run has no class %s, whose pictures are left out", some(strange, repr))
    known = {path: index[label] for path, label, _ in named if label in index}
    measured = [path for path in (*split.val, *split.test) if path in known]
    trained = [path for path in split.train if path in known]
    # Of none left to look at, `tell_gone` says more.
    scans = [scan(trained, pixels=pixels)] if trained else []
    scans += [scan(measured, whole=True, most_bad=_MOST_DAMAGED, pixels=pixels)] if measured else []
    label_of = {path: known[path] for result in scans for path in result.good}
    for use, part, most in (
        ("trains on", split.train, 0.25),
        ("validates with", split.val, 1),
        ("tests with", split.test, 1),
    ):
        tell_gone(part, label_of, use, most)
    val, test = ([(path, label_of[path]) for path in part if path in label_of] for part in (split.val, split.test))
    return LabelledData(
        classes,
        [(path, label_of.get(path, GONE)) for path in split.train],
        val,
        test,
        [bad for result in scans for bad in result.bad],
        all(part == "train" for _, _, part in named),
    )


def named_place(data: str | None) -> tuple[str, list[str] | None]:
    """See `as_place`."""
    return as_place(str(data), [one.address for one in list_labelled(data, lenient=True)])


def _in_order(classes: Collection[str]) -> list[str]:
    """Sorted; as numbers where all are such, so that the network's output 10 is class 10."""
    try:
        return sorted(sorted(classes), key=float)
    except ValueError:
        return sorted(classes)


def _check_left(train: Labelled, classes: Sequence[str]) -> None:
    """Raise DataError for a class of which no picture to train on can be read."""
    labels_left = {label for _, label in train}
    gone = [name for label, name in enumerate(classes) if label not in labels_left]
    if gone:
        raise DataError(f"data: no readable picture to train on is left in {some(gone, repr)}")


def _check_measured(before: Mapping[str, Sequence[Any]], after: Mapping[str, Labelled], data: str | None) -> None:
    """Raise DataError for a part to measure with of which no picture can be read: no other may take its place."""
    for part, use in (("val", "validate"), ("test", "test")):
        if before[part] and not after[part]:
            raise DataError(f"data: no picture to {use} with is left in {data!r}")


def _check_twins(named: Sequence[LabelledPicture]) -> None:
    """A file in two classes would have two labels; one in two parts, or in two places of a part of which some pictures
    are split off, would be measured with after it was trained on.

    Raises:
        DataError: there is one.
    """
    first: dict[tuple[int, int], LabelledPicture] = {}
    twins: list[str] = []
    for picture in named:
        try:
            status = os.stat(picture[0])
        except OSError:  # `scan` says why
            continue
        other = first.setdefault((status.st_dev, status.st_ino), picture)
        if other is not picture:
            twins.append(f"{picture[0]} ({picture[1]}, {picture[2]}) is {other[0]} ({other[1]}, {other[2]})")
    if twins:
        raise DataError(
            f"data: {len(twins)} pictures are the same files as others: {some(twins, repr)}; leave one of them out"
        )


def _draw_share(labelled: Labelled, share: float, seed: int, left: int = 0) -> tuple[Labelled, Labelled]:
    """(a share of each class, the rest), each in the order they came in; at least one of each class, and at least
    `left` in the rest.
    """
    by_class: dict[int, list[int]] = {}
    for place, (_, label) in enumerate(labelled):
        by_class.setdefault(label, []).append(place)
    chosen_places: set[int] = set()
    for label, places in sorted(by_class.items()):
        order = counted(seed, Use.LABELS, index=label).permutation(len(places))
        count = min(max(1, round(share * len(places))), len(places) - left)
        chosen_places.update(places[i] for i in order[:count])
    share_of_each = [picture for place, picture in enumerate(labelled) if place in chosen_places]
    return share_of_each, [picture for place, picture in enumerate(labelled) if place not in chosen_places]
