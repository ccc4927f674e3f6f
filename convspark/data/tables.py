"""Pictures, their classes and their masks in the columns of tables, such as Hugging Face's `datasets` saves."""

import json
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import ConvsparkError, DataError, UsageError
from . import remote

_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "pixel_values", "bytes", "picture", "photo")
_MASK_COLUMNS = ("mask", "annotation", "label", "labels")


class Table:
    """What is common to tables of pictures; places are rows and columns."""

    _path: str

    def inner_names(self) -> Iterable[str]:
        column = self._column_of_pictures()
        return (f"{column}/{row}" for row in range(self._count()))

    def find(self, names: Sequence[str]) -> np.ndarray:
        return rows_of(names, self._schema.names, self._count())

    def labels(self, names: Sequence[str]) -> list[str]:
        """From a column `label`, or the only one of Hugging Face's ClassLabels; whole numbers by their names, where the
        table or a `dataset_info.json` beside it has these.
        """
        column = self.label_column
        if column is None:
            return [""] * len(names)
        texts = self.texts(column)
        return [texts[row] for row in self._row_of(names)]

    def parts(self, names: Sequence[str]) -> list[str]:
        """From a column `split`."""
        texts = self.texts("split") if "split" in self._kinds else None
        return ["" if texts is None else texts[row] for row in self._row_of(names)]

    def masks(self, names: Sequence[str]) -> list[str]:
        """From a column `mask`, `annotation` or `label` of pictures."""
        column = next((name for name in _MASK_COLUMNS if self._kinds.get(name) == "bytes"), None)
        return ["" if column is None else f"{column}/{row}" for row in self._row_of(names)]

    @property
    def label_column(self) -> str | None:
        named = [name for name in ("label", "labels") if self._kinds.get(name) not in (None, "bytes")]
        named = named or [name for name in self._schema.names if self._class_names(name)]
        return named[0] if len(named) == 1 or "label" in named else None

    def texts(self, column: str) -> list[str]:
        """A column as text; "" where a row has none, and for Hugging Face's -1.

        Raises:
            DataError: it holds neither whole numbers nor text.
        """
        from pyarrow import types

        kind = self._schema.field(column).type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        if not (types.is_integer(kind) or types.is_boolean(kind) or _kind(kind) == "text"):
            raise DataError(
                f"data: the column {column!r} of {self._path!r} holds {kind}: expected the class of each picture, as a "
                "whole number or text"
            )
        values = self._values(column)
        names = self._class_names(column)
        if names and types.is_integer(kind):
            return [names[value] if value is not None and 0 <= value < len(names) else "" for value in values]
        return ["" if value is None or value == -1 else str(value).strip() for value in values]

    @property
    def holds_pictures(self) -> bool:
        return "bytes" in self._kinds.values()

    @cached_property
    def _kinds(self) -> dict[str, str]:
        """What each column holds: `bytes`, `text`, or "" for something else."""
        return {field.name: _kind(field.type) for field in self._schema}

    def _column_of_pictures(self) -> str:
        return _choose([name for name, kind in self._kinds.items() if kind == "bytes"], self._path)

    @staticmethod
    def _row_of(names: Sequence[str]) -> list[int]:
        return [int(name.rpartition("/")[2]) for name in names]

    def _class_names(self, column: str) -> list[str]:
        """The names in a ClassLabel column; none for another column."""
        feature = self._features.get(column)
        return list(feature["names"]) if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else []

    @cached_property
    def _features(self) -> dict[str, Any]:
        """What Hugging Face's `datasets` says of each column, in the table or beside it."""
        noted = (self._schema.metadata or {}).get(b"huggingface")
        try:
            if noted is not None:
                return json.loads(noted)["info"]["features"]
            folder, slash, _ = self._path.rpartition("/")
            return json.loads(remote.read_all(f"{folder}{slash}dataset_info.json"))["features"]
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    # What each kind of table has in its own way.

    @property
    def _schema(self) -> Any:
        """Arrow's."""
        raise NotImplementedError

    def _count(self) -> int:
        """How many rows there are."""
        raise NotImplementedError

    def _values(self, column: str) -> list[Any]:
        """All of a column."""
        raise NotImplementedError


