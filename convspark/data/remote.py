"""Bytes of files on this machine and at any URL that fsspec knows: with time-outs, and tried again.

What cannot be read in the end raises `OSError`, for the caller to count; no read waits for ever.
"""

import io
import logging
import mmap
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import numpy as np

from ..errors import UsageError
from .addresses import is_url

T = TypeVar("T")
_log = logging.getLogger(__name__)

_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)  # no second try makes them good
# What file systems call the time or the content of a file.
_STAMPS = "ETag etag mtime LastModified Last-Modified last_modified updated created blob_id md5Hash".split()
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "http": "http", "https": "http"}


@dataclass
class Patience:
    """How often and how long a read through a network is tried.

    Attributes:
        attempts: of one read.
        pause: seconds before the second attempt; doubled for each one after.
        seconds: most that one attempt may take.
    """

    attempts: int = 4
    pause: float = 0.5
    seconds: float = 60.0


PATIENCE = Patience()


class Stamp(NamedTuple):
    """What shows that a file has changed: its size in bytes, and its time or a tag of its content."""

    size: int
    changed: str

    def __str__(self) -> str:
        return f"{self.size} {self.changed}"


class UnreachableError(OSError):
    """Not read, after all attempts; the message says how the last one failed."""


class CutOffError(OSError):
    """A file ends before what was to be read of it."""


class Attempts:
    """Reads that had to be tried again, counted in memory that forked processes share."""

    def __init__(self) -> None:
        self._count = np.frombuffer(mmap.mmap(-1, 8), dtype=np.int64)
        self.reported = 0
        self._hopeless = set[str]()  # places where no attempt worked: one will do, until it works

    @property
    def repeated(self) -> int:
        return int(self._count[0])

    def make(self, action: Callable[[], T], place: str) -> T:
        """The result of an action, tried several times.

        Raises:
            OSError: `UnreachableError` after the last attempt, or at once what no further attempt would change.
        """
        attempts = 1 if place in self._hopeless else PATIENCE.attempts
        last: Exception = UnreachableError("never tried")
        for attempt in range(attempts):
            if attempt:
                self._count[0] += 1
                time.sleep(PATIENCE.pause * 2 ** (attempt - 1))
            try:
                result = _in_time(action, PATIENCE.seconds)
            except _LASTING:
                raise
            except Exception as error:  # every file system raises its own, of every library below it
                last = error
            else:
                self._hopeless.discard(place)
                return result
        self._hopeless.add(place)
        words = " ".join(str(last).split())[:300] or "no details"
        if isinstance(last, CutOffError):
            raise CutOffError(words) from last
        often = f", {attempts} times" if attempts > 1 else ""
        raise UnreachableError(f"cannot be read{often}: {type(last).__name__}: {words}") from last


ATTEMPTS = Attempts()
"""Counts all reads of this process and those that are forked from it."""


def tell_repeated() -> None:
    """Log how many reads had to be tried again since the last call, if any."""
    count = ATTEMPTS.repeated - ATTEMPTS.reported
    if count:
        _log.warning("%d reads through the network failed and were tried again", count)
    ATTEMPTS.reported += count


def read_range(place: str, start: int, size: int) -> bytes:
    """`size` bytes from `start` on, of a file or URL.

    Raises:
        OSError: it cannot be read, or `CutOffError`: it ends before.
    """
    if not is_url(place):
        descriptor = os.open(place, os.O_RDONLY)
        try:
            return _whole(_pread(descriptor, start, size), start, size)
        finally:
            os.close(descriptor)
    system, path = _system(place)

    def read() -> bytes:
        content = system.cat_file(path, start=start, end=start + size)
        if len(content) > size:  # a server that knows no ranges
            content = content[start : start + size]
        return _whole(content, start, size)

    return ATTEMPTS.make(read, place)


def read_all(place: str) -> bytes:
    """A file or URL from its beginning to its end."""
    if not is_url(place):
        with open(place, "rb") as file:
            return file.read()
    system, path = _system(place)
    return ATTEMPTS.make(partial(system.cat_file, path), place)


