"""What a run writes while it goes on, metrics and checkpoints; and how it is stopped."""

import contextlib
import logging
import os
import signal
import threading
import time
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from ..files import written_whole
from .folder import RunFolder
from .images import write_bad_files
from .loading import MeasuringLoader, TrainLoader
from .module import TrainingModule
from .processes import Agreement
from .rows import Rows
from .slurm import slurm_job
from .trackers import track_figures

logger = logging.getLogger(__name__)


class Interrupted(BaseException):
    """The run was asked to stop and did so at the end of a step, with a checkpoint. Not an error."""


class Stopwatch(Callback):
    """Times the steps of an epoch: images a second, and the share of the time spent waiting for data.

    A step lasts from the request for its batch until it is taken; what comes between steps does not count.

    Attributes:
        images: images seen in this epoch (since a resumed one went on), by this process until `join`.
        seconds: time that took, without validation, writing, and the start of the workers.
        waiting: seconds of it spent waiting for batches (see `TrainLoader.waited`).
    """

    def __init__(self, loader: TrainLoader) -> None:
        self.images = 0
        self.seconds = 0.0
        self.waiting = 0.0
        self._loader = loader

    def join(self) -> None:
        """Make these the numbers of all processes, which all call it."""
        sums = self._loader.here.gathered((self.images, self.seconds, self.waiting))
        images, seconds, waiting = (sum(values) for values in zip(*sums, strict=True))
        self.images, self.seconds, self.waiting = images, seconds / len(sums), waiting / len(sums)

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds else 0.0

    @property
    def data_wait_share(self) -> float:
        return self.waiting / self.seconds if self.seconds else 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.images, self.seconds, self.waiting = 0, 0.0, 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.images += len(batch if isinstance(batch, Tensor) else batch[0])
        self.waiting += self._loader.waited
        self.seconds += self._loader.waited + perf_counter() - self._loader.arrived


