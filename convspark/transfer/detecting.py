"""A detector's training: settings resolved, data read, network built; and how it is trained and measured."""

import json
import time
from typing import Any

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN

from ..errors import UsageError
from ..report.detections import draw_detections
from ..training.module import counted_seed
from ..training.run_folder import RunFolder, write_text
from .detection import (
    DetectModule,
    SceneImages,
    average_precision,
    build_detector,
    collate,
    detections_in,
    scene_indices,
)
from .pyramid import Pyramid, pyramid_groups
from .recipe import check_training
from .results import DetectResult
from .scenes import read_scenes
from .task import Task, adamw

_RATE, _RATE_BATCH, _RATE_STEPS = 2.5e-4, 16, 90_000  # the paper's, for COCO
_HIGHER = 4  # times, at most
_HEAD = 107  # second word of the seed of the new layers' first weights


class Detecting(Task[DetectResult]):
    """The arguments of `detect`, resolved, with what they stand for."""

    command = "detect"
    layer_decay = 0.65

    def check(self) -> None:
        c = self.config
        if c["size"] < 32:
            raise UsageError(f"size is {c['size']}: expected 32 pixels or more")
        check_training(c)

    def read(self) -> int:
        c = self.config
        self.masks = c["task"] == "masks"
        for name in ("train", "val"):
            if not c[name]:
                raise UsageError(f"{name} is missing: give --{name}, a COCO .json file or a folder of VOC .xml files")
        self.scenes = read_scenes(c["train"], c["images"], masks=self.masks)
        self.val = read_scenes(c["val"], c["val_images"] or c["images"], self.scenes.classes, self.masks).whole()
        return len(self.scenes.scenes)

    def choose_precision(self) -> str:
        auto_on_cpu = self.config["precision"] == "auto" and self.device.type != "cuda"
        return "fp32" if auto_on_cpu else super().choose_precision()  # torchvision's operators want fp32 there

    def fill_in(self, images: int) -> None:
        c = self.config
        c["epochs"] = c["epochs"] or min(100, max(12, round(12_000 / images)))
        if c["learning_rate"] is None:
            c["learning_rate"] = default_rate(c["batch_size"], c["epochs"] * -(-images // c["batch_size"]))

    def build(self) -> nn.Module:
        c, origin = self.config, self.origin
        torch.manual_seed(counted_seed(c["seed"], _HEAD))
        backbone = origin.build(c["seed"], c["drop_path"])
        detector = build_detector(backbone, self.scenes, c["size"], origin.mean, origin.std, self.masks)
        return self.in_channels_last(detector)

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
        c, n, channels = self.config, self.numbers, self.origin.channels
        network, pyramid = self.network, self.network.backbone
        assert isinstance(network, FasterRCNN) and isinstance(pyramid, Pyramid)
        kind = "segm" if self.masks else "bbox"

        def make() -> torch.optim.Optimizer:
            return adamw(pyramid_groups(network, pyramid, c["layer_decay"]))

        module = DetectModule(network, make, self.schedule, self.val, kind, channels, c["seed"])
        dataset = SceneImages(self.scenes.scenes, channels, c["size"], self.masks, c["seed"])
        best = self.fit(folder, module, dataset, scene_indices(self.val), collate=collate)
        trained = module.network.to(self.device).eval()
        # What was measured after the last epoch is there already, unless the run goes on after it.
        detections = module.detections if module.measured else self._detections(trained)
        scores = average_precision(self.val, detections, kind)
        write_text(folder.path / "detections.json", json.dumps(detections, default=_as_text) + "\n")
        draw_detections(self.val, detections, folder.pictures / "predictions.png")
        torch.save({"model": trained.state_dict()}, folder.path / "detector.pth")
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

    def _detections(self, network: nn.Module) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for i, scene in enumerate(self.val.scenes, start=1):
            found += detections_in(network, scene, i, self.origin.channels)
        return found


def default_rate(batch_size: int, steps: int) -> float:
    """Peak learning rate: the paper's 2.5e-4 of 90,000 steps of 16, by the square root of the batch; higher in fewer
    steps, by their square root, four times at most. What that gained: docs/transfer.md.
    """
    higher = min(_HIGHER, max(1.0, (_RATE_STEPS / steps) ** 0.5))
    return _RATE * (batch_size / _RATE_BATCH) ** 0.5 * higher


def _as_text(value: Any) -> str:
    """Run-length codes are bytes."""
    return value.decode("ascii")
