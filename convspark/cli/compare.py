"""`convspark compare`."""

from collections.abc import Sequence

from ..tasks.comparison.command import compare
from .arguments import Command


def command() -> Command:
    command = Command("compare", compare, positional=("run", "data"))
    command.add_config()
    return command.with_json()


def run(arguments: Sequence[str]) -> int:
    return command().answer(arguments)
