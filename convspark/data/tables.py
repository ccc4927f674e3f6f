"""Pictures in the columns of tables: parquet files, and datasets that Hugging Face's `datasets` saved."""

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import DataError, UsageError
from . import index, remote
from .addresses import is_url
from .files import PATH_COLUMNS

_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "pixel_values", "bytes", "picture", "photo")
_MOST_KEPT = 256 << 20  # bytes of groups of rows that a process keeps


class ParquetShard:
    """A parquet file; places are rows and columns. A row is read with its group, which is kept for the next ones.

    Attributes:
        largest_group: bytes of the largest group of rows.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._starts, self._columns, self.largest_group = self._layout()

    def inner_names(self) -> Iterable[str]:
        column = self._column_of_pictures()
        return (f"{column}/{row}" for row in range(int(self._starts[-1])))

    def find(self, names: Sequence[str]) -> np.ndarray:
        return _rows(names, self._columns, int(self._starts[-1]))

    def content(self, first: int, second: int) -> bytes:
        group = int(np.searchsorted(self._starts, first, side="right")) - 1
        values = _GROUPS.get(self._path, group, self._columns[second])
        return bytes_of(values[first - int(self._starts[group])].as_py())

    def blocks(self, places: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._starts, places[:, 0], side="right")

    def paths(self) -> list[str]:
        """What a column of paths holds, where that is what the file has."""
        text = [name for name, kind in self._kinds.items() if kind == "text"]
        column = next((name for name in PATH_COLUMNS if name in text), text[0] if len(text) == 1 else None)
        if column is None:
            raise DataError(
                f"images: {self._path!r} has no column of pictures or of their paths (its columns: "
                f"{', '.join(self._columns)}); expected bytes, or a struct with bytes, or a text column named path"
            )
        rows = _reading(lambda: _open(self._path).read(columns=[column])[column].to_pylist())
        return [row for row in rows if row]

    @property
    def holds_pictures(self) -> bool:
        return "bytes" in self._kinds.values()

    @cached_property
    def _kinds(self) -> dict[str, str]:
        """Of each column, whether it holds `bytes` or `text`, or something else."""
        schema = _reading(lambda: _open(self._path).schema_arrow)
        return {field.name: _kind(field.type) for field in schema}

    def _column_of_pictures(self) -> str:
        return _choose([name for name, kind in self._kinds.items() if kind == "bytes"], self._path)

    def _layout(self) -> tuple[np.ndarray, list[str], int]:
        """The first row of each group, and the number of rows; the columns; the bytes of the largest group."""
        stamp = str(remote.stamp(self._path))
        kept = index.load("parquet", self._path, stamp)
        if kept is None:
            file = _reading(lambda: _open(self._path))
            groups = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
            starts = np.concatenate([[0], np.cumsum([group.num_rows for group in groups])]).astype(np.int64)
            largest = max((group.total_byte_size for group in groups), default=0)
            columns = np.array(json.dumps(file.schema_arrow.names))
            kept = {"starts": starts, "columns": columns, "largest": np.array(largest)}
            index.save("parquet", self._path, kept, stamp)
        return kept["starts"], json.loads(str(kept["columns"])), int(kept["largest"])


class SavedShard:
    """A folder that `Dataset.save_to_disk` wrote; places are rows and columns. Its files are mapped, not read."""

    def __init__(self, path: str) -> None:
        self._path = path
        # What pyarrow has open does not survive a fork; each process opens its own.
        self._opened: tuple[int, Any] | None = None

    def inner_names(self) -> Iterable[str]:
        table = self._table()
        column = _choose(
            [name for name in table.column_names if _kind(table.schema.field(name).type) == "bytes"], self._path
        )
        return (f"{column}/{row}" for row in range(len(table)))

    def find(self, names: Sequence[str]) -> np.ndarray:
        table = self._table()
        return _rows(names, table.column_names, len(table))

    def content(self, first: int, second: int) -> bytes:
        table = self._table()
        return bytes_of(table[table.column_names[second]][first].as_py())

    def blocks(self, places: np.ndarray) -> np.ndarray:
        return places[:, 0] // 256

    def _table(self) -> Any:
        """Its rows in their order, as an Arrow table."""
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                from datasets import Dataset, load_from_disk
            except ImportError:
                raise UsageError(
                    f"images: {self._path!r} was saved by Hugging Face's datasets, which is not installed: pip install "
                    "'convspark[datasets]'"
                ) from None
            loaded = load_from_disk(self._path)
            if not isinstance(loaded, Dataset):
                raise DataError(f"images: {self._path!r} holds several splits: give one of the folders in it")
            if loaded._indices is not None:  # selected or shuffled, and not flattened
                loaded = loaded.flatten_indices()
            self._opened = os.getpid(), loaded.data.table
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}


def is_saved_dataset(folder: str) -> bool:
    """Whether a folder is what `datasets` saved."""
    there = ("dataset_info.json", "state.json")
    return all(os.path.isfile(os.path.join(folder, name)) for name in there)


def saved_split(folder: str) -> str | None:
    """The folder of the split to train on, of a folder that `DatasetDict.save_to_disk` wrote; None of another one.

    Raises:
        DataError: it has no split named train, and several others.
    """
    try:
        with open(os.path.join(folder, "dataset_dict.json"), encoding="utf-8") as file:
            splits = json.load(file)["splits"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if "train" not in splits and len(splits) != 1:
        raise DataError(f"images: {folder!r} holds {', '.join(splits)}: give one of these folders in it")
    return os.path.join(folder, "train" if "train" in splits else splits[0])


def column_of(dataset: Any) -> str | None:
    """The column of pictures of a `datasets.Dataset` as it was loaded; None of one that makes its items otherwise, and
    of all else.
    """
    if not type(dataset).__module__.startswith("datasets.") or not hasattr(dataset, "cast_column"):
        return None
    if dataset.format["type"] is not None:
        return None
    images = [name for name, feature in dataset.features.items() if type(feature).__name__ == "Image"]
    return _choose(images, "the Dataset") if images else None


class _Groups:
    """Groups of rows that were read last, for all threads of a process."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, str, int, str], Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: str, group: int, column: str) -> Any:
        key = os.getpid(), path, group, column
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        values = _reading(lambda: _open(path).read_row_group(group, columns=[column], use_threads=False)[column])
        with self._lock:
            self._kept[key] = values
            while len(self._kept) > 1 and sum(each.nbytes for each in self._kept.values()) > _MOST_KEPT:
                self._kept.popitem(last=False)
        return values


