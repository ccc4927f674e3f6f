"""Warnings about a run, each once, in the log and in the run's folder."""

import logging

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from .folder import RunFolder
from .rows import Rows

logger = logging.getLogger(__name__)


class Warned(Callback):
    """Keeps `warnings.csv`: the warnings about this run, each once, also where it goes on."""

    def __init__(self, folder: RunFolder) -> None:
        self._rows = Rows(folder.warnings)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._rows.read(trainer.global_step)

    def tell(self, trainer: pl.Trainer, kind: str, text: str) -> None:
        """Warn, unless there was a warning of this kind before; the first process alone writes.

        Args:
            text: what is the matter, and what to do.
        """
        if not trainer.is_global_zero or any(row["kind"] == kind for row in self._rows.rows):
            return
        logger.warning("%s", text)
        self._rows.add({"epoch": trainer.current_epoch + 1, "step": trainer.global_step, "kind": kind, "text": text})
        self._rows.write()
