"""`convspark probe`."""

from collections.abc import Sequence

from ..tasks.features.probe import probe
from .arguments import Command


def run(arguments: Sequence[str]) -> int:
    return Command("probe", probe, positional=("weights", "data")).answer(arguments)
