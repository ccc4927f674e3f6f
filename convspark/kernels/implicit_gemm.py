"""Convolutions over all channels that read each neighbour where it lies: implicit GEMM.

A result is a sum of matrix products, one for each tap: the rows that the tap sees times the tap's matrix. No window is
written to memory. As for depthwise convolutions, the operators take the block of patches around each visible one, and
the plan; the gradient of the input is a sum of the same kind, by the plan turned round and the matrices transposed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..sparse.grid import PatchGrid
from ..sparse.plans import DECLARED, Plan, Sizes, seeing_by_tap, seen_by_tap
from .neighbours import ReadsNeighbours
from .ops import computes, declare, wide
from .rows import looked_at


def offer(values: Tensor, weight: Tensor, groups: int, grid: PatchGrid, plan: Plan) -> ImplicitGemm | None:
    """A way to convolve, where each result sees all channels of several positions."""
    if groups != 1 or plan.is_pointwise or plan.is_alone or not computes(values, weight, "convolve"):
        return None
    return ImplicitGemm(grid.around(plan.reach).slots, plan)


class ImplicitGemm(ReadsNeighbours):
    """A convolution of one group."""

    operator = "convolve"


# ---------------------------------------------------------------- plain versions


def _convolve(rows: Tensor, weight: Tensor, bias: Tensor | None, around: Tensor, *sizes: Sizes) -> Tensor:
    taps = looked_at(rows, around, seen_by_tap(Plan.of(sizes), around.device), len(around))  # (N * results, taps, C)
    sums = torch.einsum("rtc,oct->ro", taps, weight.flatten(2).to(taps.dtype))
    return (sums if bias is None else sums + bias).to(rows.dtype)


def _input_gradient(grad: Tensor, weight: Tensor, around: Tensor, *sizes: Sizes) -> Tensor:
    taps = looked_at(
        grad, around, seeing_by_tap(Plan.of(sizes), around.device), len(around)
    )  # (N * positions, taps, O)
    return torch.einsum("rto,oct->rc", taps, weight.flatten(2).to(taps.dtype)).to(grad.dtype)


def _weight_gradient(grad: Tensor, rows: Tensor, around: Tensor, *sizes: Sizes) -> Tensor:
    plan = Plan.of(sizes)
    taps = looked_at(rows, around, seen_by_tap(plan, around.device), len(around))
    sums = torch.einsum("ro,rtc->oct", grad.to(wide(grad)), taps)
    return sums.unflatten(2, plan.kernel).to(rows.dtype)


# ---------------------------------------------------------------- operators


def _rows_like(rows: Tensor, around: Tensor, positions: Sizes, channels: int) -> Tensor:
    return rows.new_empty(around.shape[0] * math.prod(positions), channels)


def _operations(one: Sizes, channels: int, kernel: Sizes) -> int:
    """Multiplications and additions, those with masked neighbours as well."""
    return 2 * math.prod(one) * channels * math.prod(kernel)


declare(
    "convolve",
    f"Tensor rows, Tensor weight, Tensor? bias, Tensor around, {DECLARED}",
    "Tensor",
    _convolve,
    lambda rows, weight, bias, around, *sizes: _rows_like(rows, around, Plan(*sizes).out, weight.shape[0]),
    lambda rows, weight, bias, around, patch, kernel, *_, out_shape: _operations(out_shape, rows[1], kernel),
)
declare(
    "convolve_input_gradient",
    f"Tensor grad, Tensor weight, Tensor around, {DECLARED}",
    "Tensor",
    _input_gradient,
    lambda grad, weight, around, patch, *_: _rows_like(grad, around, patch, weight.shape[1]),
    lambda grad, weight, around, patch, kernel, *_, **__: _operations(grad, weight[1], kernel),
)
declare(
    "convolve_weight_gradient",
    f"Tensor grad, Tensor rows, Tensor around, {DECLARED}",
    "Tensor",
    _weight_gradient,
    lambda grad, rows, around, patch, kernel, *_: rows.new_empty(grad.shape[1], rows.shape[1], *kernel),
    lambda grad, rows, around, patch, kernel, *_, **__: _operations(grad, rows[1], kernel),
)
