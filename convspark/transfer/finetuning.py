"""A fine-tuning that could start: settings resolved, data read, network built; and how it is trained and measured."""

import csv
import io
import logging
import time
from functools import partial
from typing import Any

import numpy as np
import torch
from timm.data.mixup import Mixup
from timm.loss.binary_cross_entropy import BinaryCrossEntropy
from timm.loss.cross_entropy import SoftTargetCrossEntropy
from timm.optim.lamb import Lamb
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..checkpoints.export import export_timm
from ..errors import UsageError
from ..report.confusion import confusion_matrix
from ..training import settings
from ..training.device import describe_device, describe_precision
from ..training.module import counted_seed
from ..training.run_folder import RunFolder, command_line, write_text
from . import recipe
from .augment import FinetuneTransform, LabelledImages
from .best import KeepBest
from .classify import ClassifyModule, Headed, Predictions, labelled_loader, predict, remedy, with_classifier
from .labels import LabelledData, read_labelled
from .layers import decayed_groups, layer_groups
from .results import FinetuneResult
from .task import Task, adamw

logger = logging.getLogger(__name__)

_FEWEST_TO_NORMALISE = 8  # pictures of a forward pass
_LEAST_LEARNED = 0.1  # of the way from chance to perfect
_HEAD = 106  # second word of the seed of the classifier's first weights


class Finetuning(Task[FinetuneResult]):
    """The arguments of `finetune`, resolved, with what they stand for."""

    command = "finetune"
    layer_decay = 0.7

    def check(self) -> None:
        recipe.check(self.config)

    def read(self) -> int:
        c = self.config
        every = read_labelled(c["data"], c["val_share"], c["seed"])
        self.data: LabelledData = (
            every.like(self.split) if self.split else every.with_fraction(c["fraction"], c["seed"])
        )
        self.split = self.split or self.data.split
        return len(self.data.train)

    def fill_in(self, images: int) -> None:
        c = self.config
        c["size"] = settings.format_size(self.origin.sides(c["size"]))
        c["epochs"] = c["epochs"] or recipe.default_epochs(images)
        c["batch_size"] = c["batch_size"] or recipe.default_batch_size(images)
        if c["learning_rate"] is None:
            c["learning_rate"] = recipe.default_learning_rate(c["optimizer"], c["batch_size"])

    def build(self) -> nn.Module:
        c = self.config
        if self.numbers.images_a_pass % 2:
            raise UsageError(
                f"batch_size is {c['batch_size']} and accumulate {c['accumulate']}: expected an even number of "
                "pictures in each forward pass, as they are mixed in pairs"
            )
        network = self.origin.build(c["seed"], c["drop_path"])
        self.origin.check_size(network, self.size)
        made = with_classifier(network, len(self.data.classes), counted_seed(c["seed"], _HEAD))
        self._tell_of_small_passes(made)
        return self.in_channels_last(made)

    @property
    def keeps_statistics(self) -> bool:
        """Whether BatchNorm keeps the statistics of the weights that training starts from.

        Those of a few pictures are mostly noise, with which ResNets learn little or collapse.
        """
        return self.numbers.images_a_pass < _FEWEST_TO_NORMALISE and not self.origin.is_random

    def _tell_of_small_passes(self, network: nn.Module) -> None:
        pictures = self.numbers.images_a_pass
        if pictures >= _FEWEST_TO_NORMALISE or not any(isinstance(m, _BatchNorm) for m in network.modules()):
            return
        logger.warning(
            "BatchNorm over %d pictures at a time is mostly noise%s: better %d or more for each forward pass "
            "(--batch-size over --accumulate); where memory is short, a smaller --size",
            pictures,
            ", so that it keeps its statistics of before"
            if self.keeps_statistics
            else ", with which ResNets learn little or collapse",
            _FEWEST_TO_NORMALISE,
        )

    @property
    def size(self) -> tuple[int, int]:
        return settings.parse_size(self.config["size"])

    def describe(self) -> list[str]:
        c, n, d = self.config, self.numbers, self.data
        groups = layer_groups(self.network, getattr(self.network, "stages", None))[1]
        split = f"{len(d.val)} to validate with{' (split off)' if d.val_is_split else ''}"
        if d.test:
            split += f", {len(d.test)} to test with"
        return [
            f"network   {self.origin.model}, weights of {self.origin.given}",
            f"pictures  {len(d.train)} of {len(d.classes)} classes to train on, {split}, {len(d.bad)} unreadable",
            f"training  {c['epochs']} epochs of {n.steps_per_epoch} steps, batch {n.batch_size}, {c['size']} pixels",
            f"optimiser {c['optimizer']}, learning rate {c['learning_rate']:.3g}, decayed by {c['layer_decay']:g} over "
            f"{groups} layer groups, weight decay {c['weight_decay']:g}",
            f"device    {describe_device(self.device)}, {describe_precision(c['precision'], self.device)}, "
            f"{self.workers} workers",
        ]

    def train(self, folder: RunFolder, started: float) -> FinetuneResult:
        c, n, origin = self.config, self.numbers, self.origin
        classes = len(self.data.classes)
        mix = Mixup(
            c["mixup"],
            c["cutmix"],
            prob=c["mix_share"] if c["mixup"] or c["cutmix"] else 0.0,
            label_smoothing=c["smoothing"],
            num_classes=classes,
        )
        if not (c["mixup"] or c["cutmix"]):
            mix.mixup_enabled = False
        loss = BinaryCrossEntropy() if c["optimizer"] == "lamb" else SoftTargetCrossEntropy()
        make = partial(_make_optimizer, self.network, c["optimizer"], c["layer_decay"])
        module = ClassifyModule(
            self.network,
            make,
            self.schedule,
            mix,
            loss,
            recipe.ema_decay(n.steps),
            c["seed"],
            keep_statistics=self.keeps_statistics,
        )
        transform = FinetuneTransform(
            size=self.size,
            mean=origin.mean,
            std=origin.std,
            scale=tuple(c["crop_scale"]),
            policy=c["policy"],
            erase=c["erase"],
        )
        best = self.fit(
            folder,
            module,
            LabelledImages(self.data.train, transform, c["seed"]),
            labelled_loader(self.data.val, self.size, origin.mean, origin.std, workers=self.workers),
            gradient_clip=None if c["optimizer"] == "lamb" else 5.0,
        )
        return self._measure(module, best, folder, started)

    def _measure(self, module: ClassifyModule, best: KeepBest, folder: RunFolder, started: float) -> FinetuneResult:
        origin, names = self.origin, self.data.classes
        split, labelled = self.data.final
        loader = labelled_loader(labelled, self.size, origin.mean, origin.std, workers=self.workers)
        network = best.restore(module.network)
        found = predict(network, loader, len(names), self.device)
        last = predict(module.average.module, loader, len(names), self.device)
        self._warn_of_collapse(found)
        _write_predictions(folder, labelled, found, last, names)
        confusion_matrix(found.labels, found.predicted, names, folder.path / "confusion.png")
        result = FinetuneResult(
            folder=str(folder.path),
            weights=origin.given,
            split=split,
            pictures=len(labelled),
            top1=found.scores["top1"],
            balanced=found.scores["balanced"],
            macro_f1=found.scores["macro_f1"],
            loss=found.scores["loss"],
            best=best.best,
            last=last.scores,
            recall=_recall(found, names),
            trained_on=len(self.data.train),
            epochs=self.config["epochs"],
            steps=self.numbers.steps,
            seconds=round(time.monotonic() - started, 1),
        )
        self._export(network, result, folder)
        return result

    def _export(self, network: nn.Module, result: FinetuneResult, folder: RunFolder) -> None:
        origin = self.origin
        card = {
            "fine-tuned on": f"{result.trained_on} labelled pictures ({self.config['data']})",
            "started from": origin.given,
            "command": f"`{command_line()}`",
            "epochs": f"{result.epochs}, {result.steps} steps",
            f"top-1 on {result.split} ({result.pictures} pictures)": f"{100 * result.top1:.1f} %",
            f"balanced accuracy on {result.split}": f"{100 * result.balanced:.1f} %",
        }
        wanted = not isinstance(network, Headed)
        export_timm(
            network,
            folder.export,
            mean=origin.mean,
            std=origin.std,
            image_size=self.size,
            card=card,
            classes=self.data.classes if wanted else None,
        )

    def _warn_of_collapse(self, found: Predictions) -> None:
        """Where top-1 is not above the largest class and balanced accuracy is near chance, little was learned."""
        counts = np.bincount(found.labels, minlength=len(self.data.classes))
        right, chance = np.count_nonzero(found.predicted == found.labels), 1 / np.count_nonzero(counts)
        if right <= counts.max() and found.scores["balanced"] <= chance + _LEAST_LEARNED * (1 - chance) < 1:
            logger.warning(
                "The network is no better (%.1f %%) than calling every picture %r (%.1f %%): it collapsed, or learned "
                "nothing. Try %s",
                100 * right / len(found.labels),
                self.data.classes[int(counts.argmax())],
                100 * counts.max() / len(found.labels),
                remedy(self.config["learning_rate"]),
            )


