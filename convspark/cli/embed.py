"""`convspark embed`."""

from collections.abc import Sequence

from ..tasks.features.embed import embed
from .arguments import Command


def command() -> Command:
    return Command("embed", embed, types={"images": str | None}, positional=("weights", "images")).with_json()


def run(arguments: Sequence[str]) -> int:
    return command().answer(arguments)
