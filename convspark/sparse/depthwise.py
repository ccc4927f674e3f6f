"""Depthwise convolutions of visible patches by a compiled kernel: each neighbour is read where it lies.

A window of a small patch is mostly halo, and gathering it takes longer than multiplying it. The kernel (kernels.cpp)
is told which patches lie around each visible one, and, in a plan that is the same for all of them, which position of
which patch each tap sees. It works out the result, the gradient of its input (a gather of the same kind, by a plan of
its own) and that of its weight.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from . import compiled
from .convolve import as_autocast_casts
from .patches import flat_rows, from_rows

Sizes = tuple[int, ...]


def can_run(values: Tensor, weight: Tensor, groups: int) -> bool:
    """Whether there is a kernel for this convolution, here and now."""
    if groups != values.shape[1] or groups != weight.shape[0] or values.device.type != "cpu":
        return False
    cast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if cast else values.dtype
    return (cast or weight.dtype == dtype) and compiled.computes(dtype)


@dataclass(frozen=True)
class Depthwise:
    """A depthwise convolution of patches that is told what lies around each of them.

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

    def __call__(self, values: Tensor, weight: Tensor, bias: Tensor | None, around: Tensor) -> Tensor:
        """Convolve.

        Args:
            values: (N, C, *patch), 0 at masked positions and outside the image.
            weight: (C, 1, *kernel).
            bias: (C,) or None.
            around: int32 (N, *(2 * reach + 1)), which patch lies where around each; N or more where none is visible.

        Returns:
            (N, C, *out), channels last in memory.
        """
        return _DepthwiseConvolution.apply(*as_autocast_casts(values, weight, bias), around, self)


class _DepthwiseConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: Tensor, weight: Tensor, bias: Tensor | None, around: Tensor, how: Depthwise):  # type: ignore[override]
        ctx.save_for_backward(values, weight, around)
        ctx.how = how
        rows = torch.ops.convspark.depthwise(flat_rows(values), weight, bias, around, *how.sizes)
        # Detached, so that autograd does not take it for a view, on which operations in place are slow.
        return from_rows(rows, how.out).detach()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        values, weight, around = ctx.saved_tensors
        how: Depthwise = ctx.how
        for_values, for_weight, for_bias, *_ = ctx.needs_input_grad
        to_values = to_weight = to_bias = None
        with torch._C.DisableTorchFunctionSubclass():  # what was saved are visible patches
            rows = flat_rows(grad)
            if for_values:
                found = torch.ops.convspark.depthwise_input_gradient(rows, weight, around, *how.sizes)
                to_values = from_rows(found, how.patch)
            if for_weight:
                to_weight = torch.ops.convspark.depthwise_weight_gradient(rows, flat_rows(values), around, *how.sizes)
            if for_bias:
                to_bias = rows.sum(0)
        return to_values, to_weight, to_bias, None, None


# ---------------------------------------------------------------- plans


@functools.lru_cache(maxsize=512)
def _result_plan(how: Depthwise) -> Tensor:
    """int32 (prod(out), prod(kernel), 2): in which patch around, and at which position of it, a tap sees its input."""
    axes = []
    for axis, (out, k) in enumerate(zip(how.out, how.kernel, strict=True)):
        at = torch.arange(out)[:, None] * how.stride[axis] - how.before[axis] + torch.arange(k) * how.dilation[axis]
        axes.append((at, torch.ones_like(at, dtype=torch.bool)))
    return _plan(axes, how.patch, how.reach)


@functools.lru_cache(maxsize=512)
def _input_plan(how: Depthwise) -> Tensor:
    """int32 (prod(patch), prod(kernel), 2): in which patch around, and where, a tap saw the input; -1: nowhere."""
    axes = []
    for axis, (p, k) in enumerate(zip(how.patch, how.kernel, strict=True)):
        at = torch.arange(p)[:, None] + how.before[axis] - torch.arange(k) * how.dilation[axis]
        axes.append((torch.div(at, how.stride[axis], rounding_mode="floor"), at % how.stride[axis] == 0))
    return _plan(axes, how.out, how.reach)


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


