"""Statistics of the channels of images: range, mean and deviation, over a counted sample of the files."""

import logging
import re
from collections import Counter as Tally
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from ..errors import DataError
from ..seeds import Use, counted
from .addresses import within
from .decode import BadPictureError, quiet, reason_of
from .pixels import Pixels
from .sources import FileSource
from .stored import ARRAY_SUFFIXES, item_of, opened

logger = logging.getLogger(__name__)

_MOST_FILES = 500
_MOST_PIXELS = 1_000_000  # of all files together
_ENDS = (0.001, 0.999)  # quantiles that become 0 and 1
_THREADS = 8


@dataclass(frozen=True)
class Statistics:
    """Numbers for each channel, over a sample of the files.

    Attributes:
        files: how many were measured, of `total`.
        pixels: of each channel, of all these files.
        kinds: types of samples, and how many files have them.
        minimum, maximum: in the files' own units (bytes for plain pictures).
        low, high: the 0.1 % and the 99.9 % quantile, alike; None for plain pictures, which need no scale.
        mean, std: of the values as they are trained on, before they are normalised: from 0 to 1.
        missing: share of the pixels of which nothing is known.
    """

    files: int
    total: int
    pixels: int
    kinds: dict[str, int]
    minimum: list[float]
    maximum: list[float]
    low: list[float] | None
    high: list[float] | None
    mean: list[float]
    std: list[float]
    missing: list[float]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def scaled(self, pixels: Pixels) -> Pixels:
        """`pixels` with the measured scale."""
        if self.low is None or self.high is None:
            return pixels
        return replace(pixels, low=tuple(self.low), high=tuple(self.high))

    def lines(self) -> list[str]:
        """A line a channel."""
        titles = ("channel", "smallest", "largest", "0 is", "1 is", "mean", "deviation", "missing")
        rows = ["".join(f"{title:>11}" for title in titles)]
        for i, mean in enumerate(self.mean):
            values = [self.minimum[i], self.maximum[i]]
            values += [0, 255] if self.low is None or self.high is None else [self.low[i], self.high[i]]
            cells = [f"{i + 1}", *(f"{value:.5g}" for value in values), f"{mean:.4f}", f"{self.std[i]:.4f}"]
            rows.append("".join(f"{cell:>11}" for cell in (*cells, f"{100 * self.missing[i]:.1f} %")))
        return rows


def fitting(paths: Sequence[str], pixels: Pixels, seed: int = 0) -> Pixels:
    """How files are read whose statistics are to be measured: as they are stored, if they have more than 8 bits or are
    arrays of NumPy, which `decode` does not read.
    """
    if not pixels.is_plain:
        return pixels
    ends = tuple(re.escape(suffix) for suffix in ARRAY_SUFFIXES)
    is_array = re.compile(rf"({'|'.join(ends)})(\[\d+\]|#\d+)?$", re.IGNORECASE).search
    parts = ((path, within(path)) for path in paths)
    if any(is_array(path if part is None else part.inner) for path, part in parts):
        return replace(pixels, stored=True)
    kinds = _kinds(_sample(paths, pixels, seed)[0])
    return pixels if set(kinds) <= {"uint8"} else replace(pixels, stored=True)


