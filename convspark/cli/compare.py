"""`convspark compare`."""

from collections.abc import Sequence

from ..tasks.comparison.command import compare
from .arguments import Command


def command() -> Command:
    made = Command("compare", compare, positional=("run", "data"))
    made.add_config()
    return made.with_json()


def run(arguments: Sequence[str]) -> int:
    return command().answer(arguments)
