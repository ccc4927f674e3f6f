"""`convspark probe`."""

from collections.abc import Sequence

from ..tasks.features.probe import probe
from .arguments import Command


def command() -> Command:
    return Command("probe", probe, positional=("weights", "data")).with_json()


def run(arguments: Sequence[str]) -> int:
    return command().answer(arguments)
