"""`scan`: what a folder of pictures holds, what is wrong with it, and which settings suit it.

The command line's `convspark scan` is this function. Its module imports no torch by itself.
"""

import logging
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..arguments import checked_arguments
from ..errors import DataError, UsageError
from ..names import many
from ..runs.folder import check_processes
from .choices import Choice

if TYPE_CHECKING:
    import numpy as np

    from ..data import FileSource
    from ..data.looks import Look

logger = logging.getLogger(__name__)

_SHOWN = 5


@dataclass(frozen=True)
class ScanReport:
    """What was found; `str(report)` is the table.

    Attributes:
        images: what was scanned.
        pictures: how many can be read.
        sizes: least, median and greatest height, width and shorter side, in pixels.
        formats, bands, kinds: how many pictures are of each format, number of bands and type of samples.
        grey: how many are grey, however many bands they have.
        unreadable: (path, reason).
        duplicates: groups of files that are the same to the last byte.
        near_duplicates: groups of pictures that look alike, the same files apart.
        blank: pictures of nearly a single colour.
        others: pictures of other numbers of bands than the most frequent.
        statistics: of the channels of the most frequent number of bands, see `convspark.data.Statistics`.
        advice: flags of `pretrain` that suit them on this machine, with reasons.
        command: `convspark pretrain` with these.
        sheet: the PNG file that was written.
        keep: the list of files that was written.
        seconds: this took.
    """

    images: str
    pictures: int
    sizes: dict[str, list[float]]
    formats: dict[str, int]
    bands: dict[int, int]
    kinds: dict[str, int]
    grey: int
    unreadable: list[tuple[str, str]]
    duplicates: list[list[str]]
    near_duplicates: list[list[str]]
    blank: list[str]
    others: int
    statistics: dict[str, Any]
    statistics_lines: list[str]
    advice: list[Choice]
    command: str
    sheet: str | None
    keep: str | None
    seconds: float

    def __str__(self) -> str:
        names = {"uint8": "8 bits", "uint16": "16 bits", "int16": "16 bits, signed"}
        short = self.sizes["short"]
        lines = [
            f"{many(self.pictures, 'picture')} in {self.images}",
            f"  sizes           {' to '.join(_by(self.sizes, i) for i in (0, 2))}, median {_by(self.sizes, 1)}; "
            f"shorter side {short[0]:g} to {short[2]:g}, median {short[1]:g}",
            f"  formats         {_counted(self.formats)}",
            f"  bands           {_counted(self.bands)}; {self.grey} are grey",
            f"  samples         {_counted({names.get(kind, kind): n for kind, n in self.kinds.items()})}",
            f"  unreadable      {_some(f'{path}: {reason}' for path, reason in self.unreadable)}",
            f"  the same files  {_groups(self.duplicates)}",
            f"  look alike      {_groups(self.near_duplicates)}",
            f"  (nearly) blank  {_some(self.blank)}",
            "",
            f"Values of pictures of {_bands(self.statistics['bands'])}, over {self.statistics['files']} files and "
            f"{self.statistics['pixels']} pixels",
            *self.statistics_lines,
            "",
            "Settings that suit these",
            *(f"  {choice}" for choice in self.advice),
            "",
            f"  {self.command}",
        ]
        if self.others:
            where = "left out of that list" if self.keep else "cannot be read with these: --keep FILE lists the others"
            lines.append(f"  {many(self.others, 'picture')} of other bands {where}")
        lines += [f"Sheet of pictures: {self.sheet}"] if self.sheet else []
        lines += [f"Without what is unreadable or double: {self.keep}"] if self.keep else []
        return "\n".join(lines)


