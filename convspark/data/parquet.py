"""Parquet files: their groups of rows, and columns of pictures or of paths."""

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import DataError, UsageError
from . import index, remote
from .addresses import is_url
from .files import PATH_COLUMNS
from .tables import Table, bytes_of, reading, rows_of

_MOST_KEPT = 256 << 20  # bytes of groups of rows that a process keeps


class ParquetShard(Table):
    """A parquet file. A row is read with its group, which is kept for the next ones.

    Attributes:
        columns: their names.
        largest_group: bytes of the largest group of rows.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._stamp = str(remote.stamp(path))
        self._starts, self.columns, self.largest_group = self._layout()

    def find(self, names: Sequence[str]) -> np.ndarray:
        return rows_of(names, self.columns, self._count())  # columns and count are known without opening the file

    def content(self, first: int, second: int) -> bytes:
        group = int(np.searchsorted(self._starts, first, side="right")) - 1
        values = _GROUPS.get(self._path, self._stamp, group, self.columns[second])
        return bytes_of(reading(lambda: values[first - int(self._starts[group])].as_py()))

    def blocks(self, places: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._starts, places[:, 0], side="right")

    def paths(self) -> list[str]:
        """The column of paths of a file without pictures; "" in rows without a path."""
        text = [name for name, kind in self._kinds.items() if kind == "text"]
        column = next((name for name in PATH_COLUMNS if name in text), text[0] if len(text) == 1 else None)
        if column is None:
            raise DataError(
                f"images: {self._path!r} has no column of pictures or of their paths (its columns: "
                f"{', '.join(self.columns)}); expected bytes, or a struct with bytes, or a text column named path"
            )
        return [row or "" for row in self._values(column)]

    @property
    def _schema(self) -> Any:
        return self._schema_once

    @cached_property
    def _schema_once(self) -> Any:
        return reading(lambda: _open(self._path).schema_arrow)

    def _count(self) -> int:
        return int(self._starts[-1])

    def _values(self, column: str) -> list[Any]:
        return reading(lambda: _open(self._path).read(columns=[column])[column].to_pylist())

    def _layout(self) -> tuple[np.ndarray, list[str], int]:
        """The first row of each group, and the number of rows; the columns; the bytes of the largest group."""
        layout = index.load("parquet", self._path, self._stamp)
        if layout is None:
            file = reading(lambda: _open(self._path))
            groups = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
            starts = np.concatenate([[0], np.cumsum([group.num_rows for group in groups])]).astype(np.int64)
            largest = max((group.total_byte_size for group in groups), default=0)
            columns = np.array(json.dumps(file.schema_arrow.names))
            layout = {"starts": starts, "columns": columns, "largest": np.array(largest)}
            index.save("parquet", self._path, layout, self._stamp)
        return layout["starts"], json.loads(str(layout["columns"])), int(layout["largest"])


class _Groups:
    """Groups of rows that were read last, for all threads of a process; anew once a file has another stamp."""

    def __init__(self) -> None:
        self._arrays: OrderedDict[tuple[int, str, str, int, str], Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: str, stamp: str, group: int, column: str) -> Any:
        key = os.getpid(), path, stamp, group, column
        with self._lock:
            if key in self._arrays:
                self._arrays.move_to_end(key)
                return self._arrays[key]
        values = reading(lambda: _open(path).read_row_group(group, columns=[column], use_threads=False)[column])
        with self._lock:
            self._arrays[key] = values
            while len(self._arrays) > 1 and sum(array.nbytes for array in self._arrays.values()) > _MOST_KEPT:
                self._arrays.popitem(last=False)
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
