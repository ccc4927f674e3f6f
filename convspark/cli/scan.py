"""`convspark scan`."""

from collections.abc import Sequence

from ..measure.images import scan
from .arguments import Command


def run(arguments: Sequence[str]) -> int:
    return Command("scan", scan, positional=("images",)).answer(arguments)
