"""What is known of timm's networks: the verdicts of `benchmarks/coverage.py`, kept in `coverage.json`."""

import fnmatch
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any

from ..errors import UsageError

NOT_TRIED = "not tried"


@dataclass(frozen=True)
class Network:
    """One of timm's architecture names."""

    name: str
    family: str
    """timm's file."""
    parameters: int | None
    stride: int | None
    """Total stride."""
    verdict: str
    """"exact", "refused", "not exact", "too large" (for the machine that tried), "failed" or "not tried"."""
    reason: str | None
    """Why it is not exact."""

    @property
    def brief(self) -> str | None:
        """The reason in a few words."""
        return brief(self.reason) if self.reason else None

    def as_dict(self) -> dict[str, Any]:
        """As JSON knows it, without the name."""
        return {key: value for key, value in asdict(self).items() if key != "name"}


@cache
def table() -> dict[str, Any]:
    """`coverage.json`: timm's version, and for each network that was tried what came out, when and with which torch."""
    file = files("convspark.measure") / "coverage.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"networks": {}}


def list_networks(pattern: str | None = None) -> list[Network]:
    """The installed timm's networks whose names match.

    Args:
        pattern: part of a name, or a pattern with * and ?; None for all.

    Raises:
        UsageError: nothing matches; the nearest names are suggested.
    """
    import timm

    names = timm.list_models()
    if pattern is not None:
        glob = pattern.lower() if re.search(r"[*?\[]", pattern) else f"*{pattern.lower()}*"
        matching = [name for name in names if fnmatch.fnmatch(name, glob)]
        if not matching:
            near = get_close_matches(pattern.lower().strip("*"), names, n=3, cutoff=0.4)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise UsageError(f"pattern is {pattern!r}, which no network of timm {timm.__version__} matches{hint}")
        names = matching
    return [_row(name) for name in names]


def _row(name: str) -> Network:
    import timm

    known = table()["networks"].get(name)
    if known is None:
        family = timm.models.model_entrypoint(name).__module__.rpartition(".")[2]
        return Network(name, family, None, None, NOT_TRIED, None)
    return Network(name, known["family"], known["parameters"], known["stride"], known["verdict"], known["reason"])


def brief(reason: str) -> str:
    """A refusal without the advice that follows it."""
    attention = re.search(r"self-attention \((\w+) at '([^']+)'", reason)
    if attention:
        return f"self-attention in {attention[2]} ({attention[1]})"
    short = re.split(r"\. (?:Either take|Expected|Take stages|Name a)|; or name", reason, maxsplit=1)[0]
    return short.replace(" cannot run on visible patches", "").rstrip(".")


def summary(rows: Sequence[Network]) -> str:
    """`12 networks: 10 exact, 2 refused.`"""
    counts = Counter(row.verdict for row in rows)
    text = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
    more = " `convspark check NAME` tries one." if counts[NOT_TRIED] else ""
    return f"{len(rows)} network{'s' if len(rows) != 1 else ''}: {text}.{more}"
