"""The images of a run: found, checked, split, and served as batches."""

import json
import logging
import os
import re
import shutil
import signal
import traceback
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.queues import Queue
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate

from ..data import (
    MOST_BAD,
    PLAIN,
    UNKNOWN,
    EpochSampler,
    FileSource,
    HeldOutTransform,
    ImageSource,
    Pixels,
    Places,
    PretrainImages,
    PretrainTransform,
    absolute,
    adapt,
    as_lines,
    as_place,
    at_new_place,
    blaming,
    file_sizes,
    fitting,
    hold_out,
    is_url,
    item_of,
    list_pictures,
    names_in,
    scan,
    shards_of,
    stamp_of,
    tell_repeated,
)
from ..errors import ConvsparkError, DataError, UsageError
from ..files import write_text
from .folder import RunFolder
from .processes import ALONE, Processes

logger = logging.getLogger(__name__)

# What is measured with is decoded once and kept, as long as it takes no more than this.
_MOST_CACHED_BYTES = 512 << 20

_FEW_PLACES, _MOST_PLACES = 4, 10_000  # are named one by one, to the user and in the cache

_SLOW = 64 << 20  # bytes of a group of rows

Shuffle: TypeAlias = Literal["full", "windows"]
"""Which pictures may follow each other in an epoch: any, or those that lie together, so that they are read together."""

Check: TypeAlias = Literal["quick", "full", "none"]
"""How images are looked at before a run."""


@dataclass
class Images:
    """Images found and split, before their crops and batches are decided on.

    Attributes:
        train, held_out: lists of paths, or datasets; `held_out` is None where nothing is.
        bad: (path, reason) of what could not be read.
        description: for the log and the model card.
        pixels: how files are read.
        sizes: of the files trained on and held out, in bytes, where they are known already.
    """

    train: Any
    held_out: Any
    bad: list[tuple[str, str]] = field(default_factory=list)
    description: str = ""
    pixels: Pixels = PLAIN
    sizes: list[int] = field(default_factory=list[int])

    def source(self, images: Any) -> ImageSource:
        """Those to train on, or those held out, as pictures by index."""
        return FileSource(images, pixels=self.pixels) if isinstance(images, list) else adapt(images)

    @property
    def are_files(self) -> bool:
        return isinstance(self.train, list)

    def write_lists(self, folder: RunFolder) -> None:
        """Write the lists of files trained on, held out and unreadable, which a resumed run reads again."""
        files = [path for part in (self.train, self.held_out) if isinstance(part, list) for path in part]
        if files:
            write_text(folder.file_sizes, "".join(f"{size}\n" for size in self.sizes or file_sizes(files)))
        if self.are_files:
            _write_lines(folder.train_files, self.train)
        if isinstance(self.held_out, list):
            _write_lines(folder.held_out_files, self.held_out)
        lists = [paths for paths in (self.train, self.held_out) if isinstance(paths, list)]
        shards = sorted({shard for paths in lists for shard in shards_of(paths)})
        if shards:
            write_text(folder.shards, json.dumps({shard: stamp_of(shard) for shard in shards}, indent=2) + "\n")
        write_bad_files(folder, self.bad)


def find_images(
    images: Any,
    *,
    held_out: Any = 0.02,
    held_out_most: int = 1000,
    seed: int = 0,
    check: Check = "quick",
    pixels: Pixels = PLAIN,
    to_measure: bool = False,
) -> Images:
    """Find and check the images, and hold a share of them out.

    Args:
        images: what `list_pictures` takes, or any map-style dataset of images.
        held_out: the share that is not trained on, or images of its own, in the same forms.
        held_out_most: the most that a share comes to.
        seed: of the choice.
        check: `quick` looks at each file, `full` decodes it, `none` takes what is there.
        pixels: how files are read.
        to_measure: whether their statistics will be: files of more than 8 bits are then read as they are stored.

    Raises:
        DataError: nothing there, no readable picture, or more than 5 % unreadable.
    """
    bad: list[tuple[str, str]] = []
    collection, description, pixels = _open(images, bad, check, pixels, to_measure)
    if isinstance(held_out, bool) or not isinstance(held_out, int | float):
        if held_out is None:
            raise UsageError("held_out is None: expected a share from 0 (none) up to (not including) 1, or a folder")
        with blaming("held_out"):
            own_images, own_description, _ = _open(held_out, bad, check, pixels)
            measured = _whole(own_images, own_description, bad, check, pixels)
        return Images(_not_held_out(collection, own_images), measured, bad, description, pixels)
    if not 0 <= held_out < 1:
        raise UsageError(f"held_out is {held_out}: expected a share from 0 up to (not including) 1, or a folder")
    if isinstance(collection, list):
        train, rest = hold_out(collection, held_out, held_out_most, seed)
        train = _not_held_out(train, rest)  # which a list that names a picture twice may have in both
    else:
        order, rest_order = hold_out(range(len(collection)), held_out, held_out_most, seed)
        train = Subset(collection, order)
        rest = Subset(collection, rest_order) if rest_order else None
    return Images(train, _whole(rest or None, description, bad, check, pixels), bad, description, pixels)


