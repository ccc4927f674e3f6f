"""`convspark runs`."""

from collections.abc import Sequence

from ..report.overview import runs
from .arguments import Command


def run(arguments: Sequence[str]) -> int:
    return Command("runs", runs, positional=("folder",)).answer(arguments)
