"""`convspark embed`."""

from collections.abc import Sequence

from ..tasks.features.embed import embed
from .arguments import Command


def run(arguments: Sequence[str]) -> int:
    return Command("embed", embed, positional=("weights", "images")).answer(arguments)
