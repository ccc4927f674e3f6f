"""What a fine-tuning, a detector's and a segmenter's training have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import nn
from torch.utils.data import DataLoader

from ..data import PretrainImages, Split
from ..training import settings
from ..training.device import choose_device, choose_precision, default_workers
from ..training.fit import fit
from ..training.loading import TrainLoader
from ..training.module import TrainingModule
from ..training.run_folder import RunFolder
from ..training.schedule import Schedule
from . import recipe
from .best import KeepBest
from .weights import Origin, find_weights

R = TypeVar("R")


class Task(ABC, Generic[R]):
    """A command's arguments, resolved, with what they stand for: data read, network built.

    Attributes:
        config: the arguments but for `out` and `resume`; None of them is to be chosen any more.
        origin: of the weights.
        numbers: of the steps.
        network: to train, with its new head.
        split: of the pictures, where it was drawn; that of the run that goes on.

    Raises:
        ConvsparkError: whatever is wrong with the arguments; nothing was written yet.
    """

    command: ClassVar[str]
    layer_decay: ClassVar[float]
    """By default, of weights that were trained before."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        c = self.config = {name: value for name, value in arguments.items() if name not in ("out", "resume")}
        self.check()
        if arguments["out"] is not None and arguments["resume"] is None:
            RunFolder(arguments["out"]).check_new()
        self.origin: Origin = find_weights(c["weights"], c["model"])
        self.origin.check_pictures()
        self.split = Split.kept_in(arguments["resume"])
        images = self.read()
        self.device = choose_device(c["device"])
        c["precision"] = self.choose_precision()
        c["model"] = self.origin.model  # so that the folder can be used as WEIGHTS
        self.fill_in(images)
        if c["layer_decay"] is None:
            c["layer_decay"] = 1.0 if self.origin.is_random else self.layer_decay
        self.numbers = settings.count(
            images, c["batch_size"], c["epochs"], c.get("warmup_epochs"), c.get("accumulate", 1)
        )
        self.workers = default_workers(self.device) if c["workers"] is None else c["workers"]
        self.network = self.build().train()

    @abstractmethod
    def check(self) -> None:
        """Refuse arguments that can be seen to be wrong without reading anything."""

    @abstractmethod
    def read(self) -> int:
        """Read the data, and draw `split` or keep to it; the number of pictures to train on."""

    @abstractmethod
    def fill_in(self, images: int) -> None:
        """Choose epochs, batch size and learning rate where they were not given."""

    @abstractmethod
    def build(self) -> nn.Module:
        """The network, with its new head."""

    @abstractmethod
    def describe(self) -> list[str]:
        """The effective numbers, for the log."""

    @abstractmethod
    def train(self, folder: RunFolder, started: float) -> R:
        """Train, measure, and leave what belongs into the folder.

        Args:
            started: when the command was called, as `time.monotonic` has it.
        """

    def choose_precision(self) -> str:
        return choose_precision(self.config["precision"], self.device)

    def in_channels_last(self, network: nn.Module) -> nn.Module:
        """Its weights where that is faster."""
        return network if self.device.type == "mps" else network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def schedule(self) -> Schedule:
        c, n = self.config, self.numbers
        return Schedule(c["learning_rate"], n.steps, n.warmup_steps, (c["weight_decay"], c["weight_decay"]))

    def fit(
        self,
        folder: RunFolder,
        module: TrainingModule,
        dataset: PretrainImages,
        validation: DataLoader[Any],
        gradient_clip: float | None = 5.0,
        collate: Callable[..., Any] | None = None,
    ) -> KeepBest:
        """Train to the end, from the folder's last checkpoint where there is one; keeps the best weights."""
        c, n = self.config, self.numbers
        pin = self.device.type == "cuda"
        train = TrainLoader(dataset, n.batch_size, n.accumulate, c["seed"], self.workers, pin, collate)
        best = KeepBest(folder)
        fit(
            module,
            folder,
            train,
            validation,
            device=self.device,
            precision=c["precision"],
            epochs=c["epochs"],
            gradient_clip=gradient_clip,
            callbacks=[best],
            checkpoint_minutes=c["checkpoint_minutes"],
            measure_every=recipe.measure_every(c["epochs"]),
            go_on=f"convspark {self.command} --resume {folder.path}",
            can_accumulate="accumulate" in c,
        )
        return best


def adamw(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999))