@checked_arguments
def scan(
    images: str | None = None,
    *,
    channels: int | None = None,
    out: str | None = "scan.png",
    pictures: int = 40,
    keep: str | None = None,
    seed: int = 0,
    workers: int | None = None,
) -> ScanReport:
    """Look at every picture: what there is, what is damaged or double, and which settings of pretrain suit it.

    Args:
        images: folder of pictures or arrays, list of them, tar or parquet files, and all other forms in docs/data.md.
        channels: how many bands NumPy arrays have, if their shape does not show it.
        out: PNG file for a sheet of pictures; that of an earlier scan is replaced.
        pictures: how many pictures the sheet shows, chosen by the seed; 0 for no sheet.
        keep: text file for a list of the good pictures, which pretrain takes; an existing one is replaced. It leaves
            out unreadable pictures and those of other bands than most; of pictures that are the same or look alike it
            keeps the first.
        seed: seed that chooses the pictures that are shown and measured.
        workers: number of threads; by default two more than cores.

    Raises:
        UsageError: an argument that cannot be used.
        DataError: there are no pictures.
    """
    started = time.monotonic()
    _check(images, channels, out, pictures, keep, seed, workers)
    sheet = out if pictures else None

    import numpy as np

    from ..data import FileSource, Pixels, absolute, as_lines, fitting, measure
    from ..data.duplicates import is_blank
    from ..data.looks import look_at
    from ..files import write_text
    from ..runs.device import choose_device, choose_precision
    from ..runs.logs import run_log
    from ..runs.machine import machine_of
    from .advice import advise

    assert images is not None
    with run_log(logging.WARNING):
        source = FileSource(_paths(images, out, sheet, keep))
        every = list(_watched(look_at(source, channels, workers), len(source)))
        readable = [index for index, look in enumerate(every) if look.reason is None]
        good = [every[index] for index in readable]
        if not good:
            reasons = _some(f"{look.path}: {look.reason}" for look in every)
            raise DataError(f"images: none of the files can be read: {reasons}")
        thumbs = np.stack([look.thumb for look in good if look.thumb is not None])
        same, alike = _doubles(source, readable, good, thumbs)
        bands = Counter(map(_read_as, good)).most_common(1)[0][0]
        chosen = [look for look in good if _read_as(look) == bands]
        is_plain, is_grey = all(look.is_plain for look in chosen), all(look.is_grey for look in chosen)
        channels_to_read = 1 if is_plain and is_grey else bands
        paths = [look.path for look in chosen]
        measured = measure(paths, fitting(paths, Pixels(channels_to_read, stored=not is_plain), seed), seed)
        device = choose_device()
        machine = machine_of(device, choose_precision("auto", device))
        sizes = [look.size for look in chosen]
        to_keep = _without_doubles(paths, [*same, *alike])
        count = len(paths if keep is None else to_keep)
        advice = advise(sizes, bands, machine, is_plain=is_plain, is_grey=is_grey, pictures=count)
        if keep is not None:
            write_text(keep, as_lines(map(absolute, to_keep)))
        if sheet is not None:
            _draw(source, [(index, every[index]) for index in readable], pictures, channels, seed, sheet)
    sides = {
        "height": [look.size[0] for look in good],
        "width": [look.size[1] for look in good],
        "short": [min(look.size) for look in good],
    }
    flags = " ".join(f"--{choice.flag} {shlex.quote(choice.text)}" for choice in advice)
    return ScanReport(
        images=images,
        pictures=len(good),
        sizes={name: [float(f(values)) for f in (min, np.median, max)] for name, values in sides.items()},
        formats=dict(Counter(look.format for look in good).most_common()),
        bands=dict(Counter(look.bands for look in good).most_common()),
        kinds=dict(Counter(look.kind for look in good).most_common()),
        grey=sum(look.is_grey for look in good),
        unreadable=[(look.path, look.reason) for look in every if look.reason is not None],
        duplicates=same,
        near_duplicates=alike,
        blank=[look.path for look, thumb in zip(good, thumbs, strict=True) if is_blank(thumb)],
        others=len(good) - len(chosen),
        statistics={"bands": channels_to_read, **measured.as_dict()},
        statistics_lines=measured.lines(),
        advice=advice,
        command=f"convspark pretrain {shlex.quote(keep or images)} {flags}",
        sheet=sheet,
        keep=keep,
        seconds=round(time.monotonic() - started, 1),
    )


def _check(
    images: str | None,
    channels: int | None,
    out: str | None,
    pictures: int,
    keep: str | None,
    seed: int,
    workers: int | None,
) -> None:
    """Raise UsageError where the arguments of `scan` cannot be used."""
    if images is None:
        raise UsageError("images are missing: give a folder of pictures, or a text file with one path a line")
    if out is not None and not out.lower().endswith(".png"):
        raise UsageError(f"out is {out!r}: expected a file that ends in .png")
    if pictures < 0 or seed < 0:
        raise UsageError(f"pictures is {pictures} and seed {seed}: expected 0 or more")
    if channels is not None and channels < 1:
        raise UsageError(f"channels is {channels}: expected 1 or more")
    if workers is not None and workers < 1:
        raise UsageError(f"workers is {workers}: expected 1 or more threads")
    check_processes(workers=workers)
    if keep is not None and out is not None and pictures and os.path.abspath(keep) == os.path.abspath(out):
        raise UsageError(f"keep and out are both {keep!r}: name a file for each")


