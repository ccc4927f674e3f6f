"""Labelled pictures, in any form that a user may name them: the address, the class and the part of each."""

import csv
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import DataError, UsageError
from ..names import some
from . import remote
from .addresses import Identities, absolute, is_url, within
from .decode import picture_suffixes
from .files import PATH_COLUMNS, beside, csv_rows, is_left_out, names_in
from .parquet import ParquetShard
from .places import blaming, is_missing, is_shard, list_pictures
from .shards import in_words, labels_of, parts_of
from .stored import item_of
from .tables import is_saved_dataset

logger = logging.getLogger(__name__)

PARTS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
"""Names of folders, files and cells that stand for a part of the pictures."""

_PART_IN_NAME = re.compile(rf"(?:^|[^a-z])({'|'.join(PARTS)})(?:[^a-z]|$)")


class LabelledPicture(NamedTuple):
    """A picture, what it shows, and whether it is to train, to validate or to test with."""

    address: str
    label: str
    part: str


@blaming("data")
def list_labelled(data: str | None, lenient: bool = False, bands: bool = False) -> list[LabelledPicture]:
    """The pictures that `data` names, with their classes.

    Args:
        data: one of

            * a folder with a folder for each class, here or at a URL;
            * tar files with a `.cls` beside each picture, or a `.json` that holds a "label"; parquet files of pictures
              with a column `label` and, if wanted, `split`; a folder that `datasets` saved: alone, in a folder, or as
              a pattern;
            * a folder with folders `train`, `val` and, if wanted, `test` of one of these; or files of which all tell
              their part by their names (`train-00000-of-00002.parquet`);
            * a text file with a line for each of such files, or for each picture in them;
            * a CSV, TSV or parquet file with the columns `path`, `label` and, if wanted, `split`, paths relative to it.
        lenient: whether classes without pictures, and missing files that a list names, are left out.
        bands: see `list_pictures`.

    Raises:
        DataError: nothing there, no labels, a class without pictures, missing files, a picture named twice.
        UsageError: no such folder or file.
    """
    if not data:
        raise UsageError(
            "data is missing: give a folder with a folder for each class, a list of path,label, or another form that "
            "docs/transfer.md names"
        )
    if is_missing(data):
        list_pictures(data)  # raises, and suggests the nearest name
    if _is_list(data):
        pictures = _in_list(data, lenient)
    else:
        places = folders_of_parts(data) or {"": data}
        pictures = [one for part, place in places.items() for one in _in_place(place, part, lenient, bands)]
    doubled = [path for path, n in Counter(one.address for one in pictures).items() if n > 1]
    if doubled:  # trained on and measured with, or of two classes
        raise DataError(f"data: {data!r} names {len(doubled)} pictures more than once: {some(doubled, repr)}")
    _tell_shared(data, pictures)
    return pictures


def _tell_shared(data: str, pictures: Sequence[LabelledPicture]) -> None:
    """Warn of pictures that are trained on and measured with, which a link or another path hides."""
    identity = Identities()
    if len({one.part for one in pictures}) < 2:
        return
    train = {identity(absolute(one.address)) for one in pictures if one.part == "train"}
    shared = [one.address for one in pictures if one.part != "train" and identity(absolute(one.address)) in train]
    if shared:
        logger.warning(
            "data: %d of the pictures of %r to validate or test with are trained on as well, by another name: %s",
            len(shared),
            data,
            some(shared, repr),
        )


def list_in_parts(place: str, bands: bool = False) -> list[tuple[str, str]]:
    """(address, part) of the pictures of a place; all are to train with where nothing says their part."""
    places = folders_of_parts(place) or {"": place}
    return [pair for part, inner in places.items() for pair in _with_parts(list_pictures(inner, bands), part)]


def folders_of_parts(place: str) -> dict[str, str]:
    """The folders in a folder that are called `train`, `val` or `test`, by part; none where there is no `train`.

    Raises:
        DataError: several of one part, or no `train` and no other folder either.
    """
    folders = _folders(place)
    chosen: dict[str, str] = {}
    for name, folder in folders.items():
        part = PARTS.get(name.lower())
        if part in chosen:
            raise DataError(f"data: {place!r} has more than one folder for {part}")
        if part is not None:
            chosen[part] = folder
    if chosen and "train" not in chosen:
        if len(chosen) == len(folders):
            raise DataError(f"data: {place!r} has {some(folders, repr)}, but no train")
        return {}
    others = [name for name, folder in folders.items() if chosen and folder not in chosen.values()]
    if others:
        logger.warning("data: beside its splits, %r has %s, which is left out", place, some(others, repr))
    return chosen


