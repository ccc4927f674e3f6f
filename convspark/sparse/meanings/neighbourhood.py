"""What convolutions and poolings share: which window of the map a patch needs, and exact ways to run on it.

* **patch**: no position needs a neighbour in another patch; the dense op runs on the patches as they are.
* **window**: each patch is gathered with its halo, then the dense op runs without padding.
* **taps**: the kernel's inputs at each output position are gathered and multiplied once (conv.py).
* **kernel**: what a kernel for this device offers (faster.py).
* **image**: patches are put back into whole zero images, padded, the dense op runs, visible positions are cut out.
  It is the definition itself, mask-and-multiply, and the only way for what makes a map larger.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional

from .. import axes as lay
from ..grid import PatchGrid
from ..plans import Plan, Sizes, cached
from ..registry import Refusal
from ..tensor import (
    Padding,
    VisiblePatches,
    as_patches,
    become_patches,
    copied_patches,
    gather,
    scatter,
    unpadded,
)

Pads = tuple[tuple[int, int], ...]
"""Positions before and after, along each spatial axis."""


class Source(NamedTuple):
    """Patches to run on, with the padding that F.pad announced.

    Attributes:
        values: (N, C, *patch)
        grid: of the patches.
        announced: what F.pad padded with, if it did.
        outside: what lies outside the image, if it is one value.
        own_outside: what the op itself takes positions outside the image for.
    """

    values: Tensor
    grid: PatchGrid
    announced: Padding | None
    outside: float
    own_outside: float

    @property
    def has_zeros_around(self) -> bool:
        """Whether there is nothing but 0 outside the image."""
        return self.outside == 0

    def is_padded_otherwise(self, padding: Sizes) -> bool:
        """Whether what F.pad announced is more than a border of one value: then whole images are padded as it says.

        Args:
            padding: the op's own.
        """
        steps = self.announced.steps if self.announced is not None else []
        if not steps:
            return False
        plain = all(step.mode == "constant" and step.value == steps[0].value for step in steps)
        crops = any(n < 0 for step in steps for pair in step.pads for n in pair)
        return not plain or crops or (any(padding) and steps[0].value != self.own_outside)

    def pads(self, padding: Sizes) -> Pads:
        """What F.pad announced, and the op's own padding."""
        announced = ((0, 0),) * len(padding) if self.announced is None else self.announced.pads
        return tuple([(lo + p, hi + p) for (lo, hi), p in zip(announced, padding, strict=True)])

    def plan(self, kernel: Sizes, stride: Sizes, dilation: Sizes, pads: Pads, beyond: Sizes | None = None) -> Plan:
        """What an op sees around these patches; refuses one after which patches were cut through.

        Args:
            beyond: the op's own part of `pads`, if windows may reach beyond it (`ceil_mode`).
        """
        return _plan(tuple(self.values.shape[2:]), kernel, stride, dilation, self.grid.shape, pads, beyond)

    def image_size(self, plan: Plan) -> Sizes:
        """Positions of a whole image with all that an op needs around it."""
        axes = zip(self.grid.shape, plan.patch, plan.before, plan.after, strict=True)
        return tuple([b + h * p + a for h, p, b, a in axes])

    # ---------------------------------------------------------------- the ways to run

    def window(self, plan: Plan) -> Tensor:
        """(N, C, *patch) -> (N, C, *size): each patch with what it needs around it."""
        if plan.is_alone:
            return self.values
        return copied_patches(self.values, self.grid.copy(plan.window, self.outside), plan.size)

    def through_padded_images(self, function: Callable[[Tensor], Tensor]) -> VisiblePatches:
        """Run a function of padded maps, (B, C, *padded sides) -> (B, C', *sides'), as the dense network does."""
        maps = scatter(as_patches(self.values, self.grid))
        for step in self.announced.steps if self.announced is not None else ():
            pads = [n for pair in reversed(step.pads) for n in pair]
            maps = functional.pad(maps, pads, step.mode, step.value if step.mode == "constant" else None)
        return cut(function(maps), self.grid)

    def strided(self, plan: Plan) -> Tensor:
        """(N, C, *patch) -> (N, *out, C): the positions that a kernel of one position sees."""
        # Channels last while it is cut, so that its gradient has them last in memory as well.
        rows = self.values.movedim(1, -1)
        if max(plan.stride) == 1:
            return rows
        return rows[(slice(None), *(slice(None, None, s) for s in plan.stride))]

    def patches(self, values: Tensor) -> VisiblePatches:
        """The result, (N, C, *out)."""
        return become_patches(values, self.grid, lay.canonical(values.shape))


