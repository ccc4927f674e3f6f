"""`convspark segment`."""

from collections.abc import Sequence

from ..tasks.segmentation.command import segment
from .arguments import TASK_GROUPS, Command


def command() -> Command:
    command = Command("segment", segment, positional=("weights",), groups=TASK_GROUPS)
    command.add_config()
    return command.with_json()


def run(arguments: Sequence[str]) -> int:
    return command().answer(arguments)
