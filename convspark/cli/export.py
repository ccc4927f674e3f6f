"""`convspark export`."""

from collections.abc import Sequence

from ..checkpoints.export import export
from .arguments import Command


def command() -> Command:
    return Command("export", export, positional=("run",)).with_json()


def run(arguments: Sequence[str]) -> int:
    return command().answer(arguments)
