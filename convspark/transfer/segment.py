"""`segment`: from weights and pictures with a class at every pixel to a segmenter, measured."""

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

_RATE, _RATE_BATCH = 5e-4, 16


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


def segment(
    weights: str | None = None,
    *,
    images: str | None = None,
    masks: str | None = None,
    val_images: str | None = None,
    val_masks: str | None = None,
    val_share: float = 0.2,
    model: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    size: int = 256,
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
) -> SegmentResult:
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
    arguments = dict(locals())
    started = time.monotonic()
    with run_log() as log:
        import torch

        from ..training.device import describe_device
        from .resuming import config_text, resumed_arguments

        going_on = RunFolder.open(resume, "segment") if resume is not None else None
        if going_on is not None:
            arguments = resumed_arguments(arguments, segment, going_on)
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            run = _Segmentation(arguments)
            folder = going_on
            if folder is None:
                folder = RunFolder.create(out if out is not None else default_path(f"segment-{run.origin.model}"))
                write_text(folder.config, config_text("segment", run.config))
            write_environment(folder, describe_device(run.device))
            log.write_to(folder.log)
            logger.info("run folder %s", folder.path)
            for line in run.describe():
                logger.info("%s", line)
            result = run.train(folder, started)
        write_text(folder.path / "results.json", json.dumps(asdict(result), indent=2) + "\n")
        return result


class _Segmentation:
    """The arguments of `segment`, resolved, with what they stand for."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        import torch

        from ..data.scan import hold_out
        from ..training import settings
        from ..training.device import choose_device, choose_precision, default_workers
        from ..training.module import counted_seed
        from .labelled_maps import read_label_maps
        from .recipe import check_training
        from .segmentation import Segmenter
        from .weights import find_weights

        c = self.config = {name: value for name, value in arguments.items() if name not in ("out", "resume")}
        if c["size"] < 32:
            raise UsageError(f"size is {c['size']}: expected 32 pixels or more")
        if (c["val_images"] is None) != (c["val_masks"] is None):
            raise UsageError("val_images and val_masks belong together: give both, or neither")
        check_training(c)
        if arguments["out"] is not None and arguments["resume"] is None:
            RunFolder(arguments["out"]).check_new()
        self.origin = find_weights(c["weights"], c["model"])
        self.origin.check_pictures()
        every = read_label_maps(c["images"], c["masks"])
        if c["val_images"] is None:
            train, val = hold_out(range(len(every)), c["val_share"], len(every), c["seed"])
            if not val:
                raise UsageError(
                    "there is nothing to validate with: give --val-images and --val-masks, or more pictures"
                )
            self.maps, self.val = every.part(train), every.part(val)
        else:
            self.maps, self.val = every, read_label_maps(c["val_images"], c["val_masks"], every)
        self.device = choose_device(c["device"])
        c["precision"] = choose_precision(c["precision"], self.device)
        count = len(self.maps)
        c["epochs"] = c["epochs"] or min(200, max(20, round(12_000 / count)))
        c["batch_size"] = c["batch_size"] or max(2, min(8, count))
        c["model"] = self.origin.model
        if c["learning_rate"] is None:
            c["learning_rate"] = _RATE * (c["batch_size"] / _RATE_BATCH) ** 0.5
        if c["layer_decay"] is None:
            c["layer_decay"] = 1.0 if self.origin.is_random else 0.7
        self.numbers = settings.count(count, c["batch_size"], c["epochs"], None)
        self.workers = default_workers(self.device) if c["workers"] is None else c["workers"]
        torch.manual_seed(counted_seed(c["seed"], 108))
        backbone = self.origin.build(c["seed"], c["drop_path"])
        self.network = Segmenter(backbone, len(every.classes)).train()
        if self.device.type != "mps":
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def describe(self) -> list[str]:
        c, n = self.config, self.numbers
        return [
            f"network   {self.origin.model}, weights of {self.origin.given}, with a feature pyramid",
            f"pictures  {len(self.maps)} to train on, {len(self.val)} to validate with, classes "
            f"{', '.join(self.maps.classes)}",
            f"training  {c['epochs']} epochs of {n.steps_per_epoch} steps, batch {n.batch_size}, crops of {c['size']}",
            f"optimiser adamw, learning rate {c['learning_rate']:.3g}, layers decayed by {c['layer_decay']:g}",
        ]

    def train(self, folder: RunFolder, started: float) -> SegmentResult:
        import numpy as np
        import torch

        from ..report.label_maps import draw_label_maps
        from ..training.fit import fit
        from ..training.loading import TrainLoader
        from ..training.schedule import Schedule
        from .best import KeepBest
        from .pyramid import pyramid_groups
        from .recipe import measure_every
        from .segmentation import MapImages, SegmentModule, map_indices, overlap, pixel_counts, segment_picture

        c, n = self.config, self.numbers
        mean, std = self.origin.mean, self.origin.std
        make = partial(_make_optimizer, partial(pyramid_groups, self.network, self.network.pyramid, c["layer_decay"]))
        schedule = Schedule(c["learning_rate"], n.steps, n.warmup_steps, (c["weight_decay"], c["weight_decay"]))
        module = SegmentModule(self.network, make, schedule, self.val, mean, std, c["seed"])
        dataset = MapImages(self.maps, c["size"], mean, std, c["seed"])
        train = TrainLoader(dataset, n.batch_size, 1, c["seed"], self.workers, self.device.type == "cuda")
        best = KeepBest(folder)
        fit(
            module,
            folder,
            train,
            map_indices(self.val),
            device=self.device,
            precision=c["precision"],
            epochs=c["epochs"],
            gradient_clip=5.0,
            callbacks=[best],
            checkpoint_minutes=c["checkpoint_minutes"],
            measure_every=measure_every(c["epochs"]),
            go_on=f"convspark segment --resume {folder.path}",
        )
        network = module.network.to(self.device).eval()
        classes = self.maps.classes
        counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
        predicted = []
        for i, path in enumerate(self.val.pictures):
            found = segment_picture(network, path, mean, std)
            counts += pixel_counts(self.val.label_map(i), found, len(classes))
            predicted.append(found if i < 4 else None)
        shown = [(self.val.pictures[i], self.val.label_map(i), found) for i, found in enumerate(predicted[:4])]
        draw_label_maps(shown, classes, folder.pictures / "predictions.png")
        torch.save({"model": network.state_dict(), "classes": classes}, folder.path / "segmenter.pth")
        scores = overlap(counts)
        return SegmentResult(
            folder=str(folder.path),
            weights=self.origin.given,
            pictures=len(self.val),
            iou=scores["iou"],
            dice=scores["dice"],
            accuracy=scores["accuracy"],
            iou_by_class=dict(zip(classes, scores["iou_by_class"], strict=True)),
            dice_by_class=dict(zip(classes, scores["dice_by_class"], strict=True)),
            best=best.best,
            epochs=c["epochs"],
            steps=n.steps,
            seconds=round(time.monotonic() - started, 1),
        )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _make_optimizer(groups: Any) -> Any:
    import torch

    return torch.optim.AdamW(groups(), lr=0.0, betas=(0.9, 0.999))
