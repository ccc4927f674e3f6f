"""Which of many files are readable pictures, found out before hours are spent on them."""

import logging
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from threading import Lock
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image

from ..errors import DataError, UsageError
from ..names import shown
from ..seeds import Use, counted
from .decode import BadPictureError, left_out, open_header, quiet
from .pixels import PLAIN, Pixels
from .sources import FileSource
from .tiff import Tiff
from .verdicts import Look, Verdicts

T = TypeVar("T")
_log = logging.getLogger(__name__)

MOST_BAD = 0.05
"""Share of unreadable files above which something is wrong with the data as a whole."""

_CHUNK = 256  # paths a task: a future for each of a million paths would take a gigabyte
_THREADS = 8
_TRUSTED = 512  # chunks until it is tried again
_LISTED = 8
_GOOD = (None, None)


@dataclass(frozen=True)
class ScanResult:
    """Paths of readable pictures, and (path, reason) of the others, both in the order they came in."""

    good: list[str]
    bad: list[tuple[str, str]]


class TooManyBadPicturesError(DataError):
    """More unreadable files than the allowed share."""

    def __init__(self, message: str) -> None:
        # A DataLoader raises a worker's error again with the worker's traceback as its message: keep what it
        # ends with.
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].rstrip())


def scan(
    paths: Sequence[str],
    *,
    whole: bool = False,
    most_bad: float = MOST_BAD,
    progress: bool | None = None,
    pixels: Pixels = PLAIN,
    place: str | None = None,
    again: bool = False,
) -> ScanResult:
    """Looks at every file: its header, its size in pixels, and whether the end of the file is there.

    That is quick (no pixels are decoded) and finds what goes wrong with real collections: empty and cut-off
    files, other things under a picture's name, pictures too large to decode. Whatever looks wrong or
    unfamiliar is then decoded in full, so that no good picture is turned away. Damage in the midst of a file
    shows only in training (`PretrainImages` replaces such a picture), or where `whole` asks for it. What is left
    out of files (further pages, further bands) is logged. Pictures that are read through a network are looked at only
    where `whole` asks for it.

    Args:
        paths: files, see `list_pictures`, or other addresses of pictures.
        whole: decode every picture to its last pixel: for pictures to measure with.
        most_bad: share of bad files above which this fails.
        progress: a progress bar on stderr; None for one if stderr is a terminal.
        pixels: how they will be read; files of other bands are bad.
        place: name of the collection in the cache of what was found, so that next time only files that have changed
            are looked at; None keeps nothing.
        again: whether they were scanned before, so that what is left out of them was logged.

    Raises:
        DataError: no readable picture, or a larger share than `most_bad` is bad; names the first few.
    """
    if not paths:
        raise DataError("images: there are no pictures to look at")
    source = FileSource(paths, pixels=pixels)
    verdicts = Verdicts(source.names, place if pixels.is_plain else None)  # the cache is of plain pictures alone
    look = _Looking(source, verdicts, Look.WHOLE if whole else Look.QUICK)
    chunks = [range(start, min(start + _CHUNK, len(paths))) for start in range(0, len(paths), _CHUNK)]
    good: list[str] = []
    bad: list[tuple[str, str]] = []
    partly: dict[str, list[str]] = defaultdict(list)  # by what is left out
    with quiet():
        for chunk, results in zip(chunks, _watched(_mapped(look.at_all, chunks), chunks, progress), strict=True):
            for index, (reason, left_out) in zip(chunk, results, strict=True):
                path = paths[index]
                if reason is None:
                    good.append(path)
                else:
                    bad.append((path, reason))
                if left_out is not None and not again:
                    partly[left_out].append(path)
    check_bad_share(bad, len(paths), most_bad)
    verdicts.keep()
    if bad:
        _log.warning("%s", describe_bad(bad, len(paths)))
    for what, holders in partly.items():
        more = ", …" if len(holders) > _LISTED else ""
        _log.warning(
            "%d of %d files %s: %s%s", len(holders), len(paths), what, ", ".join(map(shown, holders[:_LISTED])), more
        )
    if look.unseen:
        _log.info("%d pictures are read through a network, and were not looked at (a full check does)", look.unseen)
    return ScanResult(good, bad)


def check_bad_share(bad: Sequence[tuple[str, str]], total: int, most_bad: float = MOST_BAD) -> None:
    """Raises `TooManyBadPicturesError` if all of `total` files are bad, or more than the share `most_bad`."""
    if bad and (len(bad) >= total or len(bad) > most_bad * total):
        raise TooManyBadPicturesError(
            f"images: {describe_bad(bad, total)}\nThat is more than {most_bad:.0%}: something is wrong with "
            "the data as a whole. Repair or remove these files, or list the pictures to use in a text file."
        )


def describe_bad(bad: Sequence[tuple[str, str]], total: int) -> str:
    """How many files of `total` are bad, and the first of them, a line each."""
    lines = [f"{len(bad)} of {total} pictures cannot be read:"]
    lines += [f"  {shown(path)}: {shown(reason)}" for path, reason in bad[:_LISTED]]
    if len(bad) > _LISTED:
        lines.append(f"  … and {len(bad) - _LISTED} more")
    return "\n".join(lines)


