"""The images of a run, served as batches by processes that load them."""

import itertools
import logging
import os
import re
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.queues import Queue
from pathlib import Path
from time import perf_counter
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate

from ..data import Decoder, EpochSampler, PretrainImages, Turn, tell_repeated
from ..errors import ConvsparkError, DataError
from .processes import ALONE, Processes

logger = logging.getLogger(__name__)

# What is measured with is decoded once and kept, as long as it takes no more than this.
_MOST_CACHED_BYTES = 512 << 20


class TrainLoader(DataLoader[Tensor]):
    """Batches of one forward pass, in an order that follows from (seed, epoch), and can begin in the midst of an epoch.

    Lightning saves and restores it through `state_dict` and `load_state_dict`; `mark` says which steps are done.

    Args:
        batches, apart: of `EpochSampler`.
        decoder: of batches of which some pictures are not decoded.

    Attributes:
        here: the processes that share each batch.
        images: the dataset.
        turns: what opens the pictures of coming epochs, where not every epoch has the same.
        waited: seconds that the last batch was waited for. The first one's are 0 where workers had to be started.
        arrived: when it came, in seconds of `time.perf_counter`.
    """

    def __init__(
        self,
        dataset: PretrainImages,
        batch_size: int,
        accumulate: int,
        seed: int,
        workers: int,
        pin_memory: bool,
        collate: Callable[[Any], Any] | None = None,
        here: Processes = ALONE,
        batches: int | None = None,
        apart: bool = False,
        decoder: Decoder | None = None,
    ) -> None:
        self.accumulate = accumulate
        self.here, self.decoder = here, decoder
        self.order = EpochSampler(
            len(dataset),
            batch_size,
            seed,
            rank=here.rank,
            world_size=here.count,
            crops_per_image=dataset.crops_per_image,
            passes=accumulate,
            blocks=dataset.blocks,
            batches=batches,
            apart=apart,
        )
        self.waited = 0.0
        self.arrived = 0.0
        self.images, self._length = dataset, self.order.length
        self.turns: Turns | None = None
        self._are_compared = False
        self._position = (0, 0)
        super().__init__(
            dataset,
            batch_size=self.order.images_a_pass,
            sampler=self.order,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            collate_fn=collate,
            worker_init_fn=_prepare_worker,
        )

    def __len__(self) -> int:
        """Forward passes in a whole epoch, wherever this one began."""
        return self.order.num_batches * self.accumulate

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        requested_at = perf_counter()
        self._take_turn()  # which may end the workers
        starts_workers = self.num_workers > 0 and self._iterator is None
        batches = super().__iter__()
        for batch in batches if self.decoder is None else self.decoder.ahead(batches):
            self.arrived = perf_counter()
            # On a GPU the host runs ahead: it asks for the next batch while the device still computes. Only if the
            # device has nothing left to do by the time the batch comes, the wait has cost something. It then counts
            # in full, also the part in which the device was busy: there the figure is an upper bound.
            hidden = starts_workers or _device_is_busy()
            self.waited, starts_workers = 0.0 if hidden else self.arrived - requested_at, False
            yield batch
            requested_at = perf_counter()
        tell_repeated()

    def _take_turn(self) -> None:
        """Take the pictures of this epoch, where not every epoch has the same."""
        images, epoch = self.images, self.order.epoch
        if images.turn_of is None:
            if images.blocks is not None and not self._are_compared:
                self._compare(images.source, images.blocks, epoch)
                self._are_compared = True
            return
        if self.turns is None or self.turns.next_epoch not in (epoch, epoch + 1):
            end_workers(self.turns)
            self.turns = Turns(images.turn_of, epoch + (epoch == images.epoch), self.num_workers, self.here)
        if epoch == images.epoch:
            return
        turn = self.turns.next()
        self._compare(turn.source, turn.blocks, epoch)
        end_workers(self)  # which read from the earlier ones
        images.take(turn)
        self.order.take(len(images), images.blocks)

    def _compare(self, source: Any, blocks: np.ndarray | None, epoch: int) -> None:
        """Raise DataError where processes have different pictures or blocks of them: each would have an own order."""
        content = [source.names.text.tobytes(), b"" if blocks is None else blocks.tobytes()]
        if len({*self.here.gathered(tuple(map(crc32, content)))}) > 1:
            raise DataError(
                f"images: the processes do not see the same pictures in epoch {epoch + 1}: can each read all files?"
            )

    def mark(self, epoch: int, batches: int) -> None:
        """So many batches (optimiser steps) of this epoch are done."""
        self._position = (epoch, batches) if batches < self.order.num_batches else (epoch + 1, 0)

    def state_dict(self) -> dict[str, int]:
        epoch, batches = self._position
        return {"epoch": epoch, "batches": batches, "images": self._length}

    def load_state_dict(self, state: dict[str, int]) -> None:
        there, before = self._length, state.get("images", self._length)
        if there != before:
            raise ConvsparkError(
                f"the run was begun with {before} images to train on, and there are {there} now: its list of them, or "
                "the Dataset, was changed. Put back what it was, or start a new run"
            )
        self._position = (state["epoch"], state["batches"])
        self.order.set_epoch(state["epoch"])
        self.order.start_batch = state["batches"]


