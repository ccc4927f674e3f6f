"""`convspark segment`."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from ..tasks.segmentation.command import segment
from .arguments import Command

_GROUPS = {
    "optimisation": ("learning_rate", "weight_decay", "layer_decay", "drop_path"),
    "machine": ("seed", "device", "precision", "workers", "checkpoint_minutes"),
}


def run(arguments: Sequence[str]) -> int:
    made = Command("segment", segment, positional=("weights",), groups=_GROUPS)
    made.add_config()
    made.add_switch("--json", help="print the result as JSON")
    given = made.parse(arguments)
    result = segment(**made.values(given))
    print(json.dumps(asdict(result), indent=2) if given.json else result)
    return 0
