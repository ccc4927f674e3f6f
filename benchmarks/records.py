"""Where benchmarks keep what they measured: one line of JSON each, with date, machine and versions."""

import datetime
import json
import platform
import statistics
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def read(path: Path) -> list[dict[str, Any]]:
    """All lines of a record; none where there is no such file yet. A folder is no record."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def find(path: Path, fields: dict[str, Any], older: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """The latest line that agrees with all of `fields`; `older` is what lines stand for that lack a field."""
    lines = reversed(read(path))
    return next((line for line in lines if fields.items() <= ((older or {}) | line).items()), None)


def append(path: Path, line: dict[str, Any]) -> dict[str, Any]:
    """Write a line, with where and when it was measured; returns it."""
    line = where() | line
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    return line


def spread(values: list[float], scale: float, digits: int = 1) -> str:
    """Mean, and the deviation where there are several."""
    if not values:
        return ""
    mean = f"{scale * statistics.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {scale * statistics.stdev(values):.{digits}f}"


def where() -> dict[str, str]:
    """Date, processor and version of torch."""
    import torch

    return {"date": f"{datetime.date.today()}", "processor": processor(), "torch": torch.__version__}


def processor() -> str:
    """The processor's name, as far as the system knows it."""
    try:
        names = [
            n for n in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if n.startswith("model name")
        ]
    except OSError:
        names = []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


def commit() -> str:
    """The checkout's commit, or "unknown" where git has none."""
    import subprocess

    try:
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
