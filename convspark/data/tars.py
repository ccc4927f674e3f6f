"""Tar files as they are, webdataset's shards among them: where each picture lies, so that it is one read."""

import logging
import os
import tarfile
from dataclasses import dataclass
from typing import BinaryIO, cast

import numpy as np

from ..errors import DataError
from . import index, remote
from .decode import begins_like_a_picture, picture_suffixes
from .files import SKIPPED_FOLDERS
from .names import Names

_log = logging.getLogger(__name__)

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")


@dataclass
class Members:
    """The pictures in a tar, in its order.

    Attributes:
        names, offsets, sizes: of each; (N,) int64 in bytes.
    """

    names: Names
    offsets: np.ndarray
    sizes: np.ndarray


def members(path: str) -> Members:
    """The pictures in a tar, by a walk over its headers; kept in the user's cache until the file changes.

    Raises:
        DataError: it is no tar, or a compressed one.
        OSError: it cannot be read.
    """
    stamp = remote.stamp(path)
    kept = index.load("tar", path, str(stamp))
    if kept is None:
        kept = _walk(path)
        index.save("tar", path, kept, str(stamp))
    complaint = str(kept["complaint"])
    if complaint:
        _log.warning("%s %s", path, complaint)
    return Members(Names.of(kept["text"], kept["ends"]), kept["offsets"], kept["sizes"])


def _walk(path: str) -> dict[str, np.ndarray]:
    if path.lower().endswith(COMPRESSED):
        raise DataError(
            f"images: {path!r} is compressed, so that no picture can be read without all before it; pack it again "
            "without compression, which gains next to nothing with pictures"
        )
    found: dict[str, tuple[int, int]] = {}
    count, complaint = 0, ""
    with remote.open_anywhere(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        try:
            with tarfile.open(fileobj=cast("BinaryIO", file), mode="r:") as tar:
                try:
                    for member in tar:
                        count += 1
                        setattr(tar, "members", [])  # noqa: B010  which it would keep, and its type does not tell
                        if member.islnk():
                            place = found.get(member.linkname)
                        elif member.isreg() and not member.issparse():
                            place = member.offset_data, member.size
                        else:
                            continue
                        if place is not None and _is_picture(member.name, place, cast("BinaryIO", file)):
                            found[_new_name(member.name, found)] = place
                except tarfile.ReadError as error:
                    complaint = f"is damaged or cut off after {count} members ({error}): what lies after is not used"
                if not complaint and tar.offset >= size:
                    complaint = "has no end: it may have been cut off"
        except tarfile.ReadError as error:
            raise DataError(f"images: {path!r} is no tar file: {error}") from None
    names = Names(found)
    places = np.array(list(found.values()), dtype=np.int64).reshape(-1, 2)
    return {
        "text": names.text,
        "ends": names.ends,
        "offsets": places[:, 0],
        "sizes": places[:, 1],
        "complaint": np.array(complaint),
    }


def _is_picture(name: str, place: tuple[int, int], file: BinaryIO) -> bool:
    """As of files in folders: by suffix, those without one by their first bytes; hidden ones are none."""
    parts = name.split("/")
    if parts[-1].startswith(".") or not SKIPPED_FOLDERS.isdisjoint(parts):
        return False
    suffix = os.path.splitext(name)[1].lower()
    if suffix or not place[1]:
        return suffix in picture_suffixes()
    before = file.tell()
    file.seek(place[0])
    head = file.read(12)
    file.seek(before)
    return begins_like_a_picture(head)


def _new_name(name: str, taken: dict[str, tuple[int, int]]) -> str:
    """A name that comes again, as tars allow, becomes another one."""
    new, number = name, 2
    while new in taken:
        new, number = f"{name}#{number}", number + 1
    return new
