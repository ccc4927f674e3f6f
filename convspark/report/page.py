"""`report`: a page about runs, a single HTML file that needs nothing else. Imports no torch."""

import logging
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import ConvsparkError, UsageError
from ..files import DISK_ERRORS, written_whole
from ..names import shown, shown_text
from ..runs.folder import RunFolder
from ..runs.settings import Settings
from .facts import Chart, Setting, Table, charts_of, differing, facts_of, next_of, results_of, settings_of
from .inline import Inline, of_results, over_time
from .record import Record, find_runs, last, read_record

logger = logging.getLogger(__name__)

_PICTURES = 4_000_000
"""Bytes of all pictures of a page, which is to stay below 5 MB."""

_MOST_RUNS = 8
_LONGEST_WAIT = 1e6
"""Seconds."""

Known = Mapping[str, type[Settings]]
"""Command -> the class of its settings, which has their defaults."""


@dataclass(frozen=True)
class _RunView:
    """A run, as the template has it."""

    name: str
    record: Record
    network: str
    data: str
    epoch: int
    epochs: int | None
    figures: list[tuple[str, str]]
    warnings: list[dict[str, str]]
    main_settings: list[Setting]
    other_settings: list[Setting]
    facts: dict[str, list[tuple[str, str]]]
    sentences: list[str]
    tables: list[Table]
    holds_out: bool
    reconstructions: list[Inline]
    result_pictures: list[Inline]
    command: str
    next: list[tuple[str, str]]


def write_page(runs: Sequence[Path], out: Path, known: Known, reload: int = 0) -> list[Record]:
    """Write a page about runs, several side by side, whole or not at all; their records.

    Args:
        reload: seconds after which a browser reads the page again; 0 for never.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    records = [read_record(path) for path in runs]
    names = _names([record.path for record in records])
    rows = [_view_of(r, n, known, _PICTURES // len(records)) for r, n in zip(records, names, strict=True)]
    charts: list[Chart] = charts_of(records, names)
    environment = Environment(
        loader=PackageLoader(__name__.rpartition(".")[0]), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["shown"] = shown
    text = environment.get_template("report.html").render(
        title=names[0] if len(names) == 1 else f"{len(names)} runs side by side",
        written=time.strftime("%Y-%m-%d %H:%M:%S"),
        reload=reload if any(record.state == "running" for record in records) else 0,
        runs=rows,
        differing=differing(records) if len(records) > 1 else [],
        charts=charts,
        charts_data=[asdict(chart) for chart in charts],
        reconstructed=[row for row in rows if row.reconstructions],
    )
    with written_whole(out) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")
    return records


def write_page_at_last(folder: RunFolder, settings: type[Settings]) -> None:
    """The page of a run that is done, in its folder: an error in it is logged, and costs nothing else."""
    try:
        write_page([folder.path], folder.report, {settings.kind: settings})
    except Exception as error:
        logger.warning("%s could not be written (%s: %s); all else is", folder.report, type(error).__name__, error)


def report(
    runs: Sequence[str], known: Known, out: str | None = None, watch: bool = False, every: float = 30.0
) -> tuple[Path, int]:
    """Write a page about runs; (where it is, how many runs it has).

    Args:
        runs: run folders, or folders of them.
        known: see `Known`.
        out: HTML file to write; by default report.html in the run's folder, of several runs in the working folder.
        watch: write it again, every so many seconds, until no run goes on any more.

    Raises:
        KeyboardInterrupt: stopped while it watches; the message says that the page is there.
        UsageError: no such run, too many, or an `out` that is no HTML file.
        ConvsparkError: the run's folder, where the page would lie, cannot be written.
    """
    paths = _paths_of(runs)
    page = Path(out) if out is not None else RunFolder(paths[0]).report if len(paths) == 1 else Path("report.html")
    if page.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"out is {str(out)!r}: expected a file that ends in .html")
    if not 1 <= every <= _LONGEST_WAIT:
        raise UsageError(f"every is {every:g}: expected one second or more, up to {_LONGEST_WAIT:g}")
    try:
        records = write_page(paths, page, known, round(every) if watch else 0)
    except OSError as error:
        if out is not None or error.errno not in DISK_ERRORS:
            raise
        raise ConvsparkError(
            f"{page} cannot be written ({error.strerror}): name another place by --out FILE.html"
        ) from error
    try:
        while watch and any(record.state == "running" for record in records):
            time.sleep(every)
            records = write_page(paths, page, known, round(every))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Stopped; {shown(page)} stays as it was written last") from None
    return page, len(paths)


def _paths_of(runs: Sequence[str]) -> list[Path]:
    if not runs:
        raise UsageError("runs are missing: give one or more run folders")
    paths: list[Path] = []
    for run in runs:
        if not Path(run).is_dir():
            raise UsageError(f"there is no run folder {run!r}")
        inner = list(find_runs(Path(run)))
        inner = [path for path in inner if path == Path(run)] or inner
        if not inner:
            raise UsageError(f"{run!r} is no run folder, and holds none")
        paths += [path for path in inner if path not in paths]
    if len(paths) > _MOST_RUNS:
        raise UsageError(f"these are {len(paths)} runs: give at most {_MOST_RUNS}, which can be told apart by colour")
    return paths


def _names(paths: Sequence[Path]) -> list[str]:
    """Short names: the ends of the paths, as long as it takes to tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = [os.path.join(*own[-length:]) for own in parts]
        if len(set(names)) == len(names):
            return [shown(name) for name in names]
    return [shown(path) for path in paths]


def _view_of(record: Record, name: str, known: Known, budget: int) -> _RunView:
    main_settings, other_settings = settings_of(record, known.get(record.kind))
    sentences, tables = results_of(record)
    epoch, epochs = record.epochs
    result_pictures = of_results(record.path, budget // 2)
    bytes_left = budget - sum(len(picture.address) for picture in result_pictures)
    return _RunView(
        name,
        record,
        shown(record.network),
        shown(record.data),
        epoch,
        epochs,
        _figures(record),
        record.warnings,
        main_settings,
        other_settings,
        facts_of(record),
        sentences,
        tables,
        record.folder.held_out_files.is_file() or last(record.metrics.get("held_out_loss", [])) is not None,
        over_time(record.folder.pictures, bytes_left),
        result_pictures,
        _command(record.environment),
        next_of(record),
    )


def _figures(record: Record) -> list[tuple[str, str]]:
    """The few that matter most."""
    figures: list[tuple[str, str]] = []
    if record.loss is not None:
        figures.append(("training loss", f"{record.loss:.4f}"))
    if record.best:
        figures.append(("best", record.best))
    return figures


def _command(environment: Mapping[str, Any]) -> str:
    words = environment.get("command")
    if not isinstance(words, list) or not words:
        return ""
    program = Path(str(words[0])).name
    start = "convspark" if program in ("convspark", "__main__.py") else f"python {shlex.quote(program)}"
    return shown_text(" ".join([start, *(shlex.quote(str(word)) for word in words[1:])]))
