"""`convspark compare`."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from ..tasks.comparison.command import compare
from .arguments import Command


def run(arguments: Sequence[str]) -> int:
    made = Command("compare", compare, positional=("run", "data"))
    made.add_config()
    made.add_switch("--json", help="print the result as JSON")
    given = made.parse(arguments)
    result = compare(**made.values(given))
    print(json.dumps(asdict(result), indent=2) if given.json else result)
    return 0