class Metrics(Callback):
    """Writes `metrics.csv`, one row an epoch, whole at every moment.

    Rows of steps after the checkpoint that a run goes on from are dropped: those steps are taken again.
    """

    def __init__(self, folder: RunFolder, stopwatch: Stopwatch) -> None:
        self._folder = folder
        self._stopwatch = stopwatch
        self._rows = Rows(folder.metrics)

    @property
    def last(self) -> dict[str, str]:
        """The last row; empty before the first epoch is over."""
        return self._rows.rows[-1] if self._rows.rows else {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.read(trainer.global_step)

    def read(self, last_step: int | None = None) -> None:
        """Take over the rows that a run left, up to a step."""
        self._rows.read(last_step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        pl_module.check_finite()
        step, watch = trainer.global_step, self._stopwatch
        pl_module.join_losses()
        watch.join()
        # The rates of the epoch's last step: `step` counts those taken.
        row = {
            "epoch": trainer.current_epoch + 1,
            "step": step,
            "train_loss": f"{pl_module.train_loss:.6f}",
            **{name: "" if value is None else f"{value:.6f}" for name, value in pl_module.figures().items()},
            "learning_rate": f"{pl_module.schedule.learning_rate(step - 1):.6g}",
            "weight_decay": f"{pl_module.schedule.weight_decay(step - 1):.6g}",
            "images_per_second": f"{watch.images_per_second:.4g}",
            "data_wait_share": f"{watch.data_wait_share:.4f}",
            "seconds": f"{watch.seconds:.3f}",
        }
        self._rows.add(row)
        if not trainer.is_global_zero:
            return
        track_figures(trainer.loggers, row, step)
        self._folder.check_there()
        self._rows.write()


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place, and then moves it there.

    Lightning's own way leads through the folder for temporary files, which may be small, and where a crash leaves them.
    The checkpoint before the last one is kept under another name.
    """

    def __init__(self, folder: RunFolder) -> None:
        super().__init__()
        self._folder = folder

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        self._folder.check_there()
        with written_whole(path) as temporary:
            torch.save(checkpoint, temporary)
            if Path(path) == self._folder.last_checkpoint:
                with contextlib.suppress(FileNotFoundError):
                    os.replace(path, self._folder.previous_checkpoint)


class Checkpoints(Checkpoint):
    """Keeps `checkpoints/last.ckpt`: every so many minutes, at the end, and when the run is asked to stop.

    A checkpoint appears whole or not at all. In the midst of an epoch it holds the place in the epoch's order, too.

    Attributes:
        requeues: whether the run, stopped, is to be started again.

    Args:
        minutes: how much work may be lost at most; the end of an epoch is waited for only if it comes sooner.
        keep_epochs: also keep `epoch_N.ckpt` every so many epochs; None for none.
        held_out: what is measured with, whose bad files are listed, too.
    """

    def __init__(
        self,
        folder: RunFolder,
        loader: TrainLoader,
        minutes: float = 10.0,
        keep_epochs: int | None = None,
        held_out: MeasuringLoader | None = None,
    ) -> None:
        self._folder = folder
        self._loader = loader
        self._held_out = held_out
        self._seconds = 60 * minutes
        self._keep_epochs = keep_epochs
        self._saved = time.monotonic()
        self._stopping = threading.Event()
        self._requeueing = threading.Event()
        self._agreement: Agreement | None = None
        self.requeues = False

    def stop(self, requeue: bool = False) -> None:
        """Ask the run to stop when the step it is in is over, and perhaps to be started again by SLURM."""
        if requeue:
            self._requeueing.set()
        self._stopping.set()

    @property
    def stopping(self) -> bool:
        """Whether this process was asked to."""
        return self._stopping.is_set()

    def _wishes(self) -> Agreement:
        """Whether to save, by the first process's clock; whether to stop, and to be started again."""
        late = self._loader.here.is_first and time.monotonic() - self._saved > self._seconds
        return Agreement(self._loader.here, late, self.stopping, self._requeueing.is_set())

    def _agreed(self, now: bool) -> tuple[bool, bool]:
        """Whether to save, and to stop: what all wish now, or what they wished after the step before.

        The latter is known by now: nobody waits for it.
        """
        before, self._agreement = self._agreement, self._wishes()
        known = self._agreement if now or not self._loader.here.are_several else before
        late, stop, self.requeues = known.result() if known else (False, False, False)
        return late or stop, stop

    def _forget_wish(self) -> None:
        """A wish to save of before the save is fulfilled; one to stop is uttered again after the next step."""
        if self._agreement is not None:
            self._agreement.result()  # nothing stays on its way
        self._agreement = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved = time.monotonic()
        self._agreement = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        batches, part = divmod(batch_idx + 1, self._loader.accumulate)
        if part:
            return
        self._loader.mark(trainer.current_epoch, batches)
        if batches == self._loader.order.num_batches:
            return  # the epoch's end saves, after the held-out images
        save, stop = self._agreed(now=False)
        if save:
            self._save(trainer, pl_module)
            self._forget_wish()
        if stop:
            raise Interrupted

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch, ends = trainer.current_epoch + 1, trainer.current_epoch + 1 == trainer.max_epochs
        read = [self._loader.dataset, *([] if self._held_out is None else [self._held_out.images])]
        own = [one for dataset in read for one in getattr(dataset, "bad_files", list)()]
        bad = self._loader.here.gathered(own)
        if self._loader.here.is_first:
            write_bad_files(self._folder, [one for of_process in bad for one in of_process])
        save, stop = self._agreed(now=True)
        if ends or save:
            self._save(trainer, pl_module)
        if self._keep_epochs and epoch % self._keep_epochs == 0:
            width = len(str(trainer.max_epochs))
            self._save(trainer, pl_module, f"epoch_{epoch:0{width}d}.ckpt")
        if stop and not ends:
            raise Interrupted

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        checkpoint["convspark_epoch"] = pl_module.epoch_state()
        if pl_module.described is not None:
            checkpoint["network"] = dict(pl_module.described)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        pl_module.load_epoch_state(checkpoint["convspark_epoch"])

    def _save(self, trainer: pl.Trainer, pl_module: pl.LightningModule, name: str | None = None) -> None:
        assert isinstance(pl_module, TrainingModule)
        pl_module.check_finite()
        path = self._folder.checkpoints / name if name else self._folder.last_checkpoint
        trainer.save_checkpoint(path, weights_only=False)
        if name is None:
            self._saved = time.monotonic()
            logger.debug("checkpoint written after step %d", trainer.global_step)


class Signals(Callback):
    """Within it, the first Ctrl-C (or SIGTERM) ends a run after its step, with a checkpoint; the second at once.

    The end of its terminal (SIGHUP) ends it likewise; shells tell that twice. What the run was started to ignore, as by
    `nohup`, it ignores.

    SIGUSR1 does the same in a SLURM job, which is then queued again.

    A signal that comes while held-out images are measured takes effect after the measurement.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():  # signals belong to it
            numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, *([signal.SIGUSR1] if slurm_job() else [])]
            before = {number: signal.getsignal(number) for number in numbers}
            self._before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
        self._take_over()

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # By now Lightning has put a handler of its own before ours. It would break off a measurement, and talk to other
        # processes from within a signal.
        self._take_over()

    def _take_over(self) -> None:
        for number in self._before:
            signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: Any) -> None:
        if self._checkpoints.stopping and number != signal.SIGHUP:
            signal.signal(number, self._before[signal.Signals(number)])
            raise KeyboardInterrupt
        self._checkpoints.stop(requeue=number == signal.SIGUSR1)
        logger.warning("Stopping after this step and writing a checkpoint; Ctrl-C again stops at once")