def _paths(images: str, out: str | None, sheet: str | None, keep: str | None) -> list[str]:
    """The files to scan, without the sheet of an earlier scan; refuses to write over anything but that."""
    from ..data import absolute, check_no_input, list_pictures
    from ..files import check_writable
    from ..report.sheet import is_sheet

    for file in (keep, sheet):
        if file is not None:
            check_writable(file)
    old_sheet = os.path.abspath(out) if out is not None and is_sheet(out) else None
    if sheet is not None and old_sheet is None and os.path.exists(sheet):
        raise UsageError(f"out is {out!r}, which exists and is no sheet of an earlier scan: choose another --out")
    paths = [path for path in list_pictures(images, bands=True) if absolute(path) != old_sheet]
    if keep is not None:
        check_no_input("keep", keep, [images, *paths])
    return paths


def _doubles(
    source: "FileSource", readable: Sequence[int], good: "Sequence[Look]", thumbs: "np.ndarray"
) -> tuple[list[list[str]], list[list[str]]]:
    """Groups of files that are the same to the last byte, and of other pictures that look alike.

    Args:
        readable: the places in the source of `good`, whose small pictures are `thumbs`.
    """
    from ..data.duplicates import near_duplicates
    from ..data.looks import same_content

    path_of = dict(zip(readable, (look.path for look in good), strict=True))
    same = [[path_of[index] for index in group] for group in same_content(source, readable)]
    twins = {path for group in same for path in group[1:]}
    others = [place for place, look in enumerate(good) if look.path not in twins]
    alike = near_duplicates([good[place].hash for place in others], thumbs[others])
    return same, [[good[others[place]].path for place in group] for group in alike]


def _without_doubles(paths: Sequence[str], groups: Sequence[Sequence[str]]) -> list[str]:
    """Paths without those of a group of doubles but its first; one that is not among the paths stands for none."""
    there = set(paths)
    twins = {path for group in groups for path in [path for path in group if path in there][1:]}
    return [path for path in paths if path not in twins]


def _read_as(look: "Look") -> int:
    """How many bands are read of a picture: 8-bit colour of whatever is plain; of others all but opacity."""
    return 3 if look.is_plain else look.bands - look.opacity


def _bands(count: int) -> str:
    return "1 band" if count == 1 else f"{count} bands"


def _draw(
    source: "FileSource", good: "Sequence[tuple[int, Look]]", count: int, channels: int | None, seed: int, out: str
) -> None:
    """A sheet of so many of the pictures, spread over all of them by the seed."""
    from PIL import Image

    from ..data import base_name
    from ..data.decode import Shrunk
    from ..data.looks import displayed
    from ..report.sheet import picture_sheet
    from ..seeds import Use, counted

    places = sorted(counted(seed, Use.STATISTICS, 2).permutation(len(good))[:count].tolist())
    images: list[Image.Image] = []
    captions: list[str] = []
    for index, look in (good[place] for place in places):
        if look.is_plain:
            content = source.read(index, lambda height, width: max(1.0, min(height, width) / 192))
            picture = content.picture if isinstance(content, Shrunk) else content
            assert isinstance(picture, Image.Image)
            images.append(picture)
        else:
            images.append(displayed(look.path, source.content(index), channels))
        captions.append(f"{base_name(look.path)}  {look.size[1]}x{look.size[0]}")
    picture_sheet(images, captions, out)


def _watched(looks: "Iterable[Look]", total: int) -> "Iterable[Look]":
    """With a progress bar, on a terminal."""
    if not sys.stderr.isatty():
        yield from looks
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(looks, "Looking at the pictures", total, console=Console(stderr=True), transient=True)


def _by(sizes: dict[str, list[float]], place: int) -> str:
    return f"{sizes['width'][place]:g}x{sizes['height'][place]:g}"


def _counted(counts: dict[Any, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in counts.items())


def _some(items: Iterable[str]) -> str:
    listed = list(items)
    more = [f"… and {len(listed) - _SHOWN} more"] if len(listed) > _SHOWN else []
    return "\n".join([f"{len(listed)}", *(f"    {item}" for item in [*listed[:_SHOWN], *more])])


def _groups(groups: list[list[str]]) -> str:
    count = sum(len(group) - 1 for group in groups)
    text = _some(" = ".join([*group[:3], *(["…"] if len(group) > 3 else [])]) for group in groups)
    return f"{count} beside their first, in groups: {text}" if groups else "0"