def stamp(place: str) -> Stamp:
    """The size of a file or URL, and what changes when it does."""
    if not is_url(place):
        status = os.stat(place)
        return Stamp(status.st_size, str(status.st_mtime_ns))
    system, path = _system(place)
    about = ATTEMPTS.make(partial(system.info, path), place)
    if about.get("type") == "directory":
        raise IsADirectoryError(f"{place} is a folder")
    size = about.get("size")
    if size is None:
        raise UnreachableError(f"{place}: its server does not tell its size")
    return Stamp(int(size), str(next((about[key] for key in _STAMPS if about.get(key)), "")))


def files_below(place: str) -> list[str]:
    """The URLs of the files in a folder of URLs and all below it, or of those that match a pattern; sorted."""
    system, path = _system(place)
    find = system.glob if any(sign in path for sign in "*?[") else system.find
    paths = ATTEMPTS.make(partial(find, path), place)
    return sorted(system.unstrip_protocol(path) for path in paths)


def folders_in(place: str) -> list[str]:
    """The URLs of the folders in a folder of URLs, hidden ones left out; sorted. None in what is no folder."""
    system, path = _system(place)
    try:
        entries = ATTEMPTS.make(partial(system.ls, path, detail=True), place)
    except (FileNotFoundError, NotADirectoryError):
        return []
    names = [entry["name"].rstrip("/") for entry in entries if entry["type"] == "directory"]
    return sorted(system.unstrip_protocol(name) for name in names if not os.path.basename(name).startswith("."))


def below(place: str, root: str) -> str:
    """The path of a file relative to a folder, of this machine or of URLs."""
    if is_url(root):
        place, root = (_system(url)[1] for url in (place, root))
    return os.path.relpath(place, root)


class RangeFile(io.RawIOBase):
    """A file or URL to read from and seek in. Reads are of `block` bytes at least, so that small ones that follow each
    other cost one request.
    """

    def __init__(self, place: str, block: int = 4 << 20) -> None:
        self.stamp = stamp(place)
        self._place = place
        self._block = block
        self._at = 0
        self._begin, self._have = 0, b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.stamp.size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer, except at the end of the file: not every caller would ask for the rest."""
        size, done = min(len(buffer), self.stamp.size - self._at), 0
        while done < size:
            if not self._begin <= self._at < self._begin + len(self._have):
                length = min(max(size - done, self._block), self.stamp.size - self._at)
                self._begin, self._have = self._at, read_range(self._place, self._at, length)
            start = self._at - self._begin
            part = self._have[start : start + size - done]
            buffer[done : done + len(part)] = part
            self._at += len(part)
            done += len(part)
        return done


def open_anywhere(place: str) -> io.BufferedIOBase | io.RawIOBase:
    """A file or URL, open to be read."""
    return RangeFile(place) if is_url(place) else open(place, "rb")


_SYSTEMS: dict[tuple[int, str, str], Any] = {}


def _system(place: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it. Each process has its own: they do not survive a fork."""
    parts = urlsplit(place)
    key = os.getpid(), parts.scheme, parts.netloc
    if key not in _SYSTEMS:
        import fsspec

        try:
            _SYSTEMS[key] = fsspec.core.url_to_fs(place)[0]
        except ImportError as error:
            extra = _EXTRAS.get(parts.scheme)
            what = f"pip install 'convspark[{extra}]'" if extra else "install the package that it names"
            raise UsageError(f"images: {place!r} needs a package that is not installed ({error}): {what}") from None
        except ValueError as error:
            raise UsageError(f"images: {place!r} is not a URL that can be read: {error}") from None
    return _SYSTEMS[key], _SYSTEMS[key]._strip_protocol(place)


def _in_time(action: Callable[[], T], seconds: float) -> T:
    """The result of an action, waited for no longer than that; a late one goes on in a thread that hinders no exit."""
    answer: list[T] = []
    failed: list[BaseException] = []

    def act() -> None:
        try:
            answer.append(action())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not answer:
        raise TimeoutError(f"no answer within {seconds:g} seconds")
    return answer[0]


def _pread(descriptor: int, start: int, size: int) -> bytes:
    content = os.pread(descriptor, size, start)
    if 0 < len(content) < size:  # a signal, or more than one call reads
        parts = [content]
        while parts[-1] and sum(map(len, parts)) < size:
            done = sum(map(len, parts))
            parts.append(os.pread(descriptor, size - done, start + done))
        content = b"".join(parts)
    return content


def _whole(content: bytes, start: int, size: int) -> bytes:
    if len(content) != size:
        raise CutOffError(f"truncated: {len(content)} of {size} bytes from {start} on")
    return content
