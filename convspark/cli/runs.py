"""`convspark runs`."""

from collections.abc import Sequence

from ..report.overview import runs
from .arguments import Command


def command() -> Command:
    return Command("runs", runs, positional=("folder",)).with_json()


def run(arguments: Sequence[str]) -> int:
    return command().answer(arguments)