_GROUPS = _Groups()


def _open(path: str) -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise UsageError(
            f"images: {path!r} is read by pyarrow, which is not installed: pip install 'convspark[parquet]'"
        ) from None
    return parquet.ParquetFile(remote.RangeFile(path, block=1 << 20) if is_url(path) else path)


def _reading(action: Any) -> Any:
    """The result of an action of pyarrow, whose errors of damage become those of reading."""
    try:
        return action()
    except (OSError, UsageError):
        raise
    except Exception as error:  # ArrowInvalid is a ValueError, others are not
        raise remote.UnreachableError(
            f"damaged: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        ) from error


def _kind(kind: Any) -> str:
    from pyarrow import types

    if types.is_struct(kind):
        return "bytes" if any(field.name == "bytes" and _kind(field.type) == "bytes" for field in kind) else ""
    if types.is_binary(kind) or types.is_large_binary(kind):
        return "bytes"
    return "text" if types.is_string(kind) or types.is_large_string(kind) else ""


def _choose(columns: Sequence[str], path: str) -> str:
    if not columns:
        raise DataError(f"images: {path!r} has no column of pictures: expected bytes, or a struct with bytes")
    named = [name for name in _IMAGE_COLUMNS if name in columns]
    if len(columns) > 1 and not named:
        raise DataError(f"images: {path!r} has several columns of bytes, {', '.join(columns)}, and none is named image")
    return (named or list(columns))[0]


def _rows(names: Sequence[str], columns: Sequence[str], count: int) -> np.ndarray:
    """`COLUMN/ROW` -> (row, number of the column), (N, 2); -1 where there is none."""
    order = {name: number for number, name in enumerate(columns)}
    places = np.full((len(names), 2), -1, dtype=np.int64)
    for at, name in enumerate(names):
        column, _, row = name.rpartition("/")
        if row.isdecimal() and int(row) < count and column in order:
            places[at] = int(row), order[column]
    return places


def bytes_of(value: Any) -> bytes:
    """The file that a cell holds: bytes, or a struct of them with a path, which is read where there are no bytes."""
    path = None
    if isinstance(value, dict):
        value, path = value.get("bytes"), value.get("path")
    if isinstance(value, bytes):
        return value
    if path:
        return remote.read_all(path)
    raise remote.UnreachableError("no picture in this row")
