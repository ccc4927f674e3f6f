"""The Lightning module of a pre-training run: what happens in a step."""

from collections.abc import Callable

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from ..errors import DivergedError
from ..model.spark import SparK
from ..sparse import PatchGrid
from .optimizer import set_rates
from .schedule import Schedule

# Second word of every random counter of training; those of convspark.data are smaller.
MASK, HELD_OUT_MASK, STEP = 101, 102, 103

# A GPU is asked for the loss's value only so often: each question makes the host wait for the device.
_STEPS_BETWEEN_CHECKS = 20


def counted_seed(*words: int) -> int:
    """A 63-bit seed that is a function of its words alone, for `(seed, purpose, step, …)`."""
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


def counted_grid(model: SparK, images: Tensor, *words: int) -> PatchGrid:
    """The mask of a batch of images (B, C, H, W), a function of the words alone and the same on every device."""
    generator = torch.Generator().manual_seed(counted_seed(*words))
    shape = model.grid_shape(images.shape[2:])
    return PatchGrid.random(len(images), shape, mask_ratio=model.mask_ratio, generator=generator, device=images.device)


class PretrainModule(pl.LightningModule):
    """Pre-trains a SparK model: rates set before each step, masks counted by (seed, step), losses watched.

    All randomness of a step (mask, stochastic depth) follows from (seed, step), so that a run that was interrupted
    takes the very steps that it would have taken.

    Args:
        model: the model; `.model` here, so that its checkpoint keys begin with `model.`.
        make_optimizer: called once, when the parameters are where they will be trained.
        schedule: learning rate and weight decay of each step.
        seed: of masks and stochastic depth.

    Attributes:
        train_loss: mean loss of the epoch's steps so far.
        held_out_loss: mean loss of the held-out images after the last epoch, or None.
    """

    def __init__(
        self,
        model: SparK,
        make_optimizer: Callable[[], torch.optim.Optimizer],
        schedule: Schedule,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.schedule = schedule
        self.seed = seed
        self.held_out_loss: float | None = None
        self._make_optimizer = make_optimizer
        self._sum: Tensor | float = 0.0
        self._count = 0
        self._held_out_sum = 0.0
        self._held_out_count = 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self._make_optimizer()

    def on_train_epoch_start(self) -> None:
        self._sum, self._count = 0.0, 0

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
        step = self.global_step
        set_rates(self.trainer.optimizers[0], self.schedule.learning_rate(step), self.schedule.weight_decay(step))
        torch.manual_seed(counted_seed(self.seed, STEP, step, batch_idx))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        step = self.global_step
        images = _channels_last(batch)
        grid = counted_grid(self.model, images, self.seed, MASK, step, batch_idx)
        loss = self.model(images, grid).loss
        self._sum = self._sum + loss.detach()
        self._count += 1
        if loss.device.type == "cpu" or step % _STEPS_BETWEEN_CHECKS == 0:
            self.check_finite()
        return loss

    def on_validation_epoch_start(self) -> None:
        self._held_out_sum, self._held_out_count = 0.0, 0

    def validation_step(self, batch: Tensor | list[Tensor], batch_idx: int) -> None:
        images = _channels_last(batch if isinstance(batch, Tensor) else batch[0])
        grid = counted_grid(self.model, images, self.seed, HELD_OUT_MASK, batch_idx)
        self._held_out_sum += float(self.model(images, grid).loss) * len(images)
        self._held_out_count += len(images)

    def on_validation_epoch_end(self) -> None:
        self.held_out_loss = self._held_out_sum / max(1, self._held_out_count)

    @property
    def train_loss(self) -> float:
        return float(self._sum) / max(1, self._count)

    def check_finite(self) -> None:
        """Raise DivergedError if a loss of this epoch was not a number."""
        if np.isfinite(float(self._sum)):
            return
        step = self.global_step
        raise DivergedError(
            f"the loss is no longer a finite number at step {step + 1} of {self.schedule.steps} (epoch "
            f"{self.current_epoch + 1}, learning rate {self.schedule.learning_rate(step):.3g}). Try half the "
            f"--learning-rate ({self.schedule.peak_lr / 2:.2g}), a longer --warmup-epochs, or --precision fp32"
        )

    def epoch_state(self) -> dict[str, float]:
        """Running sums of an epoch that is not over, for a checkpoint in its midst."""
        return {"sum": float(self._sum), "count": self._count}

    def load_epoch_state(self, state: dict[str, float]) -> None:
        self._sum, self._count = float(state["sum"]), int(state["count"])


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images
