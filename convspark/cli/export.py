"""`convspark export`."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from ..checkpoints.export import export
from .arguments import Command


def run(arguments: Sequence[str]) -> int:
    made = Command("export", export, positional=("run",))
    made.add_switch("--json", help="print the result as JSON")
    given = made.parse(arguments)
    written = export(**made.values(given))
    print(json.dumps(asdict(written)) if given.json else written)
    return 0
