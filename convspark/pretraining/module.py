"""What a step of pre-training is: masks counted by (seed, step), the loss, and the loss on held-out images."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..model.spark import SparK
from ..runs.graphs import Loss
from ..runs.module import TrainingModule, channels_last
from ..runs.schedule import Schedule
from ..seeds import Use, counted_seed
from ..sparse import PatchGrid


def counted_grid(model: SparK, images: Tensor, seed: int, use: Use, *place: int) -> PatchGrid:
    """The mask of a batch of images (B, C, H, W): a function of (seed, use, place …), the same on every device."""
    generator = torch.Generator().manual_seed(counted_seed(seed, use, *place))
    shape = model.grid_shape(images.shape[2:])
    return PatchGrid.random(len(images), shape, mask_ratio=model.mask_ratio, generator=generator, device=images.device)


class PretrainModule(TrainingModule):
    """Pre-trains a SparK model, masks counted by (seed, step).

    Args:
        model: the model; `.model` here, so that its checkpoint keys begin with `model.`.
        make_optimizer, schedule, seed: see `TrainingModule`.

    Attributes:
        step_loss: the loss of a training step, which may be computed in a quicker way than by calling the model.
    """

    measures = ("held_out_loss",)

    def __init__(
        self,
        model: SparK,
        make_optimizer: Callable[[], torch.optim.Optimizer],
        schedule: Schedule,
        seed: int = 0,
    ) -> None:
        super().__init__(make_optimizer, schedule, seed)
        self.model = model
        self.step_loss: Loss = lambda images, grid: model(images, grid).loss
        self._held_out_sum = 0.0
        self._held_out_count = 0

    def loss_of(self, batch: Tensor, batch_idx: int) -> Tensor:
        images = channels_last(batch)
        grid = counted_grid(self.model, images, self.seed, Use.MASK, self.global_step, batch_idx)
        return self.step_loss(images, grid)

    def describe_measured(self) -> str:
        return f"held out {self.measured['held_out_loss']:.4f}" if self.measured else ""

    def on_validation_epoch_start(self) -> None:
        self._held_out_sum, self._held_out_count = 0.0, 0

    def validation_step(self, batch: Tensor | list[Tensor], batch_idx: int) -> None:
        images = channels_last(batch if isinstance(batch, Tensor) else batch[0])
        grid = counted_grid(self.model, images, self.seed, Use.HELD_OUT_MASK, batch_idx)
        self._held_out_sum += float(self.model(images, grid).loss) * len(images)
        self._held_out_count += len(images)

    def on_validation_epoch_end(self) -> None:
        self.measured = {"held_out_loss": self._held_out_sum / max(1, self._held_out_count)}
