"""`runs`: the runs in a folder, as a table. Imports no torch."""

import time
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError
from ..names import shown
from ..runs.numbers import format_seconds
from .record import Record, find_runs, read_record

_AMISS = ("diverged", "failed")
"""States whose reason is shown below the table."""


@dataclass(frozen=True)
class RunLine:
    """A run, in a line.

    Attributes:
        run: its folder.
        kind: the command that made it.
        state: running, done, stopped (by a signal, to go on), diverged, failed (by an error) or died.
        why: what ended it early, where it says.
        network, data: what is trained on what.
        epoch, epochs: done, and of the whole run; for a comparison, fine-tunings. `epochs` is None where its config is
            torn.
        loss: of the last epoch, on what is trained on.
        best: its best figure, in words.
        seconds_ago: since something was last written.
        warnings: how many.
        torn: names of the files that could not be read.
    """

    run: str
    kind: str
    state: str
    why: str
    network: str
    data: str
    epoch: int
    epochs: int | None
    loss: float | None
    best: str
    seconds_ago: float
    warnings: int
    torn: list[str]

    @classmethod
    def of(cls, record: Record, now: float) -> "RunLine":
        epoch, epochs = record.epochs
        return cls(
            str(record.path),
            record.kind,
            record.state,
            record.why,
            record.network,
            record.data,
            epoch,
            epochs,
            record.loss,
            record.best,
            round(max(0.0, now - record.changed), 1),
            len(record.warnings),
            record.torn,
        )


@dataclass(frozen=True)
class Overview:
    """The runs of a folder, the one that was written to last first; `str(overview)` is the table."""

    folder: str
    runs: list[RunLine]

    def __str__(self) -> str:
        if not self.runs:
            return f"No runs in {shown(self.folder)}"
        rows = [("run", "kind", "state", "network", "data", "epoch", "loss", "best", "written")]
        rows += [self._cells(line) for line in self.runs]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        table = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        notes = [f"{shown(line.run)}: {line.state}: {shown(line.why)}" for line in self.runs if line.state in _AMISS]
        notes += [f"{shown(line.run)}: torn: {', '.join(line.torn)}" for line in self.runs if line.torn]
        return "\n".join([*table, *([""] if notes else []), *notes])

    def _cells(self, line: RunLine) -> tuple[str, ...]:
        path = Path(line.run)
        name = str(path.relative_to(self.folder)) if path.is_relative_to(self.folder) else line.run
        warned = f" ({line.warnings} warning{'s' if line.warnings > 1 else ''})" if line.warnings else ""
        return (
            _fitted(name if name != "." else line.run, 40),
            line.kind,
            line.state + warned,
            _fitted(line.network, 24),
            _fitted(line.data, 28),
            f"{line.epoch}/{'?' if line.epochs is None else line.epochs}",
            "" if line.loss is None else f"{line.loss:.4f}",
            _fitted(line.best, 36),
            f"{format_seconds(line.seconds_ago)} ago",
        )


def runs(folder: str = "runs") -> Overview:
    """List the runs in a folder: what they are, how far they are, and which are running or died.

    Args:
        folder: folder to look in, with the folders below it; by default runs/. If it is itself a run, only this run is
            listed.

    Raises:
        UsageError: there is no such folder.
    """
    where = Path(folder)
    if not where.is_dir():
        raise UsageError(f"folder is {folder!r}, and there is no such folder: give the one that your runs are in")
    now = time.time()
    lines = [RunLine.of(read_record(path), now) for path in find_runs(where)]
    return Overview(folder, sorted(lines, key=lambda line: (line.seconds_ago, line.run)))


def _fitted(text: str, width: int) -> str:
    """In one line, cut at its beginning, as paths differ at their end."""
    text = shown(text)
    return text if len(text) <= width else f"…{text[1 - width :]}"
