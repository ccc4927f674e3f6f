"""Random numbers that are counted, not drawn: they depend on what they are for, not on what was drawn before."""

from collections.abc import Sequence
from enum import IntEnum, unique
from typing import TypeAlias

import numpy as np

from .errors import UsageError

Counter: TypeAlias = int | Sequence[int]
"""A place, for example (seed, use, epoch, index): the same counter gives the same numbers on any machine."""


@unique
class Use(IntEnum):
    """What random numbers are for: the second word of every counter, so that no two uses of one seed get the same.

    A number, once here, stays: another one would give other runs under the same seed.
    """

    CROP = 1
    ORDER = 2
    STAND_IN = 3
    HOLD_OUT = 4
    LABELS = 5
    STATISTICS = 6
    SHARDS = 7
    """Which files of many pictures an epoch has."""
    MASK = 101
    HELD_OUT_MASK = 102
    STEP = 103
    INITIAL_WEIGHTS = 104
    """A backbone's, the same in pre-training and in every task."""
    MIX = 105
    CLASSIFIER = 106
    DETECTOR = 107
    SEGMENTER = 108
    SCALE = 109
    """The scale of a picture in detection."""
    SAMPLE = 110
    """The boxes in it that are trained on."""


def counted(seed: int, use: Use, epoch: int = 0, index: int = 0) -> np.random.Generator:
    """The generator that belongs to (seed, use, epoch, index)."""
    _check(seed)
    return np.random.default_rng((seed, use, epoch, index))


def counted_seed(seed: int, use: Use, *place: int) -> int:
    """A 63-bit seed for torch that is a function of (seed, use, place …) alone."""
    _check(seed)
    words = (seed, use, *place)
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _check(seed: int) -> None:
    if seed < 0:
        raise UsageError(f"seed is {seed}: expected 0 or more")
