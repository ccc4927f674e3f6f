"""Files that hold many pictures, behind one interface: where a picture lies, and its bytes."""

import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Protocol

import numpy as np

from ..errors import DataError
from . import remote, tars
from .addresses import Within, within
from .parquet import ParquetShard
from .tables import SavedShard

_BLOCK = 256  # neighbours that are read with one another, where a shard does not say


def neighbours(count: int) -> np.ndarray:
    """Blocks of pictures that follow each other, (count,)."""
    return np.arange(count) // _BLOCK


class Shard(Protocol):
    """A file of pictures, and perhaps of what they show."""

    def inner_names(self) -> Iterable[str]:
        """The names of all its pictures, in its order."""
        ...

    def find(self, names: Sequence[str]) -> np.ndarray:
        """The places of pictures, int64, (N, 2): offset and size, or row and column; -1 where there is none."""
        ...

    def content(self, first: int, second: int) -> bytes:
        """The file that is kept at a place.

        Raises:
            OSError: it cannot be read.
        """
        ...

    def blocks(self, places: np.ndarray) -> np.ndarray:
        """(N, 2) -> (N,), numbers that are equal where pictures are read together."""
        ...

    def labels(self, names: Sequence[str]) -> list[str]:
        """The class that the file has for each picture; "" where it has none.

        Raises:
            DataError: what it has are no classes.
        """
        ...

    def parts(self, names: Sequence[str]) -> list[str]:
        """What the file says that each picture is for, `train`, say; "" where it says nothing."""
        ...

    def masks(self, names: Sequence[str]) -> list[str]:
        """The inner name of each picture's mask, a picture too; "" where there is none."""
        ...


class TarShard:
    """A tar; places are offsets and sizes in bytes. It does not hold its members, which would be many."""

    def __init__(self, path: str) -> None:
        self._path, self._stamp = path, str(remote.stamp(path))
        self._members()  # raises

    def inner_names(self) -> Iterable[str]:
        names = self._members().names
        masks = set(tars.masks_of(names, names))
        return (name for name in names if name not in masks)

    def find(self, names: Sequence[str]) -> np.ndarray:
        own = self._members()
        if list(names) == list(own.names):
            return np.stack([own.offsets, own.sizes], axis=1)
        order = {name: place for place, name in enumerate(own.names)}
        rows = np.array([order.get(name, -1) for name in names], dtype=np.int64)
        if not len(own.names):
            return np.full((len(names), 2), -1)
        return np.where(rows[:, None] < 0, -1, np.stack([own.offsets[rows], own.sizes[rows]], axis=1))

    def content(self, first: int, second: int) -> bytes:
        return remote.read_range(self._path, first, second)

    def blocks(self, places: np.ndarray) -> np.ndarray:
        return neighbours(len(places))

    def labels(self, names: Sequence[str]) -> list[str]:
        members = self._members()
        of_name = dict(zip(members.names, members.labels, strict=True))
        return [of_name.get(name, "") for name in names]

    def parts(self, names: Sequence[str]) -> list[str]:
        return [""] * len(names)

    def masks(self, names: Sequence[str]) -> list[str]:
        return tars.masks_of(names, self._members().names)

    def _members(self) -> tars.Members:
        return tars.members(self._path, self._stamp)


class LostShard:
    """A shard that is gone since a run began, or cannot be read: its pictures are bad, for its reason."""

    def __init__(self, path: str, reason: Exception) -> None:
        self.path = path
        self.reason = str(reason) or type(reason).__name__

    def inner_names(self) -> Iterable[str]:
        return ()

    def find(self, names: Sequence[str]) -> np.ndarray:
        return np.zeros((len(names), 2), dtype=np.int64)

    def content(self, first: int, second: int) -> bytes:
        raise remote.UnreachableError(f"the file that holds it is gone or cannot be read: {self.reason}")

    def blocks(self, places: np.ndarray) -> np.ndarray:
        return neighbours(len(places))  # as of a tar, so that the order of an epoch stays

    def labels(self, names: Sequence[str]) -> list[str]:
        return [""] * len(names)

    def parts(self, names: Sequence[str]) -> list[str]:
        return [""] * len(names)

    def masks(self, names: Sequence[str]) -> list[str]:
        return [""] * len(names)


def open_shard(kind: str, path: str) -> Shard:
    """The shard of a kind at a path or URL.

    Raises:
        DataError: it is something else.
        OSError: it cannot be read.
    """
    match kind:
        case "tar":
            return TarShard(path)
        case "parquet":
            return ParquetShard(path)
        case "dataset":
            return SavedShard(path)
    raise AssertionError(kind)


def addresses_in(kind: str, path: str) -> list[str]:
    """All pictures of a shard, in its order.

    Raises:
        DataError: it cannot be read, or is something else.
    """
    if "::" in path:
        raise DataError(f"images: {path!r} has '::' in its name, which parts the addresses of pictures: rename it")
    with in_words(path):
        return [str(Within(kind, name, path)) for name in open_shard(kind, path).inner_names()]


