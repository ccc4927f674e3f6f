"""Which pictures a run trains on and which it measures with: drawn once, and found again by name."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

from ..errors import DataError


@dataclass(frozen=True)
class Split:
    """Paths of the pictures of each part.

    A run that goes on takes them from its folder, not from the seed: with one picture more or fewer, a new draw would
    validate with pictures that were trained on.
    """

    FILE: ClassVar[str] = "split.json"

    train: list[str]
    val: list[str]
    test: list[str] = field(default_factory=list)

    def as_text(self) -> str:
        """What `FILE` holds: JSON, a name a line, of any characters."""
        return json.dumps(asdict(self), indent=0) + "\n"

    @classmethod
    def kept_in(cls, folder: str | None) -> "Split | None":
        """That of a run's folder; None where there is none.

        Raises:
            DataError: its file is damaged.
        """
        file = Path(folder or ".") / cls.FILE
        if folder is None or not file.is_file():
            return None
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            parts = {name: content[name] for name in ("train", "val", "test")}
            if not all(isinstance(path, str) for paths in parts.values() for path in paths):
                raise TypeError("a name is no text")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{file} does not hold the names of a run's pictures ({error}): restore it, or start a new run"
            ) from None
        return cls(**parts)
