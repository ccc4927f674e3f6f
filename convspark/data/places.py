"""IMAGES, in any form that a user may name them: the addresses of the pictures."""

import glob
import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from ..errors import DataError, UsageError
from . import remote
from .addresses import absolute, expanded, is_url, within
from .decode import picture_suffixes
from .files import SHARD_SUFFIXES, Source, beside_list, from_text, is_left_out, nearest, paths_in, walk, with_items
from .parquet import ParquetShard
from .shards import addresses_in, in_words
from .stored import BAND_SUFFIXES, item_of
from .tables import is_saved_dataset, saved_split
from .tars import COMPRESSED

_log = logging.getLogger(__name__)

_LISTS = (".txt", ".csv", ".tsv")


def list_pictures(images: Source, bands: bool = False) -> list[str]:
    """Addresses of the pictures that `images` names, in an order that does not depend on the machine.

    Args:
        images: one of

            * a folder, flat or nested, with or without class folders, here or at a URL. Files are taken by suffix
              (every format that Pillow reads, `picture_suffixes`), files without a suffix by their first bytes; hidden
              files are left out, links are followed. Sorted by path. Where it holds no picture, but tar or parquet
              files, those in these.
            * a text file (UTF-8) with one place a line, relative to the file's own folder, or to the working directory
              if the first one is not found there. Blank lines and lines that begin with `#` are skipped; order and
              repetitions are kept. Names that no plain line can hold are JSON texts (`as_lines`).
            * a CSV, TSV or parquet file with a column named `path` or the like, or with paths in its first column.
            * a tar file, a parquet file of pictures, a folder that `datasets` saved.
            * one picture.
            * a pattern of those (`{000..127}.tar`, `*.tar`).
            * an iterable of all these, in their order. Pictures stay as they are.
        bands: whether files that are no pictures for `decode`, but may hold some of several bands, count too: NumPy's
            arrays (`.npy`, `.npz`; one of four axes is several pictures, `scenes.npy[0]` and so on) and `.gtif`.

    Whether each is a readable picture, `scan` finds out.

    Raises:
        DataError: something is missing, unreadable, or names no picture.
    """
    addresses = [address for place in _places(images, bands) for address in _opened(place, bands)]
    if not addresses:
        raise DataError(f"images: no picture in {images!r}")
    return with_items(addresses, bands)


def list_shards(images: Source) -> list[str]:
    """The files of many pictures that `images` names, as `list_pictures` takes it, in its order; none is opened.

    Raises:
        DataError: something is missing, or is no file of many pictures.
    """
    places = _places(images, bands=False)
    for place in places:
        if _is_picture(place) or not (is_shard(place) or os.path.isdir(place)):
            raise DataError(f"images: {place!r} is a picture: expected only files of many, .tar or .parquet")
    if not places:
        raise DataError(f"images: no file of pictures in {images!r}")
    return [absolute(place) for place in places]


def _places(images: Source, bands: bool) -> list[str]:
    """Pictures and, not opened, files of many pictures."""
    if isinstance(images, str | os.PathLike):
        return _at(os.fspath(images), bands)
    try:
        places = [os.fspath(place) for place in images]
    except TypeError as error:
        raise UsageError(f"images: expected a folder, a text file or a list of paths, got {error}") from None
    if not places:
        raise DataError("images: the list of paths is empty")
    return _at_places(places, bands)


def _opened(place: str, bands: bool) -> list[str]:
    """The pictures of a file of many, or of a folder that `datasets` saved; a picture stays as it is."""
    if _is_picture(place):
        return [place]
    if is_shard(place):
        return _in_shard(place, bands)
    return addresses_in("dataset", absolute(place)) if os.path.isdir(place) else [place]


def check_no_input(name: str, file: str, places: Iterable[str]) -> None:
    """Raise UsageError where a file that is to be written is one of these places, or holds pictures of them.

    Args:
        name: of the argument that names the file.
        places: what a user named as pictures (a list, a tar file), and addresses of pictures.
    """
    if not os.path.exists(file):
        return
    own = os.stat(file)
    parts = ((place, within(place)) for place in places)
    for input_file in dict.fromkeys(item_of(place)[0] if part is None else part.shard for place, part in parts):
        with suppress(OSError):  # a URL, a pattern, or what is gone by now
            if os.path.samestat(own, os.stat(input_file)):
                raise UsageError(
                    f"{name} is {file!r}, one of the pictures or a file that holds or lists them: name another"
                )


@contextmanager
def blaming(argument: str) -> Iterator[None]:
    """Within it, a DataError of a place names the argument that the place came from."""
    try:
        yield
    except DataError as error:
        raise DataError(re.sub(r"^(images|data):", f"{argument}:", str(error))) from None


def is_missing(place: str) -> bool:
    """Whether there is certainly nothing at a place: neither a path nor a URL nor a pattern of them."""
    return not os.path.exists(place) and not is_url(place) and not glob.has_magic(place) and expanded(place) == [place]


