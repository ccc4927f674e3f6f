"""Convolutions of pairs: a position is multiplied with those around it that are visible, and with no others.

With 60 % masked, a 3x3 kernel on patches of one position has 4.2 visible taps of 9. What is listed, tap by tap, is
which row sees which; the rows are multiplied where they lie by the tap's matrix, and the products added to the results.
Where patches are larger, most taps stay within the patch; those are left to a dense convolution of the patches as they
are, and only pairs of positions in different patches, across, are listed.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..sparse.convolve import CONVOLUTION, FEW, Gradients
from ..sparse.grid import PatchGrid
from ..sparse.plans import DECLARED, Plan, Sizes, seen_by_tap
from ..sparse.tensor import flat_rows, from_rows
from .ops import computes, declare

# Pairs pay from so many channels a group; those across patches up to such a share of visible ones (measured on CPUs,
# `benchmarks/kernels.py`: with all visible, they are most of a kernel on small patches).
_PAIRED_FROM = 4
_ACROSS_UP_TO = 0.6


def offer(values: Tensor, weight: Tensor, groups: int, grid: PatchGrid, plan: Plan) -> Paired | None:
    """A way to convolve, where positions see other patches, and few enough of those are visible."""
    wide_enough = min(weight.shape[0] // groups, weight.shape[1]) >= _PAIRED_FROM
    if plan.is_alone or not wide_enough or not computes(values, weight, "add_pairs"):
        return None
    across = plan.outputs > FEW
    if across and (grid.num_visible > _ACROSS_UP_TO * grid.slots.shape[0] or not _can_split(plan)):
        return None

    def build() -> Pairs:
        return Pairs(*torch.ops.convspark.pairs(grid.around(plan.reach).slots, across, *plan.sizes))

    return Paired(groups, plan, across, grid.cached(("pairs", plan, across), build))


def _can_split(plan: Plan) -> bool:
    """Whether a dense convolution of each patch, padded as the image is, has the results that are within it."""
    axes = zip(plan.patch, plan.before, plan.extent, plan.stride, plan.out, strict=True)
    return all(b >= 0 and (p + 2 * b - e) // s + 1 == out for p, b, e, s, out in axes)


class Pairs(NamedTuple):
    """Which visible positions see which, M pairs, each tap's after those of the one before.

    Attributes:
        sources: int32, (M,) and more, the row that is seen.
        results: int32, (M,) and more, the row that sees it.
        ends: int64 (taps + 1,) where each tap's pairs begin, and the last one's end, M.
    """

    sources: Tensor
    results: Tensor
    ends: Tensor


@dataclass(frozen=True, eq=False)
class Paired:
    """A convolution by pairs.

    Attributes:
        groups: of channels.
        plan: what each tap sees.
        across: whether the pairs are those of different patches only.
        pairs: of positions.
    """

    groups: int
    plan: Plan
    across: bool
    pairs: Pairs

    def forward(self, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = flat_rows(values)
        if self.across:
            sizes = self.plan.stride, self.plan.before, self.plan.dilation, self.groups
            sums = flat_rows(CONVOLUTION[values.dim()](values, weight, bias, *sizes)).contiguous()
        else:
            size = values.shape[0] * math.prod(self.plan.out), weight.shape[0]
            sums = rows.new_zeros(size) if bias is None else bias.repeat(size[0], 1)
        torch.ops.convspark.add_pairs(sums, rows, _taps(weight), *self.pairs, self.groups, False)
        return from_rows(sums, self.plan.out)

    def gradients(self, grad: Tensor, values: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]) -> Gradients:
        rows, grads, plan = flat_rows(values), flat_rows(grad).contiguous(), self.plan
        to_values = to_weight = within_values = within_weight = None
        if self.across:
            sizes = plan.stride, plan.before, plan.dilation, False, [0] * len(plan.stride), self.groups
            within_values, within_weight, _ = torch.ops.aten.convolution_backward(
                grad, values, weight, None, *sizes, [*wanted[:2], False]
            )
        sources, results, ends = self.pairs
        if wanted[0]:
            sums = rows.new_zeros(rows.shape) if within_values is None else flat_rows(within_values).contiguous()
            torch.ops.convspark.add_pairs(sums, grads, _taps(weight), results, sources, ends, self.groups, True)
            to_values = from_rows(sums, plan.patch)
        if wanted[1]:
            taps = torch.ops.convspark.pairs_weight_gradient(grads, rows, results, sources, ends, self.groups)
            to_weight = taps.unflatten(1, plan.kernel).movedim(-1, 1)  # channels last in memory
            to_weight = to_weight if within_weight is None else to_weight.add_(within_weight)
        return to_values, to_weight, grads.sum(0) if wanted[2] else None


def _taps(weight: Tensor) -> Tensor:
    """(O, C, *kernel) -> (O, taps, C), contiguous; no copy where channels are last in memory."""
    return weight.movedim(1, -1).contiguous().flatten(1, -2)


# ---------------------------------------------------------------- plain versions


def _pairs(around: Tensor, across: bool, *sizes: Sizes) -> tuple[Tensor, Tensor, Tensor]:
    plan = Plan.of(sizes)
    entries = seen_by_tap(plan, around.device)  # (results, taps, 2)
    slots = around.index_select(1, entries[..., 0].flatten()).view(around.shape[0], *entries.shape[:2])
    visible = slots < around.shape[0]
    if across:
        visible = visible & (entries[..., 0] != own_patch(plan))
    taps, patches, positions = visible.permute(2, 0, 1).nonzero().unbind(1)
    sources = slots[patches, positions, taps] * plan.positions + entries[positions, taps, 1]
    results = patches * entries.shape[0] + positions
    ends = torch.nn.functional.pad(visible.sum((0, 1)).cumsum(0), (1, 0))
    return sources.to(torch.int32), results.to(torch.int32), ends


def own_patch(plan: Plan) -> int:
    """The number, within a block, of the patch in its middle."""
    return math.prod(plan.block) // 2


def pairs_like(around: Tensor, across: bool, *sizes: Sizes) -> tuple[Tensor, Tensor, Tensor]:
    """As `pairs` returns them, with room for all that there can be."""
    plan = Plan.of(sizes)
    most = around.shape[0] * (plan.across() if across else plan.cells)
    ends = around.new_empty(math.prod(plan.kernel) + 1, dtype=torch.int64)
    return around.new_empty(most), around.new_empty(most), ends


def _pairs_by_tap(ends: Tensor) -> list[slice]:
    """Where each tap's pairs lie in the list of all."""
    return [slice(start, end) for start, end in itertools.pairwise(ends.tolist())]


