"""`convspark compare`."""

from collections.abc import Sequence

from ..tasks.comparison.command import compare
from .arguments import Command


def run(arguments: Sequence[str]) -> int:
    made = Command("compare", compare, positional=("run", "data"))
    made.add_config()
    return made.answer(arguments)
