"""Which of many files are readable pictures, found out before hours are spent on them."""

import logging
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, TypeVar

from PIL import Image

from ..errors import DataError, UsageError
from ..names import shown
from ..seeds import Use, counted
from .decode import BadPictureError, decode_unquietly, left_out, open_header, open_regular, quiet
from .tiff import Tiff

T = TypeVar("T")
_log = logging.getLogger(__name__)

MOST_BAD = 0.05
"""Share of unreadable files above which something is wrong with the data as a whole."""

_CHUNK = 256  # paths a task: a future for each of a million paths would take a gigabyte
_LISTED = 8


@dataclass(frozen=True)
class ScanResult:
    """Paths of readable pictures, and (path, reason) of the others, both in the order they came in."""

    good: list[str]
    bad: list[tuple[str, str]]


class TooManyBadPicturesError(DataError):
    """More unreadable files than the share that is put up with."""

    def __init__(self, message: str) -> None:
        # A DataLoader raises a worker's error again with the worker's traceback as its message: keep what it
        # ends with.
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].rstrip())


def scan(
    paths: Sequence[str],
    workers: int | None = None,
    *,
    whole: bool = False,
    most_bad: float = MOST_BAD,
    progress: bool | None = None,
) -> ScanResult:
    """Looks at every file: its header, its size in pixels, and whether the end of the file is there.

    That is quick (no pixels are decoded) and finds what goes wrong with real collections: empty and cut-off
    files, other things under a picture's name, pictures too large to decode. Whatever looks wrong or
    unfamiliar is then decoded in full, so that no good picture is turned away. Damage in the midst of a file
    shows only in training (`PretrainImages` replaces such a picture), or where `whole` asks for it. What of files is
    not taken (further pages, further bands) is said.

    Args:
        paths: files, see `list_images`.
        workers: threads; None for 8, which is more than there are cores because they wait for the disk.
        whole: decode every picture to its last pixel: for those that are measured with.
        most_bad: share of bad files above which this fails.
        progress: a progress bar on stderr; None for one if stderr is a terminal.

    Raises:
        DataError: no readable picture, or a larger share than `most_bad` is bad; names the first few.
    """
    if not paths:
        raise DataError("images: there are no pictures to look at")
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    good: list[str] = []
    bad: list[tuple[str, str]] = []
    partly: dict[str, list[str]] = defaultdict(list)  # by what is left out
    with quiet(), ThreadPoolExecutor(workers or 8) as pool:
        examined = pool.map(partial(_examine_all, whole), chunks)
        for chunk, results in zip(chunks, _watched(examined, chunks, progress), strict=True):
            for path, (reason, left_out) in zip(chunk, results, strict=True):
                if reason is None:
                    good.append(path)
                else:
                    bad.append((path, reason))
                if left_out is not None and not whole:
                    partly[left_out].append(path)
    check_bad_share(bad, len(paths), most_bad)
    if bad:
        _log.warning("%s", describe_bad(bad, len(paths)))
    for what, holders in partly.items():
        more = ", …" if len(holders) > _LISTED else ""
        _log.warning(
            "%d of %d files %s: %s%s", len(holders), len(paths), what, ", ".join(map(shown, holders[:_LISTED])), more
        )
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


def _examine_all(whole: bool, paths: Iterable[str]) -> list[tuple[str | None, str | None]]:
    return [_examine(path, whole) for path in paths]


def _examine(path: str, whole: bool) -> tuple[str | None, str | None]:
    """Why a picture cannot be read, or None if it looks whole; and what of its file is left out, if anything."""
    beside: str | None = None
    try:
        with open_regular(path) as file:
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
        decode_unquietly(path)
    except BadPictureError as error:
        return error.reason, None
    return None, beside


def _looks_whole(picture: Image.Image, file: BinaryIO) -> bool:
    """Whether the end of the picture is in the file; where the format does not tell, False: decode it."""
    size = os.fstat(file.fileno()).st_size

    def tail(count: int) -> bytes:
        file.seek(max(0, size - count))
        return file.read(count)

    match picture.format:
        case "JPEG" | "MPO":
            return b"\xff\xd9" in tail(32)  # end-of-image marker; some writers pad behind it
        case "PNG":
            return b"IEND" in tail(12)
        case "GIF":
            return tail(1) == b"\x3b"
        case "WEBP":
            file.seek(4)
            return int.from_bytes(file.read(4), "little") + 8 <= size
    return False


def _watched(results: Iterable[T], chunks: Sequence[Sequence[str]], progress: bool | None) -> Iterable[T]:
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
