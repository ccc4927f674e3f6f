"""Random numbers that are counted, not drawn: they depend on their place, not on what was drawn before."""

from collections.abc import Sequence
from enum import IntEnum
from typing import TypeAlias

import numpy as np

Counter: TypeAlias = int | Sequence[int]
"""A place, for example (seed, use, epoch, index): the same counter gives the same numbers on any machine."""


class Use(IntEnum):
    """Second word of every counter, so that no two uses of one seed see the same numbers."""

    CROP = 1
    ORDER = 2
    STAND_IN = 3
    HOLD_OUT = 4
    LABELS = 5


def counted(seed: int, use: Use, epoch: int = 0, index: int = 0) -> np.random.Generator:
    """The generator that belongs to (seed, use, epoch, index)."""
    return np.random.default_rng((seed, use, epoch, index))
