"""The Lightning module of any training: rates, random numbers and the loss of a step."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from ..errors import DivergedError
from ..seeds import Use, counted_seed
from .optimizer import set_rates
from .schedule import Schedule

# A GPU is asked for the loss's value only so often: each question makes the host wait for the device.
_STEPS_BETWEEN_CHECKS = 20


class TrainingModule(pl.LightningModule):
    """What every training has in common: rates set before each step, random numbers counted by (seed, step), a loss
    that is watched.

    All randomness of a step follows from (seed, step), so that a run that was interrupted takes the very steps that it
    would have taken. A task says what a step is (`loss_of`) and what it measures on images that are not trained on.

    Args:
        make_optimizer: called once, when the parameters are where they will be trained.
        schedule: learning rate and weight decay of each step.
        seed: of everything random in a step.

    Attributes:
        train_loss: mean loss of the epoch's steps so far.
        measured: by name, what was measured after the last epoch; empty where nothing is held out.
        measures: those names, the columns of `metrics.csv`.
    """

    measures: tuple[str, ...] = ()

    def __init__(self, make_optimizer: Callable[[], torch.optim.Optimizer], schedule: Schedule, seed: int = 0) -> None:
        super().__init__()
        self.schedule = schedule
        self.seed = seed
        self.measured: dict[str, float] = {}
        self._make_optimizer = make_optimizer
        self._sum: Tensor | float = 0.0
        self._count = 0

    def loss_of(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of one batch to train on, a single number."""
        raise NotImplementedError

    def describe_measured(self) -> str:
        """What was measured after an epoch, in a few words; empty if nothing was."""
        return "  ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in self.measured.items())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self._make_optimizer()

    def on_train_epoch_start(self) -> None:
        self._sum, self._count = 0.0, 0
        self.measured = {}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        step = self.global_step
        set_rates(self.trainer.optimizers[0], self.schedule.learning_rate(step), self.schedule.weight_decay(step))
        torch.manual_seed(counted_seed(self.seed, Use.STEP, step, batch_idx))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss_of(batch, batch_idx)
        self._sum = self._sum + loss.detach()
        self._count += 1
        if loss.device.type == "cpu" or self.global_step % _STEPS_BETWEEN_CHECKS == 0:
            self.check_finite()
        return loss

    @property
    def train_loss(self) -> float:
        return float(self._sum) / max(1, self._count)

    def check_finite(self) -> None:
        """Raise DivergedError if a loss of this epoch was not a number."""
        if not np.isfinite(float(self._sum)):
            raise self.diverged("the loss is no longer a finite number")

    def diverged(self, what: str) -> DivergedError:
        """The error that tells what happened, when, and what to try."""
        step = self.global_step
        return DivergedError(
            f"{what} at step {step + 1} of {self.schedule.steps} (epoch "
            f"{self.current_epoch + 1}, learning rate {self.schedule.learning_rate(step):.3g}). Try half the "
            f"--learning-rate ({self.schedule.peak_lr / 2:.2g}), a longer --warmup-epochs, or --precision fp32"
        )

    def epoch_state(self) -> dict[str, float]:
        """Running sums of an epoch that is not over, for a checkpoint in its midst."""
        return {"sum": float(self._sum), "count": self._count}

    def load_epoch_state(self, state: dict[str, float]) -> None:
        self._sum, self._count = float(state["sum"]), int(state["count"])


def channels_last(images: Tensor) -> Tensor:
    """(B, C, H, W) in the memory format that convolutions are quickest in; volumes as they are."""
    return images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images
