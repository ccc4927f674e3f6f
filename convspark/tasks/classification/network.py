"""Classification: the network with a head, the Lightning module, batches, and what is measured."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from timm.utils import ModelEmaV3  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassRecall

from ...data import PLAIN, HeldOutTransform, Pixels
from ...model.networks import copied
from ...model.stages import Stages
from ...runs.loading import MeasuringLoader, end_workers
from ...runs.module import TrainingModule, channels_last
from ...runs.processes import ALONE, Processes
from ...runs.schedule import Schedule
from ...seeds import Use, counted_seed
from .augment import LabelledImages
from .data import Labelled

logger = logging.getLogger(__name__)

_EXPLODED = 100.0  # cross-entropy of an epoch; that of always predicting the same class is below 10


class Headed(nn.Module):
    """Any backbone with a linear classifier on the mean of its deepest stage, for networks that are not timm's."""

    def __init__(self, backbone: nn.Module, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.stages = Stages(backbone)
        self.head = nn.Linear(self.stages.channels[-1], classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, classes)."""
        return self.head(self.stages(images)[-1].flatten(2).mean(-1))


def with_classifier(network: nn.Module, classes: int, seed: int) -> nn.Module:
    """The network with a new classifier; timm's get their own kind."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if hasattr(network, "reset_classifier"):
            pools = [module for module in network.modules() if isinstance(module, SelectAdaptivePool2d)]
            # One built without a pool, as backbones often are (global_pool=""), would classify each position.
            pool = "avg" if any(one.is_identity() for one in pools) else None
            network.reset_classifier(classes, pool)  # type: ignore[operator]
            return network
        return Headed(network, classes)


def batch_norms(network: nn.Module) -> list[nn.Module]:
    """The layers of a network that normalise by the pictures of a pass."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


class ClassifyModule(TrainingModule):
    """Trains a classifier on mixed pictures, with an average of its weights (EMA) measured beside it.

    Args:
        network: images (B, C, H, W) -> logits (B, classes).
        classes: how many.
        mix: (pictures, labels) -> (pictures, soft labels), of a batch.
        loss: of logits and soft labels.
        ema: decay of the weights' moving average.
        keep_statistics: BatchNorm normalises by the running statistics that it came with, and leaves them alone.
    """

    measures = tuple(f"{kind}_{name}" for kind in ("val", "ema") for name in ("loss", "top1", "balanced", "macro_f1"))

    def __init__(
        self,
        network: nn.Module,
        make_optimizer: Callable[[], torch.optim.Optimizer],
        schedule: Schedule,
        classes: int,
        mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        loss: nn.Module,
        ema: float,
        seed: int = 0,
        keep_statistics: bool = False,
    ) -> None:
        super().__init__(make_optimizer, schedule, seed)
        self.network = network
        self._keep_statistics = keep_statistics
        self.average = ModelEmaV3(copied(network), decay=ema)
        self._classes, self._mix = classes, mix
        self._loss = loss
        self._warned_of_collapse = False

    def on_train_start(self) -> None:  # a run that goes on in the midst of an epoch does not start that epoch again
        super().on_train_start()
        for module in batch_norms(self.network) if self._keep_statistics else ():
            module.eval()

    def loss_of(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        # timm mixes the first with the last: in this order they are neighbours, which lie in one part of a batch.
        order = torch.arange(len(images), device=images.device)
        order = torch.cat([order[0::2], order[1::2].flip(0)])
        with _numpy_seeded(counted_seed(self.seed, Use.MIX, *self.place(batch_idx))):
            images, soft = self._mix(images[order], labels[order])
        back = order.argsort()
        return self._loss(self.network(channels_last(images[back])), soft[back])

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.average.update(self.network)  # at once: a checkpoint is written before any later hook of the module

    def on_train_epoch_end(self) -> None:  # before the epoch's checkpoint
        if self.train_loss > _EXPLODED:
            raise self.diverged(f"the loss grew to {self.train_loss:.3g}", self.global_step)

    def candidates(self) -> list[tuple[float, str, nn.Module]]:
        """What could be the best weights so far: validation top-1, name, network."""
        if not self.measured:
            return []
        return [
            (self.measured["val_top1"], "raw", self.network),
            (self.measured["ema_top1"], "EMA", self.average.module),
        ]

    def describe_measured(self) -> str:
        if not self.measured:
            return ""
        return f"validation top-1 {100 * self.measured['val_top1']:.1f} %, EMA {100 * self.measured['ema_top1']:.1f} %"

    def measure(self, batch: Any, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the network and of its average, (B, classes), and labels, (B,)."""
        images, labels = batch
        images = channels_last(images)
        raw, average = (network(images).float().cpu() for network in (self.network, self.average.module))
        return raw, average, labels.cpu()

    def summarise(self, measurements: list[tuple[Tensor, Tensor, Tensor]]) -> dict[str, float]:
        scores = {kind: Scores(self._classes) for kind in ("val", "ema")}
        for raw, average, labels in measurements:
            scores["val"].update(raw, labels)
            scores["ema"].update(average, labels)
        self._tell_of_collapse(scores["val"])
        return {f"{kind}_{name}": value for kind, of in scores.items() for name, value in of.compute().items()}

    def _tell_of_collapse(self, scores: "Scores") -> None:
        past_warmup = self.global_step > self.schedule.warmup_steps
        if past_warmup and not self._warned_of_collapse and scores.is_collapsed:
            self._warned_of_collapse = True
            logger.warning(
                "After epoch %d the network calls every validation picture the same: it has learned nothing yet, or "
                "has collapsed. If that stays so, stop it and try %s",
                self.current_epoch + 1,
                remedy(self.schedule.peak_lr),
            )


def remedy(learning_rate: float) -> str:
    """What helps a network that collapsed."""
    return (
        f"a third of the --learning-rate ({learning_rate / 3:.2g}), a larger --batch-size, a longer --warmup-epochs, "
        "or --optimizer adamw"
    )


class Scores:
    """Loss, top-1, balanced accuracy and macro F1, over batches of logits.

    Balanced accuracy is the mean recall of the classes that there are pictures of; macro F1 counts those that were
    predicted, too. Both as scikit-learn has them.
    """

    def __init__(self, classes: int) -> None:
        self._metrics = MetricCollection(
            {
                "top1": MulticlassAccuracy(classes, average="micro", sync_on_compute=False),
                "balanced": MulticlassRecall(classes, average="none", sync_on_compute=False),
                "macro_f1": MulticlassF1Score(classes, average="macro", sync_on_compute=False),
            }
        )
        self._loss, self._labels = 0.0, torch.zeros(0, dtype=torch.int64)
        self._predicted: set[int] = set()

    @property
    def is_collapsed(self) -> bool:
        """Whether all pictures, of several classes, were called the same."""
        return len(self._predicted) == 1 and len(self._labels.unique()) > 1

    def update(self, logits: Tensor, labels: Tensor) -> None:
        logits, labels = logits.float().cpu(), labels.cpu()
        self._metrics.update(logits.argmax(1), labels)
        self._loss += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
        self._labels = torch.cat([self._labels, labels])
        self._predicted.update(logits.argmax(1).tolist())

    def compute(self) -> dict[str, float]:
        scores = self._metrics.compute()
        scores["balanced"] = scores["balanced"][self._labels.unique()].mean()
        loss = self._loss / max(1, len(self._labels))
        return {"loss": loss, **{name: float(value) for name, value in scores.items()}}


@dataclass(frozen=True)
class Predictions:
    """What a network says of labelled pictures, in their order.

    Attributes:
        labels, predicted: (N,) indices of classes.
        confidence: (N,) probability of what was predicted.
        scores: see `Scores`.
    """

    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    scores: dict[str, float]


def labelled_loader(
    labelled: Labelled,
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    share: float | None = 0.95,
    batch_size: int = 64,
    workers: int = 0,
    here: Processes = ALONE,
    pixels: Pixels = PLAIN,
) -> MeasuringLoader:
    """Centre crops and labels, always in the same order; decoded once and kept, where they fit into 512 MiB."""
    transform = HeldOutTransform(size=size, mean=mean, std=std, share=share)
    dataset = LabelledImages(labelled, transform, most_bad=0.5, pixels=pixels)
    return MeasuringLoader(dataset, batch_size, workers, here, cached=True)


def predict(network: nn.Module, loader: DataLoader[Any], classes: int, device: torch.device) -> Predictions:
    """Evaluate a classifier, in fp32 and evaluation mode."""
    network = network.to(device).eval()
    scores = Scores(classes)
    logits, truth = [], []
    try:
        with torch.no_grad():
            for images, labels in loader:
                out = network(channels_last(images.to(device))).float().cpu()
                scores.update(out, labels)
                logits.append(out)
                truth.append(labels)
    finally:
        end_workers(loader)
    confidence, predicted = torch.cat(logits).softmax(1).max(1)
    return Predictions(torch.cat(truth).numpy(), predicted.numpy(), confidence.numpy(), scores.compute())


@contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    """timm's mixing draws from numpy's global generator: within this context, it has this seed."""
    state = np.random.get_state()
    np.random.seed(seed % (1 << 32))
    try:
        yield
    finally:
        np.random.set_state(state)
