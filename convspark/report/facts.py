"""What a page says of a run: settings, charts, results, what to type next. Imports no torch."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, cast

from ..names import in_code, many
from ..runs.folder import going_on
from ..runs.numbers import format_seconds
from ..runs.settings import Settings
from .record import Record

_MOST_POINTS = 1500
_STYLES = ("", "dashed", "dashdotted", "long")
"""Of a run's curves in a chart, where its colour tells the run."""
_STYLES_OF_RANDOM = ("dotted", "sparse")


@dataclass(frozen=True)
class Setting:
    """A setting of a run, in words; `default` is None where there is none."""

    name: str
    value: str
    default: str | None


def settings_of(record: Record, known: type[Settings] | None) -> tuple[list[Setting], list[Setting]]:
    """(settings that were typed or differ from their default, all others) of a run.

    Where the run itself chooses a default, its value counts as typed if the command line names it.

    Args:
        known: the class of its settings, which has the defaults.
    """
    defaults = {} if known is None else {f.name: f.default for f in fields(known) if f.default is not MISSING}
    typed = _typed(record)
    first: list[Setting] = []
    rest: list[Setting] = []
    for name, value in record.settings.items():
        default = defaults.get(name)
        differs = _plain(value) != _plain(default) and (default not in (None, "auto") or name in typed)
        is_main = differs or name in typed or name in ("images", "data", "model", "weights", "run")
        setting = Setting(name, in_words(value), None if name not in defaults else in_words(default))
        (first if is_main and value is not None else rest).append(setting)
    return first, rest


