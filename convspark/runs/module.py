"""The Lightning module of any training: rates, random numbers and the loss of a step, and what is measured after."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import ConvsparkError, DivergedError
from ..model.jointly import Jointly
from ..parts import Part
from ..seeds import Use, counted_seed
from .loading import MeasuringLoader, TrainLoader
from .optimizer import set_rates
from .processes import ALONE, Processes
from .schedule import Schedule

# A GPU is asked for the loss's value only so often: each question makes the host wait for the device.
_STEPS_BETWEEN_CHECKS = 20


class TrainingModule(pl.LightningModule):
    """What every training has in common: rates set before each step, random numbers counted by (seed, step), a loss
    that is watched.

    All randomness of a step follows from (seed, step, an image's place in the batch), so that a run that was
    interrupted takes the very steps that it would have taken, on however many processes. A task says what a step is
    (`loss_of`) and what it measures on images that are not trained on (`measure`, `summarise`).

    Args:
        make_optimizer: called when the parameters are where they will be trained; and for what a checkpoint must fit.
        schedule: learning rate and weight decay of each step.
        seed: of everything random in a step.

    Attributes:
        train_loss: mean loss of the epoch's steps so far.
        measured: by name, what was measured after the last epoch; empty where nothing is held out.
        measures: those names, the columns of `metrics.csv`.
        described: how its network is built and pictures are read (`checkpoints.Origin.as_record`), kept in checkpoints,
            so that one is enough to take the weights from; None if the network has no name.
        has_begun: whether all that a checkpoint held is back in its place.
    """

    measures: tuple[str, ...] = ()
    described: Mapping[str, Any] | None = None

    def __init__(self, make_optimizer: Callable[[], torch.optim.Optimizer], schedule: Schedule, seed: int = 0) -> None:
        super().__init__()
        self.schedule = schedule
        self.seed = seed
        self.measured: dict[str, float] = {}
        self.has_begun = False
        self._make_optimizer = make_optimizer
        self._train: TrainLoader | None = None
        self._held_out: MeasuringLoader | None = None
        self._sum: Tensor | float = 0.0
        self._count = 0
        self._jointly: Jointly | None = None
        self._measurements: list[tuple[int, Any]] = []
        self._checked: int | None = None  # the step after which the weights were last looked at
        self._watched: frozenset[str] = frozenset()

    def read_from(self, train: TrainLoader, held_out: MeasuringLoader | None) -> None:
        """Set where its batches come from; it follows which part of a whole batch each of them is."""
        self._train, self._held_out = train, held_out

    def loss_of(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of one forward pass to train on, a single number."""
        raise NotImplementedError

    def measure(self, batch: Any, number: int) -> Any:
        """What `summarise` needs of held-out batch `number`."""
        raise NotImplementedError

    def summarise(self, measurements: list[Any]) -> dict[str, float]:
        """The values of `measures`, from what `measure` returned for all batches, in their order."""
        raise NotImplementedError

    def let_go(self) -> str | None:
        """Free what it keeps in the device's memory only to be quicker; the flag that has it keep nothing."""

    @property
    def here(self) -> Processes:
        """The processes that train it."""
        return ALONE if self._train is None else self._train.here

    def part(self, images: int, batch_idx: int) -> Part:
        """Which part of the batch of a step so many images are, those of a pass; in a trial, all of it."""
        part = self._part_of_pass(batch_idx)
        return Part(0, images, images) if part is None or part.images != images else part

    def _part_of_pass(self, batch_idx: int) -> Part | None:
        return None if self._train is None else self._train.order.part(batch_idx % self._train.accumulate)

    def place(self, batch_idx: int) -> tuple[int, int]:
        """(step of the run, step of the epoch) that a pass belongs to: the same for all passes of a batch."""
        return self.global_step, batch_idx if self._train is None else batch_idx // self._train.accumulate

    def figures(self) -> dict[str, float | None]:
        """The values of `measures` after an epoch; None of what was not measured."""
        return {name: self.measured.get(name) for name in self.measures}

    def describe_measured(self) -> str:
        """What was measured after an epoch, in a few words; empty if nothing was."""
        return "  ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in self.measured.items())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self._make_optimizer()

    def on_train_start(self) -> None:
        self.has_begun = True
        # Statistics and averages; other buffers may hold infinities on purpose, as masks do.
        state = self.state_dict()
        buffers = ((name, value) for name, value in self.named_buffers() if name in state and value.is_floating_point())
        self._watched = frozenset(name for name, value in buffers if value.isfinite().all())

    def on_train_epoch_start(self) -> None:
        self._sum, self._count = 0.0, 0
        self.measured = {}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        step = self.global_step
        set_rates(self.trainer.optimizers[0], self.schedule.learning_rate(step), self.schedule.weight_decay(step))
        torch.manual_seed(counted_seed(self.seed, Use.STEP, *self.place(batch_idx)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        looks = self.device.type == "cpu" or self.global_step % _STEPS_BETWEEN_CHECKS == 0
        if looks:
            self._check_weights()  # before a pass changes what statistics there are
        self._jointly = self._mode(batch_idx)
        with self._jointly or nullcontext():
            loss = self.loss_of(batch, batch_idx)
        self._sum = self._sum + loss.detach()
        self._count += 1
        if looks:
            self._check_loss(self.global_step + 1)
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        with self._jointly.backwards() if self._jointly else nullcontext():
            super().backward(loss, *args, **kwargs)

    def _mode(self, batch_idx: int) -> Jointly | None:
        """The mode in which a part of a batch is computed; None for a whole one."""
        part = self._part_of_pass(batch_idx)
        if part is None or part.is_whole:
            return None
        return Jointly(*part, dist.group.WORLD if self.here.are_several else None)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        number = batch_idx if self._held_out is None else self._held_out.number(batch_idx)
        self._measurements.append((number, self.measure(batch, number)))

    def on_validation_epoch_start(self) -> None:
        self._measurements = []

    def on_validation_epoch_end(self) -> None:
        measurements = self._measurements if self._held_out is None else self._held_out.of_all(self._measurements)
        self.measured = self.summarise([value for _, value in sorted(measurements, key=lambda pair: pair[0])])

    @property
    def train_loss(self) -> float:
        return float(self._sum) / max(1, self._count)

    def join_losses(self) -> None:
        """Make `train_loss` that of all processes, which all call it."""
        if self.here.are_several:
            sums = self.here.gathered((float(self._sum), self._count))
            self._sum, self._count = (sum(values) / len(sums) for values in zip(*sums, strict=True))

    def check_finite(self) -> None:
        """Raise DivergedError if a loss of this epoch was not a number, or the weights are no longer finite.

        A loss may be finite when its gradients, or the step that they lead to, are not.
        """
        self._check_weights()
        self._check_loss(self.global_step)

    def _check_weights(self) -> None:
        if self.global_step != self._checked:
            if not self._weights_are_finite():
                raise self.diverged("the weights are no longer finite numbers", self.global_step)
            self._checked = self.global_step

    def _check_loss(self, step: int) -> None:
        if not np.isfinite(float(self._sum)):
            raise self.diverged("the loss is no longer a finite number", step)

    def _weights_are_finite(self) -> bool:
        buffers = (value for name, value in self.named_buffers() if name in self._watched)
        values = [value.detach() for value in (*self.parameters(), *buffers) if value.numel()]
        return bool(nn.utils.get_total_norm(values, torch.inf).isfinite())

    def diverged(self, what: str, step: int) -> DivergedError:
        """The error that says what happened, at which step (from 1), and what to try."""
        rate = self.schedule.learning_rate(max(0, step - 1))
        return DivergedError(
            f"{what} at step {step} of {self.schedule.steps} (epoch "
            f"{self.current_epoch + 1}, learning rate {rate:.3g}). Try half the "
            f"--learning-rate ({self.schedule.peak_lr / 2:.2g}), a longer --warmup-epochs, or --precision fp32"
        )

    def epoch_state(self) -> dict[str, Any]:
        """Running sums of an epoch that is not over, for a checkpoint in its midst, and what tells runs apart; each
        process calls it."""
        self.join_losses()
        return {"sum": float(self._sum), "count": self._count, **self._told_apart_by}

    @cached_property
    def _told_apart_by(self) -> dict[str, Any]:
        optimizer = type(self._make_optimizer()).__name__
        return {"of_steps": self.schedule.steps, "seed": self.seed, "optimizer": optimizer}

    def load_epoch_state(self, state: dict[str, Any]) -> None:
        own = self._told_apart_by
        there = own | {key: state[key] for key in own if key in state}  # older versions did not write all
        if there != own:
            raise ConvsparkError(
                f"the checkpoint is of another run, one of {there['of_steps']} steps of {there['optimizer']} with the "
                f"seed {there['seed']}, where this one has {own['of_steps']} of {own['optimizer']} and {own['seed']}: "
                "put the run's own checkpoint there, or start a new run"
            )
        self._sum, self._count = float(state["sum"]), int(state["count"])


def channels_last(images: Tensor) -> Tensor:
    """(B, C, H, W) in the memory format that convolutions are quickest in; volumes as they are."""
    return images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images
