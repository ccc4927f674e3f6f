"""Convolutions of gathered windows: what was gathered is gathered again on the way back, not kept.

A window repeats the halo of its patch, and taps repeat every position as often as the kernel sees it: kept for the
backward pass, they would take more memory than all else. Gathering them again costs little.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from .rows import RowTable, gather_plainly, scatter_sums

_CONVOLUTION = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}


@dataclass(frozen=True)
class Gathered:
    """A convolution without padding of what an index table gathers.

    Attributes:
        table: rows of the windows from rows of the patches.
        size: sides of a window.
        outside: what a position outside the image counts as.
        stride, dilation, groups: of the convolution; with taps, they are in the table.
        taps: the table has the kernel's taps of each output position, one after the other: a matrix product.
    """

    table: RowTable
    size: tuple[int, ...]
    outside: float
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    taps: bool

    def __call__(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """rows (S, C), weight (O, C / groups, *kernel) -> (M, O, *out), channels last; with taps, (R, O)."""
        if torch.is_autocast_enabled(rows.device.type):
            lower = torch.get_autocast_dtype(rows.device.type)
            rows, weight = rows.to(lower), weight.to(lower)
            bias = None if bias is None else bias.to(lower)
        return _GatheredConvolution.apply(rows, weight, bias, self)

    def windows(self, rows: Tensor) -> Tensor:
        """(S, C) -> (M, C, *size), or with taps (R, prod(kernel) * C)."""
        found = gather_plainly(rows, self.table, self.outside)
        if self.taps:
            return found.view(-1, self.size[0] * rows.shape[1])
        return found.view(-1, *self.size, rows.shape[1]).movedim(-1, 1)

    def forward(self, windows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.taps:
            return functional.linear(windows, _flat(weight), bias)
        run = _CONVOLUTION[windows.dim()]
        return run(windows, weight, bias, self.stride, 0, self.dilation, self.groups)

    def input_gradient(self, grad: Tensor, windows: Tensor, weight: Tensor) -> Tensor:
        """Gradient of the rows, (S, C)."""
        if self.taps:
            spread = (grad @ _flat(weight)).view(-1, weight.shape[1])
        else:
            spread = self._of_input(grad, windows, weight).movedim(1, -1).reshape(-1, windows.shape[1])
        return scatter_sums(spread, self.table)

    def weight_gradient(self, grad: Tensor, windows: Tensor, weight: Tensor) -> Tensor:
        if self.taps:
            flat = grad.t() @ windows
            return flat.view(weight.shape[0], *weight.shape[2:], weight.shape[1]).movedim(-1, 1)
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


class _GatheredConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, weight: Tensor, bias: Tensor | None, how: Gathered) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(rows, weight)
        ctx.how = how
        return how.forward(how.windows(rows), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        rows, weight = ctx.saved_tensors
        how: Gathered = ctx.how
        for_rows, for_weight, for_bias, _ = ctx.needs_input_grad
        windows = how.windows(rows)
        to_rows = how.input_gradient(grad, windows, weight) if for_rows else None
        to_weight = how.weight_gradient(grad, windows, weight) if for_weight else None
        to_bias = grad.sum([dim for dim in range(grad.dim()) if dim != 1]) if for_bias else None
        return to_rows, to_weight, to_bias, None


def _flat(weight: Tensor) -> Tensor:
    """(O, C, *kernel) -> (O, prod(kernel) * C), in the order of the taps."""
    return weight.movedim(1, -1).reshape(weight.shape[0], -1)
