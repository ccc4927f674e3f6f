"""Addresses of pictures: a path, a URL, or a place in a file that holds many.

Places in such a file, a shard, are written as fsspec chains them: `tar://MEMBER::SHARD`, `parquet://COLUMN/ROW::SHARD`,
`dataset://COLUMN/ROW::FOLDER`.
"""

import math
import os
import re
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

KINDS = ("tar", "parquet", "dataset")
_STARTS = tuple(f"{kind}://" for kind in KINDS)
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_EXPANDED = 1_000_000


class Within(NamedTuple):
    """A picture in a shard: the shard's kind, the picture's name in it, and the shard's path or URL."""

    kind: str
    inner: str
    shard: str

    def __str__(self) -> str:
        return f"{self.kind}://{self.inner}::{self.shard}"


def within(address: str) -> Within | None:
    """The parts of an address in a shard; None where it is a file of its own."""
    if not address.startswith(_STARTS):
        return None
    kind, _, rest = address.partition("://")
    inner, colons, shard = rest.rpartition("::")
    return Within(kind, inner, shard) if colons else None


def is_url(place: str) -> bool:
    return "://" in place and _URL.match(place) is not None


def absolute(address: str) -> str:
    """The same from any working directory."""
    parts = within(address)
    if parts is not None:
        return str(parts._replace(shard=absolute(parts.shard)))
    if is_url(address):
        return address
    plain = address.startswith("/") and "//" not in address and "/." not in address and not address.endswith("/")
    return address if plain else os.path.abspath(address)  # no second copies of a million paths


class Identities:
    """What several names of a picture have in common, where they go through symbolic links; also of those in shards."""

    def __init__(self) -> None:
        self._real: dict[str, str] = {}

    def of_place(self, place: str) -> str:
        """Of a folder or a shard."""
        if place not in self._real:
            self._real[place] = place if is_url(place) else os.path.realpath(place)
        return self._real[place]

    def __call__(self, address: str) -> str:
        part = within(address)
        if part is not None:
            return str(part._replace(shard=self.of_place(part.shard)))
        if is_url(address):
            return address
        folder, _, name = address.rpartition("/")
        return os.path.realpath(address) if os.path.islink(address) else f"{self.of_place(folder)}/{name}"


def base_name(address: str) -> str:
    """What to call a picture in a title: its file's name, or its row's number and its table's name."""
    parts = within(address)
    if parts is None or parts.kind == "tar":
        return os.path.basename(address if parts is None else parts.inner)
    return f"{os.path.basename(parts.shard)} {os.path.basename(parts.inner)}"


def expanded(pattern: str) -> list[str]:
    """`{000..127}` and `{a,b}` written out, as shells do; without braces, the text itself."""
    parts = _BRACES.split(pattern)
    choices = [list(_choices(part)) if place % 2 else [part] for place, part in enumerate(parts)]
    if math.prod(map(len, choices)) > _MOST_EXPANDED:
        return [pattern]
    return ["".join(words) for words in product(*choices)]


def _choices(inside: str) -> Iterator[str]:
    numbers = _RANGE.fullmatch(inside)
    if numbers is None:
        yield from inside.split(",") if "," in inside else [f"{{{inside}}}"]
        return
    first, last = numbers[1], numbers[2]
    width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
    low, high = int(first), int(last)
    if abs(high - low) >= _MOST_EXPANDED:
        yield f"{{{inside}}}"
        return
    for number in range(low, high + 1) if low <= high else range(low, high - 1, -1):
        yield str(number).zfill(width)