def labels_of(addresses: Sequence[str]) -> list[str]:
    """The class that the shard of each picture has for it; "" where it has none, and of pictures in no shard.

    Raises:
        DataError: a shard cannot be read, or has no classes where one has labels.
    """
    return _answers(addresses, lambda shard, names: shard.labels(names))


def parts_of(addresses: Sequence[str]) -> list[str]:
    """What the shard of each picture says that it is for, `train`, say; "" where it says nothing."""
    return _answers(addresses, lambda shard, names: shard.parts(names))


def masks_of(addresses: Sequence[str]) -> list[str]:
    """The address of each picture's mask in the same shard; "" where there is none, and of pictures in no shard."""
    inner = _answers(addresses, lambda shard, names: shard.masks(names))
    parts = map(within, addresses)
    return [str(part._replace(inner=name)) if part and name else "" for part, name in zip(parts, inner, strict=True)]


def _answers(addresses: Sequence[str], ask: Callable[[Shard, list[str]], list[str]]) -> list[str]:
    """What shards answer about their pictures, one for each address; "" for pictures in no shard."""
    answers = [""] * len(addresses)
    for (kind, path), names in _by_shard(addresses).items():
        with in_words(path):
            found = ask(open_shard(kind, path), list(names.values()))
        for place, answer in zip(names, found, strict=True):
            answers[place] = answer
    return answers


def _by_shard(addresses: Sequence[str]) -> dict[tuple[str, str], dict[int, str]]:
    """The pictures in each shard, by its kind and path: inner name by place in the list."""
    shards: dict[tuple[str, str], dict[int, str]] = {}
    for place, part in enumerate(map(within, addresses)):
        if part is not None:
            shards.setdefault((part.kind, part.shard), {})[place] = part.inner
    return shards


@contextmanager
def in_words(path: str) -> Iterator[None]:
    """Within it, an error of reading a shard is a DataError."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"images: {path!r} does not exist") from None
    except OSError as error:
        raise DataError(f"images: {path!r} cannot be read: {error.strerror or error}") from None


def shards_of(addresses: Iterable[str]) -> dict[str, str]:
    """The shards in which pictures lie: kind by path."""
    parts = (within(address) for address in addresses)
    return {part.shard: part.kind for part in parts if part is not None}


def stamp_of(path: str) -> str:
    """A text that changes when a shard does; "gone" where it does not exist, or cannot be read."""
    saved = os.path.join(path, "state.json")  # with a fingerprint, in a folder that `datasets` wrote
    try:
        return str(remote.stamp(saved if os.path.isdir(path) else path))
    except OSError:
        return "gone"


class Places:
    """Where each of a list of pictures lies, of those that are in shards.

    Attributes:
        shards: by kind and path.
        number: which of them, (N,); -1 for a file of its own.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        self.number = np.full(len(addresses), -1, dtype=np.int32)
        self._places = np.full((len(addresses), 2), -1, dtype=np.int64)
        self.shards: dict[tuple[str, str], Shard] = {}
        for number, (key, names) in enumerate(_by_shard(addresses).items()):
            try:
                shard = open_shard(*key)
            except (OSError, DataError) as error:
                shard = LostShard(key[1], error)
            places = list(names)
            self.number[places] = number
            self._places[places] = shard.find(list(names.values()))
            self.shards[key] = shard
        self._shards = list(self.shards.values())

    @property
    def missing(self) -> np.ndarray:
        """Which pictures are in no shard any more, (N,) bool."""
        lost = [number for number, shard in enumerate(self._shards) if isinstance(shard, LostShard)]
        return (self.number >= 0) & ((self._places[:, 0] < 0) | np.isin(self.number, lost))

    @property
    def largest_group(self) -> int:
        """Most bytes that must be read for one picture, of shards that are read in groups of pictures; else 0."""
        return max((shard.largest_group for shard in self._shards if isinstance(shard, ParquetShard)), default=0)

    def stamp(self, index: int) -> tuple[int, int]:
        """Two numbers that change when a picture's shard does; -1 for one that is in no shard."""
        number = self.number[index]
        if number < 0:
            return -1, -1
        return int(self._places[index, 1]), self._changed[number]

    @cached_property
    def _changed(self) -> list[int]:
        """A number for each shard's stamp, below all times of files."""
        return [zlib.crc32(stamp_of(path).encode()) for _, path in self.shards]

    def content(self, index: int) -> bytes:
        """The file of a picture in a shard.

        Raises:
            OSError: it cannot be read.
        """
        first, second = map(int, self._places[index])
        if first < 0:
            raise remote.UnreachableError("no longer in the file that held it")
        return self._shards[self.number[index]].content(first, second)

    def blocks(self) -> np.ndarray:
        """(N,): equal numbers where pictures are best read with one another, ascending as they first occur."""
        blocks = neighbours(len(self.number))
        for number, shard in enumerate(self._shards):
            inside = self.number == number
            blocks[inside] = shard.blocks(self._places[inside])
        changes = np.diff(blocks, prepend=blocks[:1]) != 0
        changes |= np.diff(self.number, prepend=self.number[:1]) != 0
        return np.cumsum(changes)
