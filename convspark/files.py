"""Files that are there whole or not at all."""

import csv
import errno
import fcntl
import glob
import io
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import UsageError

_PROBED = 64 << 20  # bytes
_DEVICES = Path("/dev")

DISK_ERRORS = frozenset(
    getattr(errno, name)
    for name in "ENOSPC EDQUOT EFBIG EROFS EACCES EPERM EIO ESTALE ENODEV ENXIO ENOTCONN ESHUTDOWN ENOENT".split()
    if hasattr(errno, name)
)
"""Error numbers of a disk that is full, may not be written, fails, or is gone."""


@contextmanager
def written_whole(path: str | os.PathLike[str], *, new: bool = False) -> Iterator[Path]:
    """A temporary path beside `path` (same suffix), moved over it when the block ends well and removed when not.

    Missing folders are made. A reader sees the old file or the new one, also when the writer is killed or the machine
    stops: the content is on the disk before the name is. The file has the permissions that files usually get here.

    Args:
        new: raise FileExistsError instead of replacing a file: of several processes, one writes it.
    """
    target = Path(path)
    check_local(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            raise UsageError(f"{target} is a folder where a file is to be written: move it away")
        if (target.exists() and not target.is_file()) or target.absolute().parent == _DEVICES:
            raise UsageError(f"{target} is a device or a pipe, which would be replaced: name a file to write")
        temporary = beside(target)
        temporary.touch()
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"{target} cannot be written: {target.parent} is no folder") from None
    except FileNotFoundError:  # so says /proc, where nobody makes files
        raise PermissionError(errno.EACCES, "No file can be made there", str(target)) from None
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from None
    try:
        with disk_errors(target):
            usual = temporary.stat().st_mode
            yield temporary
            temporary.chmod(usual)  # some writers (safetensors) let nobody but the owner read
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            if not (new and _linked(temporary, target)):
                os.replace(temporary, target)
    finally:
        with suppress(OSError):  # where that fails, too, what went wrong before says more
            temporary.unlink(missing_ok=True)


def _linked(path: Path, name: Path) -> bool:
    """Give a file a second name, which must be new; False on a disk whose files have one."""
    try:
        os.link(path, name)
    except FileExistsError:
        raise
    except OSError:
        return False
    return True


def check_local(path: Path) -> None:
    """Raise UsageError for a URL, which would become a folder of that name here."""
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(path), re.IGNORECASE):
        raise UsageError(f"{path} is a URL: convspark writes to folders alone; copy what it has written, or mount it")


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise what `written_whole` would, before long work whose result is to be written there."""
    with suppress(_NotNow), written_whole(path):
        raise _NotNow


def is_taken(path: Path) -> str | None:
    """In words for a message, that something has this name, a link that leads nowhere too; None if nothing has.

    Raises:
        OSError: it cannot be told.
    """
    if path.exists():
        return "which exists already"
    return "a link that leads nowhere" if path.is_symlink() else None


class _NotNow(Exception):
    """Leaves what `written_whole` would replace as it is."""


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Within it, what a library raises when the disk does not take its data is an OSError with the file's name."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(target)
        raise
    except Exception as error:
        of_rust = re.search(r"os error (\d+)", str(error))
        of_torch = re.search(r"inline_container|iostream error|PytorchStreamWriter", str(error))
        if of_rust is None and of_torch is None:
            raise
        number = int(of_rust[1]) if of_rust is not None else _why_not(target.parent)
        raise OSError(number, os.strerror(number), str(target)) from error


def _why_not(folder: Path) -> int:
    """The error number of writing a file there, which torch does not give."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            for _ in range(_PROBED >> 20):
                file.write(bytes(1 << 20))
            file.flush()
    except OSError as error:
        return error.errno or errno.EIO
    return errno.EIO


def sweep(folder: Path) -> None:
    """Remove half-written files and folders of processes that have ended, in a folder and below it."""
    for path in [path for path in folder.rglob(".*-part*") if is_left_over(path)]:
        _remove(path)


def is_left_over(path: Path) -> bool:
    """Whether a process that has ended was writing it (see `beside`)."""
    match = re.fullmatch(r"\..*-part(\d+)(\..*)?", path.name, re.DOTALL)
    return match is not None and not _is_running(int(match[1]))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def beside(target: Path) -> Path:
    """Where this process writes what is to become `target`, a file or a folder: in the same folder, same suffix.

    What processes left there that were killed while they wrote is removed.
    """
    start, end = f".{target.stem}-part", target.suffix
    for path in target.parent.glob(f"{glob.escape(start)}[0-9]*{glob.escape(end)}"):
        process = path.name[len(start) : len(path.name) - len(end)]
        if process.isdecimal() and not _is_running(int(process)):
            _remove(path)
    return target.with_name(f"{start}{os.getpid()}{end}")


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        pass
    return True


def write_text(path: str | os.PathLike[str], text: str, *, new: bool = False) -> None:
    """Write a text file, whole or not at all; file names in it that are not UTF-8 are written byte for byte.

    Args:
        new: raise FileExistsError where there is one.
    """
    with written_whole(path, new=new) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV that reads back unchanged: Python quotes cells with a line break, but not with a carriage return."""
    text = io.StringIO()
    plain, quoted = (csv.writer(text, lineterminator="\n", quoting=q) for q in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    for row in rows:
        (quoted if any("\r" in str(cell) for cell in row) else plain).writerow(row)
    return text.getvalue()


class Taken(Exception):
    """Another process holds a file."""


@contextmanager
def held(path: Path, patience: float = 0.0) -> Iterator[None]:
    """Within it, no other process can hold this file, an existing one; it may be read.

    On a file system without locks it holds nothing.

    Args:
        patience: seconds to wait for it.

    Raises:
        Taken: another process has it.
    """
    until = time.monotonic() + patience
    while True:
        with path.open("r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > until:
                    raise Taken(path) from None
                time.sleep(0.1)
                continue
            except OSError:
                pass
            if not os.path.samestat(os.fstat(file.fileno()), path.stat()):  # whoever had it has written it anew
                continue
            yield
            return


def is_held(path: Path) -> bool | None:
    """Whether a process holds this file (see `held`); None where there are no locks, or no such file."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False
