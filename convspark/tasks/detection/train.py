"""A detector's training: settings resolved, data read, network built; and how it is trained and measured."""

import json
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN

from ...data import Split, tell_gone
from ...errors import DataError, UsageError
from ...files import write_text, written_whole
from ...names import many, some
from ...report.detections import draw_detections
from ...runs.run import Run
from ...runs.schedule import Schedule
from ...seeds import Use, counted_seed
from ..fpn import Pyramid, pyramid_groups
from ..task import Chosen, Task, adamw, one_by_one
from .data import read_scenes
from .network import (
    DetectModule,
    Fitted,
    Kind,
    SceneImages,
    average_precision,
    build_detector,
    collate,
    detections_in,
    is_too_narrow,
    longest_side,
    training_sides,
)
from .settings import DetectResult, DetectSettings

_RATE, _RATE_BATCH, _RATE_STEPS = 2.5e-4, 16, 90_000  # the paper's, for COCO
_HIGHER = 4  # times, at most


class Detection(Task[DetectSettings, DetectResult]):
    """A feature pyramid and an R-CNN, on annotated pictures."""

    usual_layer_decay = 0.65
    takes_bands = False
    can_accumulate = True

    def new_places(self) -> dict[str, tuple[str, list[str] | None] | None]:
        s, moved = self.settings, self.moved
        val = "val_images" if s.val_images else "images"
        return {
            "train": (str(s.images), None) if "images" in moved else None,
            "val": (str(s.val_images or s.images), None) if val in moved else None,
        }

    def read(self) -> int:
        s, earlier = self.settings, self.earlier_split
        self.masks = s.task == "masks"
        for name, source in (("train", s.train), ("val", s.val)):
            if not source:
                raise UsageError(f"{name} is missing: give --{name}, a COCO .json file or a folder of VOC .xml files")
        classes, train, val = (earlier.classes, earlier.train, earlier.val) if earlier else (None, None, None)
        self.scenes = read_scenes(s.train, s.images, classes, self.masks, train)
        self.val = read_scenes(s.val, s.val_images or s.images, self.scenes.classes, self.masks, val)
        if earlier:
            tell_gone(earlier.train, self.scenes.pictures, "trains on")
            tell_gone(earlier.val, self.val.pictures, "validates with", most=1)
            self.scenes = self.scenes.part(earlier.train)
        self.split = earlier or Split(self.scenes.pictures, self.val.pictures, classes=self.scenes.classes)
        self.val = self.val.whole()
        self._check_shapes()
        self.bad = [*self.scenes.bad, *self.val.bad]
        return len(self.scenes.scenes)

    def _check_shapes(self) -> None:
        longest = longest_side(self.settings.size)
        scenes = {scene.path: scene.size for scene in (*self.val.scenes, *self.scenes.scenes) if any(scene.size)}
        narrow = [f"{path} ({w}x{h})" for path, (h, w) in scenes.items() if is_too_narrow((h, w), longest)]
        if narrow:
            raise DataError(
                f"images: {len(narrow)} pictures are too narrow for a detector whose images have at most {longest} "
                f"pixels on a side: {some(narrow)}; cut them or leave them out, or choose a larger --size"
            )

    def choose_precision(self) -> Literal["fp32", "bf16"]:
        auto_on_cpu = self.settings.precision == "auto" and self.device.type != "cuda"
        return "fp32" if auto_on_cpu else super().choose_precision()  # torchvision's operators want fp32 there

    def choose(self, images: int) -> Chosen:
        s = self.settings
        epochs = s.epochs or min(100, max(12, round(12_000 / images)))
        steps = s.steps or epochs * -(-images // s.batch_size)
        rate = s.learning_rate or default_rate(s.batch_size, steps)
        if s.steps is not None and s.steps % epochs:
            raise UsageError(f"steps is {s.steps}: expected a multiple of the {epochs} epochs; give both, or neither")
        if s.warmup_steps is not None and s.warmup_steps > steps:
            raise UsageError(f"warmup_steps is {s.warmup_steps}: expected at most {steps}, the steps of the run")
        if not all(0 < epoch < epochs for epoch in s.milestones or ()):
            raise UsageError(f"milestones is {s.milestones}: expected epochs of the run, above 0 and below {epochs}")
        warmup_epochs = None if s.warmup_steps is None else s.warmup_steps * epochs / steps
        return Chosen(epochs, s.batch_size, rate, warmup_epochs, s.accumulate, s.device_batch_size, s.steps)

    def build(self) -> nn.Module:
        s, origin = self.settings, self.origin
        self.settings = replace(s, accumulate=self.numbers.accumulate)
        torch.manual_seed(counted_seed(s.seed, Use.DETECTOR))
        backbone = origin.build(s.seed, s.drop_path)
        detector = build_detector(
            backbone,
            self.scenes,
            s.size,
            origin.mean,
            origin.std,
            self.masks,
            short_sides=s.short_sides,
            norm=s.heads == "norm",
            fit_to_objects=s.fit_to_objects,
        )
        return self.in_channels_last(detector)

    @property
    def schedule(self) -> Schedule:
        s, n = self.settings, self.numbers
        milestones = [round(epoch * n.steps_per_epoch) for epoch in s.milestones or ()]
        return Schedule(
            self.learning_rate,
            n.steps,
            n.warmup_steps,
            (s.weight_decay, s.weight_decay),
            milestones=milestones,
            factor=s.milestone_factor,
        )

    def describe(self) -> list[str]:
        n, size = self.numbers, self.settings.size
        (things, crowds), (_, crowds_of_val) = self.scenes.counts, self.val.counts
        crowds += crowds_of_val
        left_out = f"; {crowds} crowds or difficult objects in these do not count" if crowds else ""
        return [
            f"network   {self.origin.model}, weights of {self.origin.weights}, "
            f"{'Mask' if self.masks else 'Faster'} R-CNN with a feature pyramid",
            f"pictures  {len(self.scenes.scenes)} with {many(things, 'object')} of "
            f"{many(len(self.scenes.classes), 'class', 'classes')} to train on, {len(self.val.scenes)} to validate "
            f"with{left_out}",
            f"training  {n.in_words}, {size} pixels",
            f"optimiser adamw, learning rate {self.learning_rate:.3g}, layers decayed by {self.layer_decay:g}",
        ]

    def train(self, run: Run[DetectSettings]) -> None:
        s, channels = self.settings, self.origin.channels
        network, pyramid = self.network, self.network.backbone
        assert isinstance(network, FasterRCNN) and isinstance(pyramid, Pyramid)

        def make() -> torch.optim.Optimizer:
            return adamw(pyramid_groups(network, pyramid, self.layer_decay, s.group_blocks))

        self._module = DetectModule(network, make, self.schedule, self.val, self._kind, channels, s.seed)
        largest = max(training_sides(s.size, s.short_sides))
        dataset = SceneImages(self.scenes, channels, largest, self.masks, s.seed)
        validation = one_by_one(len(self.val.scenes), run.here)
        self._best = self.fit(run, self._module, dataset, validation, collate=collate)

    @property
    def _kind(self) -> Kind:
        return "segm" if self.masks else "bbox"

    def measured(self, run: Run[DetectSettings]) -> DetectResult:
        s, folder, module = self.settings, run.folder, self._module
        trained = module.network.to(self.device).eval()
        # What was measured after the last epoch is there already, unless the run goes on after it.
        detections = module.detections if module.measured else self._detections(trained)
        scores = average_precision(self.val, detections, self._kind)
        write_text(folder.path / "detections.json", json.dumps(detections, default=_as_text) + "\n")
        self.drawings.append(partial(draw_detections, self.val, detections, folder.pictures / "predictions.png"))
        with written_whole(folder.path / "detector.pth") as temporary:
            torch.save(self._as_file(trained), temporary)
        return DetectResult(
            folder=str(folder.path),
            task=s.task,
            weights=self.origin.weights,
            pictures=len(self.val.scenes),
            ap=scores["ap"],
            ap50=scores["ap50"],
            ap75=scores["ap75"],
            by_class=scores["by_class"],
            best=self._best.best,
            epochs=self.numbers.epochs,
            steps=self.numbers.steps,
            seconds=run.seconds,
        )

    def _as_file(self, network: nn.Module) -> dict[str, Any]:
        """The detector with all that it takes to build it again (`tasks/load.py`): weights and plain values."""
        assert isinstance(network, FasterRCNN)
        s = self.settings
        return {
            "model": network.state_dict(),
            "network": self.origin.as_record(),
            "classes": self.scenes.classes,
            "fitted": asdict(Fitted.of(network)),
            "size": s.size,
            "short_sides": s.short_sides,
            "masks": self.masks,
            "norm": s.heads == "norm",
        }

    def _detections(self, network: nn.Module) -> list[dict[str, Any]]:
        detections: list[dict[str, Any]] = []
        for i, scene in enumerate(self.val.scenes, start=1):
            detections += detections_in(network, scene, i, self.origin.channels)
        return detections


def default_rate(batch_size: int, steps: int) -> float:
    """Peak learning rate: the paper's 2.5e-4 of 90,000 steps of 16, by the square root of the batch; higher in fewer
    steps, by their square root, four times at most. What that gained: docs/transfer.md.
    """
    higher = min(_HIGHER, max(1.0, (_RATE_STEPS / steps) ** 0.5))
    return _RATE * (batch_size / _RATE_BATCH) ** 0.5 * higher


def _as_text(value: Any) -> str:
    """Run-length codes are bytes."""
    return value.decode("ascii")
