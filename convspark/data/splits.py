"""Which pictures a run trains on, which it measures with and what their classes are: kept, and found again by name."""

import json
import logging
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from ..errors import DataError
from .moved import at_new_place, file_sizes

logger = logging.getLogger(__name__)

_MOST_GONE = 0.25  # of the pictures to train on; others stand in for them
_SHOWN = 5


@dataclass(frozen=True)
class Split:
    """Paths of the pictures of each part, and the classes that the network tells apart.

    A run that goes on takes them from its folder, neither from the seed nor from what there is now: with one picture
    more or fewer, a new draw would validate with pictures that were trained on, and a class whose only picture was
    deleted would be missing among the network's outputs.

    Attributes:
        classes: names, in the order of the network's outputs; empty in runs of the versions that did not keep them.
        values: what each class is in mask files; empty where there are none.
        sizes: of the files of `train`, `val` and `test`, in bytes; empty in runs that did not keep them.
    """

    FILE: ClassVar[str] = "split.json"

    train: list[str]
    val: list[str]
    test: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    values: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def with_sizes(self) -> "Split":
        """Itself, with the sizes that the files have now if it has none."""
        return self if self.sizes else replace(self, sizes=file_sizes([*self.train, *self.val, *self.test]))

    def moved(self, **places: tuple[str, list[str] | None] | None) -> "Split":
        """Itself, with the pictures of some parts at other places (see `at_new_place`), those of one place looked for
        together.
        """
        start = {"train": 0, "val": len(self.train), "test": len(self.train) + len(self.val)}
        parts = {name: list[str](getattr(self, name)) for name in start}
        together: dict[str, list[str]] = {}
        for name, place in places.items():
            if place is not None:
                together.setdefault(place[0], []).append(name)
        for names in together.values():
            place, listed = places[names[0]] or ("", None)
            sizes = [size for n in names for size in self.sizes[start[n] : start[n] + len(parts[n])]]
            new_paths = at_new_place([path for n in names for path in parts[n]], sizes, place, listed)
            for n in names:
                parts[n], new_paths = new_paths[: len(parts[n])], new_paths[len(parts[n]) :]
        return replace(self, **parts)

    def as_text(self) -> str:
        """What `FILE` holds: JSON, a name a line, of any characters."""
        return json.dumps(asdict(self), indent=0) + "\n"

    @classmethod
    def kept_in(cls, folder: str | None) -> "Split | None":
        """The split in a run's folder; None where there is none.

        Raises:
            DataError: its file is damaged.
        """
        file = Path(folder or ".") / cls.FILE
        if folder is None or not file.is_file():
            return None
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            parts = {name: content[name] for name in ("train", "val", "test")}
            parts |= {name: content.get(name, []) for name in ("classes", "values", "sizes")}
            for name, entries in parts.items():
                if not isinstance(entries, list) or not all(
                    isinstance(entry, int if name in ("values", "sizes") else str) for entry in entries
                ):
                    raise TypeError(f"{name} is no list of them")
            if parts["values"] and len(parts["values"]) != len(parts["classes"]):
                raise ValueError("as many values as classes are expected")
            if parts["sizes"] and len(parts["sizes"]) != sum(len(parts[name]) for name in ("train", "val", "test")):
                raise ValueError("as many sizes as pictures are expected")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"{file} does not hold the names of a run's pictures ({error}): restore it, or start a new run"
            ) from None
        return cls(**parts)


def tell_gone(pictures: Sequence[str], there: Container[str], use: str, most: float = _MOST_GONE) -> None:
    """Say which pictures of a run are not among those that are there.

    Args:
        use: what the run does with them: "trains on".
        most: share of them that may be gone.

    Raises:
        DataError: all of them are gone, or more.
    """
    gone = [path for path in pictures if path not in there]
    if not gone:
        return
    more = f" and {len(gone) - _SHOWN} more" if len(gone) > _SHOWN else ""
    message = (
        f"{len(gone)} of the {len(pictures)} pictures that the run {use} are no longer there or readable: "
        f"{', '.join(map(repr, gone[:_SHOWN]))}{more}"
    )
    if len(gone) == len(pictures) or len(gone) > most * len(pictures):
        raise DataError(
            f"{message}. Put them back, say where they are now (--resume and the flag that names them, --data or "
            "--images), or start a new run"
        )
    logger.warning("%s", message)
