"""`convspark embed`."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from ..tasks.features.embed import embed
from .arguments import Command


def run(arguments: Sequence[str]) -> int:
    made = Command("embed", embed, positional=("weights", "images"))
    made.add_switch("--json", help="print the result as JSON")
    given = made.parse(arguments)
    result = embed(**made.values(given))
    print(json.dumps(asdict(result), indent=2) if given.json else result)
    return 0
