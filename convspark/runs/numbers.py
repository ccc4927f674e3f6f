"""From the settings to the numbers of a run; nothing here needs torch."""

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UsageError
from ..imagenet import IMAGENET_MEAN, IMAGENET_STD
from ..names import many

logger = logging.getLogger(__name__)

_DEFAULT_BATCH_SIZE = 64
_WARMUP_SHARE, _MOST_WARMUP_EPOCHS = 0.1, 40.0


@dataclass(frozen=True)
class Numbers:
    """The counts of a run.

    Attributes:
        images: images trained on in an epoch.
        batch_size: images of an optimiser step.
        accumulate: forward passes that an optimiser step consists of.
        epochs, steps_per_epoch, warmup_steps: of optimiser steps.
    """

    images: int
    batch_size: int
    accumulate: int
    epochs: int
    steps_per_epoch: int
    warmup_steps: int

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    @property
    def in_words(self) -> str:
        """For a log: `30 epochs of 25 steps, batch 4`, and where a batch is divided, ` in 2 passes`."""
        passes = f" in {self.accumulate} passes" if self.accumulate > 1 else ""
        return f"{many(self.epochs, 'epoch')} of {many(self.steps_per_epoch, 'step')}, batch {self.batch_size}{passes}"

    @property
    def images_a_pass(self) -> int:
        """Images of a forward pass."""
        return self.batch_size // self.accumulate


def parse_size(size: int | str | Sequence[int]) -> tuple[int, int]:
    """(height, width) in pixels from `224`, `"224"`, `"192x256"` (height first) or `(192, 256)`."""
    if isinstance(size, int):
        sides: Sequence[int] = (size, size)
    elif isinstance(size, str):
        match = re.fullmatch(r"\s*(\d+)(?:\s*[xX×,]\s*(\d+))?\s*", size)
        sides = (int(match[1]), int(match[2] or match[1])) if match else ()
    else:
        sides = tuple(size)
    if len(sides) != 2 or min(sides) < 1:
        raise UsageError(f"size is {size!r}: expected pixels, as in 224, or height x width, as in 192x256")
    return sides[0], sides[1]


def format_size(size: tuple[int, int]) -> int | str:
    """The shortest that `parse_size` reads back: `224`, `"192x256"`."""
    return size[0] if size[0] == size[1] else f"{size[0]}x{size[1]}"


