"""What a kernel sees of the patches around each patch: the same for every mask, and kept from step to step."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Sizes = tuple[int, ...]

DECLARED = "int[] patch, int[] kernel, int[] stride, int[] dilation, int[] before"
"""`PatchKernel.sizes` as arguments of an operator."""


@dataclass(frozen=True)
class PatchKernel:
    """A convolution's kernel on patches.

    Attributes, all along each axis:
        patch: positions of a patch.
        kernel, stride, dilation: of the convolution.
        before: padding in front of the image's first position.
    """

    patch: Sizes
    kernel: Sizes
    stride: Sizes
    dilation: Sizes
    before: Sizes

    @classmethod
    def of(cls, sizes: Sequence[Sequence[int]]) -> PatchKernel:
        """From `sizes`, which operators are given as lists."""
        return cls(*map(tuple, sizes))

    @property
    def sizes(self) -> tuple[Sizes, ...]:
        """All attributes, in order."""
        return self.patch, self.kernel, self.stride, self.dilation, self.before

    @property
    def reach(self) -> Sizes:
        """How many patches away the kernel sees at most."""
        axes = zip(self.patch, self.kernel, self.stride, self.dilation, self.before, strict=True)
        return tuple([max(-(-b // p), (p - s - b + (k - 1) * d) // p, 0) for p, k, s, d, b in axes])

    @property
    def out(self) -> Sizes:
        """Positions of a patch of the result."""
        return tuple([p // s for p, s in zip(self.patch, self.stride, strict=True)])

    def looks(self, across: bool) -> int:
        """How many positions all taps see from a patch of the result; only in other patches, if across."""
        everything = math.prod(self.out) * math.prod(self.kernel)
        return everything - math.prod(map(self._looks_within, range(len(self.patch)))) if across else everything

    def _looks_within(self, axis: int) -> int:
        seen = (
            position * self.stride[axis] - self.before[axis] + tap * self.dilation[axis]
            for position in range(self.out[axis])
            for tap in range(self.kernel[axis])
        )
        return sum(0 <= at < self.patch[axis] for at in seen)

    def result_plan(self) -> Tensor:
        """int32 (prod(out), prod(kernel), 2): in which patch around, and at which position of it, a tap sees its input.

        Patches around are counted through the block of `reach` patches on each side.
        """
        return _result_plan(self)

    def input_plan(self) -> Tensor:
        """int32 (prod(patch), prod(kernel), 2): in which patch around, and where, a tap saw the input; -1: nowhere."""
        return _input_plan(self)


@functools.lru_cache(maxsize=512)
def _result_plan(of: PatchKernel) -> Tensor:
    axes = []
    for axis, (out, k) in enumerate(zip(of.out, of.kernel, strict=True)):
        at = torch.arange(out)[:, None] * of.stride[axis] - of.before[axis] + torch.arange(k) * of.dilation[axis]
        axes.append((at, torch.ones_like(at, dtype=torch.bool)))
    return _plan(axes, of.patch, of.reach)


@functools.lru_cache(maxsize=512)
def _input_plan(of: PatchKernel) -> Tensor:
    axes = []
    for axis, (p, k) in enumerate(zip(of.patch, of.kernel, strict=True)):
        at = torch.arange(p)[:, None] + of.before[axis] - torch.arange(k) * of.dilation[axis]
        axes.append((torch.div(at, of.stride[axis], rounding_mode="floor"), at % of.stride[axis] == 0))
    return _plan(axes, of.out, of.reach)


def _plan(axes: list[tuple[Tensor, Tensor]], sides: Sizes, reach: Sizes) -> Tensor:
    """What each tap sees, from (positions, taps) along each axis: the place, and whether there is one."""
    cell = place = hidden = torch.zeros(1, 1, dtype=torch.int64)
    for (at, valid), side, far in zip(axes, sides, reach, strict=True):
        which = torch.div(at, side, rounding_mode="floor") + far
        cell = _each_with_each(cell * (2 * far + 1), which)
        place = _each_with_each(place * side, at % side)
        hidden = _each_with_each(hidden, (~valid).long())
    return torch.stack([torch.where(hidden == 0, cell, -1), place], -1).to(torch.int32).contiguous()


def _each_with_each(left: Tensor, right: Tensor) -> Tensor:
    """(a, b), (n, k) -> (a * n, b * k): sums"""
    return (left[:, None, :, None] + right[None, :, None, :]).flatten(2).flatten(0, 1)
