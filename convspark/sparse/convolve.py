"""Convolutions of gathered windows: what was gathered is gathered again on the way back, not kept.

A window repeats the halo of its patch, and taps repeat every position as often as the kernel sees it: kept for the
backward pass, they would take more memory than all else. Gathering them again costs little.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from . import compiled
from .patches import flat_rows, from_rows
from .rows import RowTable, gather_plainly, scatter_sums

CONVOLUTION = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}


def cast_dtype(values: Tensor) -> torch.dtype:
    """What a convolution's arguments will be cast to by autocast; their own dtype where it is off."""
    device = values.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else values.dtype


def kernels_compute(values: Tensor, weight: Tensor) -> bool:
    """Whether there are kernels of our own for a convolution of these numbers, here and now.

    Numbers of two kinds are left to PyTorch, which says what is wrong.
    """
    if values.device.type != "cpu" or not (weight.dtype == values.dtype or torch.is_autocast_enabled("cpu")):
        return False
    return compiled.computes(cast_dtype(values))


def as_autocast_casts(values: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """A convolution's arguments in the dtype that autocast wants where they are; as they are where it is off."""
    if not torch.is_autocast_enabled(values.device.type):
        return values, weight, bias
    dtype = cast_dtype(values)
    return values.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


@dataclass(frozen=True)
class Gathered:
    """A convolution without padding of what an index table gathers.

    Attributes:
        table: rows of the windows from rows of the patches.
        size: sides of a window; of the kernel, with taps.
        outside: what a position outside the image counts as.
        stride, dilation, groups: of the convolution; with taps, they are in the table.
        taps_of: the table has the kernel's taps of each of so many output positions, one after the other: a matrix
            product.
        crop: what is cut out of the result: rows of patches of so many positions from rows of the result.
    """

    table: RowTable
    size: tuple[int, ...]
    outside: float
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    taps_of: tuple[int, ...] | None = None
    crop: tuple[RowTable, tuple[int, ...]] | None = None

    def __call__(self, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """values (N, C, *positions), weight (O, C / groups, *kernel) -> (N, O, *out), channels last in memory."""
        return _GatheredConvolution.apply(*as_autocast_casts(values, weight, bias), self)

    def windows(self, values: Tensor) -> Tensor:
        """(N, C, *positions) -> (M, C, *size), or with taps (groups, R, prod(kernel) * C / groups)."""
        if self.taps_of is not None:
            found = gather_plainly(flat_rows(values), self.table, self.outside, self.groups)
            return found.view(self.groups, -1, math.prod(self.size) * found.shape[1])
        return from_rows(gather_plainly(flat_rows(values), self.table, self.outside), self.size)

    def _by_group(self, rows: Tensor) -> Tensor:
        """(R, C) -> (groups, R, C / groups)"""
        return rows.unflatten(1, (self.groups, -1)).transpose(0, 1).contiguous()

    def _kernels(self, weight: Tensor) -> Tensor:
        """(O, C / groups, *kernel) -> (groups, O / groups, prod(kernel) * C / groups), in the order of the taps."""
        return weight.movedim(1, -1).reshape(self.groups, weight.shape[0] // self.groups, -1)

    def forward(self, windows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What `windows` returned to (N, O, *out)."""
        if self.taps_of is not None:
            out = _products(windows, self._kernels(weight).transpose(1, 2))  # (groups, R, O / groups)
            out = out.transpose(0, 1).flatten(1)
            return from_rows(out if bias is None else out + bias, self.taps_of)
        run = CONVOLUTION[windows.dim()]
        out = run(windows, weight, bias, self.stride, 0, self.dilation, self.groups)
        if self.crop is None:
            return out
        table, positions = self.crop
        return from_rows(gather_plainly(flat_rows(out), table), positions)

    def output_gradient(self, grad: Tensor, windows: Tensor, weight: Tensor) -> Tensor:
        """(N, O, *out) as the convolution returned it: with a crop whole images, with taps (groups, R, O / groups)."""
        if self.taps_of is not None:
            return self._by_group(flat_rows(grad))
        if self.crop is None:
            return grad
        extent = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], self.dilation, strict=True)]
        sides = [(n - e) // s + 1 for n, e, s in zip(windows.shape[2:], extent, self.stride, strict=True)]
        return from_rows(scatter_sums(flat_rows(grad), self.crop[0]), tuple(sides))

    def input_gradient(self, grad: Tensor, windows: Tensor, weight: Tensor) -> Tensor:
        """Gradient of the rows, (S, C)."""
        if self.taps_of is not None:
            spread = _products(grad, self._kernels(weight))  # (groups, R, prod(kernel) * C / groups)
            return scatter_sums(spread.view(-1, weight.shape[1]), self.table, self.groups)
        return scatter_sums(flat_rows(self._of_input(grad, windows, weight)), self.table)

    def weight_gradient(self, grad: Tensor, windows: Tensor, weight: Tensor) -> Tensor:
        if self.taps_of is not None:
            kernels = _products(grad.transpose(1, 2), windows)  # (groups, O / groups, prod(kernel) * C / groups)
            return kernels.view(weight.shape[0], *weight.shape[2:], weight.shape[1]).movedim(-1, 1)
        if self._is_slow_depthwise(windows, weight):
            return self._by_columns(grad, windows, weight)
        return self._backward(grad, windows, weight, [False, True, False])[1]

    def _of_input(self, grad: Tensor, windows: Tensor, weight: Tensor) -> Tensor:
        depthwise = self.groups == windows.shape[1]
        if depthwise and max(self.stride) > 1 and windows.dtype == torch.bfloat16 and windows.device.type == "cpu":
            # In bfloat16 a hundred times slower than in float32.
            wide = self._backward(grad.float(), windows.float(), weight.float(), [True, False, False])[0]
            return wide.to(windows.dtype)
        return self._backward(grad, windows, weight, [True, False, False])[0]

    def _backward(self, grad: Tensor, windows: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Tensor, ...]:
        still = [0] * len(self.stride)
        return torch.ops.aten.convolution_backward(
            grad, windows, weight, None, self.stride, still, self.dilation, False, still, self.groups, wanted
        )

    def _is_slow_depthwise(self, windows: Tensor, weight: Tensor) -> bool:
        """PyTorch's CPU backend is quick at kernels three columns wide, and several times slower at wider ones."""
        if windows.device.type != "cpu" or windows.dim() != 4 or max(self.dilation) > 1:
            return False
        return self.groups == windows.shape[1] == weight.shape[0] and weight.shape[3] > _QUICK

    def _by_columns(self, grad: Tensor, windows: Tensor, weight: Tensor) -> Tensor:
        """The gradient of a wide kernel, three columns at a time, each on the windows moved sideways."""
        width = weight.shape[3]
        seen = (grad.shape[3] - 1) * self.stride[1] + _QUICK  # columns of a window that three of the kernel see
        result = torch.empty_like(weight)
        for start in (min(column, width - _QUICK) for column in range(0, width, _QUICK)):
            columns = slice(start, start + _QUICK)
            moved = windows[..., start : start + seen]
            result[..., columns] = self._backward(grad, moved, weight[..., columns], [False, True, False])[1]
        return result


_QUICK = 3  # columns


def _products(left: Tensor, right: Tensor) -> Tensor:
    """(groups, n, k), (groups, k, m) -> (groups, n, m); for a single group the plain product, which is quicker."""
    return (left[0] @ right[0])[None] if left.shape[0] == 1 else left @ right


class _GatheredConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: Tensor, weight: Tensor, bias: Tensor | None, how: Gathered) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(values, weight)
        ctx.how = how
        # Detached, so that autograd does not take it for a view, on which operations in place are slow.
        return how.forward(how.windows(values), weight, bias).detach()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        values, weight = ctx.saved_tensors
        how: Gathered = ctx.how
        for_values, for_weight, for_bias, _ = ctx.needs_input_grad
        to_values = to_weight = to_bias = None
        with torch._C.DisableTorchFunctionSubclass():  # what was saved are visible patches
            if for_bias:
                to_bias = grad.sum([dim for dim in range(grad.dim()) if dim != 1])
            windows = how.windows(values)
            grad = how.output_gradient(grad, windows, weight)
            if for_values:
                to_values = from_rows(how.input_gradient(grad, windows, weight), tuple(values.shape[2:]))
            if for_weight:
                to_weight = how.weight_gradient(grad, windows, weight)
        return to_values, to_weight, to_bias, None
