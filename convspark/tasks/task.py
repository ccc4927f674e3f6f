"""What a task is: the contract that classification, detection and segmentation keep, and what they share."""

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import torch
from torch import nn

from ..checkpoints.origin import Origin, find_weights
from ..data import PretrainImages, Split
from ..files import write_text
from ..names import some
from ..report.labels import draw_at_last
from ..report.page import write_page_at_last
from ..runs.device import choose_device, choose_precision, default_workers
from ..runs.fit import fit
from ..runs.images import write_bad_files
from ..runs.loading import MeasuringLoader, TrainLoader
from ..runs.module import TrainingModule
from ..runs.numbers import count, tell_of_large_passes
from ..runs.processes import Processes
from ..runs.run import Run
from ..runs.schedule import Schedule
from . import defaults
from .keep_best import KeepBest
from .settings import TaskSettings

logger = logging.getLogger(__name__)

S = TypeVar("S", bound=TaskSettings)
R = TypeVar("R")


class Chosen(NamedTuple):
    """How long, in which steps and how fast a task trains: as its settings say, or by default."""

    epochs: int
    batch_size: int
    learning_rate: float
    warmup_epochs: float | None = None
    accumulate: int | None = 1
    device_batch_size: int | None = None
    steps: int | None = None


class Task(ABC, Generic[S, R]):
    """A run of a task that could start: settings resolved, data read, network built.

    A subclass says, in this order, what it reads, what it chooses, what it builds, how it describes itself, and how it
    trains and measures.

    Attributes:
        settings: the run's, resolved.
        origin: of the weights.
        numbers: of the steps.
        learning_rate: the peak.
        layer_decay: factor of it from each layer group to the one before.
        network: to train, with its new head.
        moved: names of the settings that say where the data are, and now name another place.
        earlier_split: that of a run that goes on; None of a new one, and where its folder has none.
        split: the pictures of each part and their classes.
        bad: (path, reason) of pictures that cannot be read.
        drawings: what draws the pictures of the results, called when all else is written.

    Raises:
        ConvsparkError: whatever is wrong with the settings; nothing was written yet.
    """

    usual_layer_decay: ClassVar[float]
    """The default, for weights that were trained before."""

    can_accumulate: ClassVar[bool] = False
    """Whether the command can divide a batch into passes."""

    takes_bands: ClassVar[bool] = True
    """Whether pictures may be of other pixels than 8-bit colour or grey."""

    @property
    def mixes_pairs(self) -> bool:
        """Whether pictures are mixed with their neighbours, so that each process needs an even number of them."""
        return False

    def __init__(self, run: Run[S]) -> None:
        self.settings: S = run.settings
        self.drawings: list[Callable[[], None]] = []
        self.settings.check()
        self.origin: Origin = find_weights(self.settings.weights, self.settings.model, self.settings.partial)
        if not self.takes_bands:
            self.origin.check_pictures()
        self.moved = run.moved
        self.earlier_split = Split.kept_in(str(run.folder.path)) if run.goes_on else None
        if self.earlier_split and run.moved:
            self.earlier_split = self.earlier_split.moved(**self.new_places())
        self.split: Split
        self.bad: list[tuple[str, str]] = []
        images = self.read()
        _tell_of_shared(self.split)
        self.device = choose_device(self.settings.device)
        precision = self.choose_precision()
        chosen = self.choose(images)
        steps = chosen.batch_size, chosen.epochs, chosen.warmup_epochs, chosen.accumulate
        self.numbers = count(
            images,
            *steps,
            processes=run.here.count,
            device_batch_size=chosen.device_batch_size,
            steps=chosen.steps,
            in_pairs=self.mixes_pairs,
        )
        tell_of_large_passes(self.numbers, run.here.count, chosen.device_batch_size)
        self.learning_rate = chosen.learning_rate
        self.layer_decay = 1.0 if self.origin.is_random else self.usual_layer_decay
        if self.settings.layer_decay is not None:
            self.layer_decay = self.settings.layer_decay
        workers = self.settings.workers
        self.workers = default_workers(self.device, run.here.local_count) if workers is None else workers
        self.settings = replace(
            self.settings,
            model=self.origin.model,  # so that the folder can be used as WEIGHTS
            epochs=chosen.epochs,
            batch_size=chosen.batch_size,
            learning_rate=chosen.learning_rate,
            layer_decay=self.layer_decay,
            precision=precision,
        )
        self.network = self.build().train()

    @abstractmethod
    def new_places(self) -> dict[str, tuple[str, list[str] | None] | None]:
        """Of each part of `earlier_split`, where its pictures are now that the settings `moved` name another place: a
        folder, or a file and the pictures that it names; None of a part that stays.
        """

    @abstractmethod
    def read(self) -> int:
        """Read the data, by `earlier_split` or anew, and set `split` and `bad`; the number of pictures to train on."""

    @abstractmethod
    def choose(self, images: int) -> Chosen:
        """Epochs, batch size and learning rate for so many pictures, where the settings leave them open."""

    @abstractmethod
    def build(self) -> nn.Module:
        """The network, with its new head."""

    @abstractmethod
    def describe(self) -> list[str]:
        """The effective numbers, for the log."""

    @abstractmethod
    def train(self, run: Run[S]) -> None:
        """Train to the end (`fit`)."""

    @abstractmethod
    def measured(self, run: Run[S]) -> R:
        """Measure what was trained, write the weights into the run's folder, and add to `drawings`."""

    @property
    def name(self) -> str:
        """Of the run folder, where the settings name none."""
        return f"{self.settings.kind}-{self.origin.model}"

    def begin(self, run: Run[S]) -> None:
        """Write which pictures are of which part, and the classes; and what could not be read."""
        if run.last_checkpoint is None or run.moved:  # once there is a checkpoint, the network's outputs depend on it
            write_text(run.folder.path / self.split.FILE, self.split.with_sizes().as_text())
            run.keep_places()
        write_bad_files(run.folder, self.bad)

    def finish(self, run: Run[S]) -> R:
        """As `measured`, with the result in `results.json` too, the pictures drawn at last, and the page about it."""
        result = self.measured(run)
        run.keep(result)
        for draw in self.drawings:
            draw_at_last(draw)
        write_page_at_last(run.folder, type(self.settings))
        return result

    def choose_precision(self) -> Literal["fp32", "bf16"]:
        return choose_precision(self.settings.precision, self.device)

    def in_channels_last(self, network: nn.Module) -> nn.Module:
        """Its weights where that is faster."""
        return network if self.device.type == "mps" else network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def schedule(self) -> Schedule:
        decay = self.settings.weight_decay
        return Schedule(self.learning_rate, self.numbers.steps, self.numbers.warmup_steps, (decay, decay))

    def fit(
        self,
        run: Run[S],
        module: TrainingModule,
        dataset: PretrainImages,
        validation: MeasuringLoader,
        gradient_clip: float | None = 5.0,
        collate: Callable[..., Any] | None = None,
    ) -> KeepBest:
        """Train to the end, from the folder's last checkpoint where there is one; keeps the best weights.

        Args:
            gradient_clip: largest norm of a step's gradient, where the settings have none; None for any.
        """
        s, n = self.settings, self.numbers
        pin = self.device.type == "cuda"
        train = TrainLoader(
            dataset,
            n.batch_size,
            n.accumulate,
            s.seed,
            self.workers,
            pin,
            collate,
            run.here,
            batches=n.steps_per_epoch,
            apart=True,  # pictures are mixed with their neighbours
        )
        if s.gradient_clip is not None:
            gradient_clip = s.gradient_clip or None
        best = KeepBest(run.folder)
        module.described = self.origin.as_record()
        fit(
            module,
            run.folder,
            train,
            validation,
            here=run.here,
            last=run.last_checkpoint if run.here.is_first else None,
            device=self.device,
            precision=s.precision,
            epochs=n.epochs,
            gradient_clip=gradient_clip,
            callbacks=[best],
            checkpoint_minutes=s.checkpoint_minutes,
            measure_every=defaults.measure_every(n.epochs),
            go_on=run.folder.going_on,
            can_accumulate=self.can_accumulate,
        )
        return best


def _tell_of_shared(split: Split) -> None:
    """Warn of pictures that are trained on and measured with."""
    trained = frozenset(map(os.path.abspath, split.train))
    shared = [path for path in (*split.val, *split.test) if os.path.abspath(path) in trained]
    if shared:
        logger.warning(
            "%d of the %d pictures to measure with are trained on, too, so that what is measured tells little of other "
            "pictures: %s",
            len(shared),
            len(split.val) + len(split.test),
            some(shared),
        )


def one_by_one(pictures: int, here: Processes) -> MeasuringLoader:
    """The places of pictures to validate with, of unequal sizes."""
    return MeasuringLoader(range(pictures), 1, here=here)  # type: ignore[arg-type]


def adamw(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999))
