"""Many strings in little memory."""

from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np


class Names(Sequence[str]):
    """Strings of any characters in two arrays: a million Python strings would take more, and forked processes would
    copy them, page by page, as they touch their reference counts.

    Attributes:
        text: all of them as bytes, one after the other.
        ends: where each ends, (N,).
    """

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        self.ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self.text = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    @classmethod
    def of(cls, text: np.ndarray, ends: np.ndarray) -> "Names":
        """The names that such arrays hold."""
        names = cls(())
        names.text, names.ends = text, ends
        return names

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Names):
            return NotImplemented
        return np.array_equal(self.ends, other.ends) and np.array_equal(self.text, other.text)

    __hash__ = None  # type: ignore[assignment]

    def __len__(self) -> int:
        return len(self.ends)

    def encoded(self, indices: range) -> list[bytes]:
        """Some that follow each other, as bytes."""
        first, last = indices.start, indices.stop
        start = int(self.ends[first - 1]) if first else 0
        ends = (self.ends[first:last] - start).tolist()
        text = self.text[start : start + (ends[-1] if ends else 0)].tobytes()
        return [text[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"name {index} of {len(self)}")
        index %= len(self)
        start = self.ends[index - 1] if index else 0
        return self.text[start : self.ends[index]].tobytes().decode("utf-8", "surrogateescape")
