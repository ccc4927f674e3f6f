"""What `detect` is asked, and what it comes to; nothing here needs torch."""

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

from ...errors import UsageError
from ...names import shown
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

    def check(self) -> None:
        super().check()
        if self.size < 32:
            raise UsageError(f"size is {self.size}: expected 32 pixels or more")


@dataclass(frozen=True)
class DetectResult:
    """What a detector came to; `results.json` in its folder.

    Attributes:
        folder: the run folder.
        task: boxes or masks.
        pictures: validated with.
        ap, ap50, ap75: COCO's average precision of the last weights, from 0 to 1, of the boxes or masks.
        by_class: AP of each class; None of one that there is none of to find.
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
                f"{self.pictures} pictures, last of {self.epochs} epochs",
                f"  classes       {classes}",
                f"  run           {self.folder}",
                f"  pictures      {self.folder}/pictures/predictions.png",
            ]
        )
