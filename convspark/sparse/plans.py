"""Plans: which position of which patch around it each position of a result sees.

A plan follows from shapes alone: it is the same for every mask, made once and kept from step to step. With the block of
patches around each visible patch (`PatchGrid.around`), which is the same for every layer, it is all that a
neighbourhood needs: of patch n, position r of the result sees position `entry[1]` of the patch `entry[0]` of n's block.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._guards import detect_fake_mode
from torch.utils._python_dispatch import _disable_current_modes

P = ParamSpec("P")
T = TypeVar("T")
Sizes = tuple[int, ...]

DECLARED = "int[] patch, int[] kernel, int[] stride, int[] dilation, int[] before"
"""`Plan.sizes` as arguments of an operator."""


@dataclass(frozen=True)
class Plan:
    """What a kernel sees of the patches around each patch.

    Attributes, all along each axis:
        patch: positions of a patch that is read.
        kernel, stride, dilation: of the kernel.
        before: padding before the image's first position.
        results: positions of a patch of the result; None: patch / stride.
    """

    patch: Sizes
    kernel: Sizes
    stride: Sizes
    dilation: Sizes
    before: Sizes
    results: Sizes | None = None

    @classmethod
    def of(cls, sizes: Sequence[Sequence[int]]) -> Plan:
        """From `sizes`, which operators get as lists."""
        return cls(*map(tuple, sizes))

    @property
    def sizes(self) -> tuple[Sizes, ...]:
        """All attributes but `results`, in order."""
        return self.patch, self.kernel, self.stride, self.dilation, self.before

    @property
    def out(self) -> Sizes:
        """Positions of a patch of the result, along each axis."""
        return self.results or tuple(p // s for p, s in zip(self.patch, self.stride, strict=True))

    @property
    def reach(self) -> Sizes:
        """How many patches away the kernel sees at most, along each axis."""
        return _reach(self)

    @property
    def block(self) -> Sizes:
        """Patches of the block around each patch, along each axis."""
        return tuple([2 * reach + 1 for reach in self.reach])

    @property
    def positions(self) -> int:
        """Positions of a patch that is read, over all axes."""
        return math.prod(self.patch)

    @property
    def outputs(self) -> int:
        """Positions of a patch of the result, over all axes."""
        return math.prod(self.out)

    @property
    def extent(self) -> Sizes:
        """Positions from the first to the last that the kernel sees at once."""
        return tuple([(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True)])

    @property
    def after(self) -> Sizes:
        """Positions needed after a patch's last one; negative where the last ones are not looked at."""
        return tuple([e - s - b for e, s, b in zip(self.extent, self.stride, self.before, strict=True)])

    @property
    def size(self) -> Sizes:
        """Positions of a patch with all that it needs around it."""
        return tuple([b + p + a for b, p, a in zip(self.before, self.patch, self.after, strict=True)])

    @property
    def window(self) -> Plan:
        """The plan that gathers each patch with all that it needs around it."""
        return _window(self)

    @property
    def is_alone(self) -> bool:
        """Whether each patch has exactly what it needs."""
        return not any(self.before) and not any(self.after)

    @property
    def is_pointwise(self) -> bool:
        """Whether the kernel is of one position, within the patch."""
        return math.prod(self.kernel) == 1 and not any(self.before) and max(self.after) <= 0

    @property
    def is_side_by_side(self) -> bool:
        """Whether the kernels of a patch's results lie side by side in it, and fill it."""
        dense = all(d == 1 or k == 1 for d, k in zip(self.dilation, self.kernel, strict=True))
        return dense and self.is_alone and self.kernel == self.stride

    @property
    def cells(self) -> int:
        """Taps of all positions of a patch of the result."""
        return math.prod(self.out) * math.prod(self.kernel)

    def across(self) -> int:
        """How many taps see another patch than their own."""
        return self.cells - math.prod(map(self._within, range(len(self.patch))))

    def _within(self, axis: int) -> int:
        positions = (
            position * self.stride[axis] - self.before[axis] + tap * self.dilation[axis]
            for position in range(self.out[axis])
            for tap in range(self.kernel[axis])
        )
        return sum(0 <= at < self.patch[axis] for at in positions)