class Turns(DataLoader[Turn]):
    """The pictures of one epoch after the other, where not every epoch has the same: a process opens the next
    ones meanwhile.

    Attributes:
        next_epoch: that `next` gives.
    """

    def __init__(self, turn_of: Callable[..., Turn], epoch: int, workers: int, here: Processes) -> None:
        self.next_epoch = epoch
        share = here.local_rank / here.local_count
        super().__init__(
            _Opened(partial(turn_of, share=share)),
            batch_size=None,
            sampler=itertools.count(epoch),  # type: ignore[arg-type]
            num_workers=min(1, workers),
            prefetch_factor=1 if workers else None,
            persistent_workers=workers > 0,
            collate_fn=_as_it_is,
            worker_init_fn=_prepare_worker,
        )
        self._coming = iter(self)

    def next(self) -> Turn:
        """The next epoch's.

        Raises:
            DataError: see `ShardsInTurn.pictures`.
        """
        turn = next(self._coming)
        if isinstance(turn, DataError):
            raise turn
        self.next_epoch += 1
        return turn


class _Opened(Dataset[Any]):
    """By epoch: what opens it, or why it does not open."""

    def __init__(self, opening: Callable[[int], Turn]) -> None:
        self._opening = opening

    def __getitem__(self, epoch: int) -> Turn | DataError:
        try:
            return self._opening(epoch)
        except DataError as error:
            return error


def _as_it_is(item: Any) -> Any:
    return item


class MeasuringLoader(DataLoader[Any]):
    """Batches to measure with, the same in the same order each time; of several processes, each has its share of them.

    Whoever reads it to the end calls `end_workers`.

    Attributes:
        images: the dataset of all.

    Args:
        cached: decode once and keep what fits into 512 MiB.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        workers: int = 0,
        here: Processes = ALONE,
        *,
        cached: bool = False,
    ) -> None:
        self.images, count = dataset, len(dataset)  # type: ignore[arg-type]
        # Where there are fewer batches than processes, each measures with all of them: Lightning leaves out the rest of
        # an empty loader's epoch.
        self._here = here if -(-count // batch_size) >= here.count else ALONE
        if self._here.are_several:
            rows = [row for row in range(count) if row // batch_size % here.count == here.rank]
            dataset, count = Subset(dataset, rows), len(rows)
        if cached and count and count * _bytes_of(dataset[0]) <= _MOST_CACHED_BYTES:
            columns = default_collate([dataset[row] for row in range(count)])
            dataset, workers = TensorDataset(*([columns] if isinstance(columns, Tensor) else columns)), 0
        super().__init__(
            dataset,
            batch_size=batch_size,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_prepare_worker,
        )

    def number(self, own: int) -> int:
        """The number among all batches of batch `own` of this process's."""
        return own * self._here.count + self._here.rank

    def of_all(self, results: list[Any]) -> list[Any]:
        """The results of all processes, one a batch; all of them call it."""
        return [one for part in self._here.gathered(results) for one in part]

    def of_all_for_first(self, results: list[Any]) -> list[Any]:
        """The same in the first process; the others have nothing then, unless each has measured all."""
        return [one for part in self._here.gathered_by_first(results) for one in part]


