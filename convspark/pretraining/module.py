"""What a step of pre-training is: masks counted by (seed, step), the loss, and the loss on held-out images."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..model.spark import SparK
from ..parts import Part
from ..runs.graphs import Loss
from ..runs.module import TrainingModule, channels_last
from ..runs.schedule import Schedule
from ..seeds import Use, counted_seed
from ..sparse import PatchGrid


def counted_grid(model: SparK, images: Tensor, seed: int, use: Use, *place: int, part: Part | None = None) -> PatchGrid:
    """The mask of a batch of images (B, C, H, W): a function of (seed, use, place …), the same on every device.

    Args:
        part: which part of the batch the images are; None for all of it.
    """
    generator = torch.Generator().manual_seed(counted_seed(seed, use, *place))
    shape = model.grid_shape(images.shape[2:])
    first, count, total = part or Part(0, len(images), len(images))
    return model.draw_masks(count, shape, model.mask_ratio, generator, images.device, first=first, total=total)


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

    def loss_of(self, batch: Tensor, batch_idx: int) -> Tensor:
        images = channels_last(batch)
        part = self.part(len(images), batch_idx)
        grid = counted_grid(self.model, images, self.seed, Use.MASK, *self.place(batch_idx), part=part)
        return self.step_loss(images, grid)

    def describe_measured(self) -> str:
        return f"held out {self.measured['held_out_loss']:.4f}" if self.measured else ""

    def measure(self, batch: Tensor | list[Tensor], number: int) -> tuple[float, int]:
        """The loss of a batch, and its images."""
        images = channels_last(batch if isinstance(batch, Tensor) else batch[0])
        grid = counted_grid(self.model, images, self.seed, Use.HELD_OUT_MASK, number)
        return float(self.model(images, grid).loss), len(images)

    def summarise(self, found: list[tuple[float, int]]) -> dict[str, float]:
        count = sum(images for _, images in found)
        return {"held_out_loss": sum(loss * images for loss, images in found) / max(1, count)}
