"""`detect`: from weights and annotated pictures to a detector, measured by COCO's average precision."""

import json
import logging
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

from ..errors import UsageError
from ..training.logs import run_log
from ..training.run_folder import RunFolder, default_path, write_environment, write_text

logger = logging.getLogger(__name__)

_RATE, _RATE_BATCH = 2.5e-4, 16  # the paper's, for COCO


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


def detect(
    weights: str | None = None,
    *,
    train: str | None = None,
    val: str | None = None,
    images: str | None = None,
    val_images: str | None = None,
    task: Literal["boxes", "masks"] = "boxes",
    model: str | None = None,
    epochs: int | None = None,
    batch_size: int = 4,
    size: int = 480,
    out: str | None = None,
    resume: str | None = None,
    learning_rate: float | None = None,
    weight_decay: float = 0.05,
    layer_decay: float | None = None,
    drop_path: float = 0.0,
    seed: int = 0,
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    workers: int | None = None,
    checkpoint_minutes: float = 10.0,
) -> DetectResult:
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
        learning_rate: peak learning rate; by default the paper's 2.5e-4 at a batch of 16, and with its square root.
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
    arguments = dict(locals())
    started = time.monotonic()
    with run_log() as log:
        import torch

        from ..training.device import describe_device
        from .resuming import config_text, resumed_arguments

        going_on = RunFolder.open(resume, "detect") if resume is not None else None
        if going_on is not None:
            arguments = resumed_arguments(arguments, detect, going_on)
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            run = _Detection(arguments)
            folder = going_on
            if folder is None:
                folder = RunFolder.create(out if out is not None else default_path(f"detect-{run.origin.model}"))
                write_text(folder.config, config_text("detect", run.config))
            write_environment(folder, describe_device(run.device))
            log.write_to(folder.log)
            logger.info("run folder %s", folder.path)
            for line in run.describe():
                logger.info("%s", line)
            result = run.train(folder, started)
        write_text(folder.path / "results.json", json.dumps(asdict(result), indent=2) + "\n")
        return result


