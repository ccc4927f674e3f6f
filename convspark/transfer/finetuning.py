"""A fine-tuning that could start: settings resolved, data read, network built; and how it is trained and measured."""

import csv
import io
import logging
import time
from collections.abc import Mapping
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
from ..training.device import choose_device, choose_precision, default_workers, describe_device
from ..training.fit import fit
from ..training.loading import TrainLoader
from ..training.module import counted_seed
from ..training.run_folder import RunFolder, command_line, write_text
from ..training.schedule import Schedule
from . import recipe
from .augment import FinetuneTransform, LabelledImages
from .best import KeepBest
from .classify import ClassifyModule, Headed, Predictions, labelled_loader, predict, remedy, with_classifier
from .finetune import FinetuneResult
from .labels import LabelledData, read_labelled
from .layers import decayed_groups, layer_groups
from .weights import Origin, find_weights

logger = logging.getLogger(__name__)

_FEWEST_TO_NORMALISE = 8  # pictures of a forward pass
_LEAST_LEARNED = 0.1  # of the way from chance to perfect
_HEAD = 106  # second word of the seed of the classifier's first weights


class Finetuning:
    """The arguments of `finetune`, resolved, with what they stand for.

    Raises:
        ConvsparkError: whatever is wrong with them; nothing was written yet.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.config = {name: value for name, value in arguments.items() if name not in ("out", "resume")}
        c = self.config
        recipe.check(c)
        if arguments["out"] is not None and arguments["resume"] is None:
            RunFolder(arguments["out"]).check_new()
        self.origin: Origin = find_weights(c["weights"], c["model"])
        self.origin.check_pictures()
        self.data: LabelledData = read_labelled(c["data"], c["val_share"], c["seed"]).with_fraction(
            c["fraction"], c["seed"]
        )
        self.device = choose_device(c["device"])
        self.precision = choose_precision(c["precision"], self.device)
        images = len(self.data.train)
        c["size"] = settings.format_size(self.origin.sides(c["size"]))
        c["epochs"] = c["epochs"] or recipe.default_epochs(images)
        c["batch_size"] = c["batch_size"] or recipe.default_batch_size(images)
        c["precision"] = self.precision
        if c["learning_rate"] is None:
            c["learning_rate"] = recipe.default_learning_rate(c["optimizer"], c["batch_size"])
        if c["layer_decay"] is None:
            c["layer_decay"] = 1.0 if self.origin.is_random else 0.7
        self.numbers = settings.count(images, c["batch_size"], c["epochs"], c["warmup_epochs"], c["accumulate"])
        if self.numbers.batch_size // self.numbers.accumulate % 2:
            raise UsageError(
                f"batch_size is {c['batch_size']} and accumulate {c['accumulate']}: expected an even number of "
                "pictures in each forward pass, as they are mixed in pairs"
            )
        c["model"] = self.origin.model  # so that the folder can be used as WEIGHTS
        self.workers = default_workers(self.device) if c["workers"] is None else c["workers"]
        network = self.origin.build(c["seed"], c["drop_path"])
        self.origin.check_size(network, self.size)
        classes = len(self.data.classes)
        self.network = with_classifier(network, classes, counted_seed(c["seed"], _HEAD)).train()
        self._warn_of_small_passes()
        if self.device.type != "mps":
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _warn_of_small_passes(self) -> None:
        pictures = self.numbers.batch_size // self.numbers.accumulate
        if pictures < _FEWEST_TO_NORMALISE and any(isinstance(m, _BatchNorm) for m in self.network.modules()):
            logger.warning(
                "BatchNorm over %d pictures at a time is mostly noise, with which ResNets learn little or collapse: "
                "choose %d or more for each forward pass (--batch-size over --accumulate); where memory is short, a "
                "smaller --size",
                pictures,
                _FEWEST_TO_NORMALISE,
            )

    @property
    def size(self) -> tuple[int, int]:
        return settings.parse_size(self.config["size"])

    @property
    def device_text(self) -> str:
        return describe_device(self.device)

    def describe(self) -> list[str]:
        """The effective numbers, for the log."""
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
            f"device    {self.device_text}, {self.precision}, {self.workers} workers",
        ]

    def train(self, folder: RunFolder, started: float) -> FinetuneResult:
        """Train, choose the best weights by validation, measure them, export them."""
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
        schedule = Schedule(c["learning_rate"], n.steps, n.warmup_steps, (c["weight_decay"], c["weight_decay"]))
        loss = BinaryCrossEntropy() if c["optimizer"] == "lamb" else SoftTargetCrossEntropy()
        make = partial(_make_optimizer, self.network, c["optimizer"], c["layer_decay"])
        module = ClassifyModule(self.network, make, schedule, mix, loss, recipe.ema_decay(n.steps), c["seed"])
        transform = FinetuneTransform(
            size=self.size,
            mean=origin.mean,
            std=origin.std,
            scale=tuple(c["crop_scale"]),
            policy=c["policy"],
            erase=c["erase"],
        )
        dataset = LabelledImages(self.data.train, transform, c["seed"])
        train = TrainLoader(
            dataset, n.batch_size, n.accumulate, c["seed"], self.workers, pin_memory=self.device.type == "cuda"
        )
        best = KeepBest(folder)
        fit(
            module,
            folder,
            train,
            labelled_loader(self.data.val, self.size, origin.mean, origin.std, workers=self.workers),
            device=self.device,
            precision=self.precision,
            epochs=c["epochs"],
            gradient_clip=None if c["optimizer"] == "lamb" else 5.0,
            callbacks=[best],
            checkpoint_minutes=c["checkpoint_minutes"],
            measure_every=recipe.measure_every(c["epochs"]),
            go_on=f"convspark finetune --resume {folder.path}",
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
    return torch.optim.AdamW(made, lr=0.0, betas=(0.9, 0.999))


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
