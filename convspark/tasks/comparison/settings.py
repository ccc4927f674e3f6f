"""The settings of `compare`, and its result; nothing here needs torch."""

from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Any, ClassVar

from ...errors import UsageError
from ...runs.folder import check_processes
from ...runs.numbers import check_positive, parse_size
from ...runs.settings import Settings, checked
from ..classification.settings import FinetuneSettings
from .verdict import Difference, Score, markdown

_MOST_SEEDS = 1000


@dataclass(frozen=True)
class CompareSettings(Settings):
    """The arguments of `compare`, described there."""

    kind: ClassVar[str] = "compare"
    file: ClassVar[str] = "compare.yaml"
    may_move: ClassVar[tuple[str, ...]] = ("data",)

    run: str | None = None
    data: str | None = None
    _: KW_ONLY
    against: list[str] | None = None
    fractions: list[float] | None = None
    seeds: int = 3
    epochs: int | None = None
    batch_size: int | None = None
    size: int | str | None = None
    model: str | None = None
    partial: bool = field(default=False, metadata={"before": True})
    settings: dict[str, Any] | None = None
    device: str = field(default="auto", metadata={"before": "auto"})
    workers: int | None = field(default=None, metadata={"before": None})

    def check(self) -> None:
        """Raise UsageError for what can be seen to be wrong without reading anything."""
        if not 1 <= self.seeds <= _MOST_SEEDS:
            raise UsageError(f"seeds is {self.seeds}: expected 1 to {_MOST_SEEDS}")
        check_positive(epochs=self.epochs, batch_size=self.batch_size)
        check_processes(workers=self.workers)
        if not self.run:
            raise UsageError("run is missing: give a run folder, an export folder or a weights file")
        if self.size is not None:
            parse_size(self.size)
        further = self.settings or {}
        own = {setting.name for setting in fields(self)} | {"weights", "fraction", "seed", "devices", "nodes"}
        unknown = sorted(set(further) - ({setting.name for setting in fields(FinetuneSettings)} - own))
        if unknown:
            raise UsageError(
                f"settings has {', '.join(map(repr, unknown))}: expected settings of finetune, and none that compare "
                "has or chooses itself"
            )
        FinetuneSettings(**checked(FinetuneSettings, further, "settings")).check()
        for fraction in self.fractions or ():
            if not 0 < fraction <= 1:
                raise UsageError(f"fractions holds {fraction}: expected shares of the labels, above 0 and at most 1")
        if len({f"{fraction:g}" for fraction in self.fractions or ()}) < len({*(self.fractions or ())}):
            raise UsageError(f"fractions is {self.fractions}: expected shares that differ in their first six digits")


@dataclass(frozen=True)
class Comparison:
    """What was compared, and what came out; `str(report)` is the table and the verdict.

    Attributes:
        folder: with compare.md, compare.json, compare.png and a fine-tuning's run folder for each cell.
        split, pictures: what is measured on.
        scores: of each initialisation and share of the labels.
        differences: of the pre-trained weights to each other initialisation at each share, paired by seed.
        verdict: in plain sentences.
    """

    folder: str
    split: str
    pictures: int
    scores: list[Score]
    differences: list[Difference]
    verdict: list[str]

    def __str__(self) -> str:
        return markdown(self.scores, self.differences, self.verdict, self.split, self.pictures)