class SavedShard(Table):
    """A folder that `Dataset.save_to_disk` wrote. Its files are mapped, not read."""

    def __init__(self, path: str) -> None:
        self._path = path
        # What pyarrow has open does not survive a fork; each process opens its own.
        self._opened: tuple[int, Any] | None = None

    def content(self, first: int, second: int) -> bytes:
        table = self._table()
        return bytes_of(reading(lambda: _checked(table[table.column_names[second]].slice(first, 1))))

    def blocks(self, places: np.ndarray) -> np.ndarray:
        return places[:, 0] // 256

    @property
    def _schema(self) -> Any:
        return self._table().schema

    def _count(self) -> int:
        return len(self._table())

    def _values(self, column: str) -> list[Any]:
        return reading(lambda: self._table()[column].to_pylist())

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
            loaded = reading(lambda: load_from_disk(self._path))
            if not isinstance(loaded, Dataset):
                raise DataError(f"images: {self._path!r} holds several splits: give one of the folders in it")
            if loaded._indices is not None:  # selected or shuffled, and not flattened
                loaded = loaded.flatten_indices()
            table = loaded.data.table
            # Its own notes may be those of before a change.
            self._opened = os.getpid(), table.replace_schema_metadata(loaded.features.arrow_schema.metadata)
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}


def _checked(column: Any) -> Any:
    """The only cell of a column. Where a damaged file tells a wrong length, pyarrow itself would end the process."""
    from pyarrow import types

    (part,) = (chunk for chunk in column.chunks if len(chunk))
    for values in part.flatten() if types.is_struct(part.type) else [part]:
        values.validate(full=True)
    return part[0].as_py()


def is_saved_dataset(folder: str) -> bool:
    """Whether a folder is what `datasets` saved."""
    there = ("dataset_info.json", "state.json")
    return all(os.path.isfile(os.path.join(folder, name)) for name in there)


def saved_split(folder: str) -> str | None:
    """The folder of the split to train on, of a folder that `DatasetDict.save_to_disk` wrote; None for another one.

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
    """The column of pictures of a `datasets.Dataset` as it was loaded; None where it makes its items in another way,
    and for any other object.
    """
    if not type(dataset).__module__.startswith("datasets.") or not hasattr(dataset, "cast_column"):
        return None
    if dataset.format["type"] is not None:
        return None
    images = [name for name, feature in dataset.features.items() if type(feature).__name__ == "Image"]
    return _choose(images, "the Dataset") if images else None


def _kind(kind: Any) -> str:
    from pyarrow import types

    if types.is_struct(kind):
        return "bytes" if any(field.name == "bytes" and _kind(field.type) == "bytes" for field in kind) else ""
    name = str(kind.value_type if types.is_dictionary(kind) else kind)
    if name in ("binary", "large_binary", "binary_view"):
        return "bytes"
    return "text" if name in ("string", "large_string", "string_view") else ""


def _choose(columns: Sequence[str], path: str) -> str:
    if not columns:
        raise DataError(f"images: {path!r} has no column of pictures: expected bytes, or a struct with bytes")
    named = [name for name in _IMAGE_COLUMNS if name in columns]
    if len(columns) > 1 and not named:
        raise DataError(f"images: {path!r} has several columns of bytes, {', '.join(columns)}, and none is named image")
    return (named or list(columns))[0]


def rows_of(names: Sequence[str], columns: Sequence[str], count: int) -> np.ndarray:
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


def reading(action: Any) -> Any:
    """The result of an action of pyarrow, whose errors of damage become those of reading."""
    try:
        return action()
    except (OSError, ConvsparkError):
        raise
    except Exception as error:  # ArrowInvalid is a ValueError, others are not
        raise remote.UnreachableError(
            f"damaged: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        ) from error
