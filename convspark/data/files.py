"""Where the pictures are on this machine: folders and lists of paths become one list of paths."""

import csv
import difflib
import io
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import suppress
from typing import TypeAlias

from ..errors import DataError
from ..names import shown
from .addresses import is_url, within
from .decode import open_regular, picture_suffixes, sniff
from .stored import ARRAY_SUFFIXES, BAND_SUFFIXES, items_in

_log = logging.getLogger(__name__)

Source: TypeAlias = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]

PATH_COLUMNS = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img", "url")
"""Names of columns that hold paths of pictures, the likeliest first."""

SHARD_SUFFIXES = (".tar", ".parquet")
"""Suffixes of files that hold many pictures."""

# Files that are not read as pictures, and how to convert them.
_TO_CONVERT = {
    ".nii": "volumes: write their slices as .npy",
    ".nii.gz": "volumes: write their slices as .npy",
    ".dcm": "DICOM: write them as .npy or 16-bit .tif",
    ".czi": "a microscope's own format: write it as .tif",
    ".lif": "a microscope's own format: write it as .tif",
    ".nd2": "a microscope's own format: write it as .tif",
}

# Left by archivers and file servers, full of thumbnails and resource forks.
_SKIPPED_FOLDERS = {"__MACOSX", "@eaDir"}


def is_left_out(path: str) -> bool:
    """Whether a file below a folder, or a folder that it is in, is hidden or one of thumbnails."""
    parts = path.split("/")
    is_hidden = any(part.startswith(".") and part not in (".", "..") for part in parts)
    return is_hidden or not _SKIPPED_FOLDERS.isdisjoint(parts)


def with_items(paths: list[str], bands: bool) -> list[str]:
    """The paths, with an array of several pictures replaced by the names of these."""
    if not bands:
        return paths
    return [item for path in paths for item in (items_in(path) if path.lower().endswith(ARRAY_SUFFIXES) else [path])]


def walk(root: str, shards: list[str] | None = None, bands: bool = False) -> list[str]:
    """All pictures below `root`; `os.scandir` needs no system call a file, which counts at a million.

    Args:
        shards: list to which files that hold many pictures are added, sorted; with it, a folder that holds nothing but
            these is no error.
        bands: whether files of several bands are pictures too.
    """
    inside = [] if shards is None else shards
    suffixes = picture_suffixes() | BAND_SUFFIXES if bands else picture_suffixes()
    pictures: list[str] = []
    other: Counter[str] = Counter()
    nowhere: list[str] = []
    entered: set[tuple[int, int]] = set()  # by device and inode: a link to a parent folder must not recurse for ever
    folders = [root]
    while folders:
        folder = folders.pop()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as listing:
                entries = [*listing]
        except OSError as error:
            if folder == root:
                raise DataError(f"images: folder {root!r} cannot be read: {error.strerror}") from None
            _log.warning("folder %s cannot be read (%s): its pictures are left out", shown(folder), error.strerror)
            continue
        if folder != root and _is_run({entry.name for entry in entries}):
            _log.warning("%s is a run of convspark: its own pictures are left out", shown(folder))
            continue
        inner: list[str] = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            suffix = os.path.splitext(entry.name)[1].lower()
            if _leads_to(entry.is_dir):
                if not is_left_out(entry.name):
                    inner.append(entry.path)
            elif suffix in suffixes:
                # A link that leads nowhere is a bad file, not a missing one.
                if _leads_to(entry.is_file) or entry.is_symlink():
                    pictures.append(entry.path)
            elif not suffix and sniff(entry.path):
                pictures.append(entry.path)
            elif entry.is_symlink() and not os.path.exists(entry.path):
                nowhere.append(entry.path)
            elif shards is not None and suffix in SHARD_SUFFIXES and _leads_to(entry.is_file):
                inside.append(entry.path)
            elif _leads_to(entry.is_file):
                whole = ".nii.gz" if entry.name.lower().endswith(".nii.gz") else suffix
                other[whole or "without suffix"] += 1
        folders += sorted(inner, reverse=True)  # of several links to a folder the same one is entered anywhere
    if nowhere:
        _log.warning(
            "%d links lead nowhere, and may have been folders of pictures: %s", len(nowhere), shown(nowhere[0])
        )
    inside.sort()
    if not pictures and not inside:
        holds = ", ".join(f"{count} {suffix}" for suffix, count in other.most_common(4)) or "no file at all"
        raise DataError(
            f"images: no picture in folder {root!r} or below (found: {holds}); pictures are files that "
            "end in .jpg, .png, .webp, .tif and the other suffixes that Pillow reads"
            f"{_arrays_there(other) if '.npy' not in suffixes else ''}{_to_convert(other)}"
        )
    if other and pictures:
        _log.info("%s: %d pictures, %d other files left out", root, len(pictures), sum(other.values()))
    pictures.sort()
    return pictures


def as_lines(names: Iterable[str]) -> str:
    """Names of any kind as a text of one line each, for `names_in`.

    A name that `names_in` would change, or that other readers of lines would cut, becomes a JSON text in ASCII.
    """
    return "".join([f"{name if _is_plain_line(name) else json.dumps(name)}\n" for name in names])


