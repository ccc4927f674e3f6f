"""Tar files, webdataset's shards among them: where each picture lies, so that one read fetches it."""

import json
import logging
import os
import re
import tarfile
from collections import Counter as Tally
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO, TypeVar, cast

import numpy as np

from ..errors import DataError
from . import index, remote
from .decode import begins_like_a_picture, picture_suffixes
from .files import is_left_out
from .names import Names
from .stored import BAND_SUFFIXES

T = TypeVar("T")
_log = logging.getLogger(__name__)

_LABELS = (".cls", ".json")
_MOST_OF_A_LABEL = 1 << 20  # bytes
_MASKS = (".mask.png", ".seg.png")
_REPEATED = re.compile(r"(.*\.[^./#]+)(#\d+)", re.DOTALL)  # as `_new_name` has them
_PADDING = 1 << 20  # bytes after the end of a tar that are looked at; GNU tar writes zeros there, 10 KiB or less

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")


@dataclass
class Members:
    """The pictures in a tar, in its order, and the files of several bands.

    Attributes:
        names, offsets, sizes: of each; (N,) int64 in bytes.
        labels: what a member `.cls`, or "label" in a member `.json`, of the same name says of each; "" where there is
            none.
    """

    names: Names
    offsets: np.ndarray
    sizes: np.ndarray
    labels: Names


@lru_cache(maxsize=1)  # the last one is often asked for again
def members(path: str, stamp: str) -> Members:
    """The pictures in a tar, by a walk over its headers; kept in the user's cache until its stamp changes.

    Raises:
        DataError: it is no tar, or a compressed one.
        OSError: it cannot be read.
    """
    arrays = index.load("tar", path, stamp)
    if arrays is None:
        arrays = _walk(path)
        index.save("tar", path, arrays, stamp)
    complaint = str(arrays["complaint"])
    if complaint:
        _log.warning("%s %s", path, complaint)
    names, labels = (Names.of(arrays[of + "text"], arrays[of + "ends"]) for of in ("", "label_"))
    return Members(names, arrays["offsets"], arrays["sizes"], labels)


def masks_of(names: Sequence[str], there: Sequence[str]) -> list[str]:
    """The name of each picture's mask, among the names that are there: `a.mask.png` or `a.seg.png` of `a.jpg`; "" where
    there is none, and for masks.
    """
    masks: dict[str, dict[str, str]] = {}  # by the sign of a repetition
    for name in there:
        plain, sign = _parted(name)
        masks.setdefault(sign, {}).update((plain[: -len(end)], name) for end in _MASKS if plain.endswith(end))
    parted = map(_parted, names)
    return ["" if plain.endswith(_MASKS) else _beside(plain, masks.get(sign, {}), "") for plain, sign in parted]


def _labels_of(names: Sequence[str], labelled: Mapping[str, str], repeated: Mapping[str, list[str]]) -> list[str]:
    """The label of each picture; "" where there is none, or where names come again and it is not clear whose it is.

    Args:
        labelled: what each member with a label says, the last of its name.
        repeated: of names that come again with different labels, all of them in their order.
    """
    labels = {os.path.splitext(name)[0]: label for name, label in labelled.items() if label}
    several = {os.path.splitext(name)[0]: every for name, every in repeated.items()}
    parted = [_parted(name) for name in names]
    times = Tally(plain for plain, _ in parted) if several else Tally[str]()
    before = Tally[str]()
    answers: list[str] = []
    for plain, _ in parted:
        every = _beside(plain, several, [])
        if not every:
            answers.append(_beside(plain, labels, ""))
        else:  # the first of the name has the first label, and so on
            answers.append(every[before[plain]] if len(every) == times[plain] else "")
            before[plain] += 1
    return answers


def _parted(name: str) -> tuple[str, str]:
    """A member's name, and the sign of its repetition: "#2", say, or ""."""
    match = _REPEATED.fullmatch(name)
    return (match[1], match[2]) if match else (name, "")


def _beside(name: str, others: Mapping[str, T], nothing: T) -> T:
    """The entry of `others` for a picture's name without its suffix, or as webdataset has it, up to its first dot."""
    stem = os.path.splitext(name)[0]
    folder, slash, file = name.rpartition("/")
    return others.get(stem) or others.get(f"{folder}{slash}{file.partition('.')[0]}", nothing)


