"""Ways to convolve visible patches: by gathered windows here, by registered kernels where there are any.

A window repeats the halo of its patch, and taps repeat every position as often as the kernel sees it: kept for the
backward pass, they would take more memory than all else. They are gathered again on the way back, which costs little.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from .backward import once
from .faster import offered, registered
from .grid import PatchGrid
from .plans import Plan
from .rows import Copy, FromPatches
from .tensor import flat_rows, from_rows

CONVOLUTION = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}

FEW = 4
"""Up to so many positions of a result, multiplying a kernel's taps once beats the library's convolution: on a window
that is mostly halo, and also without any halo, for which its convolutions on maps of 1x1 and 2x2 are slow (measured on
CPUs, `benchmarks/`)."""

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Of values, weight and bias, those that are wanted."""


class Way(Protocol):
    """A way to convolve: values (N, C, *positions), weight (O, C / groups, *kernel), bias (O,) -> (N, O, *out)."""

    def forward(self, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor: ...

    def gradients(self, grad: Tensor, values: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]) -> Gradients:
        """From the gradient of the result, (N, O, *out)."""
        ...


Kernel = Callable[[Tensor, Tensor, int, PatchGrid, Plan], Way | None]
"""Values, weight, groups, grid, plan -> a faster way, or None. Outside of the image there is nothing but 0."""


def faster(values: Tensor, weight: Tensor, groups: int, grid: PatchGrid, plan: Plan) -> Way | None:
    """The first way that a registered kernel offers."""
    return offered(registered().convolutions, values, weight, groups, grid, plan)


def product(values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """values (..., C), weight (O, C) -> (..., O), by the first kernel that takes them."""
    run = offered(registered().linears, values, weight, bias)
    return functional.linear(values, weight, bias) if run is None else run(values, weight, bias)


def convolved(values: Tensor, weight: Tensor, bias: Tensor | None, way: Way) -> Tensor:
    """values (N, C, *positions), weight (O, C / groups, *kernel) -> (N, O, *out), channels last in memory."""
    return _Convolution.apply(*as_autocast_casts(values, weight, bias), way)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: Tensor, weight: Tensor, bias: Tensor | None, way: Way) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(values, weight)
        ctx.way = way
        # Detached, so that autograd does not take it for a view, on which operations in place are slow.
        return way.forward(values, weight, bias).detach()

    @staticmethod
    @once
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        values, weight = ctx.saved_tensors  # which activation checkpointing computes again now, by our meanings
        with torch._C.DisableTorchFunctionSubclass():  # what was saved are visible patches
            return *ctx.way.gradients(grad, values, weight, ctx.needs_input_grad[:3]), None


def cast_dtype(values: Tensor) -> torch.dtype:
    """What autocast will cast an argument of a convolution to; its own dtype where it is off, or this is float64."""
    device, is_cast = values.device.type, values.is_floating_point() and values.dtype != torch.float64
    return torch.get_autocast_dtype(device) if is_cast and torch.is_autocast_enabled(device) else values.dtype


def as_autocast_casts(values: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """A convolution's arguments as autocast casts them."""
    values, weight = values.to(cast_dtype(values)), weight.to(cast_dtype(weight))
    return values, weight, None if bias is None else bias.to(cast_dtype(bias))


@dataclass(frozen=True, eq=False)  # compared as objects: Dynamo asks for its hash before it has its fields
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

    def forward(self, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        windows = self._windows(values)
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

    def gradients(self, grad: Tensor, values: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]) -> Gradients:
        windows = self._windows(values)
        if self.taps_of is not None:
            rows, to_weight, to_bias = self._gradients_of_taps(grad, windows, weight, wanted)
        else:
            rows, to_weight, to_bias = self._gradients_of_windows(grad, windows, weight, wanted)
        return None if rows is None else from_rows(rows, tuple(values.shape[2:])), to_weight, to_bias

    def _windows(self, values: Tensor) -> Tensor:
        """(N, C, *positions) -> (M, C, *size), or with taps (groups, R, prod(kernel) * C / groups)."""
        if self.taps_of is not None:
            assert isinstance(self.copy, FromPatches)
            taps = self.copy.there(flat_rows(values), self.groups)
            return taps.view(self.groups, -1, math.prod(self.size) * taps.shape[1])
        return from_rows(self.copy.there(flat_rows(values)), self.size)

    def _kernels(self, weight: Tensor) -> Tensor:
        """(O, C / groups, *kernel) -> (groups, O / groups, prod(kernel) * C / groups), in the order of the taps."""
        return weight.movedim(1, -1).reshape(self.groups, weight.shape[0] // self.groups, -1)

    def _gradients_of_windows(
        self, grad: Tensor, windows: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]
    ) -> Gradients:
        """Of rows (S, C), weight and bias."""
        if self.crop is not None:  # back into the map that the convolution returned
            axes = zip(windows.shape[2:], weight.shape[2:], self.dilation, self.stride, strict=True)
            sides = tuple([(n - (k - 1) * d - 1) // s + 1 for n, k, d, s in axes])
            grad = from_rows(self.crop[0].back(flat_rows(grad)), sides)
        wide = windows.dtype
        if wide == torch.bfloat16 and windows.device.type == "cpu" and self.groups > 1:
            # On CPUs a hundred times slower with a stride; with a dilation, seen to be wrong on some.
            wide = torch.float32 if max(*self.stride, *self.dilation) > 1 else wide
        still = [0] * len(self.stride)
        slopes = torch.ops.aten.convolution_backward(
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
            slope.to(windows.dtype) if w else None for slope, w in zip(slopes, wanted, strict=True)
        )
        return None if to_windows is None else self.copy.back(flat_rows(to_windows)), to_weight, to_bias

    def _gradients_of_taps(
        self, grad: Tensor, taps: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]
    ) -> Gradients:
        """The same, by taps."""
        slopes = flat_rows(grad).unflatten(1, (self.groups, -1)).transpose(0, 1).contiguous()  # (groups, R, O / groups)
        to_rows = to_weight = to_bias = None
        if wanted[0]:
            assert isinstance(self.copy, FromPatches)
            spread = _products(slopes, self._kernels(weight))  # (groups, R, prod(kernel) * C / groups)
            to_rows = self.copy.back(spread.view(-1, weight.shape[1]), self.groups)
        if wanted[1]:
            kernels = _products(slopes.transpose(1, 2), taps)  # (groups, O / groups, prod(kernel) * C / groups)
            to_weight = kernels.view(weight.shape[0], *weight.shape[2:], weight.shape[1]).movedim(-1, 1)
        if wanted[2]:
            to_bias = slopes.sum(1).flatten()
        return to_rows, to_weight, to_bias


def _products(left: Tensor, right: Tensor) -> Tensor:
    """(groups, n, k), (groups, k, m) -> (groups, n, m); for a single group the plain product, which is quicker."""
    return (left[0] @ right[0])[None] if left.shape[0] == 1 else left @ right
