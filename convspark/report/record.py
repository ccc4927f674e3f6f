"""A run as its folder describes it, whatever state that is in. Imports no torch.

Nothing here raises for what a folder holds: a file that is torn counts as not there, and is named in `torn`.
"""

import csv
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import yaml

from ..errors import DataError
from ..files import is_held
from ..runs.folder import RunFolder
from ..runs.settings import kind_of, read_yaml
from .metrics import read_metrics

State: TypeAlias = Literal["running", "done", "stopped", "diverged", "failed", "died"]

_COMPARISON = "compare.yaml"
_DEEPEST = 4
_RECENT = 600.0  # seconds
_HEAD = 1 << 16  # characters of a config
_FIGURES = {
    "finetune": ("top1", ("val_top1", "ema_top1"), "top-1"),
    "detect": ("ap", ("val_ap",), "AP"),
    "segment": ("iou", ("val_iou",), "IoU"),
}
"""Of a task: its figure in `results.json`, in `metrics.csv`, and its name."""


@dataclass(frozen=True)
class Record:
    """What a run folder holds.

    Attributes:
        path: the folder.
        kind: the command.
        state: running, done, stopped by a signal, diverged, failed by an error, or died: ended without a word.
        why: what ended it early, where it says.
        settings: of its config, plain values.
        metrics, watch: column -> values, oldest first, nan where there is none.
        warnings: rows of `warnings.csv`.
        results: of a task that is done, or of a comparison.
        environment: versions, machine, command line.
        changed: when something was last written, in seconds since 1970.
        torn: names of the files that could not be read.
    """

    path: Path
    kind: str
    state: State
    why: str
    settings: dict[str, Any]
    metrics: dict[str, list[float]]
    watch: dict[str, list[float]]
    warnings: list[dict[str, str]]
    results: dict[str, Any]
    environment: dict[str, Any]
    changed: float
    torn: list[str] = field(default_factory=list[str])

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.path)

    @property
    def network(self) -> str:
        """In a few words."""
        named = self.settings.get("model") or self.settings.get("run")
        return str(named) if named else "a module" if self.settings else "?"

    @property
    def data(self) -> str:
        """Where the pictures are."""
        for name in ("images", "data", "train"):
            place = self.settings.get(name)
            if place:
                return ", ".join(map(str, place)) if isinstance(place, list) else str(place)
        return "a Dataset" if self.settings else "?"

    @property
    def epochs(self) -> tuple[int, int | None]:
        """(done, of the whole run); for a comparison, fine-tunings."""
        if self.kind == "compare":
            s = self.settings
            try:
                arms = 1 + len(set(s.get("against") or ["random"]))
                total = arms * len(set(s.get("fractions") or [0.1, 1.0])) * int(s.get("seeds") or 1)
            except (TypeError, ValueError):  # whatever stands there
                total = None
            return sum(1 for _ in self.path.glob("*/results.json")), total
        done, total = self.metrics.get("epoch", [])[-1:], self.settings.get("epochs")
        return int(done[0]) if done and math.isfinite(done[0]) else 0, total if isinstance(total, int) else None

    @property
    def loss(self) -> float | None:
        """Of the last epoch, on what is trained on."""
        return last(self.metrics.get("train_loss", []))

    @property
    def best(self) -> str:
        """Its best figure, in a few words; empty where there is none yet."""
        if self.kind == "pretrain":
            return self._best_of_pretraining()
        if self.kind == "compare":
            return _gain(self.results)
        if self.kind not in _FIGURES:
            return ""
        key, columns, title = _FIGURES[self.kind]
        result = self.results.get(key)
        values = [v for column in columns for v in self.metrics.get(column, []) if math.isfinite(v)]
        if isinstance(result, int | float):
            if self.kind == "finetune":  # of the best weights; others' results are of the last
                return f"{title} {100 * result:.1f} %{' (test)' if self.results.get('split') == 'test' else ''}"
            values.append(result)
        return f"{title} {100 * max(values):.1f} %" if values else ""

    def _best_of_pretraining(self) -> str:
        accuracies = [v for v in self.watch.get("linear", []) if math.isfinite(v)]
        if accuracies:
            random = last(self.watch.get("linear_random", []))
            beside = "" if random is None else f" (random {100 * random:.1f})"
            return f"linear {100 * max(accuracies):.1f} %{beside}"
        losses = [v for v in self.metrics.get("held_out_loss", []) if math.isfinite(v)]
        return f"held out {min(losses):.4f}" if losses else ""


def last(values: list[float]) -> float | None:
    """The last one that is a number."""
    return next((value for value in reversed(values) if math.isfinite(value)), None)


