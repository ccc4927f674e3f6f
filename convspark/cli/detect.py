"""`convspark detect`."""

from collections.abc import Sequence

from ..tasks.detection.command import detect
from .arguments import TASK_GROUPS, Command


def run(arguments: Sequence[str]) -> int:
    made = Command("detect", detect, positional=("weights",), groups=TASK_GROUPS)
    made.add_config()
    return made.answer(arguments)
