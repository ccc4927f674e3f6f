"""A segmenter's training: settings resolved, data read, network built; and how it is trained and measured."""

import time

import numpy as np
import torch
from torch import nn

from ..data import Split, hold_out
from ..errors import UsageError
from ..report.label_maps import draw_label_maps
from ..training.module import counted_seed
from ..training.run_folder import RunFolder
from .labelled_maps import read_label_maps
from .pyramid import pyramid_groups
from .recipe import check_training
from .results import SegmentResult
from .segmentation import (
    MapImages,
    Segmenter,
    SegmentModule,
    map_indices,
    overlap,
    pixel_counts,
    segment_picture,
)
from .task import Task, adamw

_RATE, _RATE_BATCH = 5e-4, 16
_HEAD = 108  # second word of the seed of the new layers' first weights
_DRAWN = 4  # pictures


class Segmenting(Task[SegmentResult]):
    """The arguments of `segment`, resolved, with what they stand for."""

    command = "segment"
    layer_decay = 0.7

    def check(self) -> None:
        c = self.config
        if c["size"] < 32:
            raise UsageError(f"size is {c['size']}: expected 32 pixels or more")
        if (c["val_images"] is None) != (c["val_masks"] is None):
            raise UsageError("val_images and val_masks belong together: give both, or neither")
        check_training(c)

    def read(self) -> int:
        c = self.config
        every = read_label_maps(c["images"], c["masks"])
        if c["val_images"] is None:
            train, val = hold_out(every.pictures, c["val_share"], len(every), c["seed"])
            if not val:
                raise UsageError(
                    "there is nothing to validate with: give --val-images and --val-masks, or more pictures"
                )
            self.split = self.split or Split(train, val)
            self.maps, self.val = every.split(self.split.train, self.split.val)
        else:
            self.maps, self.val = every, read_label_maps(c["val_images"], c["val_masks"], every)
        self.val = self.val.whole()
        return len(self.maps)

    def fill_in(self, images: int) -> None:
        c = self.config
        c["epochs"] = c["epochs"] or min(200, max(20, round(12_000 / images)))
        c["batch_size"] = c["batch_size"] or max(2, min(8, images))
        if c["learning_rate"] is None:
            c["learning_rate"] = _RATE * (c["batch_size"] / _RATE_BATCH) ** 0.5

    def build(self) -> nn.Module:
        c = self.config
        torch.manual_seed(counted_seed(c["seed"], _HEAD))
        backbone = self.origin.build(c["seed"], c["drop_path"])
        return self.in_channels_last(Segmenter(backbone, len(self.maps.classes)))

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
        c, n, network = self.config, self.numbers, self.network
        mean, std = self.origin.mean, self.origin.std
        assert isinstance(network, Segmenter)

        def make() -> torch.optim.Optimizer:
            return adamw(pyramid_groups(network, network.pyramid, c["layer_decay"]))

        module = SegmentModule(network, make, self.schedule, self.val, mean, std, c["seed"])
        best = self.fit(folder, module, MapImages(self.maps, c["size"], mean, std, c["seed"]), map_indices(self.val))
        trained = module.network.to(self.device).eval()
        classes = self.maps.classes
        counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
        shown = []
        for i, path in enumerate(self.val.pictures):
            truth, found = self.val.label_map(i), segment_picture(trained, path, mean, std)
            counts += pixel_counts(truth, found, len(classes))
            if i < _DRAWN:
                shown.append((path, truth, found))
        draw_label_maps(shown, classes, folder.pictures / "predictions.png")
        torch.save({"model": trained.state_dict(), "classes": classes}, folder.path / "segmenter.pth")
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
