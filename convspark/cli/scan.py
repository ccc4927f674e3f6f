"""`convspark scan`."""

from collections.abc import Sequence

from ..measure.images import scan
from .arguments import Command


def command() -> Command:
    return Command("scan", scan, positional=("images",)).with_json()


def run(arguments: Sequence[str]) -> int:
    return command().answer(arguments)
