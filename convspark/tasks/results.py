"""What fine-tunings, detectors and segmenters came to, and reading it from their folders; nothing here needs torch."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class FinetuneResult:
    """What a fine-tuning came to; `results.json` in its folder.

    Attributes:
        folder: the run folder.
        weights: what it started from.
        split: what the figures are of: "test", or "val" where there are no test pictures.
        pictures: how many those are.
        top1, balanced, macro_f1: of the best weights there, from 0 to 1. Balanced accuracy is the mean recall of the
            classes, macro F1 the mean of their F1 scores.
        loss: cross-entropy there.
        best: epoch, kind (raw or EMA) and score (validation top-1) of the best weights, by which they were chosen.
        last: the same figures, of the last epoch's EMA weights, which nothing was chosen by.
        recall: of each class.
        trained_on: labelled pictures trained on.
        epochs, steps, seconds: taken.
    """

    folder: str
    weights: str
    split: str
    pictures: int
    top1: float
    balanced: float
    macro_f1: float
    loss: float
    best: dict[str, Any]
    last: dict[str, float]
    recall: dict[str, float]
    trained_on: int
    epochs: int
    steps: int
    seconds: float


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
        classes = ", ".join(f"{name} {'-' if ap is None else f'{100 * ap:.1f}'}" for name, ap in self.by_class.items())
        return "\n".join(
            [
                f"AP {100 * self.ap:.1f}, AP50 {100 * self.ap50:.1f}, AP75 {100 * self.ap75:.1f} of {self.task} on "
                f"{self.pictures} pictures, last of {self.epochs} epochs",
                f"  classes       {classes}",
                f"  run           {self.folder}",
                f"  pictures      {self.folder}/pictures/predictions.png",
            ]
        )


@dataclass(frozen=True)
class SegmentResult:
    """What a segmenter came to; `results.json` in its folder.

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
            f"  {name:20} {_percent(iou):>8} {_percent(self.dice_by_class[name]):>8}"
            for name, iou in self.iou_by_class.items()
        ]
        return "\n".join(
            [
                f"Mean IoU {100 * self.iou:.1f} %, Dice {100 * self.dice:.1f} % on {self.pictures} pictures, last of "
                f"{self.epochs} epochs",
                f"  {'':20} {'IoU, %':>8} {'Dice, %':>8}",
                *rows,
                f"  run           {self.folder}",
                f"  pictures      {self.folder}/pictures/predictions.png",
            ]
        )


def read_result(folder: str | Path) -> FinetuneResult | None:
    """The result of a fine-tuning that is done, from its folder; None if it is not."""
    file = Path(folder) / "results.json"
    return FinetuneResult(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def read_predictions(folder: str | Path, kind: Literal["predicted", "last"]) -> dict[str, tuple[bool, str]]:
    """Of each picture measured, whether it was told right, and as what, by the best ("predicted") or last weights."""
    with (Path(folder) / "predictions.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return {row["path"]: (row[kind] == row["label"], row[kind]) for row in csv.DictReader(file)}


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
