"""A segmenter's training: settings resolved, data read, network built; and how it is trained and measured."""

import logging
import os
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from ...data import Split, absolute, as_place, base_name, blaming, hold_out, list_in_parts, tell_gone
from ...data.labelled import folders_of_parts
from ...errors import DataError, UsageError
from ...files import written_whole
from ...names import shown
from ...report.label_maps import draw_label_maps
from ...runs.run import Run
from ...seeds import Use, counted_seed
from ..fpn import pyramid_groups
from ..task import Chosen, Task, adamw, one_by_one
from .data import Places, read_label_maps, read_maps_again
from .network import (
    MapImages,
    Segmenter,
    SegmentModule,
    overlap,
    pixel_counts,
    segment_picture,
)
from .settings import SegmentResult, SegmentSettings

logger = logging.getLogger(__name__)

_RATE, _RATE_BATCH = 5e-4, 16
_DRAWN = 4  # pictures


class Segmentation(Task[SegmentSettings, SegmentResult]):
    """A feature pyramid and a class for every pixel."""

    usual_layer_decay = 0.7

    def new_places(self) -> dict[str, tuple[str, list[str] | None] | None]:
        s, moved = self.settings, self.moved
        val = "val_images" if s.val_images else "images"
        return {
            "train": self._place(str(s.images)) if "images" in moved else None,
            "val": self._place(str(s.val_images or s.images)) if val in moved else None,
        }

    def _place(self, images: str) -> tuple[str, list[str] | None]:
        if os.path.isfile(str(self.settings.masks)):
            return images, None  # pictures of a COCO file are named as their folder was given
        return as_place(images, [absolute(address) for address, _ in list_in_parts(images, bands=True)])

    def _places(self) -> tuple[tuple[Places, str | None], tuple[Places, str | None]]:
        """Pictures and masks to train on, and to validate with where there are some of their own."""
        s = self.settings
        if s.masks is not None or s.images is None:
            whole = (s.images, s.masks), (s.val_images, s.val_masks)
            # A run that goes on has its split, whichever of these folders its pictures are in.
            if s.images is None or s.val_images is not None or self.earlier_split or os.path.isfile(str(s.masks)):
                return whole
            with blaming("images"):
                pictures = folders_of_parts(s.images)
            with blaming("masks"):
                masks = folders_of_parts(str(s.masks))
            if "train" not in pictures or "train" not in masks:
                return whole
            if "val" in pictures and "val" not in masks:
                raise DataError(f"masks: {s.masks!r} has no folder for the pictures in {pictures['val']!r}")
            return (pictures["train"], masks["train"]), (pictures.get("val"), masks.get("val"))
        parts: dict[str, list[str]] = {}
        for address, part in list_in_parts(s.images, not self.origin.pixels.is_plain):
            parts.setdefault(part, []).append(address)
        if "test" in parts:
            logger.info("%d pictures to test with are left out", len(parts["test"]))
        if "train" not in parts:
            raise DataError(f"images: {s.images!r} holds no pictures to train on")
        return (parts["train"], None), (s.val_images or parts.get("val"), None)

    def read(self) -> int:
        s, pixels = self.settings, self.origin.pixels
        (images, masks), (val_images, val_masks) = self._places()
        if self.earlier_split and self.earlier_split.classes:
            self._read_again(self.earlier_split, images, val_images)
        else:
            every = read_label_maps(images, masks, pixels=pixels)
            if val_images is None:
                if self.earlier_split:
                    train, val = self.earlier_split.train, self.earlier_split.val
                else:
                    train, val = hold_out(every.pictures, s.val_share, len(every), s.seed)
                if not val:
                    raise UsageError(
                        "there is nothing to validate with: give --val-images and --val-masks, or more pictures"
                    )
                self.maps, self.val = every.split(train, val)
            else:
                self.maps, self.val = every, read_label_maps(val_images, val_masks, every, pixels)
            self.split = Split(
                self.maps.pictures, self.val.pictures, classes=self.maps.classes, values=self.maps.values
            )
        self.val = self.val.whole()
        self.val.check_measured()
        self.bad = [*self.maps.bad, *self.val.bad]
        return len(self.maps)

    def _read_again(self, split: Split, images: Places, val_images: Places) -> None:
        s, self.split, pixels = self.settings, split, self.origin.pixels
        if val_images is None:
            train = val = read_maps_again(images, s.masks, split, [*split.train, *split.val], pixels)
        else:
            train = read_maps_again(images, s.masks, split, split.train, pixels)
            val = read_maps_again(val_images, s.val_masks, split, split.val, pixels)
        tell_gone(split.train, train.pictures, "trains on")
        tell_gone(split.val, val.pictures, "validates with", most=1)
        there = frozenset(val.pictures)
        self.maps, self.val = train.part(split.train), val.part(path for path in split.val if path in there)

    def choose(self, images: int) -> Chosen:
        s = self.settings
        batch_size = s.batch_size or min(8, images)
        epochs = s.epochs or min(200, max(20, round(12_000 / images)))
        return Chosen(epochs, batch_size, s.learning_rate or _RATE * (batch_size / _RATE_BATCH) ** 0.5)

    def build(self) -> nn.Module:
        s = self.settings
        torch.manual_seed(counted_seed(s.seed, Use.SEGMENTER))
        backbone = self.origin.build(s.seed, s.drop_path)
        network = Segmenter(backbone, len(self.maps.classes))
        stride = max(network.pyramid.stages.strides[-1])
        has_norms = any(isinstance(module, _BatchNorm) for module in backbone.modules())
        if has_norms and self.numbers.images_a_pass == 1 and s.size <= stride:
            raise UsageError(
                f"size is {s.size} and batch_size 1: batch norms have nothing to average over in the deepest map, "
                f"which is a single position; take crops of more than {stride} pixels, or more pictures a step"
            )
        return self.in_channels_last(network)

    def describe(self) -> list[str]:
        n = self.numbers
        return [
            f"network   {self.origin.model}, weights of {self.origin.weights}, with a feature pyramid",
            f"pictures  {len(self.maps)} to train on, {len(self.val)} to validate with, classes "
            f"{', '.join(map(shown, self.maps.classes))}",
            f"training  {n.in_words}, crops of {self.settings.size}",
            f"optimiser adamw, learning rate {self.learning_rate:.3g}, layers decayed by {self.layer_decay:g}",
        ]

    def train(self, run: Run[SegmentSettings]) -> None:
        s, network, mean, std = self.settings, self.network, self.origin.mean, self.origin.std
        assert isinstance(network, Segmenter)

        def make() -> torch.optim.Optimizer:
            return adamw(pyramid_groups(network, network.pyramid, self.layer_decay, s.group_blocks))

        self._module = SegmentModule(network, make, self.schedule, self.val, mean, std, s.seed)
        dataset = MapImages(self.maps, s.size, mean, std, s.seed)
        self._best = self.fit(run, self._module, dataset, one_by_one(len(self.val), run.here))

    def measured(self, run: Run[SegmentSettings]) -> SegmentResult:
        folder, mean, std = run.folder, self.origin.mean, self.origin.std
        trained = self.network.to(self.device).eval()
        classes = self.maps.classes
        # What was measured after the last epoch is there already, unless the run goes on after it.
        counts = self._module.counts if self._module.measured else None
        again = counts is None
        counts = np.zeros((len(classes), len(classes)), dtype=np.int64) if counts is None else counts
        samples, to_draw = [], places_to_draw(len(self.val))
        for i in range(len(self.val)) if again else sorted(to_draw):
            truth, image = self.val.label_map(i), self.val.source.read(i)
            predicted = segment_picture(trained, image, mean, std)
            if again:
                counts += pixel_counts(truth, predicted, len(classes))
            if i in to_draw:
                samples.append((base_name(self.val.pictures[i]), image, truth, predicted))
        picture = folder.pictures / "predictions.png"
        self.drawings.append(partial(draw_label_maps, samples, classes, picture))
        with written_whole(folder.path / "segmenter.pth") as temporary:
            record = self.origin.as_record()
            torch.save({"model": trained.state_dict(), "network": record, "classes": classes}, temporary)
        scores = overlap(counts)
        return SegmentResult(
            folder=str(folder.path),
            weights=self.origin.weights,
            pictures=len(self.val),
            iou=scores["iou"],
            dice=scores["dice"],
            accuracy=scores["accuracy"],
            iou_by_class=dict(zip(classes, scores["iou_by_class"], strict=True)),
            dice_by_class=dict(zip(classes, scores["dice_by_class"], strict=True)),
            best=self._best.best,
            epochs=self.numbers.epochs,
            steps=self.numbers.steps,
            seconds=run.seconds,
        )


def places_to_draw(count: int) -> set[int]:
    """Of so many pictures a few, from all parts of their order: the first slices of a volume may show nothing."""
    return {(2 * part + 1) * count // (2 * _DRAWN) for part in range(_DRAWN)}
