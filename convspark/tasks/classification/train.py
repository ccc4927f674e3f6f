"""A fine-tuning that could start: settings resolved, data read, network built; and how it is trained and measured."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from timm.data.mixup import Mixup, mixup_target
from timm.loss.binary_cross_entropy import BinaryCrossEntropy
from timm.loss.cross_entropy import SoftTargetCrossEntropy
from timm.optim.lamb import Lamb
from torch import Tensor, nn

from ...checkpoints.card import card_of
from ...checkpoints.to_timm import export_timm
from ...files import csv_text, write_text
from ...model.stages import Stages
from ...names import many
from ...report.confusion import confusion_matrix
from ...runs.device import describe_device, describe_precision
from ...runs.folder import RunFolder, command_line
from ...runs.loading import MeasuringLoader
from ...runs.numbers import format_size
from ...runs.processes import ALONE, Processes
from ...runs.run import Run
from ...seeds import Use, counted_seed
from .. import defaults
from ..layer_groups import decayed_groups, layer_groups
from ..task import Chosen, Task, adamw
from .augment import FinetuneTransform, LabelledImages
from .data import Labelled, LabelledData, named_place, read_again, read_labelled
from .network import ClassifyModule, Headed, Predictions, batch_norms, labelled_loader, predict, remedy, with_classifier
from .settings import FinetuneResult, FinetuneSettings

logger = logging.getLogger(__name__)

_FEWEST_TO_NORMALISE = 8  # pictures of a forward pass
_LEAST_LEARNED = 0.1  # of the way from chance to perfect


class Classification(Task[FinetuneSettings, FinetuneResult]):
    """A linear classifier and the network under it, on labelled pictures."""

    usual_layer_decay = 0.7
    can_accumulate = True

    @property
    def mixes_pairs(self) -> bool:
        return bool(self.settings.mixup or self.settings.cutmix)

    def new_places(self) -> dict[str, tuple[str, list[str] | None] | None]:
        place = named_place(self.settings.data)
        return {"train": place, "val": place, "test": place}

    def read(self) -> int:
        s, pixels = self.settings, self.origin.pixels
        self.size = self.origin.sides(s.size)
        self.settings = replace(s, size=format_size(self.size))
        self.data: LabelledData = (
            read_again(s.data, self.earlier_split, pixels)
            if self.earlier_split
            else read_labelled(s.data, s.val_share, s.seed, pixels=pixels).with_fraction(s.fraction, s.seed)
        )
        self.split, self.bad = self.earlier_split or self.data.split, self.data.bad
        return len(self.data.train)

    def choose(self, images: int) -> Chosen:
        s = self.settings
        batch_size = s.batch_size or defaults.default_batch_size(images)
        rate = s.learning_rate or defaults.default_learning_rate(s.optimizer, batch_size)
        if s.base_learning_rate is not None:
            rate = s.base_learning_rate * batch_size / 256
            self.settings = replace(s, base_learning_rate=None)  # a run that goes on has its rate
        epochs = s.epochs or defaults.default_epochs(images)
        return Chosen(epochs, batch_size, rate, s.warmup_epochs, s.accumulate, s.device_batch_size)

    def build(self) -> nn.Module:
        s, n = self.settings, self.numbers
        self.settings = replace(s, accumulate=n.accumulate)
        network = self.origin.build(s.seed, s.drop_path)
        self.origin.check_size(network, self.size)
        network = with_classifier(network, len(self.data.classes), counted_seed(s.seed, Use.CLASSIFIER))
        self._tell_of_small_passes(network)
        return self.in_channels_last(network)

    @property
    def keeps_statistics(self) -> bool:
        """Whether BatchNorm keeps the statistics of the weights that training starts from.

        Those of a few pictures are mostly noise, with which ResNets learn little or collapse.
        """
        return self.numbers.images_a_pass < _FEWEST_TO_NORMALISE and not self.origin.is_random

    def _tell_of_small_passes(self, network: nn.Module) -> None:
        pictures = self.numbers.images_a_pass
        if pictures >= _FEWEST_TO_NORMALISE or not batch_norms(network):
            return
        logger.warning(
            "BatchNorm over %d pictures at a time is mostly noise%s: better %d or more for each forward pass "
            "(--batch-size over --accumulate); where memory is short, a smaller --size",
            pictures,
            ", so that it keeps its earlier statistics"
            if self.keeps_statistics
            else ", with which ResNets learn little or collapse",
            _FEWEST_TO_NORMALISE,
        )

    def describe(self) -> list[str]:
        s, n, d = self.settings, self.numbers, self.data
        groups = layer_groups(self.network, _stages_of(self.network), s.group_blocks)[1]
        split = f"{len(d.val)} to validate with{' (split off)' if d.val_is_split else ''}"
        if d.test:
            split += f", {len(d.test)} to test with"
        return [
            f"network   {self.origin.model}, weights of {self.origin.weights}",
            f"pictures  {len(d.train)} of {len(d.classes)} classes to train on, {split}, {len(d.bad)} unreadable",
            f"training  {n.in_words}, {s.size} pixels",
            f"optimiser {s.optimizer}, learning rate {self.learning_rate:.3g}, decayed by {self.layer_decay:g} over "
            f"{groups} layer groups, weight decay {s.weight_decay:g}",
            f"device    {describe_device(self.device)}, {describe_precision(s.precision, self.device)}, "
            f"{many(self.workers, 'worker')}",
        ]

    def train(self, run: Run[FinetuneSettings]) -> None:
        s, origin = self.settings, self.origin
        classes = len(self.data.classes)
        mix = partial(_smoothed, classes=classes, smoothing=s.smoothing)
        if self.mixes_pairs:
            mix = Mixup(s.mixup, s.cutmix, prob=s.mix_share, label_smoothing=s.smoothing, num_classes=classes)
        loss = BinaryCrossEntropy() if s.optimizer == "lamb" else SoftTargetCrossEntropy()
        make = partial(_make_optimizer, self.network, s.optimizer, self.layer_decay, s.group_blocks)
        self._module = ClassifyModule(
            self.network,
            make,
            self.schedule,
            classes,
            mix,
            loss,
            defaults.ema_decay(self.numbers.steps) if s.ema_decay is None else s.ema_decay,
            s.seed,
            keep_statistics=self.keeps_statistics,
        )
        transform = FinetuneTransform(
            size=self.size,
            mean=origin.mean,
            std=origin.std,
            scale=s.crop_scale,
            policy=s.policy_kind if s.policy else None,
            interpolation=s.interpolation,
            erase=s.erase,
        )
        self._best = self.fit(
            run,
            self._module,
            LabelledImages(self.data.train, transform, s.seed, pixels=origin.pixels, repeats=s.repeats),
            self._loader(self.data.val, run.here),
            gradient_clip=None if s.optimizer == "lamb" else 5.0,
        )

    def measured(self, run: Run[FinetuneSettings]) -> FinetuneResult:
        module, best = self._module, self._best
        folder, origin, names = run.folder, self.origin, self.data.classes
        split, labelled = self.data.final
        loader = self._loader(labelled)
        network = best.restore(module.network)
        predictions = predict(network, loader, len(names), self.device)
        last = predict(module.average.module, loader, len(names), self.device)
        self._warn_of_collapse(predictions)
        _write_predictions(folder, labelled, predictions, last, names)
        self.drawings.append(
            partial(confusion_matrix, predictions.labels, predictions.predicted, names, folder.path / "confusion.png")
        )
        result = FinetuneResult(
            folder=str(folder.path),
            weights=origin.weights,
            split=split,
            pictures=len(labelled),
            top1=predictions.scores["top1"],
            balanced=predictions.scores["balanced"],
            macro_f1=predictions.scores["macro_f1"],
            loss=predictions.scores["loss"],
            best=best.best,
            last=last.scores,
            recall=_recall(predictions, names),
            trained_on=len(self.data.train),
            epochs=self.numbers.epochs,
            steps=self.numbers.steps,
            seconds=run.seconds,
        )
        self._export(network, result, folder)
        return result

    def _loader(self, labelled: Labelled, here: Processes = ALONE) -> MeasuringLoader:
        """Of pictures to measure with."""
        of, crop = self.origin, self.settings.eval_crop
        return labelled_loader(
            labelled,
            self.size,
            of.mean,
            of.std,
            share=None if crop == "whole" else crop,
            workers=self.workers,
            here=here,
            pixels=of.pixels,
        )

    def _export(self, network: nn.Module, result: FinetuneResult, folder: RunFolder) -> None:
        origin = self.origin
        card = {
            "fine-tuned on": f"{many(result.trained_on, 'labelled picture')} ({self.settings.data})",
            "started from": origin.weights,
            "command": f"`{command_line()}`",
            "epochs": f"{result.epochs}, {many(result.steps, 'step')}",
            f"top-1 on {result.split} ({result.pictures} pictures)": f"{100 * result.top1:.1f} %",
            f"balanced accuracy on {result.split}": f"{100 * result.balanced:.1f} %",
            **card_of(origin.pixels),
        }
        has_timm_head = not isinstance(network, Headed)
        export_timm(
            network,
            folder.export,
            mean=origin.mean,
            std=origin.std,
            image_size=self.size,
            card=card,
            classes=self.data.classes if has_timm_head else None,
            pixels=origin.pixels,
            crop=self.settings.eval_crop,
        )

    def _warn_of_collapse(self, predictions: Predictions) -> None:
        """If top-1 is not above the largest class and balanced accuracy is near chance, little was learned."""
        counts = np.bincount(predictions.labels, minlength=len(self.data.classes))
        right, chance = np.count_nonzero(predictions.predicted == predictions.labels), 1 / np.count_nonzero(counts)
        if right <= counts.max() and predictions.scores["balanced"] <= chance + _LEAST_LEARNED * (1 - chance) < 1:
            logger.warning(
                "The network is no better (%.1f %%) than calling every picture %r (%.1f %%): it collapsed, or learned "
                "nothing. Try %s",
                100 * right / len(predictions.labels),
                self.data.classes[int(counts.argmax())],
                100 * counts.max() / len(predictions.labels),
                remedy(self.learning_rate),
            )


def _smoothed(images: Tensor, labels: Tensor, classes: int, smoothing: float) -> tuple[Tensor, Tensor]:
    """Pictures as they are, labels (B,) as (B, classes): what `Mixup` makes of those that it does not mix."""
    return images, mixup_target(labels, classes, smoothing=smoothing)


def _make_optimizer(
    network: nn.Module, kind: str, layer_decay: float, group_blocks: Sequence[int] | None
) -> torch.optim.Optimizer:
    group_of, count = layer_groups(network, _stages_of(network), group_blocks)
    decayed = decayed_groups(network, layer_decay, group_of, count)
    if kind == "lamb":
        # The settings of the paper's fine-tuning, which are not those of its pre-training.
        return Lamb(decayed, lr=0.0, betas=(0.9, 0.999), bias_correction=False, max_grad_norm=1e7, always_adapt=True)
    return adamw(decayed)


def _stages_of(network: nn.Module) -> Stages | None:
    """Those that are known already; what timm's networks call `stages` is something else."""
    return network.stages if isinstance(network, Headed) else None


def _recall(predictions: Predictions, names: list[str]) -> dict[str, float]:
    """Of each class that has pictures."""
    return {
        name: round(float(np.mean(predictions.predicted[predictions.labels == label] == label)), 4)
        for label, name in enumerate(names)
        if (predictions.labels == label).any()
    }


def _write_predictions(
    folder: RunFolder, labelled: Any, predictions: Predictions, last: Predictions, names: list[str]
) -> None:
    """What the best weights say of each picture and how surely, and what the last say."""
    columns = zip(labelled, predictions.predicted, predictions.confidence, last.predicted, strict=True)
    rows = [
        [path, names[label], names[predicted], f"{confidence:.4f}", names[of_last]]
        for (path, label), predicted, confidence, of_last in columns
    ]
    write_text(folder.path / "predictions.csv", csv_text([["path", "label", "predicted", "confidence", "last"], *rows]))