def measure(paths: Sequence[str], pixels: Pixels, seed: int = 0) -> Statistics:
    """Measure the channels of pictures over at most 500 files and a million pixels, both chosen by the seed.

    Args:
        paths: of the pictures, or other addresses of theirs.
        pixels: how they are read (`fitting`). A scale that it has is kept.

    Raises:
        DataError: no file can be read, or a channel has no value in any.
    """
    sample, chosen = _sample(paths, pixels, seed)
    most = max(1, _MOST_PIXELS // max(1, len(chosen)))
    plain = pixels.is_plain
    kinds = _kinds(sample)

    def part(place: int) -> np.ndarray | str:
        try:
            values = _plain(sample, place) if plain else _stored(sample, place)
        except BadPictureError as error:
            return str(error)
        if len(values) > most:
            values = values[counted(seed, Use.STATISTICS, 1, chosen[place]).choice(len(values), most, replace=False)]
        return values

    with quiet(), ThreadPoolExecutor(_THREADS) as pool:
        parts = list(pool.map(part, range(len(chosen))))
    arrays = [values for values in parts if isinstance(values, np.ndarray)]
    if not arrays:
        reason = parts[0] if parts else "there are none"
        raise DataError(f"images: none of {len(chosen)} files can be measured: {reason}")
    if len(arrays) < len(parts):
        reason = next(part for part in parts if isinstance(part, str))
        logger.warning("%d of %d files cannot be measured; the first: %s", len(parts) - len(arrays), len(parts), reason)
    if len(kinds) > 1:
        logger.warning(
            "Samples are of several types (%s): are they in the same units?",
            ", ".join(f"{kind} in {count} files" for kind, count in kinds.most_common()),
        )
    values = np.concatenate([np.broadcast_to(v, (len(v), pixels.channels)) for v in arrays])  # (N, C)
    known = [channel[np.isfinite(channel)] for channel in values.T]
    for number, channel in enumerate(known, start=1):
        if not len(channel):
            raise DataError(
                f"images: channel {number} has no value in any of {len(arrays)} files: leave its band out, by --bands "
                "of pretrain"
            )
    ends = [_ends(channel) for channel in known]
    low = high = None
    if not plain:
        low = list(pixels.low) if pixels.low is not None else [lowest for lowest, _ in ends]
        high = list(pixels.high) if pixels.high is not None else [highest for _, highest in ends]
    scaled = [
        channel / 255 if low is None or high is None else ((channel - low[i]) / (high[i] - low[i])).clip(0, 1)
        for i, channel in enumerate(known)
    ]
    deviations = [float(channel.std()) for channel in scaled]
    constant = [i + 1 for i, deviation in enumerate(deviations) if deviation == 0]
    if constant:
        logger.warning("One value everywhere in channel %s: it carries no information", ", ".join(map(str, constant)))
    return Statistics(
        files=len(arrays),
        total=len(paths),
        pixels=len(values),
        kinds=dict(kinds),
        minimum=[float(channel.min()) for channel in known],
        maximum=[float(channel.max()) for channel in known],
        low=low,
        high=high,
        mean=[_short(float(channel.mean())) for channel in scaled],
        std=[_short(deviation) or 1.0 for deviation in deviations],
        missing=[1 - len(channel) / len(values) for channel in known],
    )


def _sample(paths: Sequence[str], pixels: Pixels, seed: int) -> tuple[FileSource, list[int]]:
    """The files that are looked into, and their places among all."""
    chosen: list[int] = sorted(counted(seed, Use.STATISTICS).permutation(len(paths))[:_MOST_FILES].tolist())
    return FileSource([paths[place] for place in chosen], pixels=pixels), chosen


def _kinds(sample: FileSource) -> Tally[str]:
    """Types of samples, and how many files have them."""

    def kind(place: int) -> str | None:
        try:
            with opened(sample.name(place), sample.content(place)) as stored:
                return stored.layout.kind.name
        except Exception:  # reading says why
            return None

    with quiet(), ThreadPoolExecutor(_THREADS) as pool:
        return Tally(name for name in pool.map(kind, range(len(sample))) if name is not None)


def _ends(values: np.ndarray) -> tuple[float, float]:
    """The values that become 0 and 1: quantiles, or the extremes where these are equal."""
    low, high = np.quantile(values, _ENDS)
    if low == high:
        low, high = values.min(), values.max()
    low, high = (_short(float(end)) for end in (low, high))
    return (low, high) if low < high else (low, low + max(1.0, 1e-6 * abs(low)))  # of large numbers 1 is no step


def _short(value: float) -> float:
    """Without the digits that nobody wants to read in a config."""
    return float(f"{value:.9g}")


def _plain(sample: FileSource, place: int) -> np.ndarray:
    """(pixels, C) bytes, as floats."""
    picture, channels = sample.decode(place), sample.pixels.channels
    assert isinstance(picture, Image.Image)  # nothing was allowed to shrink it
    array = np.asarray(picture.convert("L") if channels == 1 else picture)
    return array.reshape(-1, channels).astype(np.float64)


def _stored(sample: FileSource, place: int) -> np.ndarray:
    """(pixels, C) as they are stored, NaN where nothing is known."""
    name, content = sample.name(place), None
    try:
        content = sample.content(place)
        with opened(name, content) as stored:
            samples, known = sample.pixels.known_samples(stored)
    except Exception as error:  # damaged files lead to nearly anything
        raise BadPictureError(name, reason_of(item_of(name)[0], error, content)) from error
    values = samples.astype(np.float64)
    values[~known] = np.nan
    return values.reshape(-1, values.shape[2])  # (H, W, C) -> (H * W, C)
