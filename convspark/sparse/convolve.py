"""Convolutions of gathered windows: what was gathered is gathered again on the way back, not kept.

A window repeats the halo of its patch, and taps repeat every position as often as the kernel sees it: kept for the
backward pass, they would take more memory than all else. Gathering them again costs little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from . import compiled
from .rows import Copy, FromPatches
from .tensor import flat_rows, from_rows

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


@dataclass(frozen=True, eq=False)  # told apart as objects: Dynamo asks for its hash before it has its fields
class Gathered:
    """A convolution without padding of what a copy gathers.

    Attributes:
        copy: rows of the windows from rows of the patches.
        size: sides of a window; of the kernel, with taps.
        stride, dilation, groups: of the convolution; with taps, they are in the copy.
        taps_of: the copy has the kernel's taps of each of so many output positions, one after the other: a matrix
            product.
        crop: what is cut out of the result: rows of patches of so many positions from rows of the result.
    """

    copy: Copy
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    taps_of: tuple[int, ...] | None = None
    crop: tuple[Copy, tuple[int, ...]] | None = None

    def __call__(self, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """values (N, C, *positions), weight (O, C / groups, *kernel) -> (N, O, *out), channels last in memory."""
        return _GatheredConvolution.apply(*as_autocast_casts(values, weight, bias), self)

    def windows(self, values: Tensor) -> Tensor:
        """(N, C, *positions) -> (M, C, *size), or with taps (groups, R, prod(kernel) * C / groups)."""
        if self.taps_of is not None:
            assert isinstance(self.copy, FromPatches)
            found = self.copy.there(flat_rows(values), self.groups)
            return found.view(self.groups, -1, math.prod(self.size) * found.shape[1])
        return from_rows(self.copy.there(flat_rows(values)), self.size)

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
        crop, positions = self.crop
        return from_rows(crop.there(flat_rows(out)), positions)

    def output_gradient(self, grad: Tensor, windows: Tensor, weight: Tensor) -> Tensor:
        """(N, O, *out) as the convolution returned it: with a crop whole images, with taps (groups, R, O / groups)."""
        if self.taps_of is not None:
            return self._by_group(flat_rows(grad))
        if self.crop is None:
            return grad
        extent = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], self.dilation, strict=True)]
        sides = [(n - e) // s + 1 for n, e, s in zip(windows.shape[2:], extent, self.stride, strict=True)]
        return from_rows(self.crop[0].back(flat_rows(grad)), tuple(sides))

    def gradients(
        self, grad: Tensor, windows: Tensor, weight: Tensor, wanted: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of the rows (S, C), the weight and the bias, those that are wanted, from what `output_gradient` returned."""
        if self.taps_of is not None:
            return self._gradients_of_taps(grad, windows, weight, wanted)
        wide = windows.dtype
        if wide == torch.bfloat16 and windows.device.type == "cpu" and self.groups > 1:
            # On CPUs a hundred times slower with a stride; with a dilation, seen to be wrong on some.
            wide = torch.float32 if max(*self.stride, *self.dilation) > 1 else wide
        still = [0] * len(self.stride)
        found = torch.ops.aten.convolution_backward(
            *(t.to(wide) for t in (grad, windows, weight)),
            [weight.shape[0]] if wanted[2] else None,
            self.stride,
            still,
            self.dilation,
            False,
            still,
            self.groups,
            wanted,
        )
        to_windows, to_weight, to_bias = (
            g.to(windows.dtype) if w else None for g, w in zip(found, wanted, strict=True)
        )
        return None if to_windows is None else self.copy.back(flat_rows(to_windows)), to_weight, to_bias

    def _gradients_of_taps(
        self, grad: Tensor, taps: Tensor, weight: Tensor, wanted: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        to_rows = to_weight = to_bias = None
        if wanted[0]:
            assert isinstance(self.copy, FromPatches)
            spread = _products(grad, self._kernels(weight))  # (groups, R, prod(kernel) * C / groups)
            to_rows = self.copy.back(spread.view(-1, weight.shape[1]), self.groups)
        if wanted[1]:
            kernels = _products(grad.transpose(1, 2), taps)  # (groups, O / groups, prod(kernel) * C / groups)
            to_weight = kernels.view(weight.shape[0], *weight.shape[2:], weight.shape[1]).movedim(-1, 1)
        if wanted[2]:
            to_bias = grad.sum(1).flatten()
        return to_rows, to_weight, to_bias


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
        with torch._C.DisableTorchFunctionSubclass():  # what was saved are visible patches
            windows = how.windows(values)
            grad = how.output_gradient(grad, windows, weight)
            rows, to_weight, to_bias = how.gradients(grad, windows, weight, ctx.needs_input_grad[:3])
            to_values = None if rows is None else from_rows(rows, tuple(values.shape[2:]))
        return to_values, to_weight, to_bias, None
