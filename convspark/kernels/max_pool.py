"""Max pooling of visible patches that reads each neighbour where it lies, and remembers which of them was the largest.

Gathered, windows are written, read again, and summed back into patches on the way back; PyTorch's pooling keeps eight
bytes for each result. Here a result keeps one: the tap that it was seen by. The gradient of a position is the sum of
those results that saw it by the tap that they kept, by the plan turned round.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..sparse.backward import once
from ..sparse.grid import PatchGrid
from ..sparse.plans import DECLARED, Plan, Sizes, seeing_by_tap, seen_by_tap
from ..sparse.tensor import flat_rows, from_rows
from .ops import declare, has_kernel
from .rows import looked_at

_MOST_TAPS = 127  # that a byte can number


def offer(values: Tensor, grid: PatchGrid, plan: Plan, outside: float) -> Tensor | None:
    """values (N, C, *patch) pooled, (N, C, *out), where what is pooled has a kernel here."""
    if plan.is_alone or math.prod(plan.kernel) > _MOST_TAPS or not has_kernel(values, "max_pool"):
        return None
    rows = _MaxPool.apply(flat_rows(values), grid.around(plan.reach).slots, plan, outside)
    return from_rows(rows, plan.out)


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, around: Tensor, plan: Plan, outside: float) -> Tensor:  # type: ignore[override]
        out, taken = torch.ops.convspark.max_pool(rows, around, *plan.sizes, outside)
        ctx.save_for_backward(taken, around)
        ctx.plan = plan
        return out

    @staticmethod
    @once
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        return torch.ops.convspark.max_pool_gradient(grad, *ctx.saved_tensors, *ctx.plan.sizes), None, None, None


# ---------------------------------------------------------------- plain versions


def _max_pool(rows: Tensor, around: Tensor, *sizes_and_outside) -> tuple[Tensor, Tensor]:
    *sizes, outside = sizes_and_outside
    seen = looked_at(rows, around, seen_by_tap(Plan.of(sizes), around.device), len(around), outside)
    out, taken = seen.max(1)  # (N * results, taps, C)
    return out.to(rows.dtype), taken.to(torch.int8)


def _gradient(grad: Tensor, taken: Tensor, around: Tensor, *sizes: Sizes) -> Tensor:
    entries = seeing_by_tap(Plan.of(sizes), around.device)
    slopes, tap = (looked_at(rows, around, entries, len(around)) for rows in (grad, taken))  # (N * positions, taps, C)
    is_taken = tap == torch.arange(entries.shape[1], device=grad.device)[:, None]
    return (slopes * is_taken).sum(1).to(grad.dtype)


# ---------------------------------------------------------------- operators


def _rows_of(around: Tensor, positions: Sizes, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return like.new_empty(around.shape[0] * math.prod(positions), like.shape[1], dtype=dtype)


declare(
    "max_pool",
    f"Tensor rows, Tensor around, {DECLARED}, float outside",
    "(Tensor, Tensor)",
    _max_pool,
    lambda rows, around, *sizes_and_outside: tuple(
        _rows_of(around, Plan.of(sizes_and_outside[:-1]).out, rows, dtype) for dtype in (rows.dtype, torch.int8)
    ),
)
declare(
    "max_pool_gradient",
    f"Tensor grad, Tensor taken, Tensor around, {DECLARED}",
    "Tensor",
    _gradient,
    lambda grad, taken, around, patch, *_: _rows_of(around, patch, grad),
)
