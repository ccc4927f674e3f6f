"""Where the log of a run goes: to stderr, and into the run folder."""

import logging
import logging.handlers
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

from ..names import shown_text

_ROOT = "convspark"
_CHATTY = ("lightning.pytorch", "lightning.fabric")


class RunLog:
    """The open log; messages from before the run had a folder are kept for its file."""

    def __init__(self, buffer: logging.handlers.MemoryHandler) -> None:
        self._buffer = buffer
        self._file: logging.FileHandler | None = None

    def write_to(self, path: Path) -> None:
        """Write everything so far, and from now on, to this file, after what is in it."""
        self._file = _LogFile(path, encoding="utf-8")
        self._file.setFormatter(_Shown("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))
        self._buffer.setTarget(self._file)
        self._buffer.capacity = 1  # each further line at once
        self._buffer.flush()

    def close(self) -> None:
        self._buffer.close()
        if self._file is not None:
            self._file.close()


@contextmanager
def run_log(level: int = logging.INFO, only: str = _ROOT) -> Iterator[RunLog]:
    """Log to stderr for a while, unless the program that uses this has its own handlers.

    Args:
        only: the part of the program whose messages are shown; of a run of many runs, those of the whole.
    """
    root = logging.getLogger(_ROOT)
    buffer = logging.handlers.MemoryHandler(10_000, flushLevel=logging.CRITICAL + 1)
    handlers: list[logging.Handler] = [buffer]
    if not (root.handlers or logging.getLogger().handlers):
        stderr_handler = _stderr_handler()
        stderr_handler.addFilter(logging.Filter(only))
        handlers.append(stderr_handler)
    before = root.level
    log = RunLog(buffer)
    try:
        for handler in handlers:
            root.addHandler(handler)
        root.setLevel(level)
        yield log
    finally:
        for handler in handlers:
            root.removeHandler(handler)
        log.close()
        root.setLevel(before)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning for a while: it announces devices and tips, and advises against settings chosen on purpose.

    Lightning sets its levels when it is imported, so import it before.
    """
    levels = {name: logging.getLogger(name).level for name in _CHATTY}
    try:
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
            # Of weights of 1 x 1, whose channels-last strides can be written in two ways.
            warnings.filterwarnings("ignore", message=r"Grad strides do not match bucket view strides")
            # Workers are forked before they have threads of their own, and use none of ours.
            warnings.filterwarnings("ignore", message=r".*use of fork\(\) may lead to deadlocks.*")
            yield
    finally:
        for name, before in levels.items():
            logging.getLogger(name).setLevel(before)


def console() -> Any:
    """The one console for stderr: a bar and log lines must share it to keep out of each other's way."""
    return _console(sys.stderr)


@lru_cache(maxsize=1)
def _console(stream: Any) -> Any:
    from rich.console import Console

    return Console(file=_Terminal(stream), highlight=False, soft_wrap=True)  # type: ignore[arg-type]


class _Terminal:
    """A terminal, which may be closed while a run goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


class _LogFile(logging.FileHandler):
    """Where the disk is full, lines are lost: the run itself will say it."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's name
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with suppress(OSError):
            super().close()


class _Shown(logging.Formatter):
    """Without what a terminal would obey, whatever names a message holds."""

    def format(self, record: logging.LogRecord) -> str:
        return shown_text(super().format(record))


class _ConsoleHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        console().print(self.format(record), markup=False)


def _stderr_handler() -> logging.Handler:
    handler = _ConsoleHandler() if sys.stderr.isatty() else logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Shown("%(message)s"))
    return handler