def _walk(path: str) -> dict[str, np.ndarray]:
    if path.lower().endswith(COMPRESSED):
        raise DataError(
            f"images: {path!r} is compressed, so that a picture can only be read after all before it; pack it again "
            "without compression, which saves next to nothing with pictures"
        )
    places: dict[str, tuple[int, int]] = {}
    labelled: dict[str, str] = {}
    repeated: dict[str, list[str]] = {}
    count, complaint = 0, ""
    with remote.open_anywhere(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        try:
            with tarfile.open(fileobj=cast("BinaryIO", file), mode="r:") as tar:
                try:
                    for member in tar:
                        count += 1
                        setattr(tar, "members", [])  # noqa: B010  it would keep them all; its type lacks them
                        if member.islnk():
                            place = places.get(member.linkname)
                        elif member.isreg() and not member.issparse():
                            place = member.offset_data, member.size
                        else:
                            continue
                        if place is not None and _is_picture(member.name, place, cast("BinaryIO", file)):
                            places[_new_name(member.name, places)] = place
                        elif place is not None and member.name.endswith(_LABELS) and place[1] <= _MOST_OF_A_LABEL:
                            label = _label_in(member.name, _read(cast("BinaryIO", file), *place))
                            if member.name in labelled:
                                repeated.setdefault(member.name, [labelled[member.name]]).append(label)
                            labelled[member.name] = label
                except tarfile.ReadError as error:
                    complaint = f"is damaged or cut off after {count} members ({error}): what lies after is not used"
                if not complaint and tar.offset >= size:
                    complaint = "has no end: it may have been cut off"
                complaint = complaint or _what_follows(_read(cast("BinaryIO", file), tar.offset, _PADDING), count)
        except tarfile.ReadError as error:
            raise DataError(f"images: {path!r} is no tar file: {error}") from None
    repeated = {name: every for name, every in repeated.items() if len({*every}) > 1}
    names, label_names = Names(places), Names(_labels_of(list(places), labelled, repeated))
    offsets, sizes = np.array(list(places.values()), dtype=np.int64).reshape(-1, 2).T
    return {
        "text": names.text,
        "ends": names.ends,
        "label_text": label_names.text,
        "label_ends": label_names.ends,
        "offsets": offsets,
        "sizes": sizes,
        "complaint": np.array(complaint),
    }


def _what_follows(rest: bytes, count: int) -> str:
    """What is wrong where the walk over a tar ended, at which it has these bytes: "" if nothing."""
    if rest[: tarfile.BLOCKSIZE].strip(b"\0"):  # the end is a block of zeros
        return f"is damaged after {count} members: what lies after is not used"
    if rest.strip(b"\0"):
        return (
            f"has more after its end, which is after {count} members, as tar files have that were put together by "
            "`cat`: what lies after is not used; `tar --concatenate` puts them together"
        )
    return ""


def _is_picture(name: str, place: tuple[int, int], file: BinaryIO) -> bool:
    """Whether a member is a picture, as in folders: by its suffix, or without one by its first bytes; not if hidden."""
    if is_left_out(name):
        return False
    suffix = os.path.splitext(name)[1].lower()
    if suffix or not place[1]:
        return suffix in picture_suffixes() or suffix in BAND_SUFFIXES
    return begins_like_a_picture(_read(file, place[0], 12))


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    before = file.tell()
    file.seek(offset)
    content = file.read(size)
    file.seek(before)
    return content


def _label_in(name: str, content: bytes) -> str:
    """The label that a member is or holds; "" where it does not."""
    text = content.decode("utf-8-sig", "surrogateescape")  # other bytes stay apart
    if name.endswith(".cls"):
        return text.strip()
    try:
        label = json.loads(text)["label"] if '"label"' in text else None
        words = str(label).strip() if isinstance(label, str | int) else ""
        words.encode("utf-8", "surrogateescape")  # JSON can write what is no text
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""
    return words


def _new_name(name: str, places: dict[str, tuple[int, int]]) -> str:
    """The name, or another one where it comes again, as tars allow."""
    new, number = name, 2
    while new in places:
        new, number = f"{name}#{number}", number + 1
    return new