def differing(records: Sequence[Record]) -> list[tuple[str, list[str]]]:
    """(setting, its value in each run) of what is not the same in all of them."""
    names = dict.fromkeys(name for record in records for name in record.settings)
    rows = [(name, [in_words(record.settings.get(name)) for record in records]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def in_words(value: Any) -> str:
    """A setting's value, as it would be typed."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ",".join(in_words(part) for part in cast("Sequence[Any]", value))
    return str(value)


def _typed(record: Record) -> set[str]:
    command = record.environment.get("command")
    words = [word for word in command if isinstance(word, str)] if isinstance(command, list) else []
    return {word[2:].partition("=")[0].replace("-", "_") for word in words if word.startswith("--")}


def _plain(value: Any) -> Any:
    return list(cast("Sequence[Any]", value)) if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Chart:
    """Curves over the epochs.

    Attributes:
        title, note: what it shows, and how to read it.
        lines: label, colour's number, style ("", or a class of `report.css`), and points (epoch, value).
        percent: whether values are shares to be shown in %.
    """

    title: str
    note: str
    lines: list[dict[str, Any]]
    percent: bool = False


_CHARTS: tuple[tuple[str, str, bool, dict[str, str]], ...] = (
    (
        "Loss",
        "On what is trained on, and on pictures held out.",
        False,
        {
            "train_loss": "training",
            "held_out_loss": "held out",
            "val_loss": "validation",
            "ema_loss": "averaged weights",
        },
    ),
    (
        "How good the features are",
        "Share of labelled pictures named right by frozen features; dotted: the same network with random weights.",
        True,
        {"linear": "linear", "knn": "kNN", "linear_random": "linear, random", "knn_random": "kNN, random"},
    ),
    (
        "Effective rank",
        "Along how many directions features differ; a fall by half is a collapse. Dotted: random weights.",
        False,
        {"rank": "effective rank", "rank_random": "random weights"},
    ),
    ("Dead channels", "Channels of the deepest stage that carry nothing.", True, {"dead_channels": "dead channels"}),
    (
        "Accuracy",
        "On validation pictures.",
        True,
        {
            "val_top1": "top-1",
            "ema_top1": "top-1, averaged weights",
            "val_balanced": "balanced",
            "ema_balanced": "balanced, averaged weights",
        },
    ),
    (
        "Average precision",
        "On validation pictures.",
        True,
        {"val_ap": "AP", "val_ap50": "AP at 0.5", "val_ap75": "AP at 0.75"},
    ),
    ("Overlap", "On validation pictures.", True, {"val_iou": "mean IoU", "val_dice": "Dice", "val_accuracy": "pixels"}),
    (
        "Contrast of reconstructions",
        "How much predicted pixels vary, as a share of the true ones; near 0 they are grey.",
        True,
        {"prediction_deviation": "predicted / true"},
    ),
    ("Gradient norm", "Before it is cut; mean of an epoch's steps.", False, {"gradient_norm": "norm"}),
    ("Learning rate", "Of an epoch's last step.", False, {"learning_rate": "rate"}),
    ("Images a second", "While steps are taken.", False, {"images_per_second": "images/s"}),
    (
        "Waiting and clipping",
        "Share of the time spent waiting for images, and of the steps whose gradient was cut.",
        True,
        {"data_wait_share": "waiting for images", "clipped_share": "gradient cut"},
    ),
)


def charts_of(records: Sequence[Record], names: Sequence[str]) -> list[Chart]:
    """The charts that any of the runs has figures for; of several, each has a colour in all charts."""
    charts: list[Chart] = []
    for title, note, percent, columns in _CHARTS:
        lines: list[dict[str, Any]] = []
        for number, (record, name) in enumerate(zip(records, names, strict=True)):
            for place, (column, label) in enumerate(columns.items()):
                points = _points(record, column)
                if not points:
                    continue
                several = len(records) > 1
                beside = list(columns).index(column.removesuffix("_random"))  # whose colour it has, dotted
                styles = _STYLES_OF_RANDOM if beside != place else _STYLES
                lines.append(
                    {
                        "label": f"{name}: {label}" if several else label,
                        "colour": number if several else beside,
                        "style": styles[beside if several else 0],
                        "points": points,
                    }
                )
        if lines:
            charts.append(Chart(title, note, lines, percent))
    return charts


def _points(record: Record, column: str) -> list[tuple[float, float]]:
    table = record.metrics if column in record.metrics else record.watch
    places = table.get("epoch", [])
    points = [(e, v) for e, v in zip(places, table.get(column, []), strict=False) if math.isfinite(e + v)]
    step = -(-len(points) // _MOST_POINTS) if points else 1
    return [*points[:-1:step], points[-1]] if points else []


def facts_of(record: Record) -> dict[str, list[tuple[str, str]]]:
    """Title -> (what, value): data, machine and pace."""
    folder, environment = record.folder, record.environment
    data = [("place", record.data)]
    for title, file, of in (
        ("trained on", folder.train_files, "picture"),
        ("trained on", folder.train_shards, "tar or parquet file"),
        ("held out", folder.held_out_files, "picture"),
        ("unreadable", folder.bad_files, "picture"),
    ):
        lines = _lines(file)
        if lines:
            data.append((title, f"{lines:,} {of}{'s' if lines > 1 else ''}"))
    versions = environment.get("versions")
    packages = ("convspark", "torch", "timm", "python")
    named = [f"{name} {versions[name]}" for name in packages if name in versions] if isinstance(versions, dict) else []
    machine = [
        ("device", environment.get("device")),
        ("system", environment.get("platform")),
        ("versions", ", ".join(named)),
        ("begun", _moment(environment.get("started"))),
        ("gone on", many(len(gone_on), "time") if isinstance(gone_on := environment.get("resumed"), list) else None),
    ]
    seconds = [v for v in record.metrics.get("seconds", []) if math.isfinite(v)]
    looks = [v for v in record.watch.get("seconds", []) if math.isfinite(v)]
    speed, wait = (_over_time(record.metrics, name) for name in ("images_per_second", "data_wait_share"))
    pace: list[tuple[str, str | None]] = []
    if seconds:
        pace = [
            ("in steps", format_seconds(sum(seconds))),
            ("images a second", None if speed is None else f"{speed:.4g} on average"),
            ("waiting for images", None if wait is None else f"{100 * wait:.1f} % of it"),
            ("looking at features", f"{format_seconds(sum(looks))} in {len(looks)} looks" if looks else None),
        ]
    parts = {"Data": data, "Machine": machine, "Pace": pace}
    return {
        title: [(name, str(v)) for name, v in rows if v] for title, rows in parts.items() if any(v for _, v in rows)
    }


def _over_time(metrics: Mapping[str, Sequence[float]], column: str) -> float | None:
    """The mean of a column over the time that steps took: an epoch that took ten times as long counts ten times."""
    rows = zip(metrics.get(column, []), metrics.get("seconds", []), strict=False)
    rows = [(value, seconds) for value, seconds in rows if math.isfinite(value + seconds)]
    total = sum(seconds for _, seconds in rows)
    return sum(value * seconds for value, seconds in rows) / total if total > 0 else None


def _lines(file: Any) -> int:
    try:
        return file.read_bytes().count(b"\n")
    except OSError:
        return 0


def _moment(text: object) -> str | None:
    return str(text).replace("T", " ").replace("+00:00", " UTC") if text else None


@dataclass(frozen=True)
class Table:
    """A table of results: its caption, heads of the columns, and rows whose first cell is their head."""

    caption: str
    heads: list[str]
    rows: list[list[str]]


def results_of(record: Record) -> tuple[list[str], list[Table]]:
    """(sentences, tables) of the results of a task or a comparison."""
    if record.kind == "compare":
        return _compared(record.results)
    single = [
        [name, _figure(name, value)] for name, value in record.results.items() if isinstance(value, int | float | str)
    ]
    tables = [Table("Results", ["measure", "value"], single)] if single else []
    for name, value in record.results.items():
        if isinstance(value, Mapping) and value and name not in ("best", "last"):
            rows = [[str(key), _figure(name, figure)] for key, figure in value.items()]
            tables.append(Table(name.replace("_", " "), ["class", "value"], rows))
    return [], tables


def _compared(results: Mapping[str, Any]) -> tuple[list[str], list[Table]]:
    verdict = results.get("verdict")
    sentences = [str(sentence) for sentence in verdict] if isinstance(verdict, list) else []
    rows: list[list[str]] = []
    try:
        for score in results.get("scores", ()):
            top1 = [100 * float(value) for value in score["values"]["top1"]]
            mean = sum(top1) / len(top1)
            cells = [str(score["arm"]), f"{100 * float(score['fraction']):g} % ({score['labels']})", f"{mean:.1f}"]
            rows.append([*cells, ", ".join(f"{value:.1f}" for value in top1)])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):  # of another version
        return sentences, []
    heads = ["start", "labels", "top-1, mean in %", "of each seed"]
    return sentences, [Table("Comparison", heads, rows)] if rows else []


def _figure(name: str, value: Any) -> str:
    shares = ("top1", "balanced", "macro_f1", "ap", "ap50", "ap75", "iou", "dice", "accuracy", "recall")
    if (
        isinstance(value, float)
        and (name in shares or name.startswith(("iou_", "dice_", "by_class")))
        and 0 <= value <= 1
    ):
        return f"{100 * value:.1f} %"
    if name == "seconds" and isinstance(value, int | float):
        return format_seconds(value)
    return in_words(value)


def _going_on(record: Record) -> str:
    """What goes on with a run: in Python for one of datasets, which no command line has, but for a demo's."""
    command = record.environment.get("command")
    is_demo = isinstance(command, list) and command[1:2] == ["demo"]
    if record.kind != "pretrain" or record.settings.get("images") or not record.settings or is_demo:
        return going_on("demo" if is_demo else record.kind, record.path)
    return f"convspark.pretrain(images, resume={in_code(record.path)}), in Python, with its datasets"


def next_of(record: Record) -> list[tuple[str, str]]:
    """(what for, what to type) from here on."""
    run = shlex.quote(str(record.path))
    go_on = ("go on from the last checkpoint", _going_on(record))
    if record.state == "diverged" and record.kind != "compare":
        rate = record.settings.get("learning_rate")
        lower = f" --learning-rate {rate / 2:.3g}" if isinstance(rate, int | float) else ""
        again = f"convspark {record.kind} --config {run}/config.yaml{lower} --out ANOTHER"
        return [("again, with half the learning rate" if lower else "again, with a lower learning rate", again)]
    if record.state in ("stopped", "diverged", "failed", "died"):
        return [go_on]
    if record.state == "running":
        return [("write this page again while it goes on", f"convspark report {run} --watch")]
    if record.kind == "pretrain":
        return [
            ("how good the frozen features are, in a minute", f"convspark probe {run} LABELLED"),
            ("did it help? several fine-tunings, and a verdict", f"convspark compare {run} LABELLED"),
            ("a classifier", f"convspark finetune {run} LABELLED"),
            ("its reconstructions of other pictures", f"convspark reconstruct {run} PICTURE -o grid.png"),
            ("the features of pictures, for search", f"convspark embed {run} PICTURES -o features.npz"),
        ]
    if record.kind == "finetune":
        return [("for other programs", f"convspark export {run} --to onnx")]
    return [("all runs beside it", f"convspark runs {shlex.quote(str(record.path.parent))}")]
