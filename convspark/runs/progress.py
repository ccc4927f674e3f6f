"""What a user sees of a run that goes on: a bar on a terminal, plain lines elsewhere."""

import logging
import os
import sys
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from .callbacks import Stopwatch
from .folder import available_cores
from .module import TrainingModule
from .numbers import format_seconds
from .warned import Warned

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 60.0
_SECONDS_BETWEEN_LOSSES = 1.0
_LINES, _SECONDS_BETWEEN_EPOCHS = 100, 30.0
_WAIT_WORTH_SAYING = 0.1


class Progress(Callback):
    """A line an epoch, for some of very many short ones; between them a bar on a terminal, elsewhere a line at times.

    Args:
        stopwatch: whose speed is shown; it must come before this callback.
        workers: processes that load images.
        warned: where the warning about waiting for images goes.
        bar: whether to draw a bar; None for one if stderr is a terminal that can.
    """

    def __init__(self, stopwatch: Stopwatch, workers: int, warned: Warned, bar: bool | None = None) -> None:
        self._watch = stopwatch
        self._warned = warned
        self._workers = workers
        can_draw = sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
        self._wants_bar = can_draw if bar is None else bar
        self._bar: Any = None
        self._task: Any = None
        self._started = 0.0
        self._first_step = 0
        self._spoke = 0.0
        self._said = 0.0
        self._looked = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = self._spoke = time.monotonic()
        self._first_step = trainer.global_step
        if self._wants_bar:
            self._bar, self._task = _make_bar(_steps(pl_module), trainer.global_step)
            self._bar.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Tensor, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        now = time.monotonic()
        if self._bar is not None:
            fields = {"completed": trainer.global_step, "left": self._time_left(trainer, pl_module)}
            if now - self._looked > _SECONDS_BETWEEN_LOSSES:  # reading the loss makes the host wait for a GPU
                self._looked = now
                fields["text"] = (
                    f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  loss {pl_module.train_loss:.3f}  "
                    f"{self._watch.images_per_second:.0f} images/s"
                )
            self._bar.update(self._task, **fields)
        elif now - self._spoke > _SECONDS_BETWEEN_LINES:
            self._spoke = now
            logger.info(
                "epoch %d/%d  step %d/%d  loss %.4f  %.1f images/s  %s left",
                trainer.current_epoch + 1,
                trainer.max_epochs,
                trainer.global_step,
                _steps(pl_module),
                pl_module.train_loss,
                self._watch.images_per_second,
                self._time_left(trainer, pl_module),
            )
            self._mention_waiting(trainer)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        epoch, done = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", batch_idx + 1
        of, now = trainer.num_val_batches[dataloader_idx], time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, text=f"{epoch}  measuring {done}/{of}")
        elif now - self._spoke > _SECONDS_BETWEEN_LINES:
            self._spoke = now
            logger.info("%s  measuring, batch %d/%d", epoch, done, of)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule) and trainer.max_epochs is not None
        now, epoch = time.monotonic(), trainer.current_epoch + 1
        is_due = epoch in (1, trainer.max_epochs) or epoch % max(1, trainer.max_epochs // _LINES) == 0
        if not is_due and now - self._said < _SECONDS_BETWEEN_EPOCHS:  # few pictures make a thousand short ones
            return
        self._spoke = self._said = now
        share = self._watch.data_wait_share
        parts = [
            f"epoch {epoch:{len(str(trainer.max_epochs))}d}/{trainer.max_epochs}",
            f"loss {pl_module.train_loss:.4f}",
            *filter(None, [pl_module.describe_measured()]),
            f"{self._watch.images_per_second:.1f} images/s",
            *([f"{100 * share:.0f} % of the time waiting for images"] if share > _WAIT_WORTH_SAYING else []),
            f"{self._time_left(trainer, pl_module)} left",
        ]
        logger.info("  ".join(parts))
        self._mention_waiting(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _time_left(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> str:
        """The time left, at the pace since the run began or went on: validation and writing included."""
        done = trainer.global_step - self._first_step
        seconds = (time.monotonic() - self._started) / max(1, done)
        return format_seconds(seconds * (_steps(pl_module) - trainer.global_step))

    def _mention_waiting(self, trainer: pl.Trainer) -> None:
        """Warn about it, and say what to do."""
        share = self._watch.data_wait_share
        if share > _WAIT_WORTH_SAYING:
            text = (
                f"{100 * share:.0f} % of the time goes into waiting for images: try more --workers (now "
                f"{self._workers}; there are {available_cores()} cores), smaller pictures on the disk, or a faster disk"
            )
            self._warned.tell(trainer, "waiting", text)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _steps(pl_module: pl.LightningModule) -> int:
    assert isinstance(pl_module, TrainingModule)
    return pl_module.schedule.steps


def _make_bar(total: int, completed: int) -> tuple[Any, Any]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from .logs import console

    columns = (
        TextColumn("{task.fields[text]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]} left"),
    )
    bar = Progress(*columns, console=console(), transient=True, redirect_stdout=False, redirect_stderr=False)
    return bar, bar.add_task("", total=total, completed=completed, text="starting", left="?")
