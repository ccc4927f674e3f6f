"""`convspark segment`."""

from collections.abc import Sequence

from ..tasks.segmentation.command import segment
from .arguments import TASK_GROUPS, Command


def run(arguments: Sequence[str]) -> int:
    made = Command("segment", segment, positional=("weights",), groups=TASK_GROUPS)
    made.add_config()
    return made.answer(arguments)