def reopen_images(
    folder: RunFolder,
    images: Any,
    *,
    held_out: Any = 0.02,
    held_out_most: int = 1000,
    seed: int = 0,
    check: Check = "quick",
    pixels: Pixels = PLAIN,
    moved: Container[str] = (),
) -> Images:
    """The images of a run that goes on: its own lists of files, or else found as `find_images` does.

    Args:
        moved: which of `images` and `held_out` are at another place than they were.

    Raises:
        UsageError: it had a Dataset that was not passed again.
        DataError: other images than it had.
    """
    if held_out is None and not folder.held_out_files.is_file():
        raise UsageError(f"the run {folder.path} held out a Dataset: pass it again, as `held_out`")
    if not folder.train_files.is_file():
        if images is None:
            raise UsageError(f"the run {folder.path} trained on a Dataset: pass it again, as `images`")
        is_dataset = not isinstance(images, str | os.PathLike) and not _is_list_of_paths(images)
        if is_dataset and folder.held_out_files.is_file() and "held_out" not in moved:
            adapt(images)  # raises if it is none
            return Images(images, _read_lines(folder.held_out_files), [], type(images).__name__, pixels)
        return find_images(
            images, held_out=held_out, held_out_most=held_out_most, seed=seed, check=check, pixels=pixels
        )
    held_out_images = None if isinstance(held_out, int | float | str) else held_out
    if folder.held_out_files.is_file():
        held_out_images = _read_lines(folder.held_out_files)
    train = _read_lines(folder.train_files)
    if not train:
        raise DataError(f"{folder.train_files} lists no image: delete it, and they are found anew")
    sizes: list[int] = []
    if "images" in moved or "held_out" in moved:
        train, held_out_images, sizes = _moved(folder, train, held_out_images, images, held_out, moved)
    there = (path for path in train[:: max(1, len(train) // 100)] if not is_url(path))
    missing = [path for path in there if not os.path.exists(item_of(path)[0])]
    if len(missing) > 5:
        raise DataError(
            f"the images of the run {folder.path} are no longer where they were, for example {missing[0]}; "
            f"put them back, or say where they are now: {folder.going_on} --images FOLDER"
        )
    _tell_changed(folder, [*train, *(held_out_images if isinstance(held_out_images, list) else ())])
    return Images(train, held_out_images, [], _described(images), pixels, sizes)


def _moved(
    folder: RunFolder, train: list[str], held_out: Any, images: str, other: Any, names: Container[str]
) -> tuple[list[str], Any, list[int]]:
    """The files of a run, trained on and held out, where they are now; and their sizes.

    Args:
        images, other: where those to train on, and held-out ones of their own, are now.
    """
    held_out_paths: list[str] = held_out if isinstance(held_out, list) else []
    total = len(train) + len(held_out_paths)
    sizes = _read_sizes(folder.file_sizes, total) or [UNKNOWN] * total
    parts = [("images", images, [*train, *held_out_paths])]
    if isinstance(other, str):
        parts = [("images", images, train), ("held_out", other, held_out_paths)]
    new_paths: list[str] = []
    for name, place, paths in parts:
        own = sizes[len(new_paths) : len(new_paths) + len(paths)]
        if name in names and paths:
            paths = at_new_place(
                paths, own, *as_place(place, [absolute(path) for path in list_pictures(place, bands=True)])
            )
        new_paths += paths
    return new_paths[: len(train)], new_paths[len(train) :] if isinstance(held_out, list) else held_out, sizes


def _read_sizes(path: Path, count: int) -> list[int]:
    """So many sizes; none if the file is missing (in older runs) or torn, as nothing else depends on it."""
    try:
        sizes = [int(line) for line in path.read_text(encoding="utf-8").split()]
    except (OSError, ValueError):
        return []
    return sizes if len(sizes) == count else []


def write_bad_files(folder: RunFolder, bad: Sequence[tuple[str, str]]) -> None:
    """Add to the list of what could not be read, with the reasons; no file where there is nothing to list."""
    if bad:
        there = folder.bad_files.is_file()
        text = folder.bad_files.read_text(encoding="utf-8", errors="surrogateescape") if there else ""
        reasons = dict(line.split("\t", 1) for line in text.split("\n") if "\t" in line)
        reasons |= {as_lines([path]).rstrip("\n"): " ".join(reason.split()) for path, reason in bad}
        write_text(folder.bad_files, "".join(f"{path}\t{reason}\n" for path, reason in reasons.items()))


class TrainLoader(DataLoader[Tensor]):
    """Batches of one forward pass, in an order that follows from (seed, epoch), and can begin in the midst of an epoch.

    Lightning saves and restores it through `state_dict` and `load_state_dict`; `mark` says which steps are done.

    Args:
        batches, apart: of `EpochSampler`.

    Attributes:
        here: the processes that share each batch.
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
    ) -> None:
        self.accumulate = accumulate
        self.here = here
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
        starts_workers = self.num_workers > 0 and self._iterator is None
        requested_at = perf_counter()
        for batch in super().__iter__():
            self.arrived = perf_counter()
            # On a GPU the host runs ahead: it asks for the next batch while the device still computes. Only if the
            # device has nothing left to do by the time the batch comes, the wait has cost something. It then counts
            # in full, also the part in which the device was busy: there the figure is an upper bound.
            hidden = starts_workers or _device_is_busy()
            self.waited, starts_workers = 0.0 if hidden else self.arrived - requested_at, False
            yield batch
            requested_at = perf_counter()
        tell_repeated()

    def mark(self, epoch: int, batches: int) -> None:
        """So many batches (optimiser steps) of this epoch are done."""
        self._position = (epoch, batches) if batches < self.order.num_batches else (epoch + 1, 0)

    def state_dict(self) -> dict[str, int]:
        epoch, batches = self._position
        return {"epoch": epoch, "batches": batches, "images": self.order.length}

    def load_state_dict(self, state: dict[str, int]) -> None:
        there, before = self.order.length, state.get("images", self.order.length)
        if there != before:
            raise ConvsparkError(
                f"the run was begun with {before} images to train on, and there are {there} now: its list of them, or "
                "the Dataset, was changed. Put back what it was, or start a new run"
            )
        self._position = (state["epoch"], state["batches"])
        self.order.set_epoch(state["epoch"])
        self.order.start_batch = state["batches"]


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


def train_dataset(
    images: Images,
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    crop_scale: tuple[float, float],
    flip: bool,
    crops_per_image: int,
    seed: int,
    shuffle: Shuffle = "full",
) -> PretrainImages:
    """Random crops of the images to train on, each (C, H, W), counted by (seed, epoch, index)."""
    transform = PretrainTransform(size=size, scale=crop_scale, mean=mean, std=std, flip=flip)
    source = images.source(images.train)
    files = source if isinstance(source, FileSource) else None
    if shuffle == "full" and files is not None and files.places is not None and files.places.largest_group > _SLOW:
        logger.warning(
            "the parquet files have groups of rows of up to %d MB, each of which is read for a single picture: try "
            "--shuffle windows, or write them with row_group_size=100",
            files.places.largest_group >> 20,
        )
    blocks = files.blocks() if shuffle == "windows" and files is not None else None
    return PretrainImages(source, transform, seed, crops_per_image, blocks=blocks)


def held_out_dataset(
    images: Images, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> PretrainImages | None:
    """Centre crops of the held-out images; None if nothing is held out."""
    if images.held_out is None:
        return None
    transform = HeldOutTransform(size=size, mean=mean, std=std)
    source = images.source(images.held_out)
    # Unreadable held-out pictures are replaced like any other; here more of them are accepted, as they are few.
    return PretrainImages(source, transform, most_bad=0.5)


def first_images(dataset: PretrainImages, count: int = 8) -> Tensor:
    """The images to draw, (B, C, H, W): the first ones."""
    return torch.stack([dataset[index] for index in range(min(count, len(dataset)))])


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


def _open(
    images: Any, bad: list[tuple[str, str]], check: Check, pixels: Pixels, to_measure: bool = False
) -> tuple[Any, str, Pixels]:
    """A list of readable paths, or a dataset; what to call it; and how files are read."""
    if images is None:
        raise UsageError("images are missing: give a folder of pictures, or a text file with one path a line")
    if isinstance(images, str | os.PathLike) or _is_list_of_paths(images):
        paths = list_pictures(images, bands=to_measure or not pixels.is_plain)
        if to_measure:
            pixels = fitting(paths, pixels)
        if check != "none":
            result = scan(paths, whole=check == "full", place=_called(images), pixels=pixels)
            bad += result.bad
            paths = result.good
        return [absolute(path) for path in paths], _described(images), pixels
    adapt(images)  # raises if it is no dataset of images
    return images, type(images).__name__, pixels


def _not_held_out(images: Any, held_out: Any) -> Any:
    """Files to train on, less those that are held out: a folder of these may lie within that of all."""
    if not isinstance(images, list) or not isinstance(held_out, list):
        return images
    measured = set(held_out)
    train = [path for path in images if path not in measured]
    if not train:
        raise DataError("held_out: it names all pictures that are to be trained on: hold fewer out")
    if len(train) < len(images):
        logger.warning(
            "%d of the pictures to train on are held out as well: they are not trained on", len(images) - len(train)
        )
    return train


def _called(images: Any) -> str | None:
    """What to call a collection from one run to the next; None for a list that Python has."""
    places = [images] if isinstance(images, str | os.PathLike) else images
    return "\n".join(absolute(os.fspath(place)) for place in places) if len(places) <= _MOST_PLACES else None


def _described(images: Any) -> str:
    """What to call the images of a run that has a list of files."""
    if isinstance(images, list | tuple) and 0 < len(images) <= _FEW_PLACES:
        return ", ".join(map(str, images))
    return str(images) if isinstance(images, str | os.PathLike) else "a list of files"


def _tell_changed(folder: RunFolder, pictures: Sequence[str]) -> None:
    """Say which shards are no longer as they were when a run began.

    Raises:
        DataError: more of its pictures are gone than are accepted.
    """
    try:
        before = json.loads(folder.shards.read_text(encoding="utf-8")) if folder.shards.is_file() else {}
    except ValueError:
        logger.warning("%s is torn: whether the files of pictures have changed is not known", folder.shards)
        before = {}
    changed = [shard for shard in shards_of(pictures) if before.get(shard) not in (None, stamp_of(shard))]
    if not changed:
        return
    lost = Places(pictures).missing
    gone = [pictures[index] for index in lost.nonzero()[0].tolist()]
    text = f"{len(changed)} files of pictures have changed since the run {folder.path} began: {', '.join(changed[:3])}"
    if len(gone) > MOST_BAD * len(pictures):
        raise DataError(
            f"{text}. {len(gone)} of its {len(pictures)} pictures are gone, for example {gone[0]}; put them back, or "
            "start a new run"
        )
    if gone:
        text += f"; {len(gone)} of its pictures are gone, others stand in for them"
    logger.warning("%s. If the content of pictures changed, the run goes on differently than it would have", text)


def _whole(held_out: Any, description: str, bad: list[tuple[str, str]], check: Check, pixels: Pixels) -> Any:
    """Held-out files without those that are damaged anywhere: none can stand in for what is measured with."""
    if not isinstance(held_out, list) or check == "none":
        return held_out
    place = f"held out of {os.path.abspath(description)}"
    result = scan(held_out, whole=True, most_bad=0.5, place=place, pixels=pixels, again=True)
    bad += result.bad
    return result.good


def _is_list_of_paths(images: Any) -> bool:
    return isinstance(images, list | tuple) and all(isinstance(path, str | os.PathLike) for path in images)


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


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    write_text(path, as_lines(lines))


def _read_lines(path: Path) -> list[str]:
    """What `_write_lines` wrote; refused where the end is missing, or it was overwritten."""
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    if not text.endswith("\n") or "\0" in text:
        raise DataError(f"{path} is torn, its end is missing or zeros: delete it, and the images are found anew")
    return names_in(text)
