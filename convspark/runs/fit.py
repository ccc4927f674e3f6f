"""Train any task in its run folder: Lightning with our callbacks, from the last checkpoint if there is one."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data._utils import signal_handling

from ..errors import ConvsparkError, UsageError
from .callbacks import Checkpoints, Interrupted, Metrics, Signals, Stopwatch, WholeCheckpoints
from .checkpoints import check_content
from .device import quick_products
from .folder import RunFolder
from .loading import MeasuringLoader, TrainLoader, end_workers
from .logs import quiet_lightning
from .memory import is_out_of_memory, out_of_memory
from .module import TrainingModule
from .processes import ALONE, Processes
from .progress import Progress
from .slurm import requeue, slurm_job
from .trackers import make_tracker
from .warned import Warned

logger = logging.getLogger(__name__)


def fit(
    module: TrainingModule,
    folder: RunFolder,
    train: TrainLoader,
    held_out: MeasuringLoader | None,
    *,
    here: Processes = ALONE,
    last: Path | None,
    device: torch.device,
    precision: str,
    epochs: int,
    go_on: str,
    gradient_clip: float | None = None,
    callbacks: Sequence[Callback] = (),
    warned: Warned | None = None,
    checkpoint_minutes: float = 10.0,
    keep_epochs: int | None = None,
    tracker: str = "none",
    measure_every: int = 1,
    can_accumulate: bool = True,
) -> Metrics:
    """Train to the last epoch; the rows of `metrics.csv` that were written.

    Args:
        held_out: batches that are measured after each epoch, or None.
        here: the processes that train together.
        last: checkpoint to go on from, the first process's for all; None to begin.
        precision: fp32 or bf16.
        go_on: the command that goes on with this run, for a user who stopped it.
        measure_every: epochs between measurements on `held_out`.
        can_accumulate: whether the command can divide a batch into passes.
        gradient_clip: largest norm of a step's gradient, where the optimiser does not see to it itself.
        warned: where warnings go, if the task has some of its own.
        callbacks: of the task; they see an epoch's row already in `metrics.csv`, and come before its checkpoint.

    Raises:
        DivergedError: the loss is no longer a number; the last checkpoint is kept.
        KeyboardInterrupt: stopped by a signal, after a step, with a checkpoint written.
        ConvsparkError: out of memory; says what fits.
    """
    too_large = False
    watch = Stopwatch(train)
    metrics = Metrics(folder, watch)
    checkpoints = Checkpoints(folder, train, checkpoint_minutes, keep_epochs, held_out)
    signals = Signals(checkpoints)
    warned = warned or Warned(folder)
    progress = [Progress(watch, train.num_workers, warned)] if here.is_first else []
    with quiet_lightning():
        trainer = pl.Trainer(
            **_strategy(here, device),
            accelerator={"cuda": "gpu"}.get(device.type, device.type),
            devices=[device.index or 0] if device.type == "cuda" else 1,
            precision="bf16-mixed" if precision == "bf16" else "32-true",
            max_epochs=epochs,
            check_val_every_n_epoch=measure_every,
            accumulate_grad_batches=train.accumulate,
            gradient_clip_val=gradient_clip,
            callbacks=[watch, metrics, warned, *progress, *callbacks, checkpoints, signals],
            # Not what Lightning sees in the environment: it wants a job of SLURM's to have as many processes as tasks.
            plugins=[WholeCheckpoints(folder), _Connected(here)],
            logger=make_tracker(tracker, folder) if here.is_first else False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            inference_mode=False,
            default_root_dir=folder.path,
        )
    module.read_from(train, held_out)
    last = here.from_first(last)
    if last is not None:
        check_content(last, module.state_dict(), module.configure_optimizers())
        logger.info("going on from %s", last)
    # Torch sets its handler for loading processes that die only once; Lightning puts back those from before its start.
    signal_handling._set_SIGCHLD_handler()  # pyright: ignore[reportPrivateUsage]
    try:
        with quiet_lightning(), signals, quick_products(device):
            trainer.fit(module, train, held_out, ckpt_path=last and str(last), weights_only=True)
    except Interrupted:
        what, job = f"Stopped after step {trainer.global_step} of {module.schedule.steps}", slurm_job()
        if checkpoints.requeues and job and here.is_first:
            what += f"; {requeue(job)}"
        raise KeyboardInterrupt(f"{what}. To go on:\n  {go_on}") from None
    except SystemExit:  # Lightning's answer to a Ctrl-C that does not wait for the step
        raise KeyboardInterrupt(f"Stopped at once{f'; go on with `{go_on}`' if last else ''}") from None
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        too_large = is_out_of_memory(error)
        if not too_large:
            words = _in_words(error, train.order.images_a_pass, None if module.has_begun else last)
            if words is None:
                raise
            raise words from error
    finally:
        end_workers(train, train.turns, held_out)
    if too_large:
        raise out_of_memory(module, train, device, precision, can_accumulate)
    return metrics


def _in_words(error: Exception, images_a_pass: int, untried: Path | None) -> ConvsparkError | None:
    """What an error of a library's means for the run, where that is known.

    Args:
        untried: the checkpoint that the run was about to go on from.
    """
    if isinstance(error, ConvsparkError):
        return None
    if "Expected more than 1 value per channel when training" in str(error):
        return UsageError(
            f"batch norms have nothing to average over: a forward pass has {images_a_pass} images, and a map of them "
            "holds a single position; take more images a pass, or a larger --size"
        )
    if untried is not None and not isinstance(error, RuntimeError):  # which may be of other processes, or of a device
        return ConvsparkError(
            f"{untried} cannot be gone on from ({type(error).__name__}: {error}): was it changed, or written by "
            "another version? Put the run's own checkpoint there, or start a new run"
        )
    return None


def _strategy(here: Processes, device: torch.device) -> dict[str, Any]:
    """How Lightning is to train with several processes: with copies of the model whose gradients are averaged."""
    if not here.are_several:
        return {}
    strategy = DDPStrategy(
        process_group_backend="cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        broadcast_buffers=False,  # they are the same by themselves: batch norms go over all processes
        find_unused_parameters=True,
    )
    return {"strategy": strategy}


class _Connected(ClusterEnvironment):
    """Processes that are connected already (or one), each with one device, whichever machine it is on."""

    def __init__(self, here: Processes) -> None:
        super().__init__()
        self._here = here

    creates_processes_externally = True  # type: ignore[assignment]
    main_address, main_port = "", 0  # type: ignore[assignment]

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self._here.count

    def global_rank(self) -> int:
        return self._here.rank

    def local_rank(self) -> int:
        return 0

    def node_rank(self) -> int:
        return self._here.rank

    def set_world_size(self, size: int) -> None:
        pass

    def set_global_rank(self, rank: int) -> None:
        pass
