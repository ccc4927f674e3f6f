"""Train any task in its run folder: Lightning with our callbacks, from the last checkpoint if there is one."""

import logging
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data._utils import signal_handling

from .callbacks import Checkpoints, Interrupted, Metrics, Signals, Stopwatch, WholeCheckpoints, make_tracker
from .checkpoints import check_content, whole_checkpoint
from .device import quick_products
from .folder import RunFolder
from .loading import TrainLoader, end_workers
from .logs import quiet_lightning
from .memory import out_of_memory
from .module import TrainingModule
from .progress import Progress

logger = logging.getLogger(__name__)


def fit(
    module: TrainingModule,
    folder: RunFolder,
    train: TrainLoader,
    held_out: Any,
    *,
    device: torch.device,
    precision: str,
    epochs: int,
    go_on: str,
    gradient_clip: float | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint_minutes: float = 10.0,
    keep_epochs: int | None = None,
    tracker: str = "none",
    measure_every: int = 1,
    can_accumulate: bool = True,
) -> Metrics:
    """Train to the last epoch; the rows of `metrics.csv` that were written.

    Args:
        held_out: batches that are measured after each epoch, or None.
        precision: fp32 or bf16.
        go_on: the command that goes on with this run, for a user who stopped it.
        measure_every: epochs between measurements on `held_out`.
        can_accumulate: whether the command can divide a batch into passes.
        gradient_clip: largest norm of a step's gradient, where the optimiser does not see to it itself.
        callbacks: of the task; they see an epoch's row already in `metrics.csv`, and come before its checkpoint.

    Raises:
        DivergedError: the loss is no longer a number; the last checkpoint is kept.
        KeyboardInterrupt: stopped by a signal, after a step, with a checkpoint written.
        ConvsparkError: out of memory; says what fits.
    """
    too_large = False
    watch = Stopwatch(train)
    metrics = Metrics(folder, watch)
    checkpoints = Checkpoints(folder, train, checkpoint_minutes, keep_epochs)
    signals = Signals(checkpoints)
    with quiet_lightning():
        trainer = pl.Trainer(
            accelerator={"cuda": "gpu"}.get(device.type, device.type),
            devices=[device.index or 0] if device.type == "cuda" else 1,
            precision="bf16-mixed" if precision == "bf16" else "32-true",
            max_epochs=epochs,
            check_val_every_n_epoch=measure_every,
            accumulate_grad_batches=train.accumulate,
            gradient_clip_val=gradient_clip,
            callbacks=[watch, metrics, Progress(watch, train.num_workers), *callbacks, checkpoints, signals],
            plugins=[WholeCheckpoints(folder)],
            logger=make_tracker(tracker, folder),
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            inference_mode=False,
            default_root_dir=folder.path,
        )
    last = whole_checkpoint(folder)
    if last is not None:
        check_content(last, module.state_dict())
        logger.info("going on from %s", last)
    # Torch sets its handler of loading processes that die but once, and Lightning ends with those that it began with.
    signal_handling._set_SIGCHLD_handler()  # pyright: ignore[reportPrivateUsage]
    try:
        with quiet_lightning(), signals, quick_products(device):
            trainer.fit(module, train, held_out, ckpt_path=last and str(last), weights_only=True)
    except Interrupted:
        steps = module.schedule.steps
        raise KeyboardInterrupt(f"Stopped after step {trainer.global_step} of {steps}. To go on:\n  {go_on}") from None
    except SystemExit:  # Lightning's answer to a Ctrl-C that does not wait for the step
        raise KeyboardInterrupt(f"Stopped at once{f'; go on with `{go_on}`' if last else ''}") from None
    except torch.OutOfMemoryError:
        too_large = True
    finally:
        end_workers(train, held_out)
    if too_large:
        raise out_of_memory(module, train, device, precision, can_accumulate)
    return metrics
