"""The settings of `detect`, and its result; nothing here needs torch."""

from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar, Literal

from ...errors import UsageError
from ...names import many, shown
from ...runs.numbers import check_not_negative, check_positive
from ..settings import TaskSettings


@dataclass(frozen=True)
class DetectSettings(TaskSettings):
    """The arguments of `detect`, described there."""

    kind: ClassVar[str] = "detect"
    may_move: ClassVar[tuple[str, ...]] = ("train", "val", "images", "val_images")

    _: KW_ONLY
    train: str | None = None
    val: str | None = None
    images: str | None = None
    val_images: str | None = None
    task: Literal["boxes", "masks"] = "boxes"
    batch_size: int = 4
    size: int = 480
    steps: int | None = field(default=None, metadata={"before": None})
    warmup_steps: int | None = field(default=None, metadata={"before": None})
    milestones: list[float] | None = field(default=None, metadata={"before": None})
    milestone_factor: float = field(default=0.1, metadata={"before": 0.1})
    accumulate: int | None = field(default=None, metadata={"before": None})
    device_batch_size: int | None = field(default=None, metadata={"before": None})
    short_sides: tuple[int, int] | None = field(default=None, metadata={"before": None})
    heads: Literal["plain", "norm"] = field(default="plain", metadata={"before": "plain"})
    fit_to_objects: bool = field(default=True, metadata={"before": True})

    def check(self) -> None:
        super().check()
        if self.size < 32:
            raise UsageError(f"size is {self.size}: expected 32 pixels or more")
        check_positive(
            steps=self.steps, device_batch_size=self.device_batch_size, milestone_factor=self.milestone_factor
        )
        check_not_negative(warmup_steps=self.warmup_steps)
        if self.short_sides is not None and not 32 <= self.short_sides[0] <= self.short_sides[1]:
            raise UsageError(
                f"short_sides is {list(self.short_sides)}: expected the least and the most, from 32 pixels"
            )
        if self.milestones is not None and self.milestones != sorted(self.milestones):
            raise UsageError(f"milestones is {self.milestones}: expected epochs in order, as in 27,33")


@dataclass(frozen=True)
class DetectResult:
    """The result of a detector's training; `results.json` in its folder.

    Attributes:
        folder: the run folder.
        task: boxes or masks.
        pictures: validated with.
        ap, ap50, ap75: COCO's average precision of the last weights, from 0 to 1, of the boxes or masks.
        by_class: AP of each class; None where the pictures have none.
        best: epoch and AP of `checkpoints/best.safetensors`.
        epochs, steps, seconds: taken.
    """

    folder: str
    task: str
    weights: str
    pictures: int
    ap: float
    ap50: float
    ap75: float
    by_class: dict[str, float | None]
    best: dict[str, Any]
    epochs: int
    steps: int
    seconds: float

    def __str__(self) -> str:
        classes = ", ".join(
            f"{shown(name)} {'-' if ap is None else f'{100 * ap:.1f}'}" for name, ap in self.by_class.items()
        )
        return "\n".join(
            [
                f"AP {100 * self.ap:.1f}, AP50 {100 * self.ap50:.1f}, AP75 {100 * self.ap75:.1f} of {self.task} on "
                f"{many(self.pictures, 'picture')}, last of {many(self.epochs, 'epoch')}",
                f"  classes       {classes}",
                f"  run           {self.folder}",
                f"  pictures      {self.folder}/pictures/predictions.png",
            ]
        )
