"""`convspark probe`."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from ..tasks.features.probe import probe
from .arguments import Command


def run(arguments: Sequence[str]) -> int:
    made = Command("probe", probe, positional=("weights", "data"))
    made.add_switch("--json", help="print the result as JSON")
    given = made.parse(arguments)
    result = probe(**made.values(given))
    print(json.dumps(asdict(result), indent=2) if given.json else result)
    return 0
