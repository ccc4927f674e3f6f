"""Files that are there whole or not at all."""

import csv
import fcntl
import glob
import io
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .errors import UsageError


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path` (same suffix), moved over it when the block ends well and removed when not.

    Missing folders are made. A reader sees the old file or the new one, also when the writer is killed or the machine
    stops: the content is on the disk before the name is. The file has the permissions that files usually get here.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir():
        raise UsageError(f"{target} is a folder where a file is to be written: move it away")
    temporary = beside(target)
    try:
        temporary.touch()
        usual = temporary.stat().st_mode
        yield temporary
        temporary.chmod(usual)  # some writers (safetensors) let nobody but the owner read
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def beside(target: Path) -> Path:
    """Where this process writes what is to become `target`, a file or a folder: in the same folder, same suffix.

    What processes that are gone left there, killed while they wrote, is removed.
    """
    start, end = f".{target.stem}-part", target.suffix
    for left in target.parent.glob(f"{glob.escape(start)}[0-9]*{glob.escape(end)}"):
        number = left.name[len(start) : len(left.name) - len(end)]
        if number.isdecimal() and not _is_running(int(number)):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
    return target.with_name(f"{start}{os.getpid()}{end}")


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        pass
    return True


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file, whole or not at all; names of files that are no UTF-8 come back as they were."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV that comes back as it is: Python quotes what holds a line break, but not a carriage return."""
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

    Where the file system knows no locks, nothing is held.

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