# ---------------------------------------------------------------- operators


def _run(entry: str, plan: Tensor, around: Tensor, read: Tensor, *tensors: Tensor | None) -> None:
    """Call a kernel whose plan points to `read`, rows of patches, (N * others, C)."""
    patches, (rows, channels) = around.shape[0], read.shape
    if patches:
        others = rows // patches
        compiled.run(entry, around, plan, *tensors, patches=patches, others=others, channels=channels, dtype=read.dtype)


def _how(sizes: tuple[Sizes, ...]) -> Depthwise:
    return Depthwise(*map(tuple, sizes))  # operators are given lists


def _sum_dtype(tensor: Tensor) -> torch.dtype:
    """Of the numbers that the kernel sums in."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _depthwise(rows: Tensor, weight: Tensor, bias: Tensor | None, around: Tensor, *sizes: Sizes) -> Tensor:
    bias = None if bias is None else bias.to(_sum_dtype(rows)).contiguous()
    return _gather(rows, weight, bias, around, _result_plan(_how(sizes)))


def _input_gradient(grad: Tensor, weight: Tensor, around: Tensor, *sizes: Sizes) -> Tensor:
    return _gather(grad, weight, None, around, _input_plan(_how(sizes)))


def _gather(rows: Tensor, weight: Tensor, bias: Tensor | None, around: Tensor, plan: Tensor) -> Tensor:
    """Sums over the taps of what the plan says that they see."""
    rows = rows.contiguous()
    taps = weight.flatten(1).t().to(_sum_dtype(weight)).contiguous()
    result = rows.new_empty(around.shape[0] * plan.shape[0], rows.shape[1])
    _run("gather", plan, around, rows, rows, taps, bias, result)
    return result


def _weight_gradient(grad: Tensor, rows: Tensor, around: Tensor, *sizes: Sizes) -> Tensor:
    how = _how(sizes)
    plan, grad, rows = _result_plan(how), grad.contiguous(), rows.contiguous()
    sums = torch.zeros(plan.shape[1], rows.shape[1], dtype=_sum_dtype(rows))
    _run("products", plan, around, rows, grad, rows, sums)
    return sums.t().contiguous().view(-1, 1, *how.kernel).to(rows.dtype)


def _rows_like(rows: Tensor, around: Tensor, positions: Sizes) -> Tensor:
    return rows.new_empty(around.shape[0] * math.prod(positions), rows.shape[1])


def _declare(name: str, tensors: str, run: Callable[..., Tensor], shape: Callable[..., Tensor]) -> None:
    """Make an operator of it, so that a compiled graph has it as it is and its operations are counted.

    Args:
        tensors: declarations of all arguments but the sizes.
        shape: what it returns, with any values.
    """
    operator = f"convspark::{name}"
    sizes = "int[] patch, int[] kernel, int[] stride, int[] dilation, int[] before"
    torch.library.define(operator, f"({tensors}, {sizes}) -> Tensor")
    torch.library.impl(operator, "CPU", run)
    torch.library.register_fake(operator, shape)

    def operations(*arguments, out_shape, **_) -> int:
        """Multiplications and additions, those with masked neighbours as well."""
        kernel, result = arguments[-4], out_shape if run is _depthwise else arguments[0]
        return 2 * math.prod(result) * math.prod(kernel)

    register_flop_formula(getattr(torch.ops.convspark, name))(operations)


_declare(
    "depthwise",
    "Tensor rows, Tensor weight, Tensor? bias, Tensor around",
    _depthwise,
    lambda rows, weight, bias, around, *sizes: _rows_like(rows, around, Depthwise(*sizes).out),
)
_declare(
    "depthwise_input_gradient",
    "Tensor grad, Tensor weight, Tensor around",
    _input_gradient,
    lambda grad, weight, around, patch, *_: _rows_like(grad, around, patch),
)
_declare(
    "depthwise_weight_gradient",
    "Tensor grad, Tensor rows, Tensor around",
    _weight_gradient,
    lambda grad, rows, around, patch, kernel, *_: rows.new_empty(rows.shape[1], 1, *kernel),
)