def _in_place(place: str, part: str, lenient: bool, bands: bool) -> list[LabelledPicture]:
    """The pictures of class folders, or of files that hold many pictures."""
    folders = _folders(place)
    if folders:
        return _in_class_folders(place, folders, part or "train", lenient, bands)
    try:
        addresses = list_pictures(place, bands)
    except DataError as error:
        if not os.path.isdir(place):
            raise
        raise DataError(f"data: {place!r} holds no folders: expected one for each class ({error})") from None
    if not any(map(within, addresses)) and part not in ("val", "test"):
        raise DataError(f"data: {place!r} holds no folders: expected one for each class, or train/ and val/")
    pictures = [
        LabelledPicture(address, label, of)
        for (address, of), label in zip(_with_parts(addresses, part), labels_of(addresses), strict=True)
    ]
    for of in ("val", "test"):  # often published without labels
        ours = [one for one in pictures if one.part == of]
        if ours and not any(one.label for one in ours):
            logger.warning("data: no picture of %s in %r has a label: they are left out", of, place)
            pictures = [one for one in pictures if one.part != of]
    lacking = [one.address for one in pictures if not one.label]
    if lacking:
        raise DataError(
            f"data: {len(lacking)} of the {len(pictures)} pictures of {place!r} have no label: {some(lacking, repr)}; "
            "expected, in a tar file, `a.cls`, or `a.json` with a label, beside `a.jpg`; in a parquet file or saved "
            "dataset, a column `label` beside that of the pictures; or a list with the columns path,label"
        )
    return pictures


def _with_parts(addresses: Sequence[str], part: str) -> list[tuple[str, str]]:
    """Addresses with their parts: `part`, or if that is empty, what their files say, or else these files' names."""
    if part:
        return [(address, part) for address in addresses]
    within_files = parts_of(addresses)
    if any(within_files):
        pairs = [(address, said or "train") for address, said in zip(addresses, within_files, strict=True)]
        wrong = [f"{address} ({said!r})" for address, said in pairs if said.lower() not in PARTS]
        if wrong:
            raise DataError(
                f"data: the column split is neither train nor val nor test for {len(wrong)} pictures: "
                f"{some(wrong, repr)}"
            )
        return [(address, PARTS[said.lower()]) for address, said in pairs]
    shards = {address: one.shard for address in addresses if (one := within(address)) is not None}
    matches = {shard: _PART_IN_NAME.search(os.path.basename(shard).lower()) for shard in set(shards.values())}
    if len(matches) < 2 or not any(matches.values()):
        return [(address, "train") for address in addresses]
    silent = sorted(shard for shard, match in matches.items() if not match)
    if silent:
        raise DataError(
            f"data: {len(matches) - len(silent)} of {len(matches)} files say by their names whether they are to train, "
            f"validate or test with, others do not: {some(silent, repr)}; rename them, or put them into folders "
            "train/, val/ and test/"
        )
    parts = {shard: PARTS[match[1]] for shard, match in matches.items() if match}
    return [(address, parts[shards[address]]) for address in addresses]


def _in_class_folders(
    root: str, folders: dict[str, str], part: str, lenient: bool, bands: bool
) -> list[LabelledPicture]:
    pictures: list[LabelledPicture] = []
    empty: list[str] = []
    files = [] if is_url(root) else sorted(name for name in os.listdir(root) if not name.startswith("."))
    loose = [name for name in files if name not in folders and os.path.splitext(name)[1].lower() in picture_suffixes()]
    if loose:
        logger.warning(
            "data: %d pictures in %r itself are of no class, and left out: %s", len(loose), root, some(loose, repr)
        )
    for name, folder in folders.items():
        try:
            pictures += [LabelledPicture(path, name, part) for path in list_pictures(folder, bands)]
        except DataError:
            empty.append(name)
    if empty and not lenient:
        raise DataError(
            f"data: classes without pictures in {root!r}: {some(empty, repr)}; fill or remove their folders"
        )
    inside = [one.address for one in pictures if within(one.address)]
    if inside and any(labels_of(inside)):
        raise DataError(
            f"data: {root!r} has folders of files that hold labels of their own, such as {inside[0]}: give these files "
            "as data, by a pattern or by a folder that holds nothing else"
        )
    return pictures


def _folders(root: str) -> dict[str, str]:
    """The folders in a folder, by name; none in what is no folder, or one saved by `datasets`.

    Raises:
        DataError: a link leads nowhere, which may have been a class.
    """
    if is_saved_dataset(root) or is_shard(root):
        return {}
    if is_url(root):
        folders = {os.path.basename(url): url for url in remote.folders_in(root)}
        return {name: url for name, url in folders.items() if not is_left_out(name)}
    if not os.path.isdir(root):
        return {}
    entries = sorted(path for path in Path(os.path.abspath(root)).iterdir() if not is_left_out(path.name))
    broken = [str(path) for path in entries if path.is_symlink() and not os.path.exists(path)]
    if broken:
        raise DataError(f"data: links that lead nowhere: {some(broken, repr)}; correct or remove them")
    return {path.name: str(path) for path in entries if os.path.isdir(path)}


