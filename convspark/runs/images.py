"""The images of a run: found, checked, split, listed in its folder, and made into training examples."""

import json
import logging
import os
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Subset

from ..data import (
    MOST_BAD,
    PLAIN,
    UNKNOWN,
    FileSource,
    HeldOutTransform,
    Identities,
    ImageSource,
    Pixels,
    Places,
    PretrainImages,
    PretrainTransform,
    ShardsInTurn,
    Turn,
    absolute,
    adapt,
    as_lines,
    as_place,
    at_new_place,
    blaming,
    file_sizes,
    fitting,
    hold_out,
    is_url,
    item_of,
    list_pictures,
    list_shards,
    names_in,
    scan,
    shards_of,
    stamp_of,
    within,
)
from ..errors import DataError, UsageError
from ..files import write_text
from .folder import RunFolder

logger = logging.getLogger(__name__)

_FEW_PLACES, _MOST_PLACES = 4, 10_000  # are named one by one, to the user and in the cache

_SLOW = 64 << 20  # bytes of a group of rows

Shuffle: TypeAlias = Literal["full", "windows"]
"""Which pictures may follow each other in an epoch: any, or those that lie together, so that they are read together."""

Check: TypeAlias = Literal["quick", "full", "none"]
"""How images are looked at before a run."""


@dataclass
class Images:
    """Images found and split, before their crops and batches are decided on.

    Attributes:
        train, held_out: lists of paths, or datasets; `held_out` is None where nothing is.
        bad: (path, reason) of what could not be read.
        description: for the log and the model card.
        pixels: how files are read.
        sizes: of the files trained on and held out, in bytes, where they are known already.
        in_turn: files of many pictures of which each epoch has some; `train` are the pictures of the first epoch.
    """

    train: Any
    held_out: Any
    bad: list[tuple[str, str]] = field(default_factory=list)
    description: str = ""
    pixels: Pixels = PLAIN
    sizes: list[int] = field(default_factory=list[int])
    in_turn: ShardsInTurn | None = None

    def source(self, images: Any) -> ImageSource:
        """Those to train on, or those held out, as pictures by index."""
        return FileSource(images, pixels=self.pixels) if isinstance(images, list) else adapt(images)

    @property
    def are_files(self) -> bool:
        return isinstance(self.train, list)

    def in_turns(self, in_turn: ShardsInTurn | None, first: Sequence[str], lost: Sequence[tuple[str, str]]) -> "Images":
        """Itself, trained on files in turn, less what is held out; None changes nothing.

        Args:
            first: all pictures of the first epoch.
            lost: its files that cannot be read.
        """
        if in_turn is None:
            return self
        identity = Identities()
        spelled = {identity.of_place(shard): shard for shard in in_turn.shards}  # as their pictures will be called
        parts = ((path, within(path)) for path in (self.held_out if isinstance(self.held_out, list) else ()))
        left_out = frozenset(
            path if part is None else str(part._replace(shard=spelled.get(identity.of_place(part.shard), part.shard)))
            for path, part in parts
        )
        in_turn = replace(in_turn, bands=not self.pixels.is_plain, left_out=left_out)
        train = [path for path in first if path not in left_out]
        return replace(self, train=train, bad=[*self.bad, *lost], in_turn=in_turn)

    def shards(self) -> set[str]:
        """Files of many pictures that its pictures are in; of those in turn, the first epoch's and all on this machine,
        as each one at a URL is a request.
        """
        lists = [paths for paths in (self.train, self.held_out) if isinstance(paths, list)]
        later = () if self.in_turn is None else self.in_turn.shards
        return {shard for paths in lists for shard in shards_of(paths)} | {one for one in later if not is_url(one)}

    def write_lists(self, folder: RunFolder) -> None:
        """Write the lists of files trained on, held out and unreadable, which a resumed run reads again."""
        train = self.train if self.in_turn is None else self.in_turn.shards
        files = [path for part in (train, self.held_out) if isinstance(part, list) for path in part]
        if files:
            write_text(folder.file_sizes, "".join(f"{size}\n" for size in self.sizes or file_sizes(files)))
        if self.are_files:
            _write_lines(folder.train_files if self.in_turn is None else folder.train_shards, train)
        if isinstance(self.held_out, list):
            _write_lines(folder.held_out_files, self.held_out)
        shards = sorted(self.shards())
        if shards:
            write_text(folder.shards, json.dumps({shard: stamp_of(shard) for shard in shards}, indent=2) + "\n")
        write_bad_files(folder, self.bad)


