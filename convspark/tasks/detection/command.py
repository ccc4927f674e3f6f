"""`detect`: from weights and annotated pictures to a detector, measured by COCO's average precision."""

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

from ...errors import UsageError
from ...runs.run import carry_out
from ...runs.settings import command
from ..settings import TaskSettings


@dataclass(frozen=True)
class DetectSettings(TaskSettings):
    """The arguments of `detect`, described there."""

    kind: ClassVar[str] = "detect"

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


@command(DetectSettings)
def detect(settings: DetectSettings) -> DetectResult:
    """Train a detector (Faster R-CNN or Mask R-CNN with a feature pyramid) on annotated pictures, and measure it.

    Args:
        weights: run folder, export folder, timm name, .safetensors or .pth file, or random:MODEL.
        train: COCO .json file; folder of Pascal VOC .xml files, or .txt list of them in VOC's ImageSets.
        val: the same, of pictures to measure with.
        images: folder of the pictures.
        val_images: folder of the pictures to measure with, where it is another one.
        task: boxes, or masks too (instance segmentation).
        model: the network's name, for weights that do not tell it.
        epochs: passes over the pictures; by default such that 12,000 pictures are seen, 12 to 100.
        batch_size: pictures of a step.
        size: short side of the images in pixels; training varies it from 0.6 to 1.12 of that.
        out: run folder to make; by default runs/detect-MODEL-DATE-TIME.
        resume: run folder to go on with; all settings are the run's own.
        learning_rate: peak learning rate; by default the paper's 2.5e-4 at a batch of 16, by its square root, and up to
            four times that in fewer than the paper's 90,000 steps.
        weight_decay: of AdamW.
        layer_decay: factor of the learning rate from each layer group to the one before; by default 0.65, and 1 for
            random weights.
        drop_path: stochastic depth rate.
        seed: of everything random.
        device: auto, cpu, cuda, cuda:1 or mps.
        precision: auto is bf16 on GPUs that are fast at it.
        workers: processes that load pictures; by default chosen by the cores there are.
        checkpoint_minutes: most minutes of work that a crash may cost.
    """
    from .train import Detection

    return carry_out(settings, Detection)