def _is_list(data: str) -> bool:
    if data.lower().endswith(".parquet") and not is_missing(data):
        with in_words(data):
            return "{" not in data and "*" not in data and not ParquetShard(data).holds_pictures
    named = data.lower().endswith((".csv", ".tsv", ".txt"))
    if is_shard(data) or not (named if is_url(data) else os.path.isfile(data)):
        return False
    if not data.lower().endswith(".txt"):
        return True
    first = next(iter(names_in(_content(data).decode("utf-8", "replace"))), "")
    return not is_shard(first) and within(first) is None  # else it names files that name classes themselves


def _in_list(file: str, lenient: bool) -> list[LabelledPicture]:
    base = file.rpartition("/")[0] if is_url(file) else str(Path(file).resolve().parent)
    pictures: list[LabelledPicture] = []
    for where, cells in _rows(file):
        label, split = cells["label"].strip(), cells.get("split", "").strip() or "train"
        path = cells["path"]
        if not os.path.lexists(os.path.join(base, path)):  # else blanks around it are its own
            path = path.strip()
        if not path or not label:
            raise DataError(f"data: {where} has an empty path or label")
        if not is_text(label):
            raise DataError(f"data: {where} has the label {label!r}: expected text in UTF-8")
        if split.lower() not in PARTS:
            raise DataError(f"data: {where} has the split {split!r}: expected train, val or test")
        address = beside(base, path)
        pictures.append(
            LabelledPicture(absolute(address) if is_url(address) else str(Path(address)), label, PARTS[split.lower()])
        )
    paths = [one.address for one in pictures if not is_url(one.address)]
    missing = dict.fromkeys(path for path in paths if not os.path.exists(item_of(path)[0]))
    if missing and not lenient:
        raise DataError(
            f"data: {len(missing)} of the {len(pictures)} pictures that {file!r} names do not exist: "
            f"{some(missing, repr)}"
        )
    return [one for one in pictures if one.address not in missing]


def _rows(file: str) -> Iterator[tuple[str, dict[str, str]]]:
    """(place in the file, cells by column) of each row of a list; columns are path, label and, if it has one, split."""
    if file.lower().endswith(".parquet"):
        yield from _rows_of_parquet(file)
        return
    content = _content(file)
    try:
        # Paths may be of any bytes, as `LabelledData.as_csv` writes them; labels may not.
        lines = csv_rows(content.decode("utf-8-sig", "surrogateescape"))
    except csv.Error as error:
        raise DataError(f"data: {file!r} is neither a folder nor a CSV file ({error})") from None
    columns = [name.strip().lower() for name in lines[0][1]] if lines else []
    if not all(map(is_text, columns)):
        raise DataError(f"data: {file!r} is neither a folder nor a CSV file in UTF-8")
    path = next((name for name in PATH_COLUMNS if name in columns), None)
    if path is None or "label" not in columns:
        raise DataError(f"data: {file!r} has the columns {columns}: expected path,label or path,label,split")
    for number, row in lines[1:]:
        where = f"line {number} of {file!r}"
        if any(cell.strip() for cell in row[len(columns) :]):
            raise DataError(
                f"data: {where} has {len(row)} cells, but there are {len(columns)} columns: put names that contain "
                "the separator into double quotes"
            )
        cells = dict.fromkeys(columns, "") | dict(zip(columns, row, strict=False))
        yield where, cells | {"path": cells[path]}


def _content(file: str) -> bytes:
    try:
        return remote.read_all(file)
    except OSError as error:
        raise DataError(f"data: {file!r} cannot be read: {error.strerror or error}") from None


def _rows_of_parquet(file: str) -> Iterator[tuple[str, dict[str, str]]]:
    with in_words(file):
        table = ParquetShard(file)
        if table.label_column is None:
            raise DataError(f"data: {file!r} has no column label: expected path,label or path,label,split")
        columns = {"path": table.paths(), "label": table.texts(table.label_column)}
        if "split" in table.columns:
            columns["split"] = table.texts("split")
    for number, row in enumerate(zip(*columns.values(), strict=True)):
        yield f"row {number} of {file!r}", dict(zip(columns, row, strict=True))


def is_text(cell: str) -> bool:
    """Whether a cell was UTF-8: it holds no surrogates, which stand for other bytes, and no NUL."""
    return not any("\ud800" <= letter <= "\udfff" or letter == "\0" for letter in cell)
