"""The figures of a run as its `metrics.csv` has them. Imports neither torch nor matplotlib."""

import csv
import math
import os
from pathlib import Path

from ..errors import DataError


def read_metrics(metrics_csv: str | os.PathLike[str]) -> dict[str, list[float]]:
    """The columns of a `metrics.csv`, by name, in order of their step; an empty cell is nan."""
    name = os.fspath(metrics_csv)
    try:
        text = Path(metrics_csv).read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"metrics: {name!r} cannot be read ({error.strerror}); give a run's metrics.csv") from None
    # A line without its end is still being written, and its last number may be half a number.
    reader = csv.DictReader(text[: text.rfind("\n") + 1].splitlines(), restval="")
    columns = list(reader.fieldnames or [])
    missing = sorted({"epoch", "step", "train_loss"} - set(columns))
    if missing:
        raise DataError(f"metrics: {name!r} lacks the columns {missing}; it has {columns}")
    by_step: dict[float, dict[str, float]] = {}
    for line in reader:
        values = {column: _number(line[column]) for column in columns}
        if not math.isnan(values["step"]):
            by_step[values["step"]] = values
    if not by_step:
        raise DataError(f"metrics: {name!r} has no complete line yet")
    return {column: [by_step[step][column] for step in sorted(by_step)] for column in columns}


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan
