"""`convspark models`."""

import json
from collections.abc import Sequence

from .arguments import Command


def models(pattern: str | None = None) -> None:
    """List timm's networks: family, size, total stride, and whether they run exactly on visible patches.

    Args:
        pattern: part of a name, or a pattern with * and ?; by default all networks.
    """


def command() -> Command:
    command = Command("models", models, positional=("pattern",))
    command.add_switch("--json", help="print the list as JSON")
    return command


def run(arguments: Sequence[str]) -> int:
    options = command().parse(arguments)

    from ..measure.coverage import list_networks, summary

    rows = list_networks(options.pattern)
    if options.json:
        print(json.dumps({row.name: row.as_dict() for row in rows}, indent=2))
        return 0
    width = max(len(row.name) for row in rows)
    wide = max(len(row.family) for row in rows)
    print(f"{'network':{width}}  {'family':{wide}}{'parameters':>12}  {'stride':>6}  verdict")
    for row in rows:
        size = "" if row.parameters is None else f"{row.parameters / 1e6:.1f} M"
        facts = f"{row.name:{width}}  {row.family:{wide}}{size:>12}  {row.stride or '':>6}"
        print(f"{facts}  {row.verdict}{_why(row.brief)}")
    print(summary(rows))
    return 0


def _why(brief: str | None) -> str:
    return f": {brief}" if brief else ""
