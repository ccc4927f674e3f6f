"""Depthwise convolutions of visible patches by a compiled kernel: each neighbour is read where it lies.

A window of a small patch is mostly halo, and gathering it takes longer than multiplying it. The kernel (kernels.cpp)
is told which patches lie around each visible one, and, in a plan that is the same for all of them (plans.py),
which position of which patch each tap sees. It works out the result, the gradient of its input (a gather of the same
kind, by a plan of its own) and that of its weight.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import compiled
from .convolve import as_autocast_casts, kernels_compute
from .plans import DECLARED, Plan, Sizes, seeing_by_tap, seen_by_tap
from .tensor import flat_rows, from_rows


def can_run(values: Tensor, weight: Tensor, groups: int) -> bool:
    """Whether there is a kernel for this convolution, here and now."""
    return groups == values.shape[1] == weight.shape[0] and kernels_compute(values, weight)


def convolve(values: Tensor, weight: Tensor, bias: Tensor | None, around: Tensor, kernel: Plan) -> Tensor:
    """Convolve patches by a kernel that is told what lies around each of them.

    Args:
        values: (N, C, *patch), 0 at masked positions and outside the image.
        weight: (C, 1, *kernel).
        bias: (C,) or None.
        around: int32 (N, *(2 * reach + 1)), which patch lies where around each; N or more where none is visible.

    Returns:
        (N, C, *out), channels last in memory.
    """
    return _DepthwiseConvolution.apply(*as_autocast_casts(values, weight, bias), around, kernel)


class _DepthwiseConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: Tensor, weight: Tensor, bias: Tensor | None, around: Tensor, kernel: Plan):  # type: ignore[override]
        ctx.save_for_backward(values, weight, around)
        ctx.kernel = kernel
        rows = torch.ops.convspark.depthwise(flat_rows(values), weight, bias, around, *kernel.sizes)
        # Detached, so that autograd does not take it for a view, on which operations in place are slow.
        return from_rows(rows, kernel.out).detach()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        values, weight, around = ctx.saved_tensors
        kernel: Plan = ctx.kernel
        for_values, for_weight, for_bias, *_ = ctx.needs_input_grad
        to_values = to_weight = to_bias = None
        with torch._C.DisableTorchFunctionSubclass():  # what was saved are visible patches
            rows = flat_rows(grad)
            if for_values:
                found = torch.ops.convspark.depthwise_input_gradient(rows, weight, around, *kernel.sizes)
                to_values = from_rows(found, kernel.patch)
            if for_weight:
                to_weight = torch.ops.convspark.depthwise_weight_gradient(
                    rows, flat_rows(values), around, *kernel.sizes
                )
            if for_bias:
                to_bias = rows.sum(0)
        return to_values, to_weight, to_bias, None, None


# ---------------------------------------------------------------- operators


def _run(entry: str, plan: Tensor, around: Tensor, read: Tensor, *tensors: Tensor | None) -> None:
    """Call a kernel whose plan points to `read`, rows of patches, (N * others, C)."""
    patches, (rows, channels) = around.shape[0], read.shape
    if patches:
        others = rows // patches
        compiled.run(entry, around, plan, *tensors, patches=patches, others=others, channels=channels, dtype=read.dtype)


def _sum_dtype(tensor: Tensor) -> torch.dtype:
    """Of the numbers that the kernel sums in."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _depthwise(rows: Tensor, weight: Tensor, bias: Tensor | None, around: Tensor, *sizes: Sizes) -> Tensor:
    bias = None if bias is None else bias.to(_sum_dtype(rows)).contiguous()
    return _gather(rows, weight, bias, around, seen_by_tap(Plan.of(sizes), around.device))


def _input_gradient(grad: Tensor, weight: Tensor, around: Tensor, *sizes: Sizes) -> Tensor:
    return _gather(grad, weight, None, around, seeing_by_tap(Plan.of(sizes), around.device))


def _gather(rows: Tensor, weight: Tensor, bias: Tensor | None, around: Tensor, plan: Tensor) -> Tensor:
    """Sums over the taps of what the plan says that they see."""
    rows = rows.contiguous()
    taps = weight.flatten(1).t().to(_sum_dtype(weight)).contiguous()
    result = rows.new_empty(around.shape[0] * plan.shape[0], rows.shape[1])
    _run("gather", plan, around, rows, rows, taps, bias, result)
    return result


def _weight_gradient(grad: Tensor, rows: Tensor, around: Tensor, *sizes: Sizes) -> Tensor:
    kernel = Plan.of(sizes)
    plan, grad, rows = seen_by_tap(kernel, around.device), grad.contiguous(), rows.contiguous()
    sums = torch.zeros(plan.shape[1], rows.shape[1], dtype=_sum_dtype(rows))
    _run("products", plan, around, rows, grad, rows, sums)
    return sums.t().contiguous().view(-1, 1, *kernel.kernel).to(rows.dtype)


def _rows_like(rows: Tensor, around: Tensor, positions: Sizes) -> Tensor:
    return rows.new_empty(around.shape[0] * math.prod(positions), rows.shape[1])


def _operations(result: Sizes, kernel: Sizes) -> int:
    """Multiplications and additions, those with masked neighbours as well."""
    return 2 * math.prod(result) * math.prod(kernel)


compiled.declare(
    "depthwise",
    f"Tensor rows, Tensor weight, Tensor? bias, Tensor around, {DECLARED}",
    "Tensor",
    _depthwise,
    lambda rows, weight, bias, around, *sizes: _rows_like(rows, around, Plan(*sizes).out),
    lambda rows, weight, bias, around, patch, kernel, *_, out_shape: _operations(out_shape, kernel),
)
compiled.declare(
    "depthwise_input_gradient",
    f"Tensor grad, Tensor weight, Tensor around, {DECLARED}",
    "Tensor",
    _input_gradient,
    lambda grad, weight, around, patch, *_: _rows_like(grad, around, patch),
    lambda grad, weight, around, patch, kernel, *_, **__: _operations(grad, kernel),
)
compiled.declare(
    "depthwise_weight_gradient",
    f"Tensor grad, Tensor rows, Tensor around, {DECLARED}",
    "Tensor",
    _weight_gradient,
    lambda grad, rows, around, patch, kernel, *_: rows.new_empty(rows.shape[1], 1, *kernel),
    lambda grad, rows, around, patch, kernel, *_, **__: _operations(grad, kernel),
)
