"""Facts about files, kept in the user's cache until the files change."""

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from ..errors import UsageError
from ..files import written_whole

_log = logging.getLogger(__name__)

_VERSION = 5  # of the files in the cache; those of another version are not read


def cache_folder() -> Path:
    """`convspark/index` in XDG_CACHE_HOME, by default ~/.cache."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "convspark" / "index"


def load(kind: str, place: str, stamp: str = "") -> dict[str, np.ndarray] | None:
    """The arrays kept for a place, if they were made when it had this stamp."""
    try:
        with _file(kind, place).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if str(arrays["stamp"]) == stamp and str(arrays["place"]) == _ascii(place):
                return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, RuntimeError):
        pass  # not there, torn, of something else, or no home folder
    return None


def save(kind: str, place: str, arrays: Mapping[str, np.ndarray], stamp: str = "") -> None:
    """Keep arrays, if there is somewhere to keep them."""
    try:
        with written_whole(_file(kind, place)) as temporary:
            np.savez(temporary, allow_pickle=False, **arrays, stamp=np.array(stamp), place=np.array(_ascii(place)))
    except (OSError, RuntimeError, UsageError) as error:  # full, not allowed, or no home folder
        _log.info("what was found out about %s is not kept: %s", place, error)


def _file(kind: str, place: str) -> Path:
    name = hashlib.sha256(_ascii(f"{_VERSION} {kind} {place}").encode()).hexdigest()[:32]
    return cache_folder() / f"{kind}-{name}.npz"


def _ascii(place: str) -> str:
    return ascii(place)
