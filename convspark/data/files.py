"""Where the pictures are: a folder, a text file of paths, or a list of paths become one list of paths."""

import difflib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TypeAlias

from ..errors import DataError, UsageError
from ..names import shown
from .decode import open_regular, picture_suffixes, sniff

_log = logging.getLogger(__name__)

Source: TypeAlias = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]

# Left by archivers and file servers, full of thumbnails and resource forks.
_SKIPPED_FOLDERS = {"__MACOSX", "@eaDir"}


def list_images(source: Source) -> list[str]:
    """Paths of the pictures that `source` names, in an order that does not depend on the machine.

    Args:
        source: one of

            * a folder, flat or nested, with or without class folders. Files are taken by suffix (every format
              that Pillow reads, `picture_suffixes`), files without a suffix by their first bytes; hidden
              files are left out, links are followed. Sorted by path.
            * a text file (UTF-8) with one path a line, relative to the file's own folder, or to the working
              directory if the first path is not found there. Blank lines and lines that begin with `#` are
              skipped; order and repetitions are kept. Names that no plain line can hold are JSON texts (`as_lines`).
            * one picture.
            * an iterable of paths, kept as it is.

    Only folders are looked into; that each file is a readable picture is for `scan` to find out.

    Raises:
        DataError: `source` is missing, unreadable, or names no picture.
    """
    if not isinstance(source, str | os.PathLike):
        return _from_iterable(source)
    path = os.fspath(source)
    if os.path.isdir(path):
        return _from_folder(path)
    if os.path.isfile(path):
        return [path] if os.path.splitext(path)[1].lower() in picture_suffixes() else _from_text(path)
    raise DataError(
        f"images: {path!r} does not exist{_nearest(path)}; "
        "give a folder of pictures, or a text file with one path a line"
    )


def _from_iterable(source: Iterable[str | os.PathLike[str]]) -> list[str]:
    try:
        paths = [os.fspath(path) for path in source]
    except TypeError as error:
        raise UsageError(f"images: expected a folder, a text file or a list of paths, got {error}") from None
    if not paths:
        raise DataError("images: the list of paths is empty")
    return paths


def _from_folder(root: str) -> list[str]:
    """All pictures below `root`; `os.scandir` needs no system call a file, which counts at a million."""
    suffixes = picture_suffixes()
    found: list[str] = []
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
            entries = os.scandir(folder)
        except OSError as error:
            if folder == root:
                raise DataError(f"images: folder {root!r} cannot be read: {error.strerror}") from None
            _log.warning("folder %s cannot be read (%s): its pictures are left out", shown(folder), error.strerror)
            continue
        with entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                suffix = os.path.splitext(entry.name)[1].lower()
                if _leads_to(entry.is_dir):
                    if entry.name not in _SKIPPED_FOLDERS:
                        folders.append(entry.path)
                elif suffix in suffixes:
                    # A link that leads nowhere is a bad file, not a missing one.
                    if _leads_to(entry.is_file) or entry.is_symlink():
                        found.append(entry.path)
                elif not suffix and sniff(entry.path):
                    found.append(entry.path)
                elif entry.is_symlink() and not os.path.exists(entry.path):
                    nowhere.append(entry.path)
                elif _leads_to(entry.is_file):
                    other[suffix or "without suffix"] += 1
    if nowhere:
        _log.warning(
            "%d links lead nowhere, and may have been folders of pictures: %s", len(nowhere), shown(nowhere[0])
        )
    if not found:
        holds = ", ".join(f"{count} {suffix}" for suffix, count in other.most_common(4)) or "no file at all"
        raise DataError(
            f"images: no picture in folder {root!r} or below (found: {holds}); pictures are files that "
            "end in .jpg, .png, .webp, .tif and the other suffixes that Pillow reads"
        )
    if other:
        _log.info("%s: %d pictures, %d other files left out", root, len(found), sum(other.values()))
    found.sort()
    return found


def as_lines(names: Iterable[str]) -> str:
    """Names of any kind as a text of one line each, for `names_in`.

    A name that would not come back as it is, or that some reader of lines would cut, becomes a JSON text in ASCII.
    """
    lines = (name if name.isprintable() and names_in(name) == [name] else json.dumps(name) for name in names)
    return "".join(f"{line}\n" for line in lines)


def names_in(text: str) -> list[str]:
    """The names in a text of one line each; blank lines and comments are left out."""
    lines = (line.strip(" \t\r") for line in text.split("\n"))
    return [_unquoted(line) for line in lines if line and not line.startswith("#")]


def _unquoted(line: str) -> str:
    if line.startswith('"'):
        with suppress(ValueError):
            name = json.loads(line)
            return name if isinstance(name, str) else line
    return line


def _leads_to(kind: Callable[[], bool]) -> bool:
    """Whether an entry, or what it links to, is of a kind; not if the link leads in a circle."""
    try:
        return kind()
    except OSError:
        return False


def _from_text(path: str) -> list[str]:
    try:
        with open_regular(path) as file:
            text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(
            f"images: {path!r} is neither a folder, nor a picture by its suffix, "
            "nor a UTF-8 text file with one path a line"
        ) from None
    except OSError as error:
        raise DataError(f"images: {path!r} cannot be read: {error.strerror}") from None
    paths = names_in(text)
    if not paths:
        raise DataError(f"images: {path!r} holds no path; expected one path a line")
    base = os.path.dirname(os.path.abspath(path))
    if not os.path.exists(os.path.join(base, paths[0])) and os.path.exists(paths[0]):
        base = os.getcwd()
    return [os.path.join(base, line) for line in paths]


def _nearest(path: str) -> str:
    """ " (did you mean …?)" where a name beside `path` is close to it, else nothing."""
    parent, name = os.path.split(os.path.abspath(path))
    try:
        near = difflib.get_close_matches(name, os.listdir(parent), n=1)
    except OSError:
        return ""
    return f" (did you mean {os.path.join(os.path.dirname(path), near[0])!r}?)" if near else ""