def count(
    images: int,
    batch_size: int | None,
    epochs: int,
    warmup_epochs: float | None,
    accumulate: int | None = None,
    processes: int = 1,
    *,
    device_batch_size: int | None = None,
    steps: int | None = None,
    in_pairs: bool = False,
) -> Numbers:
    """The numbers of a run over so many images; None for a batch size or a warm-up chooses one.

    Args:
        accumulate: None divides a batch into the fewest passes that keep to `device_batch_size`.
        processes: that share each forward pass.
        device_batch_size: the most images of a forward pass in each of them; None for any number.
        steps: of the whole run, where an epoch is not to be one pass over the images.
        in_pairs: whether each process must have an even number of images of each pass.

    Raises:
        UsageError: numbers that do not go together.
    """
    if epochs < 1:
        raise UsageError(f"epochs is {epochs}: expected 1 or more")
    if steps is not None and (steps < 1 or steps % epochs):
        raise UsageError(f"steps is {steps} and epochs {epochs}: expected a multiple, as many steps in each epoch")
    check_positive(device_batch_size=device_batch_size)
    if accumulate is not None and accumulate < 1:
        raise UsageError(f"accumulate is {accumulate}: expected 1 or more forward passes for each step")
    if batch_size is None:
        parts = (accumulate or 1) * processes * (2 if in_pairs else 1)
        batch_size = max(1, min(_DEFAULT_BATCH_SIZE, images) // parts) * parts
    if accumulate is None:
        accumulate = _fewest_passes(batch_size, processes, device_batch_size, 2 if in_pairs else 1)
    if batch_size < 1:
        raise UsageError(f"batch_size is {batch_size}: expected 1 or more images")
    if not images:
        raise UsageError("there are no images to train on: give more, or set fewer aside to measure with")
    if batch_size > images:
        raise UsageError(
            f"batch_size is {batch_size}, but there are only {images} images to train on: "
            f"choose --batch-size {1 << (images.bit_length() - 1)} or less, or give more images"
        )
    if batch_size % accumulate:
        raise UsageError(
            f"batch_size is {batch_size} and accumulate {accumulate}: the batch must divide evenly into its "
            f"forward passes; try --batch-size {-(-batch_size // accumulate) * accumulate}"
        )
    if batch_size // accumulate % processes:
        raise UsageError(
            f"batch_size is {batch_size}{f' in {accumulate} passes' if accumulate > 1 else ''}, which {processes} "
            f"processes cannot share evenly: {_most(batch_size // accumulate, processes)} can"
        )
    own = batch_size // accumulate // processes
    if in_pairs and own % 2:
        how = f" in {accumulate} passes" if accumulate > 1 else ""
        how += f" on {processes} processes" if processes > 1 else ""
        more, fewer = batch_size + accumulate * processes, batch_size - accumulate * processes
        raise UsageError(
            f"batch_size is {batch_size}{how}, {own} pictures in each forward pass: expected an even number, as they "
            f"are mixed in pairs; try --batch-size {more if more <= images or not fewer else fewer}"
        )
    if warmup_epochs is None:
        warmup_epochs = default_warmup_epochs(epochs)
    if not 0 <= warmup_epochs <= epochs:
        raise UsageError(f"warmup_epochs is {warmup_epochs}: expected 0 to {epochs}, the epochs of the run")
    steps_per_epoch = -(-images // batch_size) if steps is None else steps // epochs
    warmup_steps = round(warmup_epochs * steps_per_epoch)
    return Numbers(images, batch_size, accumulate, epochs, steps_per_epoch, warmup_steps)


def tell_of_large_passes(numbers: Numbers, processes: int, device_batch_size: int | None) -> None:
    """Warn where the passes that were asked for have more images than `device_batch_size`."""
    own = numbers.images_a_pass // processes
    if device_batch_size is not None and own > device_batch_size:
        logger.warning(
            "accumulate is %d, so that a forward pass has %d images on each device: more than device_batch_size, %d, "
            "which is not kept to; leave --accumulate out, or raise it",
            numbers.accumulate,
            own,
            device_batch_size,
        )


def _fewest_passes(batch_size: int, processes: int, most: int | None, multiple: int) -> int:
    """The fewest equal passes of a batch, each of a multiple of `multiple` and at most `most` images a process.

    Raises:
        UsageError: only passes of half as many images or fewer are possible, which would change batch norms.
    """
    if most is None or batch_size % processes:
        return 1
    if most < multiple:
        raise UsageError(f"device_batch_size is {most}: expected {multiple} or more, as pictures are mixed in pairs")
    own = batch_size // processes
    whole = (own // passes for passes in range(1, own + 1) if own % passes == 0)
    size = next((size for size in whole if size <= most and size % multiple == 0), 0)
    if own > most and 2 * size <= most:
        near = most // multiple * multiple * processes
        tries = [max(1, batch_size // near) * near, (batch_size // near + 1) * near] if near else []
        raise UsageError(
            f"batch_size is {batch_size} and device_batch_size {most}: it divides into passes of {size or 1} images on "
            f"each device at best; try --batch-size {' or '.join(map(str, tries)) or 'another'}"
        )
    return own // size if size else 1


def _most(images: int, processes: int) -> int:
    """The most processes, fewer than these, that so many images can be divided among."""
    return next(fewer for fewer in range(processes - 1, 0, -1) if images % fewer == 0)


def default_warmup_epochs(epochs: int) -> float:
    """The paper's 40 epochs for runs of 400 and more, a tenth of shorter ones."""
    return min(_MOST_WARMUP_EPOCHS, round(_WARMUP_SHARE * epochs, 2))


def normalisation(
    channels: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel; ImageNet's where none are given, for colour and for grey.

    Raises:
        UsageError: one without the other, another number of them than channels, or none for other channels.
    """
    if (mean is None) != (std is None):
        raise UsageError("mean and std belong together: give --mean and --std, or neither")
    if mean is not None and std is not None:
        if len(mean) != channels or len(std) != channels:
            raise UsageError(
                f"mean has {len(mean)} numbers and std {len(std)}: expected {channels}, one a channel of the images"
            )
        if min(std) <= 0 or not all(map(math.isfinite, (*mean, *std))):
            raise UsageError(f"mean is {list(mean)} and std {list(std)}: expected finite numbers, std above 0")
        return tuple(mean), tuple(std)
    if channels == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    if channels == 1:
        return (0.449,), (0.226,)
    raise UsageError(
        f"the images have {channels} channels: measure them by --stats auto, or give --mean and --std with {channels} "
        "numbers each, in the images' own units (0 to 1 for whole numbers)"
    )


def format_seconds(seconds: float) -> str:
    """`42 s`, `7 min`, `3 h 20 min`, `2 days 4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} days {hours % 24} h"


def check_shares(**shares: float | None) -> None:
    """Raise UsageError unless each is within 0 and 1 (1 excluded); None passes."""
    for name, value in shares.items():
        if value is not None and not 0 <= value < 1:
            raise UsageError(f"{name} is {value}: expected a share from 0 up to (not including) 1")


_MOST = 1e12
"""Larger numbers are typing mistakes, and beyond 3e38 float32 has none."""


def check_positive(**values: float | None) -> None:
    """Raise UsageError unless each is a number above 0; None passes."""
    for name, value in values.items():
        if value is not None and not 0 < value <= _MOST:
            raise UsageError(f"{name} is {value}: expected a number above 0, up to {_MOST:g}")


def check_not_negative(**values: float | None) -> None:
    """Raise UsageError unless each is a number from 0; None passes."""
    for name, value in values.items():
        if value is not None and (not value >= 0 or (isinstance(value, float) and value > _MOST)):
            raise UsageError(f"{name} is {value}: expected a number that is not negative, up to {_MOST:g}")


def check_crop_scale(scale: Sequence[float]) -> None:
    """Raise UsageError unless these are two shares of a picture's area, in order."""
    low, high = scale
    if not 0 < low <= high <= 1:
        raise UsageError(f"crop_scale is {[low, high]}: expected two shares of the area, 0 < smallest <= largest <= 1")
