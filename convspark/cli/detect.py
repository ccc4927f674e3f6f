"""`convspark detect`."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from ..tasks.detection.command import detect
from .arguments import Command

_GROUPS = {
    "optimisation": ("learning_rate", "weight_decay", "layer_decay", "drop_path"),
    "machine": ("seed", "device", "precision", "workers", "checkpoint_minutes"),
}


def run(arguments: Sequence[str]) -> int:
    made = Command("detect", detect, positional=("weights",), groups=_GROUPS)
    made.add_config()
    made.add_switch("--json", help="print the result as JSON")
    given = made.parse(arguments)
    result = detect(**made.values(given))
    print(json.dumps(asdict(result), indent=2) if given.json else result)
    return 0