def hold_out(items: Sequence[T], share: float = 0.02, most: int = 1000, seed: int = 0) -> tuple[list[T], list[T]]:
    """Splits paths, or anything else, into (those to train on, those held out), each in the order they came
    in.

    `share` of the items are held out, drawn by `seed`: at least one and at most `most`, and always fewer than
    all. None are if `share` or `most` is 0, or if there is only one item.
    """
    if not 0 <= share < 1:
        raise UsageError(f"held-out share: expected 0 <= share < 1, got {share}")
    if most < 0:
        raise UsageError(f"held-out pictures: expected 0 or more, got {most}")
    count = min(max(1, round(len(items) * share)), most, len(items) - 1) if share > 0 and items else 0
    chosen = set(counted(seed, Use.HOLD_OUT).permutation(len(items))[:count].tolist())
    train = [item for index, item in enumerate(items) if index not in chosen]
    return train, [item for index, item in enumerate(items) if index in chosen]


def _examine_bands(source: FileSource, index: int, whole: bool) -> str | None:
    """Why a picture cannot be read as wanted, or None if it looks as if it can."""
    try:
        if source.look(index) and not whole:
            return None
    except Exception:  # reading raises it again and gives it a name
        pass
    try:
        source.decode(index)
    except BadPictureError as error:
        return error.reason
    return None


class _Looking:
    """One look at all pictures of a source."""

    def __init__(self, source: FileSource, verdicts: Verdicts, look: Look) -> None:
        self.verdicts = verdicts
        self.unseen = 0
        self._source = source
        self._look = look
        self._lock = Lock()

    def at_all(self, indices: range) -> list[tuple[str | None, str | None]]:
        """Why each picture cannot be read, or None if it looks whole; and what of its file is left out, if anything."""
        results: list[tuple[str | None, str | None]] = [_GOOD] * len(indices)
        stamps = self._source.stamps(indices)
        known = self.verdicts.are_good(indices, stamps, self._look)
        good = np.zeros(len(indices), dtype=bool)
        for place, index in enumerate(indices):
            if known[place]:
                reason, remark = None, self.verdicts.remark(index) if self.verdicts.remarks[1:] else None
            elif self._look < Look.WHOLE and self._source.is_remote(index):
                with self._lock:
                    self.unseen += 1
                continue
            else:
                whole = self._look is Look.WHOLE
                if self._source.pixels.is_plain:
                    reason, remark = _examine(self._source, index, whole)
                else:
                    reason, remark = _examine_bands(self._source, index, whole), None
                good[place] = reason is None
                self.verdicts.note(index, remark)
            if reason or remark:
                results[place] = reason, remark
        self.verdicts.learn(np.asarray(indices)[good], stamps[good], self._look)
        return results


def _examine(source: FileSource, index: int, whole: bool) -> tuple[str | None, str | None]:
    """One picture's entry in the answer of `_Looking.at_all`."""
    if not whole and source.is_plain(index):
        return _GOOD
    beside: str | None = None
    try:
        with source.open(index) as file:
            tiff = Tiff.read(file)
            if tiff is not None:
                beside = tiff.left_out
            if tiff is not None and not tiff.is_read_by_pillow:
                tiff.check()
                looks_whole = tiff.is_whole
            else:
                picture = open_header(file)
                beside = beside or left_out(picture)
                looks_whole = tiff.is_whole if tiff is not None else _looks_whole(picture, file)
            if looks_whole and not whole:
                return None, beside
    except Exception:  # whatever Pillow raised, decoding raises it again and gives it a name
        pass
    try:
        source.decode(index)
    except BadPictureError as error:
        return error.reason, None
    return None, beside


def _looks_whole(picture: Image.Image, file: BinaryIO) -> bool:
    """Whether the end of the picture is in the file; where the format does not tell, False: decode it."""
    size = file.seek(0, os.SEEK_END)

    def tail(count: int) -> bytes:
        file.seek(max(0, size - count))
        return file.read(count)

    match picture.format:
        case "JPEG" | "MPO":
            return b"\xff\xd9" in tail(32)  # end-of-image marker; some writers pad after it
        case "PNG":
            return b"IEND" in tail(12)
        case "GIF":
            return tail(1) == b"\x3b"
        case "WEBP":
            file.seek(4)
            return int.from_bytes(file.read(4), "little") + 8 <= size
    return False


def _mapped(function: Callable[[range], T], chunks: Sequence[range]) -> Iterator[T]:
    """`map`, by several threads or by this one, whichever was quicker with the last few chunks.

    Threads gain where they wait for a disk or decode. On files that are in memory already they wait for each other,
    since one alone may run Python: eight were seen to take three times as long as one.
    """
    remaining = iter(chunks)
    with ThreadPoolExecutor(_THREADS) as pool:
        while True:
            paces: dict[Callable[..., Iterator[T]], float] = {}
            for run, count in ((pool.map, _THREADS), (map, 1)):
                part, began = [*islice(remaining, count)], time.perf_counter()
                results = [*run(function, part)]
                paces[run] = (time.perf_counter() - began) / max(len(part), 1)
                yield from results
                if len(part) < count:
                    return
            yield from min(paces, key=paces.__getitem__)(function, islice(remaining, _TRUSTED))


def _watched(results: Iterable[T], chunks: Sequence[Sequence[int]], progress: bool | None) -> Iterable[T]:
    """`results` (one a chunk) as they come, with a progress bar on stderr."""
    if not (sys.stderr.isatty() if progress is None else progress):
        yield from results
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("Looking at the pictures", total=sum(map(len, chunks)))
        for chunk, result in zip(chunks, results, strict=True):
            yield result
            bar.advance(task, len(chunk))