class _Detection:
    """The arguments of `detect`, resolved, with what they stand for."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        import torch

        from ..training import settings
        from ..training.device import choose_device, choose_precision, default_workers
        from ..training.module import counted_seed
        from .detection import build_detector
        from .recipe import check_training
        from .scenes import read_scenes
        from .weights import find_weights

        c = self.config = {name: value for name, value in arguments.items() if name not in ("out", "resume")}
        if c["size"] < 32:
            raise UsageError(f"size is {c['size']}: expected 32 pixels or more")
        check_training(c)
        if arguments["out"] is not None and arguments["resume"] is None:
            RunFolder(arguments["out"]).check_new()
        self.origin = find_weights(c["weights"], c["model"])
        self.origin.check_pictures()
        self.masks = c["task"] == "masks"
        for name in ("train", "val"):
            if not c[name]:
                raise UsageError(f"{name} is missing: give --{name}, a COCO .json file or a folder of VOC .xml files")
        self.scenes = read_scenes(c["train"], c["images"], masks=self.masks)
        self.val = read_scenes(c["val"], c["val_images"] or c["images"], self.scenes.classes, self.masks)
        self.device = choose_device(c["device"])
        auto_on_cpu = c["precision"] == "auto" and self.device.type != "cuda"  # torchvision's operators want fp32 there
        c["precision"] = "fp32" if auto_on_cpu else choose_precision(c["precision"], self.device)
        count = len(self.scenes.scenes)
        c["epochs"] = c["epochs"] or min(100, max(12, round(12_000 / count)))
        c["model"] = self.origin.model
        if c["learning_rate"] is None:
            c["learning_rate"] = _RATE * (c["batch_size"] / _RATE_BATCH) ** 0.5
        if c["layer_decay"] is None:
            c["layer_decay"] = 1.0 if self.origin.is_random else 0.65
        self.numbers = settings.count(count, c["batch_size"], c["epochs"], None)
        self.workers = default_workers(self.device) if c["workers"] is None else c["workers"]
        torch.manual_seed(counted_seed(c["seed"], 107))
        backbone = self.origin.build(c["seed"], c["drop_path"])
        self.network = build_detector(
            backbone, self.scenes, c["size"], self.origin.mean, self.origin.std, self.masks
        ).train()

    def describe(self) -> list[str]:
        c, n = self.config, self.numbers
        things = sum(len(scene.things) for scene in self.scenes.scenes)
        return [
            f"network   {self.origin.model}, weights of {self.origin.given}, "
            f"{'Mask' if self.masks else 'Faster'} R-CNN with a feature pyramid",
            f"pictures  {len(self.scenes.scenes)} with {things} objects of {len(self.scenes.classes)} classes to train "
            f"on, {len(self.val.scenes)} to validate with",
            f"training  {c['epochs']} epochs of {n.steps_per_epoch} steps, batch {n.batch_size}, {c['size']} pixels",
            f"optimiser adamw, learning rate {c['learning_rate']:.3g}, layers decayed by {c['layer_decay']:g}",
        ]

    def train(self, folder: RunFolder, started: float) -> DetectResult:
        import torch

        from ..report.detections import draw_detections
        from ..training.fit import fit
        from ..training.loading import TrainLoader
        from ..training.schedule import Schedule
        from .best import KeepBest
        from .detection import DetectModule, SceneImages, average_precision, collate, scene_indices
        from .pyramid import Pyramid, pyramid_groups
        from .recipe import measure_every

        c, n, channels = self.config, self.numbers, self.origin.channels
        pyramid = self.network.backbone
        assert isinstance(pyramid, Pyramid)
        make = partial(_make_optimizer, partial(pyramid_groups, self.network, pyramid, c["layer_decay"]))
        schedule = Schedule(c["learning_rate"], n.steps, n.warmup_steps, (c["weight_decay"], c["weight_decay"]))
        kind = "segm" if self.masks else "bbox"
        module = DetectModule(self.network, make, schedule, self.val, kind, channels, c["seed"])
        dataset = SceneImages(self.scenes.scenes, channels, c["size"], self.masks, c["seed"])
        pin = self.device.type == "cuda"
        train = TrainLoader(dataset, n.batch_size, 1, c["seed"], self.workers, pin, collate)
        best = KeepBest(folder)
        fit(
            module,
            folder,
            train,
            scene_indices(self.val),
            device=self.device,
            precision=c["precision"],
            epochs=c["epochs"],
            gradient_clip=5.0,
            callbacks=[best],
            checkpoint_minutes=c["checkpoint_minutes"],
            measure_every=measure_every(c["epochs"]),
            go_on=f"convspark detect --resume {folder.path}",
        )
        network = module.network.to(self.device).eval()
        detections = self._detections(network)
        scores = average_precision(self.val, detections, kind)
        write_text(folder.path / "detections.json", json.dumps(detections, default=_as_text) + "\n")
        draw_detections(self.val, detections, folder.pictures / "predictions.png")
        torch.save({"model": network.state_dict()}, folder.path / "detector.pth")
        return DetectResult(
            folder=str(folder.path),
            task=c["task"],
            weights=self.origin.given,
            pictures=len(self.val.scenes),
            ap=scores["ap"],
            ap50=scores["ap50"],
            ap75=scores["ap75"],
            by_class=scores["by_class"],
            best=best.best,
            epochs=c["epochs"],
            steps=n.steps,
            seconds=round(time.monotonic() - started, 1),
        )

    def _detections(self, network: Any) -> list[dict[str, Any]]:
        from .detection import detections_in

        found: list[dict[str, Any]] = []
        for i, scene in enumerate(self.val.scenes, start=1):
            found += detections_in(network, scene, i, self.origin.channels)
        return found


def _make_optimizer(groups: Any) -> Any:
    import torch

    return torch.optim.AdamW(groups(), lr=0.0, betas=(0.9, 0.999))


def _as_text(value: Any) -> str:
    """Run-length codes are bytes."""
    return value.decode("ascii")