def _is_traced() -> bool:
    """Whether what is built now becomes part of a graph, or has no values."""
    return torch.compiler.is_compiling() or detect_fake_mode() is not None


def cached(build: Callable[P, T]) -> Callable[P, T]:
    """Decorator: what was built before for the same arguments is returned again.

    A graph that is being traced has it built as a part of it, and so has a mode of fake tensors; modes that count or
    record operators do not see it.
    """
    known = functools.lru_cache(maxsize=512)(build)

    @functools.wraps(build)
    def get(*args: P.args, **kwargs: P.kwargs) -> T:
        if not torch.compiler.is_compiling() and torch._C._len_torch_dispatch_stack() == 0:  # asked at every layer
            if not torch.is_inference_mode_enabled():
                return known(*args, **kwargs)  # type: ignore[arg-type]
        elif _is_traced():
            return build(*args, **kwargs)
        with _disable_current_modes(), torch.inference_mode(False):
            return known(*args, **kwargs)  # type: ignore[arg-type]

    return get


@cached
def _reach(plan: Plan) -> Sizes:
    last = [
        (out - 1) * s - b + (k - 1) * d
        for out, k, s, d, b in zip(plan.out, plan.kernel, plan.stride, plan.dilation, plan.before, strict=True)
    ]
    axes = zip(plan.patch, plan.before, last, strict=True)
    return tuple([max(-(-b // p), at // p, 0) for p, b, at in axes])


@cached
def _window(plan: Plan) -> Plan:
    ones = (1,) * len(plan.patch)
    return Plan(plan.patch, ones, ones, ones, plan.before, plan.size)


# ---------------------------------------------------------------- entries: which patch, which position of it


@cached
def seen_by_tap(plan: Plan, device: torch.device) -> Tensor:
    """int32 (prod(out), prod(kernel), 2): what each tap sees at each position of the result."""
    axes = []
    for p, out, k, s, d, b, r in _by_axis(plan):
        at = torch.arange(out, device=device)[:, None] * s - b + torch.arange(k, device=device) * d
        axes.append((_floor(at, p) + r, at % p, torch.ones_like(at)))
    return _entries(axes, plan.patch, plan.block)


@cached
def seeing_by_tap(plan: Plan, device: torch.device) -> Tensor:
    """int32 (prod(patch), prod(kernel), 2): which position of the result each tap saw a position from; -1: none."""
    axes = []
    for p, out, k, s, d, b, r in _by_axis(plan):
        at = torch.arange(p, device=device)[:, None] + b - torch.arange(k, device=device) * d
        result = _floor(at, s)
        axes.append((_floor(result, out) + r, result % out, at % s == 0))
    return _entries(axes, plan.out, plan.block)


@cached
def seen_by_cell(plan: Plan, device: torch.device) -> Tensor:
    """int32 (cells, 1, 2): what each cell sees, the taps of one position of the result after the other's."""
    return seen_by_tap(plan, device).view(-1, 1, 2)


@cached
def cells_seeing(plan: Plan, device: torch.device) -> Tensor:
    """int32 (positions, most, 2): the cells that see each position; -1: fewer than the most."""
    if plan.results is None:  # results line up with what they see, and each tap has at most one of them
        patch, result = seeing_by_tap(plan, device).unbind(2)
        taps = patch.shape[1]
        cells = torch.stack([patch, result * taps + torch.arange(taps, dtype=torch.int32, device=device)], 2)
    else:  # windows overlap: one cell of each patch around, at most
        axes = []
        for p, out, _, _, _, b, r in _by_axis(plan):
            around = torch.arange(-r, r + 1, device=device)
            at = torch.arange(p, device=device)[:, None] + b - around * p
            axes.append(((around + r).expand_as(at), at, (at >= 0) & (at < out)))
        cells = _entries(axes, plan.out, plan.block)
    return cells if _is_traced() else _compact(cells)


def _by_axis(plan: Plan) -> Iterator[tuple[int, ...]]:
    """Of each axis: patch, out, kernel, stride, dilation, before, reach."""
    return zip(plan.patch, plan.out, plan.kernel, plan.stride, plan.dilation, plan.before, plan.reach, strict=True)


def _floor(number: Tensor, by: int) -> Tensor:
    return torch.div(number, by, rounding_mode="floor")


def _entries(axes: list[tuple[Tensor, Tensor, Tensor]], sides: Sizes, block: Sizes) -> Tensor:
    """Of each axis (rows, n): patch of the block, position in it, whether there is one; to (rows, n, 2) of all axes."""
    patch = position = absent = torch.zeros(1, 1, dtype=torch.int64, device=axes[0][0].device)
    for (which, place, present), side, n in zip(axes, sides, block, strict=True):
        patch = _all_sums(patch * n, which)
        position = _all_sums(position * side, place)
        absent = _all_sums(absent, 1 - present.long())
    there = absent == 0
    return torch.stack([torch.where(there, patch, -1), torch.where(there, position, 0)], -1).to(torch.int32)


def _all_sums(left: Tensor, right: Tensor) -> Tensor:
    """(a, b), (n, k) -> (a * n, b * k): each entry of the one plus each of the other"""
    return (left[:, None, :, None] + right[None, :, None, :]).flatten(2).flatten(0, 1)


def _compact(entries: Tensor) -> Tensor:
    """Without those that are -1, except where shorter rows need them to be as long as the longest."""
    absent = (entries[..., 0] < 0).long()
    order = absent.sort(dim=1, stable=True).indices
    most = entries.shape[1] - int(absent.sum(1).min())
    return entries.gather(1, order[..., None].expand_as(entries))[:, :most].contiguous()


class Entries(NamedTuple):
    """A plan's entries column by column, results one after the other, as operators on a device take them.

    Attributes:
        patch, position: int32 (results * most,); any where there is none.
        present: bool (results * most,) whether there is one; None: always.
        most: entries of a result.
    """

    patch: Tensor
    position: Tensor
    present: Tensor | None
    most: int


@cached
def columns(entries: Callable[..., Tensor], *of: Any) -> Entries:
    """Of what `entries(*of)` makes, one of the functions above."""
    table = entries(*of)
    patch, position = table.clamp(min=0).flatten(0, 1).unbind(1)
    present = (table[..., 0] >= 0).flatten()
    complete = entries is seen_by_cell or (not _is_traced() and bool(present.all()))
    return Entries(patch.contiguous(), position.contiguous(), None if complete else present, table.shape[1])


# ---------------------------------------------------------------- whole images


@cached
def image_cells(shape: Sizes, patch: Sizes, before: Sizes, sides: Sizes, device: torch.device) -> Tensor:
    """int32 (prod(sides), 1, 2): the patch, and the position in it, of each position of a padded image; -1: none."""
    axes = []
    for h, p, b, side in zip(shape, patch, before, sides, strict=True):
        at = torch.arange(-b, side - b, device=device)[:, None]
        axes.append((_floor(at, p), at % p, (at >= 0) & (at < h * p)))
    return _entries(axes, patch, shape)


@cached
def image_rows(shape: Sizes, patch: Sizes, before: Sizes, sides: Sizes, device: torch.device) -> Tensor:
    """int64 (prod(shape), prod(patch)): the other way round, the row of each position of each patch in that image."""
    row = torch.zeros(1, 1, dtype=torch.int64, device=device)
    for h, p, b, side in zip(shape, patch, before, sides, strict=True):
        places = torch.arange(h, device=device)[:, None] * p + torch.arange(p, device=device) + b
        row = _all_sums(row * side, places)
    return row


@cached
def multiples(count: int, of: int, device: torch.device) -> Tensor:
    """int32 (count + 1,): 0, of, 2 * of, ...: where bags of so many rows each begin."""
    return torch.arange(0, (count + 1) * of, of, dtype=torch.int32, device=device)
