"""Picture files that annotations and masks belong to: where they are, which are readable, and how large."""

import logging
import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import PurePosixPath

from ..data import PLAIN, FileSource, Pixels, list_pictures, scan
from ..data.decode import quiet
from ..errors import DataError
from ..names import some
from .detection.annotations import Annotated

logger = logging.getLogger(__name__)

_MOST_DAMAGED = 0.5  # of the pictures to validate with, which may be few


def find_pictures(
    annotated: Sequence[Annotated],
    source: str,
    images: str,
    run_pictures: Sequence[str] | None = None,
    bands: bool = False,
) -> dict[str, Annotated]:
    """Annotated pictures by their path: of their name below the folder `images`, or else of the only picture there
    whose path ends most like it, with a warning. Nothing outside the folder is opened, whatever the names are.

    Args:
        run_pictures: those of a run that goes on: no others are taken, and those that are not there are left out.
        bands: see `list_pictures`.

    Raises:
        DataError: pictures that are not there, or that could be several, or two entries of one picture.
    """
    there = _Folder(images, bands)
    chosen = [there.named(picture.name) for picture in annotated]
    named_paths = {path for paths in chosen for path in paths}
    # A picture that another entry names exactly is not this entry's, however alike the names are.
    chosen = [
        paths or [path for path in there.like(picture) if path not in named_paths]
        for paths, picture in zip(chosen, annotated, strict=True)
    ]
    if run_pictures is not None:
        of_run = frozenset(run_pictures)
        tell_new([path for paths in chosen for path in paths if path not in of_run], source)
        pairs = [(p, [path for path in paths if path in of_run]) for p, paths in zip(annotated, chosen, strict=True)]
        annotated, chosen = [p for p, paths in pairs if paths], [paths for _, paths in pairs if paths]
        if not annotated:
            raise DataError(f"none of the run's pictures is left in {images} with an entry in {source}")
    lacking = [picture.name for picture, paths in zip(annotated, chosen, strict=True) if not paths]
    if lacking:
        raise DataError(
            f"{len(lacking)} of the {len(annotated)} pictures of {source} are not in {images}: {some(lacking)}"
        )
    pairs = zip(annotated, chosen, strict=True)
    unclear = [f"{picture.name} ({some(paths)})" for picture, paths in pairs if len(paths) > 1]
    if unclear:
        raise DataError(
            f"{source}: {len(unclear)} pictures are not where it says below {images}, and could be one of several "
            f"there: {some(unclear)}; correct their names"
        )
    names: dict[str, list[str]] = defaultdict(list)
    for picture, (path,) in zip(annotated, chosen, strict=True):
        names[path].append(picture.name)
    doubled = [f"{path} ({some(several)})" for path, several in names.items() if len(several) > 1]
    if doubled:
        raise DataError(f"{source} names {len(doubled)} pictures more than once: {some(doubled)}")
    moved = [f"{name} ({path})" for path, (name,) in names.items() if not there.named(name)]
    if moved:
        logger.warning(
            "%s: %d of %d pictures are taken by the end of their names: %s", source, len(moved), len(names), some(moved)
        )
    return {path: picture for picture, (path,) in zip(annotated, chosen, strict=True)}


def tell_new(pictures: Sequence[str], source: str) -> None:
    """Warn of pictures that a run which goes on did not have."""
    if pictures:
        logger.warning("%s: %d pictures are not of the run, and left out: %s", source, len(pictures), some(pictures))


def upright_sizes(
    paths: Sequence[str], bad: list[tuple[str, str]], pixels: Pixels = PLAIN
) -> dict[str, tuple[int, int]]:
    """(height, width) in pixels of each readable picture, the right way up, as it is decoded; of those that are read
    through a network, every one is decoded.

    Args:
        bad: to which (path, reason) of each of the others is added.

    Raises:
        DataError: no picture, or more than 5 % of them, can be read; fewer are left out and named.
    """
    with quiet():
        result = scan(paths, pixels=pixels, whole=FileSource(paths).is_remote(0))
        bad += result.bad
        source = FileSource(result.good, pixels=pixels)
        return {path: source.upright_size(place) for place, path in enumerate(result.good)}


def whole_pictures(paths: Sequence[str], bad: list[tuple[str, str]], pixels: Pixels = PLAIN) -> list[str]:
    """Those that can be decoded to their last pixel, before they are measured with; the others are named.

    Args:
        bad: to which (path, reason) of each of the others is added.

    Raises:
        DataError: more than half of them cannot.
    """
    result = scan(paths, whole=True, most_bad=_MOST_DAMAGED, pixels=pixels, again=True)
    bad += result.bad
    return result.good


class _Folder:
    """A folder of pictures, listed when it must be."""

    def __init__(self, root: str, bands: bool) -> None:
        self._root, self._bands = root, bands

    def named(self, name: str) -> list[str]:
        """The file of that name, as it is or with slashes for backslashes; never one outside the folder."""
        for path in (PurePosixPath(name), PurePosixPath(name.replace("\\", "/"))):
            file = os.path.join(self._root, path)
            if not path.is_absolute() and ".." not in path.parts and os.path.isfile(file):
                return [file]
        return []

    def like(self, picture: Annotated) -> list[str]:
        """The pictures of its file name, or else of one of its stems, the first that any has; of several, those whose
        folders end like its own the longest.
        """
        parts = PurePosixPath(composed(picture.name.replace("\\", "/"))).parts
        alike = self._by_name.get(parts[-1] if parts else "", [])
        for stem in () if alike else map(composed, picture.stems):
            alike = alike or self._by_stem.get(stem, [])
        ends = [_common_end(parts[:-1], [composed(part) for part in path.parts[:-1]]) for path in alike]
        return [str(path) for end, path in zip(ends, alike, strict=True) if end == max(ends)]

    @cached_property
    def _paths(self) -> list[PurePosixPath]:
        return [PurePosixPath(path) for path in list_pictures(self._root, self._bands)]

    @cached_property
    def _by_name(self) -> dict[str, list[PurePosixPath]]:
        return _grouped(self._paths, lambda path: path.name)

    @cached_property
    def _by_stem(self) -> dict[str, list[PurePosixPath]]:
        return _grouped(self._paths, lambda path: path.stem)


def composed(name: str) -> str:
    """In the form that most systems write: macOS parts letters from their accents, so that equal names differ."""
    return unicodedata.normalize("NFC", name)


def _grouped(paths: Sequence[PurePosixPath], key: Callable[[PurePosixPath], str]) -> dict[str, list[PurePosixPath]]:
    groups: dict[str, list[PurePosixPath]] = defaultdict(list)
    for path in paths:
        groups[composed(key(path))].append(path)
    return groups


def _common_end(one: Sequence[str], other: Sequence[str]) -> int:
    """How many parts two paths have in common, from the last on."""
    pairs = zip(reversed(one), reversed(other), strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