def _make_optimizer(network: nn.Module, kind: str, layer_decay: float) -> torch.optim.Optimizer:
    groups, count = layer_groups(network, getattr(network, "stages", None))
    made = decayed_groups(network, layer_decay, groups, count)
    if kind == "lamb":
        # The settings of the paper's fine-tuning, which are not those of its pre-training.
        return Lamb(made, lr=0.0, betas=(0.9, 0.999), bias_correction=False, max_grad_norm=1e7, always_adapt=True)
    return adamw(made)


def _recall(found: Predictions, names: list[str]) -> dict[str, float]:
    """Of each class that is there."""
    return {
        name: round(float(np.mean(found.predicted[found.labels == label] == label)), 4)
        for label, name in enumerate(names)
        if (found.labels == label).any()
    }


def _write_predictions(
    folder: RunFolder, labelled: Any, found: Predictions, last: Predictions, names: list[str]
) -> None:
    """What the best weights say of each picture and how surely, and what the last say."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "label", "predicted", "confidence", "last"])
    rows = zip(labelled, found.predicted, found.confidence, last.predicted, strict=True)
    for (path, label), predicted, confidence, of_last in rows:
        writer.writerow([path, names[label], names[predicted], f"{confidence:.4f}", names[of_last]])
    write_text(folder.path / "predictions.csv", text.getvalue())