def _add_pairs(
    sums: Tensor, rows: Tensor, taps: Tensor, source: Tensor, target: Tensor, ends: Tensor, groups: int, back: bool
) -> None:
    matrices = taps.unflatten(0, (groups, -1))  # (groups, O / groups, taps, C / groups)
    for tap, pairs in enumerate(_pairs_by_tap(ends)):
        matrix = matrices[:, :, tap] if back else matrices[:, :, tap].mT
        seen_rows = rows[source[pairs]].unflatten(1, (groups, -1)).transpose(0, 1)  # (groups, pairs, channels)
        sums.index_add_(0, target[pairs], (seen_rows @ matrix).transpose(0, 1).flatten(1))


def _weight_gradient(
    grads: Tensor, rows: Tensor, results: Tensor, sources: Tensor, ends: Tensor, groups: int
) -> Tensor:
    sums = weight_gradient_like(grads, rows, results, sources, ends, groups)
    for tap, pairs in enumerate(_pairs_by_tap(ends)):
        one = grads[results[pairs]].unflatten(1, (groups, -1)).movedim(0, -1)  # (groups, O / groups, pairs)
        other = rows[sources[pairs]].unflatten(1, (groups, -1)).transpose(0, 1)  # (groups, pairs, C / groups)
        sums[:, tap] = (one @ other).flatten(0, 1)
    return sums


def weight_gradient_like(
    grads: Tensor, rows: Tensor, results: Tensor, sources: Tensor, ends: Tensor, groups: int
) -> Tensor:
    """(O, taps, C / groups), with any values."""
    return rows.new_empty(grads.shape[1], ends.shape[0] - 1, rows.shape[1] // groups)


# ---------------------------------------------------------------- operators


def _operations(one: Sizes, other: Sizes, groups: int, pairs: Sizes) -> int:
    """Multiplications and additions, those of pairs with a masked side as well."""
    return 2 * pairs[0] * one[1] * other[1] // groups


declare(
    "pairs",
    f"Tensor around, bool across, {DECLARED}",
    "(Tensor, Tensor, Tensor)",
    _pairs,
    pairs_like,
)
declare(
    "add_pairs",
    "Tensor(a!) sums, Tensor rows, Tensor taps, Tensor source, Tensor target, Tensor ends, int groups, bool back",
    "()",
    _add_pairs,
    lambda *_: None,
    lambda sums, rows, taps, source, target, ends, groups, back, **_: _operations(sums, rows, groups, source),
)
declare(
    "pairs_weight_gradient",
    "Tensor grads, Tensor rows, Tensor results, Tensor sources, Tensor ends, int groups",
    "Tensor",
    _weight_gradient,
    weight_gradient_like,
    lambda grads, rows, results, sources, ends, groups, **_: _operations(grads, rows, groups, results),
)