def find_images(
    images: Any,
    *,
    held_out: Any = 0.02,
    held_out_most: int = 1000,
    seed: int = 0,
    check: Check = "quick",
    pixels: Pixels = PLAIN,
    to_measure: bool = False,
    shards_per_epoch: int | None = None,
) -> Images:
    """Find and check the images, and hold a share of them out.

    Args:
        images: what `list_pictures` takes, or any map-style dataset of images.
        held_out: the share that is not trained on, or images of its own, in the same forms.
        held_out_most: the most that a share comes to.
        seed: of the choice.
        check: `quick` looks at each file, `full` decodes it, `none` takes what is there.
        pixels: how files are read.
        to_measure: whether their statistics will be: files of more than 8 bits are then read as they are stored.
        shards_per_epoch: most files of many pictures that an epoch has (see `ShardsInTurn`); None for all.

    Raises:
        DataError: nothing there, no readable picture, or more than 5 % unreadable.
    """
    bad: list[tuple[str, str]] = []
    in_turn: ShardsInTurn | None = None
    lost: list[tuple[str, str]] = []
    if shards_per_epoch is None:
        collection, description, pixels = _open(images, bad, check, pixels, to_measure)
    else:
        shards = list_shards(images)
        in_turn = ShardsInTurn(shards, shards_per_epoch, seed, bands=to_measure or not pixels.is_plain)
        (collection, lost), description = in_turn.pictures(0), _described(images)
        pixels = fitting(collection, pixels) if to_measure else pixels
    if isinstance(held_out, bool) or not isinstance(held_out, int | float):
        if held_out is None:
            raise UsageError("held_out is None: expected a share from 0 (none) up to (not including) 1, or a folder")
        with blaming("held_out"):
            own_images, own_description, _ = _open(held_out, bad, check, pixels)
            measured = _whole(own_images, own_description, bad, check, pixels)
        train = _not_held_out(collection, own_images)
        return Images(train, measured, bad, description, pixels).in_turns(in_turn, collection, lost)
    if not 0 <= held_out < 1:
        raise UsageError(f"held_out is {held_out}: expected a share from 0 up to (not including) 1, or a folder")
    if isinstance(collection, list):
        train, rest = hold_out(collection, held_out, held_out_most, seed)
        train = _not_held_out(train, rest)  # which a list that names a picture twice may have in both
    else:
        order, rest_order = hold_out(range(len(collection)), held_out, held_out_most, seed)
        train = Subset(collection, order)
        rest = Subset(collection, rest_order) if rest_order else None
    measured = _whole(rest or None, description, bad, check, pixels)
    return Images(train, measured, bad, description, pixels).in_turns(in_turn, collection, lost)