def names_in(text: str) -> list[str]:
    """The names in a text of one line each; blank lines and comments are left out."""
    lines = (line.strip(" \t\r") for line in text.split("\n"))
    return [_unquoted(line) for line in lines if line and not line.startswith("#")]


def _is_plain_line(name: str) -> bool:
    if not name.isprintable():
        return False
    usual = name.startswith("/") and not name.endswith(" ")  # most of a million are
    return usual or names_in(name) == [name]


def _unquoted(line: str) -> str:
    if line.startswith('"'):
        with suppress(ValueError):
            name = json.loads(line)
            return name if isinstance(name, str) else line
    return line


def _is_run(names: set[str]) -> bool:
    """Whether a run was carried out in a folder with these names in it, whose pictures are of others among these."""
    return {"config.yaml", "environment.json"} <= names or "compare.yaml" in names


def _leads_to(kind: Callable[[], bool]) -> bool:
    """Whether an entry, or what it links to, is of a kind; not if the link leads in a circle."""
    try:
        return kind()
    except OSError:
        return False


def from_text(path: str) -> list[str]:
    try:
        with open_regular(path) as file:
            content = file.read()
    except OSError as error:
        raise DataError(f"images: {path!r} cannot be read: {error.strerror}") from None
    return beside_list(path, paths_in(content, path))


def paths_in(content: bytes, listing: str) -> list[str]:
    """The paths that a list holds, as they stand there: a line each, or the column of them where it is CSV or TSV.

    Raises:
        DataError: there is none.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(
            f"images: {listing!r} is neither a folder, nor a picture by its suffix, "
            "nor a UTF-8 text file with one path a line"
        ) from None
    usual = {".csv": ",", ".tsv": "\t"}.get(os.path.splitext(listing)[1].lower())
    try:
        paths = names_in(text) if usual is None else _column_of_paths(text, usual)
    except csv.Error as error:
        raise DataError(f"images: {listing!r} is not a CSV file ({error})") from None
    if not paths:
        raise DataError(f"images: {listing!r} holds no path; expected one path a line")
    return paths


def csv_rows(text: str, usual: str = ",") -> list[tuple[int, list[str]]]:
    """(line, cells) of each row that holds anything.

    Cells are parted by what parts one of `PATH_COLUMNS` from others in the first row, for spreadsheets write their
    country's mark; by `usual` where none does.

    Raises:
        csv.Error: it is no such table.
    """
    first = text.partition("\n")[0]
    marks = [mark for mark in (usual, *",;\t") if {*_head(first.split(mark))} & {*PATH_COLUMNS}]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=marks[0] if marks else usual)
    return [(reader.line_num, row) for row in reader if any(row)]


def _head(cells: Sequence[str]) -> list[str]:
    return [cell.strip().strip('"').lower() for cell in cells]


def _column_of_paths(text: str, usual: str) -> list[str]:
    """The column with one of `PATH_COLUMNS` in the first row; without these names, the first column of all rows."""
    rows = [row for _, row in csv_rows(text, usual)]
    head = _head(rows[0]) if rows else []
    named = [head.index(name) for name in PATH_COLUMNS if name in head]
    column, first = (named[0], 1) if named else (0, 0)
    return [row[column] for row in rows[first:] if len(row) > column and row[column].strip()]


def beside_list(listing: str, paths: Sequence[str]) -> list[str]:
    """Paths as a list holds them, relative to its own folder, or to the working directory if the first one is not found
    there; URLs stay. Blanks around a path, as after the comma of a CSV file, are its own only where such a file exists.
    """
    base = listing.rpartition("/")[0] if is_url(listing) else os.path.dirname(os.path.abspath(listing))
    paths = [path if path == (name := path.strip()) or _is_in(base, path) else name for path in paths]
    if not is_url(listing) and not os.path.exists(os.path.join(base, paths[0])) and os.path.exists(paths[0]):
        base = os.getcwd()
    return [beside(base, path) for path in paths]


def _is_in(base: str, path: str) -> bool:
    return not is_url(base) and os.path.lexists(os.path.join(base, path))


def beside(base: str, path: str) -> str:
    """A path or other address, relative to a folder or URL."""
    parts = within(path)
    if parts is not None:
        return str(parts._replace(shard=beside(base, parts.shard)))
    if is_url(path):
        return path
    return f"{base}/{path}" if is_url(base) else os.path.join(base, path)


def _arrays_there(other: Container[str]) -> str:
    there = [suffix for suffix in sorted(BAND_SUFFIXES) if suffix in other]
    return f". Of {' and '.join(there)}, tell how many bands there are: --channels N --stats auto" if there else ""


def _to_convert(other: Container[str]) -> str:
    return "".join(f". Of {suffix}, {hint}" for suffix, hint in _TO_CONVERT.items() if suffix in other)


def nearest(path: str) -> str:
    """ " (did you mean …?)" where a name beside `path` is close to it, else nothing."""
    parent, name = os.path.split(os.path.abspath(path))
    try:
        near = difflib.get_close_matches(name, os.listdir(parent), n=1)
    except OSError:
        return ""
    return f" (did you mean {os.path.join(os.path.dirname(path), near[0])!r}?)" if near else ""
