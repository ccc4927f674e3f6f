"""Depthwise convolutions of visible patches that read each neighbour where it lies.

A window of a small patch is mostly halo, and gathering it takes longer than multiplying it. The operators take the
block of patches around each visible one, and the plan, which is the same for all of them (sparse/plans.py): which
position of which patch each tap sees. The gradient of the input is a sum of the same kind, by the plan turned round.
"""

from __future__ import annotations

import math

from torch import Tensor

from ..sparse.grid import PatchGrid
from ..sparse.plans import DECLARED, Plan, Sizes, seeing_by_tap, seen_by_tap
from .neighbours import ReadsNeighbours
from .ops import computes, declare, wide
from .rows import looked_at

# Positions of a patch's line that kernels for GPUs are compiled for: lines of 128 take a compiler minutes, and more
# registers than there are. The halo of so large a patch is small, and gathering it cheap.
_LONGEST_LINE = 32


def offer(values: Tensor, weight: Tensor, groups: int, grid: PatchGrid, plan: Plan) -> Depthwise | None:
    """A way to convolve, where each channel has a kernel of its own."""
    if groups != values.shape[1] or groups != weight.shape[0] or not computes(values, weight, "depthwise"):
        return None
    if values.is_cuda and plan.patch[-1] > _LONGEST_LINE:
        return None
    return Depthwise(grid.around(plan.reach).slots, plan)


class Depthwise(ReadsNeighbours):
    """A depthwise convolution."""

    operator = "depthwise"


# ---------------------------------------------------------------- plain versions


def _sums(rows: Tensor, weight: Tensor, bias: Tensor | None, around: Tensor, entries: Tensor) -> Tensor:
    """Over the taps: (N * results, C)"""
    sums = (looked_at(rows, around, entries, len(around)) * weight.flatten(1).t().to(wide(rows))).sum(1)
    return (sums if bias is None else sums + bias).to(rows.dtype)


def _depthwise(rows: Tensor, weight: Tensor, bias: Tensor | None, around: Tensor, *sizes: Sizes) -> Tensor:
    return _sums(rows, weight, bias, around, seen_by_tap(Plan.of(sizes), around.device))


def _input_gradient(grad: Tensor, weight: Tensor, around: Tensor, *sizes: Sizes) -> Tensor:
    return _sums(grad, weight, None, around, seeing_by_tap(Plan.of(sizes), around.device))


def _weight_gradient(grad: Tensor, rows: Tensor, around: Tensor, *sizes: Sizes) -> Tensor:
    plan = Plan.of(sizes)
    neighbours = looked_at(rows, around, seen_by_tap(plan, around.device), len(around))
    sums = (neighbours * grad[:, None].to(wide(rows))).sum(0)
    return sums.t().contiguous().view(-1, 1, *plan.kernel).to(rows.dtype)


# ---------------------------------------------------------------- operators


def _rows_like(rows: Tensor, around: Tensor, positions: Sizes) -> Tensor:
    return rows.new_empty(around.shape[0] * math.prod(positions), rows.shape[1])


def _operations(result: Sizes, kernel: Sizes) -> int:
    """Multiplications and additions, those with masked neighbours as well."""
    return 2 * math.prod(result) * math.prod(kernel)


declare(
    "depthwise",
    f"Tensor rows, Tensor weight, Tensor? bias, Tensor around, {DECLARED}",
    "Tensor",
    _depthwise,
    lambda rows, weight, bias, around, *sizes: _rows_like(rows, around, Plan(*sizes).out),
    lambda rows, weight, bias, around, patch, kernel, *_, out_shape: _operations(out_shape, kernel),
)
declare(
    "depthwise_input_gradient",
    f"Tensor grad, Tensor weight, Tensor around, {DECLARED}",
    "Tensor",
    _input_gradient,
    lambda grad, weight, around, patch, *_: _rows_like(grad, around, patch),
    lambda grad, weight, around, patch, kernel, *_, **__: _operations(grad, kernel),
)
declare(
    "depthwise_weight_gradient",
    f"Tensor grad, Tensor rows, Tensor around, {DECLARED}",
    "Tensor",
    _weight_gradient,
    lambda grad, rows, around, patch, kernel, *_: rows.new_empty(rows.shape[1], 1, *kernel),
    lambda grad, rows, around, patch, kernel, *_, **__: _operations(grad, kernel),
)
