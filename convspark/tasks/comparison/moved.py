"""A comparison whose pictures lie elsewhere when it goes on."""

import csv
import json
from pathlib import Path

from ...data import UNKNOWN, Split, at_new_place
from ...errors import DataError
from ...files import csv_text, write_text
from ..classification.data import named_place

_WHERE = "moved.json"


def move(folder: Path, data: str) -> None:
    """Find the pictures of a comparison at another place, and have its lists of them say so. What was done stays as it
    is; `where_now` tells of its pictures.

    Args:
        folder: of the comparison.
        data: the new place.

    Raises:
        DataError: as `at_new_place`.
    """
    place = named_place(data)
    sizes: dict[str, int] = {}
    for run in folder.glob(f"*/{Split.FILE}"):
        split = Split.kept_in(str(run.parent)) or Split([], [])
        sizes |= dict(zip([*split.train, *split.val, *split.test], split.sizes, strict=False))
    known = where_now(folder)
    for file in sorted(folder.glob("data-seed*.csv")):
        with file.open(newline="", encoding="utf-8", errors="surrogateescape") as opened:
            head, *rows = csv.reader(opened)
        paths = [row[0] for row in rows]
        now = at_new_place(paths, [sizes.get(path, UNKNOWN) for path in paths], *place)
        step = {old: new for old, new in zip(paths, now, strict=True) if old != new}
        known = {old: step.get(new, new) for old, new in known.items()} | step
        write_text(folder / _WHERE, json.dumps(known, indent=0) + "\n")
        write_text(file, csv_text([head, *([path, *row[1:]] for path, row in zip(now, rows, strict=True))]))


def where_now(folder: Path) -> dict[str, str]:
    """Where the pictures of a comparison are that were somewhere else before, by where they were.

    Raises:
        DataError: the record is damaged.
    """
    file = folder / _WHERE
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise DataError(f"{file} is damaged ({error}): say again where the data are, --data PLACE") from None


def is_elsewhere(run: Path, known: dict[str, str]) -> bool:
    """Whether a run that was begun has its pictures where they were before."""
    split = Split.kept_in(str(run))
    return split is not None and any(path in known for path in (*split.train, *split.val))
