"""`segment`: from weights and pictures with a class at every pixel to a segmenter, measured."""

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

from ...errors import UsageError
from ...runs.run import carry_out
from ...runs.settings import command
from ..settings import TaskSettings


@dataclass(frozen=True)
class SegmentSettings(TaskSettings):
    """The arguments of `segment`, described there."""

    kind: ClassVar[str] = "segment"

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
        if (self.val_images is None) != (self.val_masks is None):
            raise UsageError("val_images and val_masks belong together: give both, or neither")


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


@command(SegmentSettings)
def segment(settings: SegmentSettings) -> SegmentResult:
    """Train a network to name the class of every pixel, and measure it by IoU and Dice.

    Args:
        weights: run folder, export folder, timm name, .safetensors or .pth file, or random:MODEL.
        images: folder of pictures.
        masks: folder of 8-bit mask files named like the pictures (0 and 255, or 0, 1, 2, … with 255 for pixels that do
            not count); or a COCO .json file.
        val_images: folder of pictures to measure with; by default a share of the others.
        val_masks: their masks.
        val_share: that share.
        model: the network's name, for weights that do not tell it.
        epochs: passes over the pictures; by default such that 12,000 pictures are seen, 20 to 200.
        batch_size: pictures of a step; by default 8, or fewer where there are fewer.
        size: side of the crops that are trained on, in pixels; whole pictures are measured.
        out: run folder to make; by default runs/segment-MODEL-DATE-TIME.
        resume: run folder to go on with; all settings are the run's own.
        learning_rate: peak learning rate; by default 5e-4 at a batch of 16, and with its square root.
        weight_decay: of AdamW.
        layer_decay: factor of the learning rate from each layer group to the one before; by default 0.7, and 1 for
            random weights.
        drop_path: stochastic depth rate.
        seed: of everything random.
        device: auto, cpu, cuda, cuda:1 or mps.
        precision: auto is bf16 where the device is fast at it.
        workers: processes that load pictures; by default chosen by the cores there are.
        checkpoint_minutes: most minutes of work that a crash may cost.
    """
    from .train import Segmentation

    return carry_out(settings, Segmentation)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
