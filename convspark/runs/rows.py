"""A table that a run writes row by row: a CSV file that is whole at every moment."""

import csv
import io
import logging
import math
from collections.abc import Mapping
from pathlib import Path

from ..files import write_text

logger = logging.getLogger(__name__)


class Rows:
    """The rows of a CSV file, each of a step of the run (its columns begin with `epoch` and `step`).

    Attributes:
        rows: column -> cell of each, oldest first.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, str]] = []

    def read(self, last_step: int | None = None) -> None:
        """Take over the rows that a run left, up to a step, as those after it are taken again.

        A torn file is begun anew.
        """
        self.rows = []
        if not self.path.is_file():
            return
        try:
            with self.path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            self.rows = [row for row in rows if int(row["step"]) <= (math.inf if last_step is None else last_step)]
        except (ValueError, KeyError, TypeError, csv.Error):  # torn, or of something else
            logger.warning("%s could not be read and is begun anew", self.path)

    def add(self, row: Mapping[str, object]) -> None:
        """Add a row; `write` writes it."""
        self.rows.append({name: "" if value is None else str(value) for name, value in row.items()})

    def write(self) -> None:
        """Write all rows: the columns of the last one, and what others have besides."""
        columns = dict.fromkeys(name for row in reversed(self.rows) for name in row)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.path, text.getvalue())
