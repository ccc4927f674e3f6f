"""The pictures of a run at another place: found by their names below the folder that held all, and by their sizes.

Of pictures in shards it is the shards that are looked for.
"""

import logging
import os
from collections.abc import Callable, Sequence

from ..errors import DataError
from ..names import shown, some
from .addresses import is_url, within
from .scan import MOST_BAD
from .stored import item_of

logger = logging.getLogger(__name__)

_TRIED = 200
UNKNOWN = -1
"""Size of a file that did not exist when the run began, or of one in a run of a version that did not keep sizes."""


def file_sizes(paths: Sequence[str]) -> list[int]:
    """In bytes; `UNKNOWN` for files that do not exist."""
    return [_size(path) for path in paths]


def as_place(where: str, addresses: Sequence[str]) -> tuple[str, list[str] | None]:
    """(place, listed) for `at_new_place`, of a place with these pictures; `listed` is None for a folder of files."""
    holds_files = os.path.isdir(where) and not any(map(within, addresses))
    return os.path.abspath(where) if not is_url(where) else where, None if holds_files else list(addresses)


def at_new_place(
    paths: Sequence[str], sizes: Sequence[int], place: str, listed: Sequence[str] | None = None
) -> list[str]:
    """Where each picture of a run is now.

    Its path below the deepest folder that held all pictures is looked for below `place`; where few are found so, its
    path below a folder further up. What is below `place` already, as after an interrupted move, stays.

    Args:
        paths: of the pictures, or other addresses, as the run has them.
        sizes: of each, in bytes, when the run began; for `UNKNOWN`, the old file's size now, if it still exists.
        place: the new folder, or a file that names pictures.
        listed: the pictures that such a file names.

    Raises:
        DataError: pictures of other sizes, or more than 5 % of them are missing.
    """
    addresses, paths = paths, [_file_of(path) for path in paths]
    files = None if listed is None else {_file_of(path) for path in listed}
    root = place if files is None else _common(list(files))
    there: Callable[[str], bool] = os.path.isfile if files is None else files.__contains__
    elsewhere = [path for path in paths if not (_is_below(path, root) and there(path))]
    base = _base(elsewhere, root, there) if elsewhere else ""
    moved = {path: os.path.join(root, os.path.relpath(path, base)) for path in elsewhere}
    new_paths = [moved.get(path, path) for path in paths]
    missing = [path for path in new_paths if not there(path)]
    old_sizes = sizes or [UNKNOWN] * len(paths)
    known = [size if size != UNKNOWN else _size(path) for path, size in zip(paths, old_sizes, strict=True)]
    pairs = [(path, _size(path), size) for path, size in zip(new_paths, known, strict=True) if there(path)]
    wrong = [
        f"{shown(path)} has {now} bytes, it had {before}" for path, now, before in pairs if before not in (now, UNKNOWN)
    ]
    if wrong:
        raise DataError(
            f"{len(wrong)} of the {len(paths)} pictures of the run are others at {place!r}: {some(wrong)}. A run goes "
            "on with the pictures that it was begun with: give the place where these are, or start a new run"
        )
    if len(missing) > MOST_BAD * len(paths):
        raise DataError(
            f"{len(missing)} of the {len(paths)} pictures of the run are not at {place!r}: "
            f"{some(missing)}. They are looked for by their names below the folder that they were in, "
            f"{shown(base or root)!r}: give the folder that took its place"
        )
    unchecked = sum(size == UNKNOWN for size in known)
    logger.info(
        "%d pictures are taken from %s, where they were in %s; %s%s",
        len(paths) - len(missing),
        shown(root),
        shown(base or root),
        f"of {unchecked} the size is not known, the others have theirs" if unchecked else "all have their sizes",
        f"; missing are {len(missing)}: {some(missing)}" if missing else "",
    )
    return [_with_file(address, file) for address, file in zip(addresses, new_paths, strict=True)]


def _file_of(address: str) -> str:
    part = within(address)
    if part is not None:
        return part.shard
    return item_of(address)[0] if address.endswith("]") else address


def _with_file(address: str, file: str) -> str:
    part = within(address)
    if part is not None:
        return str(part._replace(shard=file))
    item = item_of(address)[1] if address.endswith("]") else None
    return file if item is None else f"{file}[{item}]"


def _base(paths: Sequence[str], root: str, there: Callable[[str], bool]) -> str:
    """The old folder that `root` takes the place of: the folder that held all files or one above it, the one by which
    most files are found; of several, the deepest.
    """
    sample = paths[:: max(1, len(paths) // _TRIED)]
    candidates = [_common(paths)]
    while (above := os.path.dirname(candidates[-1])) != candidates[-1] and not above.endswith(":/"):
        candidates.append(above)
    counts = [sum(there(os.path.join(root, os.path.relpath(path, base))) for path in sample) for base in candidates]
    return candidates[counts.index(max(counts))]


def _common(paths: Sequence[str]) -> str:
    try:
        common = os.path.commonpath([os.path.dirname(path) for path in paths])
        return common.replace(":/", "://", 1) if all(map(is_url, paths)) else common
    except ValueError:  # some absolute, some not
        return ""


def _is_below(path: str, root: str) -> bool:
    return path.startswith(os.path.join(root, ""))


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return UNKNOWN
