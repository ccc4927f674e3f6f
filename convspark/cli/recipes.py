"""`convspark recipes`."""

import json
from collections.abc import Sequence

from ..recipes import all_recipes, find_recipe
from .arguments import Command


def recipes(name: str | None = None) -> None:
    """List the settings of published runs, for `--recipe NAME`, or show one as a file for `--config`.

    Args:
        name: name of the recipe to show; by default all are listed.
    """


def command() -> Command:
    command = Command("recipes", recipes, positional=("name",))
    command.add_switch("--json", help="print facts and settings as JSON")
    return command


def run(arguments: Sequence[str]) -> int:
    options = command().parse(arguments)
    chosen = list(all_recipes().values()) if options.name is None else [find_recipe(options.name)]
    if options.json:
        print(json.dumps({one.name: one.as_dict() for one in chosen}, indent=2))
        return 0
    if options.name is not None:
        print(chosen[0].as_yaml(), end="")
        return 0
    rows = [("recipe", "command", "network", "data", "result", "cost")]
    rows += [(one.name, one.command, one.network, one.data, one.outcome, one.cost) for one in chosen]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0