def _at_places(places: Iterable[str], bands: bool) -> list[str]:
    """What is in folders; other places stay as they are, whether there is a file or not."""
    addresses: list[str] = []
    for place in places:
        is_looked_into = not _is_picture(place) and (is_shard(place) or os.path.isdir(place))
        addresses += _at(place, bands) if is_looked_into else [place]
    return addresses


def _is_picture(place: str) -> bool:
    suffix = os.path.splitext(place)[1].lower()
    return suffix in picture_suffixes() or suffix in BAND_SUFFIXES or within(place) is not None


def _at(place: str, bands: bool) -> list[str]:
    if os.path.isdir(place):
        return _in_folder(place, bands)
    if os.path.isfile(place):
        return _in_file(place, bands)
    if os.path.isfile(item_of(place)[0]):
        return [place]
    several = _matching(place)
    if several != [place]:
        return _at_places(several, bands)
    if is_url(place):
        return _at_url(place, bands)
    raise DataError(
        f"images: {place!r} does not exist{nearest(place)}; give a folder of pictures, or a text file with one path a "
        "line"
    )


def _in_folder(folder: str, bands: bool) -> list[str]:
    saved = saved_split(folder) or folder
    if is_saved_dataset(saved):
        return [saved]
    shards: list[str] = []
    pictures = walk(folder, shards, bands)
    if pictures and shards:
        _warn_of_both(folder, shards)
    return pictures or shards


def _warn_of_both(folder: str, shards: list[str]) -> None:
    message = "%s holds pictures, which are taken, and %d files that may hold more, which are not: %s"
    _log.warning(message, folder, len(shards), shards[0])


def _in_file(path: str, bands: bool) -> list[str]:
    return [path] if _is_picture(path) or is_shard(path) else _at_places(from_text(path), bands)


def _at_url(url: str, bands: bool) -> list[str]:
    """The pictures at a URL: of a picture, a shard, a list, or a folder of them."""
    if _is_picture(url.partition("?")[0]) or within(url) is not None or is_shard(url):
        return [url]
    try:
        if url.partition("?")[0].lower().endswith(_LISTS):
            return _at_places(beside_list(url, paths_in(remote.read_all(url), url)), bands)
        files = remote.files_below(url)
    except FileNotFoundError:
        raise DataError(f"images: {url!r} does not exist") from None
    except OSError as error:
        raise DataError(f"images: {url!r} cannot be read: {error}") from None
    candidates = [file for file in files if not is_left_out(remote.below(file, url))]
    suffixes = picture_suffixes() | BAND_SUFFIXES if bands else picture_suffixes()
    pictures = [file for file in candidates if os.path.splitext(file)[1].lower() in suffixes]
    shards = [file for file in candidates if is_shard(file)]
    if pictures and shards:
        _warn_of_both(url, shards)
    if not pictures and not shards:
        raise DataError(
            f"images: no picture below {url!r} ({len(files)} files found); pictures end in .jpg, .png and the other "
            "suffixes that Pillow reads, files of many in .tar or .parquet"
        )
    return pictures or shards


def _in_shard(path: str, bands: bool) -> list[str]:
    path = absolute(path)
    if not path.lower().endswith(".parquet"):
        return _in_tar(path, bands)
    with in_words(path):
        table = ParquetShard(path)
        listed = None if table.holds_pictures else list(filter(None, table.paths()))
    if listed == []:
        raise DataError(f"images: {path!r} holds no path: its column of paths is empty")
    if listed is None:
        return addresses_in("parquet", path)
    return [address for place in _at_places(beside_list(path, listed), bands) for address in _opened(place, bands)]


def _in_tar(path: str, bands: bool) -> list[str]:
    addresses = addresses_in("tar", path)
    if bands:
        return addresses
    suffixes = "|".join(map(re.escape, BAND_SUFFIXES))
    is_array = re.compile(rf"({suffixes})(#\d+)?::{re.escape(path)}$", re.IGNORECASE).search
    pictures = [address for address in addresses if not is_array(address)]
    if addresses and not pictures:
        message = "%s holds %d arrays and no pictures: tell how many bands they have, --channels N --stats auto"
        _log.warning(message, path, len(addresses))
    return pictures


def is_shard(place: str) -> bool:
    """Whether a path or URL is that of a file of many pictures, by its suffix."""
    return place.lower().endswith((*SHARD_SUFFIXES, *COMPRESSED))


def _matching(pattern: str) -> list[str]:
    """What a pattern of the command line stands for, where no shell wrote it out."""
    places: list[str] = []
    for place in expanded(pattern):
        is_query = place.startswith(("http://", "https://")) and "*" not in place  # which a question mark begins
        if not glob.has_magic(place) or is_query:
            places.append(place)
        elif is_url(place):
            places += remote.files_below(place)
        else:
            places += sorted(glob.glob(place, recursive=True)) or [place]
    return places
