"""Whether a run whose epochs were chosen keeps to the guessed time."""

import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from ..measure.choices import NIGHT
from ..runs.module import TrainingModule
from ..runs.numbers import format_seconds
from ..runs.warned import Warned

_WATCHED_SECONDS = 120.0
_UNWATCHED_STEPS, _FEWEST_STEPS = 2, 5  # the first steps start processes and compile kernels
_FAR = 1.5


class Pace(Callback):
    """Warns once, after some minutes, of a run that will take far longer than guessed, and more than a night.

    Args:
        guessed: seconds of the whole run.
        warned: where the warning goes.
    """

    def __init__(self, guessed: float, warned: Warned) -> None:
        self._guessed = guessed
        self._warned = warned
        self._since: tuple[float, int] | None = None
        self._steps_here = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._steps_here += 1
        now, step = time.monotonic(), trainer.global_step
        if self._steps_here == _UNWATCHED_STEPS:
            self._since = now, step
        if self._since is None or now - self._since[0] < _WATCHED_SECONDS or step - self._since[1] < _FEWEST_STEPS:
            return
        assert isinstance(pl_module, TrainingModule) and trainer.max_epochs is not None
        seconds = pl_module.schedule.steps * (now - self._since[0]) / (step - self._since[1])
        self._since, self._steps_here = None, _UNWATCHED_STEPS  # measured once, which is enough
        if seconds < _FAR * max(self._guessed, NIGHT):
            return
        fewer = int(trainer.max_epochs * NIGHT / seconds)
        shorter = f"--epochs {fewer} would take" if fewer else "a single epoch takes longer than"
        self._warned.tell(
            trainer,
            "slow",
            f"at this pace the run takes {format_seconds(seconds)}, not {format_seconds(self._guessed)} as guessed: "
            f"the machine is slower, or busy with something else. {shorter} about {format_seconds(NIGHT)}. To choose "
            "anew, stop this run (Ctrl-C) and start another; fewer pictures or a smaller --size shorten it, too",
        )
