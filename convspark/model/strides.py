"""Sides and strides, one number for each spatial axis, and the way from the deepest stride back to the image."""

import math
from collections.abc import Iterable, Sequence
from operator import index
from typing import SupportsIndex

from ..errors import UsageError

Sides = tuple[int, ...]
"""One whole number for each spatial axis: sides of a patch in pixels, or the stride of a stage."""

MAX_STAGES = 4
"""The paper decodes four stages: the deepest ones."""

MAX_FACTOR = 7
"""The decoder multiplies a side by at most this at once: its kernels are two wider."""


def sides_of(value: int | Sequence[int], dims: int, name: str) -> Sides:
    """One side for all axes, or one for each.

    Raises:
        UsageError: no whole numbers above 0, or another number of sides than the images have; `name` is the argument to
            blame.
    """
    parts = (value,) * dims if isinstance(value, str) or not isinstance(value, Iterable) else tuple(value)
    sides = tuple(index(part) for part in parts if isinstance(part, SupportsIndex))  # NumPy's are whole numbers, too
    if len(sides) < len(parts) or any(side < 1 for side in sides):
        raise UsageError(f"{name}={value!r}: expected whole numbers of pixels, 1 or more")
    if len(sides) != dims:
        raise UsageError(f"{name}={value!r}: expected {dims} sides, as the backbone's images have")
    return sides


def as_setting(sides: Sides) -> int | list[int]:
    """As a setting has it: one number where all sides are equal."""
    return sides[0] if len(set(sides)) == 1 else list(sides)


def as_text(sides: Sequence[int]) -> str:
    """`32`, or `8x16x16`."""
    return str(sides[0]) if len(set(sides)) == 1 else times(sides)


def times(sides: Sequence[int]) -> str:
    """`224x224`."""
    return "x".join(map(str, sides))


def divides(stride: Sides, sides: Sequence[int]) -> bool:
    """Whether sides are whole multiples of a stride, on each axis."""
    return all(side % s == 0 for s, side in zip(stride, sides, strict=True))


def decodable(strides: Sequence[Sides]) -> list[Sides]:
    """The deepest strides that a decoder going up from the deepest one comes by, finest first."""
    chain: list[Sides] = []
    for stride in sorted(strides, key=math.prod, reverse=True):
        if math.prod(stride) > 1 and (not chain or (stride != chain[-1] and divides(stride, chain[-1]))):
            chain.append(stride)
    return chain[:MAX_STAGES][::-1]


def upsampling(strides: Sequence[Sides]) -> list[list[Sides]]:
    """What each block of a decoder multiplies the sides of its map by.

    Args:
        strides: of the decoded stages, finest first, each dividing the next.

    Returns:
        For each stage, deepest first, the factors on the way from it to the next finer one, or to the image: prime
        numbers, the smallest first; 1 on an axis that need not grow there.
    """
    finer = [(1,) * len(strides[0]), *strides[:-1]]
    ways = []
    for to, stride in zip(reversed(finer), reversed(strides), strict=True):
        primes = [_prime_factors(n // m) for m, n in zip(to, stride, strict=True)]
        ways.append([tuple(p[i] if i < len(p) else 1 for p in primes) for i in range(max(map(len, primes)))])
    return ways


def _prime_factors(number: int) -> list[int]:
    """24 -> [2, 2, 2, 3]."""
    factors, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return factors
