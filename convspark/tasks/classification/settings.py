"""The settings of `finetune`, and its result; nothing here needs torch."""

import csv
import json
import logging
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from ...errors import UsageError
from ...runs.numbers import check_crop_scale, check_not_negative, check_positive, check_shares
from ..settings import TaskSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinetuneSettings(TaskSettings):
    """The arguments of `finetune`, described there."""

    kind: ClassVar[str] = "finetune"
    may_move: ClassVar[tuple[str, ...]] = ("data",)

    data: str | None = None
    _: KW_ONLY
    size: int | str | None = None
    fraction: float = 1.0
    optimizer: Literal["adamw", "lamb"] = "adamw"
    base_learning_rate: float | None = field(default=None, metadata={"before": None})
    warmup_epochs: float | None = None
    accumulate: int | None = None
    device_batch_size: int | None = field(default=None, metadata={"before": None})
    ema_decay: float | None = field(default=None, metadata={"before": None})
    mixup: float = 0.1
    cutmix: float = 1.0
    mix_share: float = 0.5
    smoothing: float = 0.1
    policy: bool = True
    policy_kind: Literal["trivial", "auto"] = field(default="trivial", metadata={"before": "trivial"})
    interpolation: Literal["bilinear", "bicubic"] = field(default="bilinear", metadata={"before": "bilinear"})
    erase: float = 0.25
    crop_scale: tuple[float, float] = (0.25, 1.0)
    repeats: int = field(default=1, metadata={"before": 1})
    eval_crop: float | Literal["whole"] = field(default=0.95, metadata={"before": 0.95})
    val_share: float = 0.2

    def check(self) -> None:
        super().check()
        check_not_negative(mixup=self.mixup, cutmix=self.cutmix, warmup_epochs=self.warmup_epochs)
        for name, share in (("mix_share", self.mix_share), ("erase", self.erase)):
            if not 0 <= share <= 1:
                raise UsageError(f"{name} is {share}: expected a share from 0 to 1")
        check_shares(smoothing=self.smoothing, ema_decay=self.ema_decay)
        check_positive(
            base_learning_rate=self.base_learning_rate, device_batch_size=self.device_batch_size, repeats=self.repeats
        )
        if self.learning_rate is not None and self.base_learning_rate is not None:
            raise UsageError("learning_rate and base_learning_rate exclude each other: give one of them")
        if self.eval_crop != "whole" and (isinstance(self.eval_crop, str) or not 0 < self.eval_crop <= 1):
            raise UsageError(f"eval_crop is {self.eval_crop}: expected a share above 0 and at most 1, or whole")
        if not 0 < self.fraction <= 1:
            raise UsageError(f"fraction is {self.fraction}: expected a share of the labels, above 0 and at most 1")
        check_crop_scale(self.crop_scale)


@dataclass(frozen=True)
class FinetuneResult:
    """The result of a fine-tuning; `results.json` in its folder.

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


def read_result(folder: str | Path) -> FinetuneResult | None:
    """The result of a fine-tuning that is done, from its folder; None if it is not, or its file is damaged."""
    file = Path(folder) / "results.json"
    if not file.is_file():
        return None
    try:
        return FinetuneResult(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError):
        logger.warning("%s could not be read and is written anew", file)
        return None


def read_predictions(folder: str | Path, kind: Literal["predicted", "last"]) -> dict[str, tuple[bool, str]]:
    """Of each measured picture, whether the best ("predicted") or last weights are right, and the class they name."""
    with (Path(folder) / "predictions.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return {row["path"]: (row[kind] == row["label"], row[kind]) for row in csv.DictReader(file)}
