"""Pictures as training examples, and the order in which an epoch visits them."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ..errors import UsageError
from ..parts import Part, part_of
from ..seeds import Counter, Use, counted
from .decode import BadPictureError, Shrink
from .order import in_windows
from .scan import MOST_BAD, TooManyBadPicturesError, check_bad_share
from .sources import FileSource, GonePictureError, ImageSource
from .transforms import Picture, Undecoded
from .undecoded import undecoded

Key: TypeAlias = int | tuple[int, int]
"""(epoch, index), or an index in epoch 0."""

_PATIENCE = 60.0  # seconds to read bad pictures again for their reasons: where a network fails, each may take long
_ATTEMPTS = 20  # with 5 % of bad pictures, all of so many replacements are bad once in 1e26 times


@dataclass
class Turn:
    """The pictures of an epoch, where not every epoch has the same.

    Attributes:
        blocks: see `PretrainImages`.
        lost: (path, reason) of files of many pictures that cannot be read.
    """

    epoch: int
    source: FileSource
    blocks: np.ndarray | None
    lost: list[tuple[str, str]]


class PretrainImages(Dataset[Tensor]):
    """`dataset[(epoch, index)]` is what the transform makes, of `PretrainTransform` a tensor (C, H, W): a function of
    (seed, epoch, index) alone.

    Neither the number of workers nor an interruption changes it: the transform is handed the counter instead
    of drawing from a global generator. Indices from `len(dataset)` on are further crops of the same pictures,
    so that a batch can be filled up without repeating an example.

    A picture that cannot be read is replaced by another one, chosen by (seed, epoch, picture), and remembered
    in shared memory, where the main process sees what its workers found: `bad_files`. One that the source knows to be
    gone (`GonePictureError`) is replaced likewise, and does not count as bad.

    Args:
        source: paths, or any `ImageSource` (see `adapt`).
        transform: called with a picture and a counter. Its method `shrink(height, width, counter)`, if it has one,
            says by what factor a picture may be decoded smaller; it then must know what to do with a `Shrunk` one.
        seed: first word of every counter.
        crops_per_image: examples made of each picture in an epoch. Their indices follow each other, and
            neighbours in a batch share one decoding (`EpochSampler` keeps them together), which helps with
            few, large photographs.
        most_bad: share of unreadable pictures above which training stops.
        blocks: of each picture, the number of its block, if an epoch's order is to keep blocks together (`in_windows`).
        turn_of: opens the pictures of an epoch, where not every epoch has the same; `source` and `blocks` are those of
            the first one.
        leaves_coded: whether examples of a batch of JPEGs are `Coded`, for a `Decoder`; the transform must be able to
            `place` crops.
    """

    def __init__(
        self,
        source: Sequence[str] | ImageSource,
        transform: Callable[[Picture, Counter], Tensor],
        seed: int = 0,
        crops_per_image: int = 1,
        most_bad: float = MOST_BAD,
        blocks: np.ndarray | None = None,
        turn_of: Callable[[int], Turn] | None = None,
        leaves_coded: bool = False,
    ) -> None:
        if crops_per_image < 1:
            raise UsageError(f"crops_per_image: expected 1 or more, got {crops_per_image}")
        self.source: ImageSource = FileSource(source) if isinstance(source, Sequence) else source
        self.transform = transform
        self.seed = seed
        self.crops_per_image = crops_per_image
        self.blocks = blocks
        self._most_bad = most_bad
        self._shrink: Callable[[int, int, Counter], float] | None = getattr(transform, "shrink", None)
        self._is_bad = torch.zeros(len(self.source), dtype=torch.uint8).share_memory_()
        self.turn_of, self.epoch = turn_of, 0
        self.leaves_coded = leaves_coded
        self._lost: list[tuple[str, str]] = []

    def take(self, turn: Turn) -> None:
        """Go on with other pictures; processes that read from this dataset already do not see it."""
        self.source, self.blocks, self._lost, self.epoch = turn.source, turn.blocks, turn.lost, turn.epoch
        self._is_bad = torch.zeros(len(self.source), dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        """Examples in an epoch: pictures × crops of each."""
        return len(self.source) * self.crops_per_image

    def __getitem__(self, key: Key) -> Tensor:
        """An example, decoded."""
        return self._examples([key], leaves_coded=False)[0]

    def __getitems__(self, keys: Sequence[Key]) -> list[Any]:
        """A batch of examples; the DataLoader asks for them at once, so that neighbours share a picture."""
        return self._examples(keys, self.leaves_coded)

    def _examples(self, keys: Sequence[Key], leaves_coded: bool) -> list[Any]:
        examples: list[Any] = []
        current: tuple[int, int] | None = None
        picture: Picture | Undecoded | None = None
        image = 0
        for key in keys:
            epoch, index = (0, key) if isinstance(key, int) else key
            if index < 0:
                raise IndexError(f"index {index} of a dataset that is indexed from 0")
            visit = epoch, index // self.crops_per_image
            if picture is None or visit != current:
                picture, current = self._coded(*visit) if leaves_coded else None, visit
                if picture is None:
                    picture, image = self._read(*visit)
            counter = self._counter(epoch, index)
            if isinstance(picture, Undecoded):
                transform: Any = self.transform
                examples.append(transform.place(picture, counter, key))
            else:
                examples.append(self._example(picture, image, counter))
        return examples

    def bad_files(self) -> list[tuple[str, str]]:
        """(path, reason) of every picture that could not be read so far, in this process or a worker; where not every
        epoch has the same pictures, of those of this one.
        """
        bad = list(self._lost)
        until = time.monotonic() + _PATIENCE
        for index in self._is_bad.nonzero()[:, 0].tolist():
            reason = "could not be read when it was needed"
            if time.monotonic() < until:
                reason = "could be read later, but not when it was needed"
                try:
                    self.source.read(index)
                except BadPictureError as error:
                    reason = error.reason
            bad.append((self.source.name(index), reason))
        return bad

    def _example(self, picture: Picture, image: int, counter: Counter) -> Any:
        """The example made of picture `image`."""
        return self.transform(picture, counter)

    def _counter(self, epoch: int, index: int) -> Counter:
        return self.seed, Use.CROP, epoch, index

    def _shrink_for(self, epoch: int, visit: int) -> Shrink | None:
        """The shrink that suits all crops of a visit, also those in other batches: no crop depends on its batch."""
        shrink, crops = self._shrink, self.crops_per_image
        if shrink is None:
            return None
        counters = [self._counter(epoch, index) for index in range(visit * crops, (visit + 1) * crops)]
        return lambda height, width: min(shrink(height, width, counter) for counter in counters)

    def _coded(self, epoch: int, visit: int) -> Undecoded | None:
        """The picture of a visit as it is in its file; None where it is to be decoded here, or not to be read."""
        try:
            return undecoded(self.source, visit % len(self.source), self._shrink_for(epoch, visit))
        except OSError:
            return None

    def _read(self, epoch: int, visit: int) -> tuple[Picture, int]:
        """The picture of a visit, or the one that stands in for it this epoch; and its index.

        A visit is a picture with the crops that are made of it. From the number of pictures on, visits begin again
        with the first one, for other crops.

        Raises:
            TooManyBadPicturesError: more than the allowed share is bad, or no replacement can be found.
        """
        total = len(self.source)
        image, shrink = visit % total, self._shrink_for(epoch, visit)
        stand_ins: np.random.Generator | None = None
        for _ in range(_ATTEMPTS):
            try:
                return self.source.read(image, shrink), image
            except BadPictureError as error:
                if not self._is_bad[image] and not isinstance(error, GonePictureError):
                    self._is_bad[image] = 1
                    if int(self._is_bad.sum()) > self._most_bad * total:
                        check_bad_share(self.bad_files(), total, self._most_bad)
                stand_ins = stand_ins or counted(self.seed, Use.STAND_IN, epoch, image)
                image = int(stand_ins.integers(total))
        raise TooManyBadPicturesError(f"images: {_ATTEMPTS} pictures in a row cannot be read; is the disk still there?")


class EpochSampler(Sampler[tuple[int, int]]):
    """The (epoch, index) keys of one epoch, shuffled by (seed, epoch), for `PretrainImages`.

    The last batch is filled up: with further crops of the pictures the epoch began with. Each of its forward passes is
    divided among the processes, so that together they see what a single process would (`part`).

    Args:
        length: `len(dataset)`.
        batch_size: of all passes of all processes together. The DataLoader's own is `images_a_pass`.
        epoch: may be moved on by `set_epoch`, which Lightning does by itself.
        start_batch: how many batches of this epoch were already seen, to resume in the middle. The next epoch
            starts at 0.
        rank, world_size: of this process, and how many there are.
        crops_per_image: as in the dataset; crops of one picture stay neighbours.
        passes: forward passes of a batch.
        blocks: of each picture, the number of its block (see `in_windows`); None shuffles them all.
        batches: of an epoch; by default as many as show every example once. Fewer leave examples out, other ones in
            each epoch; more go on with further crops.
        apart: whether crops of one picture lie far from each other in a batch, so that neighbours can be mixed.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int = 0,
        epoch: int = 0,
        start_batch: int = 0,
        rank: int = 0,
        world_size: int = 1,
        crops_per_image: int = 1,
        passes: int = 1,
        blocks: np.ndarray | None = None,
        batches: int | None = None,
        apart: bool = False,
    ) -> None:
        if batch_size < 1 or batch_size % (world_size * passes):
            raise UsageError(
                f"batch_size: expected a multiple of {world_size} processes x {passes} passes, got {batch_size}"
            )
        if length < 1 or length % crops_per_image:
            raise UsageError(f"length: expected a multiple of the {crops_per_image} crops an image, got {length}")
        self.num_batches = -(-length // batch_size) if batches is None else batches
        if not 0 <= start_batch <= self.num_batches:
            raise UsageError(f"start_batch: expected 0 to {self.num_batches}, got {start_batch}")
        self.length = length
        self.batch_size = batch_size
        self.passes = passes
        self.images_a_pass = batch_size // (world_size * passes)
        self.seed = seed
        self.epoch = epoch
        self.start_batch = start_batch
        self._rank, self._world_size = rank, world_size
        self._crops_per_image = crops_per_image
        self._blocks = blocks
        self._apart = apart

    def set_epoch(self, epoch: int) -> None:
        """Go on to `epoch`; a new one starts with its first batch."""
        if epoch != self.epoch:
            self.epoch, self.start_batch = epoch, 0

    def take(self, length: int, blocks: np.ndarray | None) -> None:
        """Other pictures than before, of which an epoch has as many batches as it had."""
        self.length, self._blocks = length, blocks

    def __len__(self) -> int:
        return (self.num_batches - self.start_batch) * self.passes * self.images_a_pass

    def part(self, number: int) -> Part:
        """The part of a batch that forward pass `number`, from 0, has in this process."""
        return part_of(self.batch_size, self.passes, number, self._rank, self._world_size)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, order = self.epoch, self._order()
        for batch in range(self.start_batch, self.num_batches):
            for number in range(self.passes):
                start = batch * self.batch_size + self.part(number).first
                for index in order[start : start + self.images_a_pass].tolist():
                    yield epoch, index

    def _order(self) -> np.ndarray:
        """Indices of all batches together, (num_batches * batch_size,)."""
        crops = self._crops_per_image
        rng = counted(self.seed, Use.ORDER, self.epoch)
        images = rng.permutation(self.length // crops) if self._blocks is None else in_windows(rng, self._blocks)
        order = (images[:, None] * crops + np.arange(crops)).reshape(-1)  # (images, crops) -> (length,)
        place = np.arange(self.num_batches * self.batch_size)
        order = order[place % self.length] + place // self.length * self.length
        if not self._apart:
            return order
        within = np.concatenate([np.arange(first, self.batch_size, crops) for first in range(crops)])
        return order.reshape(-1, self.batch_size)[:, within].reshape(-1)  # (num_batches, batch_size) -> (all,)