def _bytes_of(example: Any) -> int:
    parts = example if isinstance(example, tuple | list) else [example]
    return sum(part.nbytes if isinstance(part, Tensor) else 8 for part in parts)


def end_workers(*loaders: Any) -> None:
    """End the processes of loaders that keep theirs.

    Python ends what is left at its exit by a signal, which they ignore, and then waits for them for ever.
    """
    for loader in loaders:
        try:
            _end_workers_of(loader)
        except RuntimeError:  # of torch, whose handler of a signal says once, at any moment, that one has crashed
            _end_workers_of(loader)


def _end_workers_of(loader: Any) -> None:
    iterator = getattr(loader, "_iterator", None)
    if iterator is not None:
        with suppress(RuntimeError):  # the same; what follows does not rely on it
            iterator._shutdown_workers()
        for process in iterator._workers:
            if process.is_alive():
                process.kill()
                process.join()
        loader._iterator = None


@contextmanager
def workers_explained() -> Iterator[None]:
    """Within it, what torch raises where a process that loads images ends, or cannot hand its images over, becomes an
    error that says what to do.

    Raises:
        ConvsparkError: too little shared memory or memory, too many open files, or a process that crashed.
    """
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        try:
            advice = _advice(error)
        except RuntimeError as crash:  # of torch's handler, which learns of it just now, and knows more
            advice = _advice(crash)
        if advice is None:
            raise
        raise ConvsparkError(advice) from error


def _device_is_busy() -> bool:
    return torch.cuda.is_initialized() and not torch.cuda.current_stream().query()


def _advice(error: BaseException) -> str | None:
    """What to do about an error of torch's loading processes; None where it is another one."""
    text, cause = "", error
    while cause is not None:
        text, cause = f"{text}{cause}\n", cause.__cause__ or cause.__context__
    loading = "the processes that load pictures"
    if "allocate shared memory" in text or "signal: Bus error" in text:
        size = ""
        with suppress(OSError):
            size = f": /dev/shm has {shutil.disk_usage('/dev/shm').total >> 20} MB"
        return (
            f"{loading} ran out of shared memory{size}. In a container, start it with `docker run --shm-size 8g`; "
            "anywhere, --workers 0 goes without these processes"
        )
    unusable = re.search(r"unable to .*</torch_.*>.*: (.*) \(\d+\)", text)
    if unusable is not None:
        return f"{loading} cannot use shared memory, /dev/shm ({unusable[1]}): --workers 0 goes without them"
    if "items of ancdata" in text or ("Too many open files" in text and "worker" in text):
        return f"{loading} opened too many files: --workers 0 goes without them, or type `ulimit -n 65536` first"
    if "DataLoader worker" in text and "signal: Killed" in text:
        return (
            f"one of {loading} was killed, most likely by the system as memory ran out: try fewer --workers (0 goes "
            "without them), or a smaller --batch-size"
        )
    # Where a process has ended and torch does not know it yet, torch raises the error of the broken connection.
    frames = traceback.walk_tb(error.__traceback__) if isinstance(error, EOFError | ConnectionError) else ()
    cut_off = any(Path(frame.f_code.co_filename).name == "resource_sharer.py" for frame, _ in frames)
    if "DataLoader worker (pid" in text or cut_off:
        what = "Connection reset" if cut_off else text.strip().splitlines()[-1]
        text += what
        if "Connection reset" in text or "exit code 1" in text:  # as it handed images over, before it could say why
            what += "; there may be too little shared memory: in a container, `docker run --shm-size 8g`"
        return f"one of {loading} crashed ({what}): try --workers 0, which goes without them and shows what is wrong"
    return None


def _not_handed_over(error: BaseException, _batch: object) -> None:
    """End this process, as what it made cannot reach the main one, which would wait for it for ever.

    A signal says why to that process: Linux sends the same where shared memory turns out to be missing later on.
    """
    traceback.print_exception(error)
    if "shared memory" in str(error):
        os.kill(os.getpid(), signal.SIGBUS)
    os._exit(1)


def _prepare_worker(_worker: int) -> None:
    Queue._on_queue_feeder_error = staticmethod(_not_handed_over)  # type: ignore[attr-defined]
    # Signals often reach all processes of a job; the main one finishes its step and needs its workers for that.
    # They end when it tells them to, or is gone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