def find_runs(where: Path) -> Iterator[Path]:
    """The run folders in a folder, or below it; itself, if it is one. What lies in a run is part of it, but for the
    fine-tunings of a comparison that is named itself.
    """
    for path, folders, files in os.walk(str(where)):
        if ("config.yaml" in files or _COMPARISON in files) and _is_run(Path(path), files):
            yield Path(path)
            if _COMPARISON not in files or Path(path) != where:
                folders.clear()
            continue
        depth = len(Path(path).parts) - len(where.parts)
        folders[:] = [] if depth >= _DEEPEST else sorted(name for name in folders if not name.startswith("."))


def read_record(path: Path) -> Record:
    """A run folder, as it is now."""
    torn: list[str] = []
    config = path / _COMPARISON if (path / _COMPARISON).is_file() else path / "config.yaml"
    kind = "?"
    try:
        if not config.is_file():  # a pipe would be waited for
            raise FileNotFoundError(config)
        kind = kind_of(config)
        content = read_yaml(config)
        if not isinstance(content, dict):
            raise yaml.YAMLError("no settings")
        settings = cast("dict[str, Any]", content)
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        settings = {}
        torn.append(config.name)
    folder = RunFolder(path)
    metrics: dict[str, list[float]] = {}
    if folder.metrics.is_file():
        try:
            metrics = read_metrics(folder.metrics)
        except (DataError, UnicodeDecodeError, csv.Error):
            torn.append(folder.metrics.name)
    rows = _rows(folder.watch, ("epoch", "step"), torn)
    watch = {name: [_number(row.get(name)) for row in rows] for name in (rows[0] if rows else ())}
    results = _json(path / ("compare.json" if kind == "compare" else "results.json"), torn)
    state, why = _state(path, config, kind, results, metrics, settings, _json(folder.ended, torn))
    return Record(
        path,
        kind,
        state,
        why,
        {name: value for name, value in settings.items() if name != "kind"},
        metrics,
        watch,
        _rows(folder.warnings, ("epoch", "step", "kind", "text"), torn),
        results,
        _json(folder.environment, torn),
        _changed(path),
        torn,
    )


def _is_run(path: Path, files: list[str]) -> bool:
    """Whether a run wrote the folder: other programs have files of that name, too."""
    if _COMPARISON in files or "environment.json" in files:
        return True
    config = path / "config.yaml"
    try:
        if not config.is_file():
            return False
        with config.open(encoding="utf-8", errors="replace") as opened:
            text = opened.read(_HEAD)
    except OSError:
        return False
    return text.startswith("# The settings of this run") or "convspark" in text


def _state(
    path: Path,
    config: Path,
    kind: str,
    results: Mapping[str, Any],
    metrics: Mapping[str, list[float]],
    settings: Mapping[str, Any],
    ended: Mapping[str, Any],
) -> tuple[State, str]:
    """The state; and why the run ended early, if it did."""
    if kind == "pretrain":
        epochs = metrics.get("epoch", [])[-1:]
        done = (path / "export").is_dir() and (not epochs or epochs[0] == settings.get("epochs"))
    else:
        done = bool(results)
    if done:
        return "done", ""
    is_locked = is_held(config)
    if is_locked or (is_locked is None and time.time() - _changed(path) < _RECENT):
        return "running", ""
    state = ended.get("state")
    if state in ("stopped", "diverged", "failed"):
        return state, str(ended.get("why", ""))
    return "died", "it was killed, or the machine stopped"


def _changed(path: Path) -> float:
    """When something in a run folder was last written; in a comparison's, in its fine-tunings' folders, too."""
    times = [0.0]
    inner = path.glob("*/") if (path / _COMPARISON).is_file() else (path / "checkpoints", path / "export")
    for folder in (path, *inner):
        try:
            with os.scandir(folder) as entries:
                times += [
                    entry.stat(follow_symlinks=False).st_mtime for entry in entries if entry.name != "report.html"
                ]
        except OSError:
            continue
    return max(times)


def _json(path: Path, torn: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
        if isinstance(content, dict):
            return cast("dict[str, Any]", content)
    except (OSError, ValueError, RecursionError):
        pass
    torn.append(path.name)
    return {}


def _rows(path: Path, columns: Sequence[str], torn: list[str]) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, restval=""))
        if all(column in row for row in rows for column in columns):
            return [{str(name): str(cell) for name, cell in row.items()} for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error):
        pass
    torn.append(path.name)
    return []


def _number(cell: str | None) -> float:
    try:
        return float(cell or "nan")
    except ValueError:
        return math.nan


def _gain(results: Mapping[str, Any]) -> str:
    """Of a comparison, at the largest share of the labels."""
    try:
        largest = max(results["differences"], key=lambda difference: difference["fraction"])
        return f"{float(largest['mean']):+.1f} points over {largest['other']} at {100 * float(largest['fraction']):g} %"
    except (KeyError, TypeError, ValueError):
        return ""
