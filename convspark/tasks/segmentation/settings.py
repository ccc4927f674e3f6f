"""The settings of `segment`, and its result; nothing here needs torch."""

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

from ...errors import UsageError
from ...names import many, shown
from ..settings import TaskSettings


@dataclass(frozen=True)
class SegmentSettings(TaskSettings):
    """The arguments of `segment`, described there."""

    kind: ClassVar[str] = "segment"
    may_move: ClassVar[tuple[str, ...]] = ("images", "masks", "val_images", "val_masks")

    _: KW_ONLY
    images: str | None = None
    masks: str | None = None
    val_images: str | None = None
    val_masks: str | None = None
    val_share: float = 0.2
    size: int = 256

    def check(self) -> None:
        super().check()
        if self.size < 32:
            raise UsageError(f"size is {self.size}: expected 32 pixels or more")
        if not 0 < self.val_share < 1:
            raise UsageError(f"val_share is {self.val_share}: expected a share above 0 and below 1")
        if self.masks is None and self.val_masks is not None:
            raise UsageError(
                "val_masks belongs to masks: give both, or neither where the masks lie beside the pictures"
            )
        if self.masks is not None and (self.val_images is None) != (self.val_masks is None):
            raise UsageError("val_images and val_masks belong together: give both, or neither")


@dataclass(frozen=True)
class SegmentResult:
    """The result of a segmenter's training; `results.json` in its folder.

    Attributes:
        folder: the run folder.
        pictures: validated with, whole.
        iou, dice: means over the classes, background included, of the last weights, from 0 to 1.
        accuracy: share of right pixels.
        iou_by_class, dice_by_class: by name; None of a class that is neither there nor predicted.
        best: epoch and mean IoU of `checkpoints/best.safetensors`.
        epochs, steps, seconds: taken.
    """

    folder: str
    weights: str
    pictures: int
    iou: float
    dice: float
    accuracy: float
    iou_by_class: dict[str, float | None]
    dice_by_class: dict[str, float | None]
    best: dict[str, Any]
    epochs: int
    steps: int
    seconds: float

    def __str__(self) -> str:
        rows = [
            f"  {shown(name):20} {_percent(iou):>8} {_percent(self.dice_by_class[name]):>8}"
            for name, iou in self.iou_by_class.items()
        ]
        return "\n".join(
            [
                f"Mean IoU {100 * self.iou:.1f} %, Dice {100 * self.dice:.1f} % on {many(self.pictures, 'picture')}, "
                f"last of {many(self.epochs, 'epoch')}",
                f"  {'':20} {'IoU, %':>8} {'Dice, %':>8}",
                *rows,
                f"  run           {self.folder}",
                f"  pictures      {self.folder}/pictures/predictions.png",
            ]
        )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
