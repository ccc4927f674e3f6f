"""Reconstructions while a run goes on."""

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from ..files import written_whole
from ..report.curves import loss_curves
from ..report.reconstructions import reconstruction_grid
from ..runs.folder import RunFolder
from ..runs.trackers import track_picture
from ..seeds import Use
from .module import PretrainModule, counted_grid


class Pictures(Callback):
    """Draws reconstructions of the same images under the same masks, every few epochs and at the end.

    Args:
        images: (B, C, H, W), normalised by `mean` and `std`.
        epochs: how often; 0 for never.
        captions: one an image.
        show, stretch: see `reconstruction_grid`.
    """

    def __init__(
        self,
        folder: RunFolder,
        images: Tensor,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        epochs: int,
        captions: list[str] | None = None,
        *,
        show: list[int] | None = None,
        stretch: bool = False,
    ) -> None:
        self._folder = folder
        self._images = images
        self._mean, self._std = mean, std
        self._epochs = epochs
        self._captions = captions
        self._show, self._stretch = show, stretch

    @property
    def last(self) -> Path:
        return self._folder.pictures / "last.png"

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if not trainer.is_global_zero or not self._epochs or (epoch % self._epochs and epoch != trainer.max_epochs):
            return
        assert isinstance(pl_module, PretrainModule)
        model = pl_module.model
        images = self._images.to(pl_module.device)
        grid = counted_grid(model, images, pl_module.seed, Use.HELD_OUT_MASK, 0)
        with trainer.precision_plugin.forward_context():
            output = pl_module.with_room(lambda: model.reconstruct(images, grid))
        width = len(str(trainer.max_epochs))
        path = self._folder.pictures / f"epoch_{epoch:0{width}d}.png"
        visible = output.grid.visible.cpu()
        reconstruction_grid(
            self._images,
            output.masked.float().cpu(),
            output.reconstruction.float().cpu(),
            self._mean,
            self._std,
            path,
            self._captions,
            visible,
            show=self._show,
            stretch=self._stretch,
        )
        track_picture(trainer.loggers, "reconstructions", path, trainer.global_step)
        with written_whole(self.last) as temporary:
            temporary.write_bytes(path.read_bytes())
        loss_curves(self._folder.metrics, self._folder.pictures / "curves.png")