def reopen_images(
    folder: RunFolder,
    images: Any,
    *,
    held_out: Any = 0.02,
    held_out_most: int = 1000,
    seed: int = 0,
    check: Check = "quick",
    pixels: Pixels = PLAIN,
    moved: Container[str] = (),
    shards_per_epoch: int | None = None,
) -> Images:
    """The images of a run that goes on: its own lists of files, or else found as `find_images` does.

    Args:
        moved: which of `images` and `held_out` are at another place than they were.

    Raises:
        UsageError: it had a Dataset that was not passed again.
        DataError: other images than it had.
    """
    if held_out is None and not folder.held_out_files.is_file():
        raise UsageError(f"the run {folder.path} held out a Dataset: pass it again, as `held_out`")
    listed = folder.train_files if shards_per_epoch is None else folder.train_shards
    if not listed.is_file():
        if images is None:
            raise UsageError(f"the run {folder.path} trained on a Dataset: pass it again, as `images`")
        is_dataset = not isinstance(images, str | os.PathLike) and not _is_list_of_paths(images)
        if is_dataset and folder.held_out_files.is_file() and "held_out" not in moved:
            adapt(images)  # raises if it is none
            return Images(images, _read_lines(folder.held_out_files), [], type(images).__name__, pixels)
        return find_images(
            images,
            held_out=held_out,
            held_out_most=held_out_most,
            seed=seed,
            check=check,
            pixels=pixels,
            shards_per_epoch=shards_per_epoch,
        )
    held_out_images = None if isinstance(held_out, int | float | str) else held_out
    if folder.held_out_files.is_file():
        held_out_images = _read_lines(folder.held_out_files)
    train = _read_lines(listed)
    if not train:
        raise DataError(f"{listed} lists no image: delete it, and they are found anew")
    sizes: list[int] = []
    if "images" in moved or "held_out" in moved:
        train, held_out_images, sizes = _moved(folder, train, held_out_images, images, held_out, moved)
    there = (path for path in train[:: max(1, len(train) // 100)] if not is_url(path))
    missing = [path for path in there if not os.path.exists(item_of(path)[0])]
    if len(missing) > 5:
        raise DataError(
            f"the images of the run {folder.path} are no longer where they were, for example {missing[0]}; "
            f"put them back, or say where they are now: {folder.going_on} --images FOLDER"
        )
    reopened = Images(train, held_out_images, [], _described(images), pixels, sizes)
    if shards_per_epoch is not None:
        in_turn = ShardsInTurn(train, shards_per_epoch, seed, bands=not pixels.is_plain)
        reopened = reopened.in_turns(in_turn, *in_turn.pictures(0))
    _tell_changed(folder, reopened)
    return reopened


def _moved(
    folder: RunFolder, train: list[str], held_out: Any, images: str, other: Any, names: Container[str]
) -> tuple[list[str], Any, list[int]]:
    """The files of a run, trained on and held out, where they are now; and their sizes.

    Args:
        images, other: where those to train on, and held-out ones of their own, are now.
    """
    held_out_paths: list[str] = held_out if isinstance(held_out, list) else []
    total = len(train) + len(held_out_paths)
    sizes = _read_sizes(folder.file_sizes, total) or [UNKNOWN] * total
    parts = [("images", images, [*train, *held_out_paths])]
    if isinstance(other, str):
        parts = [("images", images, train), ("held_out", other, held_out_paths)]
    new_paths: list[str] = []
    for name, place, paths in parts:
        own = sizes[len(new_paths) : len(new_paths) + len(paths)]
        if name in names and paths:
            paths = at_new_place(
                paths, own, *as_place(place, [absolute(path) for path in list_pictures(place, bands=True)])
            )
        new_paths += paths
    return new_paths[: len(train)], new_paths[len(train) :] if isinstance(held_out, list) else held_out, sizes


def _read_sizes(path: Path, count: int) -> list[int]:
    """So many sizes; none if the file is missing (in older runs) or torn, as nothing else depends on it."""
    try:
        sizes = [int(line) for line in path.read_text(encoding="utf-8").split()]
    except (OSError, ValueError):
        return []
    return sizes if len(sizes) == count else []


def write_bad_files(folder: RunFolder, bad: Sequence[tuple[str, str]]) -> None:
    """Add to the list of what could not be read, with the reasons; no file where there is nothing to list."""
    if bad:
        there = folder.bad_files.is_file()
        text = folder.bad_files.read_text(encoding="utf-8", errors="surrogateescape") if there else ""
        reasons = dict(line.split("\t", 1) for line in text.split("\n") if "\t" in line)
        reasons |= {as_lines([path]).rstrip("\n"): " ".join(reason.split()) for path, reason in bad}
        write_text(folder.bad_files, "".join(f"{path}\t{reason}\n" for path, reason in reasons.items()))


def train_dataset(
    images: Images,
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    crop_scale: tuple[float, float],
    flip: bool,
    crops_per_image: int,
    seed: int,
    shuffle: Shuffle = "full",
    in_bytes: bool = False,
    leaves_coded: bool = False,
) -> PretrainImages:
    """Random crops of the images to train on, each (C, H, W), counted by (seed, epoch, index).

    Args:
        in_bytes: as in `PretrainTransform`.
        leaves_coded: as in `PretrainImages`.
    """
    transform = PretrainTransform(size=size, scale=crop_scale, mean=mean, std=std, flip=flip, in_bytes=in_bytes)
    source = images.source(images.train)
    files = source if isinstance(source, FileSource) else None
    if shuffle == "full" and files is not None and files.places is not None and files.places.largest_group > _SLOW:
        logger.warning(
            "the parquet files have groups of rows of up to %d MB, each of which is read for a single picture: try "
            "--shuffle windows, or write them with row_group_size=100",
            files.places.largest_group >> 20,
        )
    in_windows = shuffle == "windows"
    blocks = files.blocks() if in_windows and files is not None else None
    turn_of = None if images.in_turn is None else partial(_turn, images.in_turn, images.pixels, in_windows)
    return PretrainImages(
        source, transform, seed, crops_per_image, blocks=blocks, turn_of=turn_of, leaves_coded=leaves_coded
    )


def _turn(in_turn: ShardsInTurn, pixels: Pixels, in_windows: bool, epoch: int, share: float = 0.0) -> Turn:
    paths, lost = in_turn.pictures(epoch, share)
    source = FileSource(paths, pixels=pixels)
    return Turn(epoch, source, source.blocks() if in_windows else None, lost)


def held_out_dataset(
    images: Images, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> PretrainImages | None:
    """Centre crops of the held-out images; None if nothing is held out."""
    if images.held_out is None:
        return None
    transform = HeldOutTransform(size=size, mean=mean, std=std)
    source = images.source(images.held_out)
    # Unreadable held-out pictures are replaced like any other; here more of them are accepted, as they are few.
    return PretrainImages(source, transform, most_bad=0.5)


def first_images(dataset: PretrainImages, count: int = 8) -> Tensor:
    """The images to draw, normalised (B, C, H, W): the first ones."""
    transform: Any = dataset.transform
    images = transform.collate([dataset[index] for index in range(min(count, len(dataset)))])
    return transform.normalise(images) if images.dtype == torch.uint8 else images


def _open(
    images: Any, bad: list[tuple[str, str]], check: Check, pixels: Pixels, to_measure: bool = False
) -> tuple[Any, str, Pixels]:
    """A list of readable paths, or a dataset; what to call it; and how files are read."""
    if images is None:
        raise UsageError("images are missing: give a folder of pictures, or a text file with one path a line")
    if isinstance(images, str | os.PathLike) or _is_list_of_paths(images):
        paths = list_pictures(images, bands=to_measure or not pixels.is_plain)
        if to_measure:
            pixels = fitting(paths, pixels)
        if check != "none":
            result = scan(paths, whole=check == "full", place=_called(images), pixels=pixels)
            bad += result.bad
            paths = result.good
        return [absolute(path) for path in paths], _described(images), pixels
    adapt(images)  # raises if it is no dataset of images
    return images, type(images).__name__, pixels


def _not_held_out(images: Any, held_out: Any) -> Any:
    """Files to train on, less those that are held out: a folder of these may lie within that of all."""
    if not isinstance(images, list) or not isinstance(held_out, list):
        return images
    identity = Identities()
    measured = set(map(identity, held_out))
    train = [path for path in images if identity(path) not in measured]
    if not train:
        raise DataError("held_out: it names all pictures that are to be trained on: hold fewer out")
    if len(train) < len(images):
        logger.warning(
            "%d of the pictures to train on are held out as well: they are not trained on", len(images) - len(train)
        )
    return train


def _called(images: Any) -> str | None:
    """What to call a collection from one run to the next; None for a list that Python has."""
    places = [images] if isinstance(images, str | os.PathLike) else images
    return "\n".join(absolute(os.fspath(place)) for place in places) if len(places) <= _MOST_PLACES else None


def _described(images: Any) -> str:
    """What to call the images of a run that has a list of files."""
    if isinstance(images, list | tuple) and 0 < len(images) <= _FEW_PLACES:
        return ", ".join(map(str, images))
    return str(images) if isinstance(images, str | os.PathLike) else "a list of files"


def _tell_changed(folder: RunFolder, images: Images) -> None:
    """Say which shards are no longer as they were when a run began.

    Raises:
        DataError: more of its pictures are gone than are accepted.
    """
    try:
        before = json.loads(folder.shards.read_text(encoding="utf-8")) if folder.shards.is_file() else {}
    except ValueError:
        logger.warning("%s is torn: whether the files of pictures have changed is not known", folder.shards)
        before = {}
    changed = [shard for shard in images.shards() if before.get(shard) not in (None, stamp_of(shard))]
    if not changed:
        return
    pictures = [path for part in (images.train, images.held_out) if isinstance(part, list) for path in part]
    lost = Places(pictures).missing
    gone = [pictures[index] for index in lost.nonzero()[0].tolist()]
    text = f"{len(changed)} files of pictures have changed since the run {folder.path} began: {', '.join(changed[:3])}"
    if len(gone) > MOST_BAD * len(pictures):
        raise DataError(
            f"{text}. {len(gone)} of its {len(pictures)} pictures are gone, for example {gone[0]}; put them back, or "
            "start a new run"
        )
    if gone:
        text += f"; {len(gone)} of its pictures are gone, others stand in for them"
    logger.warning("%s. If the content of pictures changed, the run goes on differently than it would have", text)


def _whole(held_out: Any, description: str, bad: list[tuple[str, str]], check: Check, pixels: Pixels) -> Any:
    """Held-out files without those that are damaged anywhere: none can stand in for what is measured with."""
    if not isinstance(held_out, list) or check == "none":
        return held_out
    place = f"held out of {os.path.abspath(description)}"
    result = scan(held_out, whole=True, most_bad=0.5, place=place, pixels=pixels, again=True)
    bad += result.bad
    return result.good


def _is_list_of_paths(images: Any) -> bool:
    return isinstance(images, list | tuple) and all(isinstance(path, str | os.PathLike) for path in images)


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    write_text(path, as_lines(lines))


def _read_lines(path: Path) -> list[str]:
    """What `_write_lines` wrote; refused where the end is missing, or it was overwritten."""
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    if not text.endswith("\n") or "\0" in text:
        raise DataError(f"{path} is torn, its end is missing or zeros: delete it, and the images are found anew")
    return names_in(text)
