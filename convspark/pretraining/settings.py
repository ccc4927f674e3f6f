"""The settings of `pretrain`, and its result; nothing here needs torch."""

import shlex
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..runs.settings import SpreadSettings

if TYPE_CHECKING:
    from torch import nn

    from ..checkpoints.to_timm import ExportReport


AUTO = "auto"
"""Of `model` and `size`: chosen by the pictures and the machine."""

ABLATIONS = {"encoding": "sparse", "levels": None, "mask_token": "learned", "target": "normalised", "loss_on": "masked"}
"""Settings that take one thing away from the method, and their values in the method."""


@dataclass(frozen=True)
class PretrainSettings(SpreadSettings):
    """The arguments of `pretrain`, described there."""

    kind: ClassVar[str] = "pretrain"
    may_change: ClassVar[tuple[str, ...]] = (
        "device",
        "workers",
        "compile",
        "cuda_graph",
        "checkpoint_minutes",
        "probe",
    )
    code: ClassVar[tuple[str, ...]] = ("model", "masks")
    may_move: ClassVar[tuple[str, ...]] = ("images", "held_out", "probe")

    images: Any = field(default=None, metadata={"type": str | list[str] | None})
    _: KW_ONLY
    model: "str | nn.Module | None" = field(default=AUTO, metadata={"type": str | None})
    epochs: int | None = None
    batch_size: int | None = None
    size: int | str = AUTO
    mask_ratio: float = 0.6
    masks: str = field(default="random", metadata={"before": "random"})
    init: str | None = None
    partial: bool = field(default=False, metadata={"before": True})
    model_args: dict[str, Any] | None = None
    channels: int = 3
    patch_size: int | list[int] | None = None
    stages: list[str] | None = None
    decoder: Literal["paper", "lean"] = field(default="lean", metadata={"before": "paper"})
    decoder_width: int | None = None
    encoding: Literal["sparse", "zero"] = field(default="sparse", metadata={"before": "sparse"})
    levels: int | None = field(default=None, metadata={"before": None})
    mask_token: Literal["learned", "zero"] = field(default="learned", metadata={"before": "learned"})
    target: Literal["normalised", "raw"] = field(default="normalised", metadata={"before": "normalised"})
    loss_on: Literal["masked", "all"] = field(default="masked", metadata={"before": "masked"})
    densify_norm: Literal["auto", "batch", "layer"] = "auto"
    drop_path: float | None = None
    optimizer: Literal["lamb", "adamw"] = "lamb"
    learning_rate: float | None = None
    base_learning_rate: float | None = None
    warmup_epochs: float | None = None
    weight_decay: float = 0.04
    final_weight_decay: float = 0.2
    betas: tuple[float, float] | None = None
    gradient_clip: float = 5.0
    accumulate: int | None = None
    device_batch_size: int | None = field(default=None, metadata={"before": None})
    held_out: Any = field(default=0.02, metadata={"type": float | str | None})
    held_out_most: int = 1000
    check: Literal["quick", "full", "none"] = field(default="quick", metadata={"before": "quick"})
    shuffle: Literal["full", "windows"] = field(default="full", metadata={"before": "full"})
    shards_per_epoch: int | None = field(default=None, metadata={"before": None})
    crop_scale: tuple[float, float] = (0.67, 1.0)
    flip: bool = True
    crops_per_image: int = 1
    decode: Literal["workers", "device"] = field(default="workers", metadata={"before": "workers"})
    bands: list[int] | None = field(default=None, metadata={"before": None})
    band_axis: Literal["first", "last"] | None = field(default=None, metadata={"before": None})
    stats: Literal["auto"] | None = field(default=None, metadata={"before": None})
    low: list[float] | None = field(default=None, metadata={"before": None})
    high: list[float] | None = field(default=None, metadata={"before": None})
    mean: list[float] | None = None
    std: list[float] | None = None
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = field(default=False, metadata={"before": False})
    cuda_graph: bool | None = field(default=None, metadata={"before": False})
    probe: str | None = field(default=None, metadata={"before": None})
    watch_epochs: int | None = field(default=None, metadata={"before": None})
    picture_epochs: int | None = None
    show: list[int] | None = field(default=None, metadata={"before": None})
    checkpoint_minutes: float = 10.0
    keep_epochs: int | None = None
    tracker: Literal["none", "tensorboard", "wandb"] = "none"

    @classmethod
    def from_weights(cls, run: str) -> str | None:
        return f"convspark pretrain IMAGES --init {shlex.quote(run)} --epochs N"


@dataclass(frozen=True)
class PretrainResult:
    """The result of a run.

    Attributes:
        folder: the run folder.
        export: the backbone, loaded again by timm and equal.
        epochs, steps: taken in all.
        train_loss, held_out_loss: of the last epoch; None where nothing is held out.
        seconds: this call took.
        picture: reconstructions after the last epoch, or None.
    """

    folder: Path
    export: "ExportReport"
    epochs: int
    steps: int
    train_loss: float
    held_out_loss: float | None
    seconds: float
    picture: Path | None
