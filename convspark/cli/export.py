"""`convspark export`."""

from collections.abc import Sequence

from ..checkpoints.export import export
from .arguments import Command


def run(arguments: Sequence[str]) -> int:
    return Command("export", export, positional=("run",)).answer(arguments)
