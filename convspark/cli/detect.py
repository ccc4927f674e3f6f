"""`convspark detect`."""

from collections.abc import Sequence

from ..tasks.detection.command import detect
from .arguments import TASK_GROUPS, Command

_GROUPS = {
    "optimisation": (
        *TASK_GROUPS["optimisation"],
        "steps",
        "warmup_steps",
        "milestones",
        "milestone_factor",
        "accumulate",
        "device_batch_size",
    ),
    "network": ("heads", "fit_to_objects"),
    "machine": TASK_GROUPS["machine"],
}


def command() -> Command:
    command = Command("detect", detect, positional=("weights",), groups=_GROUPS)
    command.add_config(recipes=True)
    return command.with_json()


def run(arguments: Sequence[str]) -> int:
    return command().answer(arguments)