def source_of(x: VisiblePatches, padding: Sizes, outside: float = 0.0, dims: int | None = None) -> Source:
    """Read patches and their padding.

    Args:
        x: canonical visible patches, or ones padded by F.pad.
        padding: the op's own symmetric padding of each spatial axis.
        outside: what the op itself takes positions outside the image for.
        dims: spatial axes that the op works on.
    """
    pending = x.pending
    core = with_patches_first(unpadded(x) if pending is None else pending.unchanged())
    if dims is not None and core.dim() != dims + 2:
        raise Refusal(f"it works on {dims} spatial axes, and the patches have {core.dim() - 2}")
    value = outside if pending is None else pending.steps[0].value
    return Source(core, core.grid, pending, value, outside)


def with_patches_first(x: VisiblePatches) -> VisiblePatches:
    """(1, N * C, *positions), as conditional convolutions arrange it, to (N, C, *positions); refuses other orders."""
    if lay.is_canonical(x.axes):
        return x
    joined = (
        len(x.axes) > 2 and not x.axes[0] and [role for role, _ in x.axes[1]] in ([lay.PATCH, lay.PLAIN], [lay.PATCH])
    )
    if joined and [[role for role, _ in axis] for axis in x.axes[2:]] == [[axis] for axis in range(x.dim() - 2)]:
        values = x.reshape(x.grid.num_visible, -1, *x.shape[2:])
        return as_patches(values, x.grid, lay.canonical(values.shape))
    raise Refusal(f"its axes are not (patches, channels, *positions), but {lay.described(x.axes)}")


def through_images(x: VisiblePatches, function: Callable[[Tensor], Tensor]) -> VisiblePatches:
    """Run a function of whole maps, (B, C, *sides) -> (B, C', *sides'), on patches put back into zero images.

    Refuses unless the result again has a whole number of positions for each patch.
    """
    return cut(function(put_back(x)), x.grid)


def put_back(x: VisiblePatches) -> Tensor:
    """(N, C, *patch) -> (B, C, *sides), 0 at masked positions."""
    return scatter(with_patches_first(unpadded(x)))


def cut(maps: Tensor, grid: PatchGrid) -> VisiblePatches:
    """(B, C, *sides) -> (N, C, *patch); refuses sides that cannot be cut into the grid's patches."""
    if maps.dim() != len(grid.shape) + 2 or any(side % h for side, h in zip(maps.shape[2:], grid.shape, strict=True)):
        sides = tuple(maps.shape[2:])
        raise Refusal(f"it makes maps of {sides} positions, which cannot be cut into {grid.shape} patches")
    return gather(maps, grid)


@cached
def _plan(
    patch: Sizes, kernel: Sizes, stride: Sizes, dilation: Sizes, shape: Sizes, pads: Pads, beyond: Sizes | None
) -> Plan:
    """An op's plan on a grid of this shape; refuses one after which patches were cut through."""
    plan = Plan(patch, kernel, stride, dilation, tuple(lo for lo, _ in pads))
    for axis, (p, h, s, extent, (lo, hi)) in enumerate(zip(patch, shape, stride, plan.extent, pads, strict=True)):
        side = h * p
        if beyond is not None:
            out = -(-(side + lo + hi - extent) // s) + 1
            out -= (out - 1) * s >= side + lo + hi - beyond[axis]  # a window may not begin in its padding after the map
        else:
            out = (side + lo + hi - extent) // s + 1
        if p % s:
            raise Refusal(f"a stride of {s} does not divide the {p} positions left in a patch")
        if out != side // s:
            raise Refusal(
                f"a map of {side} positions becomes one of {out}, not {side // s}, so its positions no longer "
                "line up with the patches (the padding does not make up for the kernel)"
            )
    return plan
