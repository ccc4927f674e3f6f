"""What a step of pre-training is: masks counted by (seed, step), the loss, and the loss on held-out images."""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ..model.spark import SparK
from ..model.target import patch_statistics, split_patches
from ..parts import Part
from ..runs.graphs import Graphed, Loss
from ..runs.memory import collect, is_out_of_memory
from ..runs.module import TrainingModule, channels_last
from ..runs.schedule import Schedule
from ..seeds import Use, counted_seed
from ..sparse import PatchGrid

logger = logging.getLogger(__name__)

T = TypeVar("T")


def counted_grid(model: SparK, images: Tensor, seed: int, use: Use, *place: int, part: Part | None = None) -> PatchGrid:
    """The mask of a batch of images (B, C, H, W): a function of (seed, use, place …), the same on every device.

    Args:
        part: which part of the batch the images are; None for all of it.
    """
    generator = torch.Generator().manual_seed(counted_seed(seed, use, *place))
    shape = model.grid_shape(images.shape[2:])
    first, count, total = part or Part(0, len(images), len(images))
    return model.draw_masks(count, shape, model.mask_ratio, generator, images.device, first=first, total=total)


class Measured(NamedTuple):
    """What is measured of a batch of held-out images."""

    loss: float
    deviation: float
    """Of the pixels predicted for a masked patch, in units of the true ones' deviation: 0 of plain grey."""
    images: int


class PretrainModule(TrainingModule):
    """Pre-trains a SparK model, masks counted by (seed, step).

    Args:
        model: the model; `.model` here, so that its checkpoint keys begin with `model.`.
        make_optimizer, schedule, seed: see `TrainingModule`.
        gradient_clip: the norm that a step's gradient is cut to; steps whose gradient is cut are counted.
        normalise: makes numbers of images that come in bytes.

    Attributes:
        step_loss: the loss of a training step, which may be computed in a quicker way than by calling the model.
    """

    measures = ("held_out_loss", "prediction_deviation", "gradient_norm", "clipped_share")

    def __init__(
        self,
        model: SparK,
        make_optimizer: Callable[[], torch.optim.Optimizer],
        schedule: Schedule,
        seed: int = 0,
        gradient_clip: float = float("inf"),
        normalise: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(make_optimizer, schedule, seed)
        self.model = model
        self.normalise = normalise
        self.step_loss: Loss = lambda images, grid: model(images, grid).loss
        self._clip = gradient_clip
        # Of the epoch's steps so far. Tensors where they were computed: reading one makes the host wait for a GPU.
        self._norms: Tensor | float = 0.0
        self._clipped: Tensor | float = 0.0
        self._steps = 0

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self._norms, self._clipped, self._steps = 0.0, 0.0, 0

    def images_of(self, batch: Tensor) -> Tensor:
        """A batch (B, C, H, W) as the model takes it: normalised, in the quickest memory format."""
        if self.normalise is not None and batch.dtype == torch.uint8:
            batch = self.normalise(batch)
        return channels_last(batch)

    def loss_of(self, batch: Tensor, batch_idx: int) -> Tensor:
        images = self.images_of(batch)
        part = self.part(len(images), batch_idx)
        grid = counted_grid(self.model, images, self.seed, Use.MASK, *self.place(batch_idx), part=part)
        return self.step_loss(images, grid)

    def let_go(self) -> str | None:
        if not isinstance(self.step_loss, Graphed):
            return None
        self.step_loss = self.step_loss.loss
        return "--cuda-graph false"

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # Before it is cut, and of all processes: their gradients are one by now.
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters() if p.grad is not None])
        self._norms = self._norms + norm
        self._clipped = self._clipped + (norm > self._clip)
        self._steps += 1

    def figures(self) -> dict[str, float | None]:
        if not self._steps:
            return super().figures()
        norms, clipped = float(self._norms) / self._steps, float(self._clipped) / self._steps
        return super().figures() | {"gradient_norm": norms, "clipped_share": clipped}

    def describe_measured(self) -> str:
        return f"held out {self.measured['held_out_loss']:.4f}" if self.measured else ""

    def measure(self, batch: Tensor | list[Tensor], number: int) -> Measured:
        return self.with_room(lambda: self._measure(batch, number))

    def with_room(self, look: Callable[[], T]) -> T:
        """What a look at the model gives between steps; where memory is short, without what is recorded of these."""
        try:
            return look()
        except RuntimeError as error:
            if not is_out_of_memory(error) or self.let_go() is None:
                raise
        # A recording keeps the memory of a step to itself.
        logger.warning("too little memory to measure beside a recorded step: from here on steps are launched by Python")
        collect()
        return look()

    def _measure(self, batch: Tensor | list[Tensor], number: int) -> Measured:
        images = channels_last(batch if isinstance(batch, Tensor) else batch[0])
        grid = counted_grid(self.model, images, self.seed, Use.HELD_OUT_MASK, number)
        out = self.model(images, grid)
        patches = split_patches(out.prediction.float(), self.model.patch_size)  # (B, C, h, P, w, P)
        deviations = patches.std((1, *range(3, patches.ndim, 2)))  # of each patch
        if self.model.target == "raw":  # else the prediction is in units of the true deviation already
            deviations = deviations / patch_statistics(images, self.model.patch_size)[1].view_as(deviations)
        deviations = deviations[~grid.visible]
        return Measured(float(out.loss), float(deviations.mean()), len(images))

    def summarise(self, measurements: list[Measured]) -> dict[str, float]:
        count = max(1, sum(batch.images for batch in measurements))
        loss, deviation = (sum(batch[i] * batch.images for batch in measurements) / count for i in (0, 1))
        return {"held_out_loss": loss, "prediction_deviation": deviation}

    def epoch_state(self) -> dict[str, Any]:
        gradients = {"norms": float(self._norms), "clipped": float(self._clipped), "steps": self._steps}
        return super().epoch_state() | gradients

    def load_epoch_state(self, state: dict[str, Any]) -> None:
        super().load_epoch_state(state)
        self._norms, self._clipped = float(state.get("norms", 0)), float(state.get("clipped", 0))
        self._steps = int(state.get("steps", 0))
