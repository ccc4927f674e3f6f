"""DATA, as the commands for classification take it: class folders or a CSV become lists of (path, label)."""

import csv
import io
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...data import PLAIN, Pixels, Split, item_of, list_pictures, scan, tell_gone
from ...errors import DataError, UsageError
from ...files import csv_text
from ...seeds import Use, counted

logger = logging.getLogger(__name__)

_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
_SHOWN = 5
_MOST_DAMAGED = 0.5  # of the pictures to measure with, which may be few

GONE = -1
"""Label of a picture that a run trained on and that is not there any more."""

Labelled = list[tuple[str, int]]
"""(path, index of the class)."""


@dataclass(frozen=True)
class LabelledData:
    """Pictures with a class each.

    Attributes:
        classes: their names, sorted; a label is an index into them.
        train, val, test: pictures of each part; `test` may be empty. Of a run that goes on, `train` holds those that
            are `GONE`, too: others stand in for them, so that the order of the others stays.
        bad: (path, reason) of pictures that cannot be read, which are left out.
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
        """The pictures of each part, by path, and the classes."""
        parts = ([path for path, _ in part] for part in (self.train, self.val, self.test))
        return Split(*parts, classes=self.classes)

    def as_csv(self) -> str:
        """As a CSV file for `read_labelled`, with the parts that the pictures have here.

        Raises:
            DataError: names of classes that would not come back as they are.
        """
        lost = [name for name in self.classes if not _is_text(name) or name != name.strip()]
        if lost:
            raise DataError(
                f"data: the classes {_some(lost)} have names that are no UTF-8, or begin or end with a blank: rename "
                "their folders"
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
        return self if fraction == 1 else replace(self, train=_drawn(self.train, fraction, seed)[0])


def read_labelled(
    data: str | None, val_share: float = 0.2, seed: int = 0, whole: bool = False, pixels: Pixels = PLAIN
) -> LabelledData:
    """Find pictures and their classes, leaving out what cannot be read.

    Args:
        data: a folder with a folder for each class, or with train/ and val/ (and test/) folders of those; or a CSV file
            with the columns path, label and, if wanted, split (train, val or test), paths relative to the file.
        val_share: of the training pictures of each class that become `val` where there is none.
        seed: of that choice.
        whole: decode the pictures to train on to their last pixel, too, where none can stand in for a damaged one.
        pixels: how files are read.

    Raises:
        DataError: no pictures, a class without pictures, missing files, a picture named twice, a single class, or
            classes in val or test that train does not have.
        UsageError: no such folder or file.
    """
    named = _named(data, bands=not pixels.is_plain)
    parts = {
        part: [(path, label) for path, label, split in named if split == part] for part in ("train", "val", "test")
    }
    if not parts["train"]:
        raise DataError(f"data: {data!r} holds no pictures to train on")
    _check_twins(named)
    classes = sorted({label for _, label in parts["train"]})
    if len(classes) < 2:
        raise DataError(f"data: {data!r} has a single class, {classes[0]!r}: there is nothing to tell apart")
    for part in ("val", "test"):
        unknown = sorted({label for _, label in parts[part]} - set(classes))
        if unknown:
            raise DataError(
                f"data: {part} has classes that train does not have: {_some(unknown)}; train has {_some(classes)}"
            )
    result = scan([path for labelled in parts.values() for path, _ in labelled], pixels=pixels)
    bad = {path for path, _ in result.bad}
    index = {name: i for i, name in enumerate(classes)}
    kept = {part: [(p, index[name]) for p, name in labelled if p not in bad] for part, labelled in parts.items()}
    left = {label for _, label in kept["train"]}
    if len(left) < len(classes):
        gone = [name for name in classes if index[name] not in left]
        raise DataError(f"data: no readable picture to train on is left in {_some(gone)}")
    val_is_split = not kept["val"]
    if val_is_split:
        if not 0 < val_share < 1:
            raise UsageError(f"val_share is {val_share}: expected a share above 0 and below 1")
        few = [classes[label] for label, n in Counter(label for _, label in kept["train"]).items() if n < 2]
        if few:
            raise DataError(f"data: {_some(few)}: a single picture cannot be both trained on and validated with")
        kept["val"], kept["train"] = _drawn(kept["train"], val_share, seed)
    # Of those that are measured with none may be damaged anywhere: nothing can stand in for it.
    checked = ("train", "val", "test") if whole else ("val", "test")
    examined = [path for part in checked for path, _ in kept[part]]
    decoded = scan(examined, whole=True, most_bad=_MOST_DAMAGED, pixels=pixels)
    damaged = {path for path, _ in decoded.bad}
    train, val, test = (
        [(p, label) for p, label in kept[part] if p not in damaged] for part in ("train", "val", "test")
    )
    if not val:
        raise DataError(f"data: no picture to validate with is left in {data!r}")
    return LabelledData(classes, train, val, test, result.bad + decoded.bad, val_is_split)


def read_again(data: str | None, split: Split, pixels: Pixels = PLAIN) -> LabelledData:
    """The pictures of a run that goes on, in the parts and with the classes that they had, whatever was deleted or
    added since.

    Those that are not there any more are left out of what is measured with, and others stand in for them in training,
    which is said; so are pictures of classes that the run does not have.

    Raises:
        DataError: too few of them are left.
        UsageError: no such folder or file.
    """
    named = _named(data, lenient=bool(split.classes), bands=not pixels.is_plain)
    classes = split.classes or sorted({label for _, label, part in named if part == "train"})
    index = {name: i for i, name in enumerate(classes)}
    strange = sorted({label for _, label, _ in named} - set(classes))
    if strange:
        logger.warning("data: the run has no class %s, whose pictures are left out", _some(strange))
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
    """Where pictures are: a folder, or a CSV file and those that it names."""
    named = _named(data, lenient=True)
    place = os.path.abspath(str(data))
    return place, None if os.path.isdir(place) else [path for path, _, _ in named]


def _named(data: str | None, lenient: bool = False, bands: bool = False) -> list[tuple[str, str, str]]:
    """(path, class, part) of every picture.

    Args:
        lenient: whether classes without pictures, and missing files that a CSV file names, are left out.
        bands: see `list_pictures`.
    """
    if not data:
        raise UsageError("data is missing: give a folder with a folder for each class, or a CSV file of path,label")
    if not os.path.exists(data):
        list_pictures(data)  # raises, and suggests the nearest name
    if not os.path.isdir(data) and not os.path.isfile(data):
        raise UsageError(f"data is {data!r}, which is neither a folder nor a file")
    return _from_csv(Path(data), lenient) if os.path.isfile(data) else _from_folders(Path(data), lenient, bands)


def _from_folders(root: Path, lenient: bool, bands: bool) -> list[tuple[str, str, str]]:
    folders = _folders(root)
    if not folders:
        raise DataError(f"data: {str(root)!r} holds no folders: expected one for each class, or train/ and val/")
    splits = [f for f in folders if f.name.lower() in _SPLITS]
    if any(_SPLITS[f.name.lower()] == "train" for f in splits):
        doubled = [part for part, n in Counter(_SPLITS[f.name.lower()] for f in splits).items() if n > 1]
        if doubled:
            raise DataError(f"data: {str(root)!r} has more than one folder for {doubled[0]}")
        others = [f.name for f in folders if f not in splits]
        if others:
            logger.warning("data: beside its splits, %r has %s, which is left out", str(root), _some(others))
        return [found for f in splits for found in _class_folders(f, _SPLITS[f.name.lower()], lenient, bands)]
    if len(splits) == len(folders):
        raise DataError(f"data: {str(root)!r} has {_some(f.name for f in splits)}, but no train")
    return _class_folders(root, "train", lenient, bands)


def _class_folders(root: Path, split: str, lenient: bool, bands: bool) -> list[tuple[str, str, str]]:
    folders = _folders(root)
    if not folders:
        raise DataError(f"data: {str(root)!r} holds no folders: expected one for each class")
    found: list[tuple[str, str, str]] = []
    empty: list[str] = []
    for folder in folders:
        try:
            found += [(os.path.abspath(path), folder.name, split) for path in list_pictures(folder, bands)]
        except DataError:
            empty.append(folder.name)
    if empty and not lenient:
        raise DataError(
            f"data: classes without pictures in {str(root)!r}: {_some(empty)}; fill or remove their folders"
        )
    return found


def _folders(root: Path) -> list[Path]:
    """The folders in a folder, by name; a class that is a link that leads nowhere must not go unnoticed."""
    seen = sorted(path for path in root.iterdir() if not path.name.startswith("."))
    broken = [str(path) for path in seen if path.is_symlink() and not os.path.exists(path)]
    if broken:
        raise DataError(f"data: links that lead nowhere: {_some(broken)}; mend or remove them")
    return [path for path in seen if os.path.isdir(path)]


def _from_csv(file: Path, lenient: bool) -> list[tuple[str, str, str]]:
    try:
        # Paths may be of any bytes, as `as_csv` writes them; labels may not.
        text = file.read_bytes().decode("utf-8-sig", "surrogateescape")
        header = text.partition("\n")[0]
        delimiter = next((mark for mark in ",;\t" if mark in header), ",")  # spreadsheets write their country's
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        lines = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise DataError(f"data: {str(file)!r} is neither a folder nor a CSV file ({error})") from None
    columns = [name.strip().lower() for name in lines[0][1]] if lines else []
    if not all(map(_is_text, columns)):
        raise DataError(f"data: {str(file)!r} is neither a folder nor a CSV file in UTF-8")
    if not {"path", "label"} <= set(columns):
        raise DataError(f"data: {str(file)!r} has the columns {columns}: expected path,label or path,label,split")
    base = file.resolve().parent
    found: list[tuple[str, str, str]] = []
    for number, row in lines[1:]:
        where = f"line {number} of {str(file)!r}"
        if any(cell.strip() for cell in row[len(columns) :]):
            raise DataError(
                f"data: {where} has {len(row)} cells, and there are {len(columns)} columns: put a name that holds a "
                f"{delimiter!r} in double quotes"
            )
        cells = dict(zip(columns, row, strict=False))
        label, split = cells.get("label", "").strip(), cells.get("split", "").strip() or "train"
        path = cells.get("path", "")
        if not os.path.lexists(base / path):  # else blanks around it are its own
            path = path.strip()
        if not path or not label:
            raise DataError(f"data: {where} has an empty path or label")
        if not _is_text(label):
            raise DataError(f"data: {where} has the label {label!r}: expected text in UTF-8")
        if split.lower() not in _SPLITS:
            raise DataError(f"data: {where} has the split {split!r}: expected train, val or test")
        found.append((str(base / path), label, _SPLITS[split.lower()]))
    doubled = [path for path, n in Counter(path for path, _, _ in found).items() if n > 1]
    if doubled:  # trained on and measured with, or of two classes
        raise DataError(f"data: {str(file)!r} names {len(doubled)} pictures more than once: {_some(doubled)}")
    missing = [path for path, _, _ in found if not os.path.exists(item_of(path)[0])]
    if missing and not lenient:
        raise DataError(
            f"data: {len(missing)} of the {len(found)} pictures that {str(file)!r} names do not exist: {_some(missing)}"
        )
    return [each for each in found if each[0] not in set(missing)] if missing else found


def _is_text(cell: str) -> bool:
    """Whether it was UTF-8, and nothing that merely looks so."""
    return not any("\ud800" <= letter <= "\udfff" or letter == "\0" for letter in cell)


def _check_twins(named: Sequence[tuple[str, str, str]]) -> None:
    """A link in two classes or parts would be told two things, or be measured with after it was trained on.

    Raises:
        DataError: there are such.
    """
    first: dict[tuple[int, int], tuple[str, str, str]] = {}
    twins: list[str] = []
    for each in named:
        try:
            status = os.stat(each[0])
        except OSError:  # `scan` says why
            continue
        other = first.setdefault((status.st_dev, status.st_ino), each)
        if other[1:] != each[1:]:
            twins.append(f"{each[0]} ({each[1]}, {each[2]}) is {other[0]} ({other[1]}, {other[2]})")
    if twins:
        raise DataError(
            f"data: {len(twins)} pictures are the same files as others of another class or part: {_some(twins)}; "
            "leave one of them out"
        )


def _drawn(labelled: Labelled, share: float, seed: int) -> tuple[Labelled, Labelled]:
    """(a share of each class, the rest), each in the order they came in; at least one of each class."""
    by_class: dict[int, list[int]] = {}
    for place, (_, label) in enumerate(labelled):
        by_class.setdefault(label, []).append(place)
    chosen: set[int] = set()
    for label, places in sorted(by_class.items()):
        order = counted(seed, Use.LABELS, index=label).permutation(len(places))
        chosen.update(places[i] for i in order[: max(1, round(share * len(places)))])
    drawn = [each for place, each in enumerate(labelled) if place in chosen]
    return drawn, [each for place, each in enumerate(labelled) if place not in chosen]


def _some(names: Iterable[str] | Sequence[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
