"""Convolutions."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from .. import axes as lay
from ..convolve import FEW, Gathered, Way, convolved, faster, product
from ..faster import registered
from ..grid import PatchGrid
from ..plans import Plan, Sizes
from ..registry import Refusal, meaning
from ..tensor import (
    GridTensor,
    PerImage,
    VisiblePatches,
    as_patches,
    as_same_kind,
    canonical_values,
    from_rows,
    repeat_per_patch,
    unpadded,
)
from .neighbourhood import Source, source_of, through_images
from .operands import dense_batch, per_axis

Size = int | tuple[int, ...]


@meaning(functional.conv1d, functional.conv2d, functional.conv3d)
def convolve(
    func,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | str | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
):
    """The dense convolution of the zero-filled map, at visible positions."""
    x = input
    if isinstance(x, PerImage):
        return dense_batch(func, x, weight, bias, stride, padding, dilation, groups)
    if isinstance(weight, VisiblePatches) or isinstance(bias, VisiblePatches):
        raise Refusal("its weights were computed from single patches")
    if isinstance(weight, PerImage):
        return _conditional(func, x, weight, bias, stride, padding, dilation, groups)
    if not isinstance(x, VisiblePatches):
        raise Refusal("its input is not visible patches")
    if _stays_within_positions(x, weight, stride, padding):
        out = func(unpadded(x), weight, bias, stride, padding, dilation, groups)
        axes = zip(x.axes[2:], out.shape[2:], strict=True)
        kept = [lay.plain_axis(n) if lay.is_plain(axis) else axis for axis, n in axes]
        return as_same_kind(out, x, (x.axes[0], lay.plain_axis(out.shape[1]), *kept))
    if not x.axes[0]:
        raise Refusal("its weights were made for this number of patches; write groups of channels, not of patches")
    if len(x.axes[0]) > 1 and lay.is_canonical((x.axes[0][:1], *x.axes[1:])):  # groups of channels beside the patches
        values = unpadded(x).reshape(x.grid.num_visible, -1, *x.shape[2:])
        count = lay.size_of(x.axes[0][1:])
        weights, biases = torch.cat([weight] * count), bias if bias is None else bias.repeat(count)
        out = convolve(func, as_patches(values, x.grid), weights, biases, stride, padding, dilation, groups * count)
        own = out.reshape(-1, weight.shape[0], *out.shape[2:])
        return as_patches(own, x.grid, (x.axes[0], *lay.canonical(own.shape)[1:]))
    source, plan, pads = _looked_at(x, weight, stride, padding, dilation)
    if source.is_padded_otherwise(pads):
        return source.through_padded_images(lambda maps: func(maps, weight, bias, stride, padding, dilation, groups))
    way = _way(source, plan, weight, groups)
    if way == "local":
        return source.patches(func(source.values, weight, bias, plan.stride, 0, plan.dilation, groups))
    if way == "product":
        return source.patches(_product(source, plan, weight, bias))
    if source.values.is_complex():
        raise Refusal("the gradients of a kernel that looks at other patches are not known for complex numbers")
    return source.patches(convolved(source.values, weight, bias, way))


def _stays_within_positions(x: VisiblePatches, weight: Tensor, stride: Size, padding: Size | str) -> bool:
    """Whether axes are in another order than a map's, and a kernel sees neighbours along channels alone."""
    dims = x.dim() - 2
    if weight.dim() != x.dim() or not lay.is_plain(x.axes[1]) or lay.is_canonical(x.axes):
        return False
    pads = 0 if isinstance(padding, str) else padding
    seen = zip(x.axes[2:], weight.shape[2:], per_axis(stride, dims), per_axis(pads, dims), strict=True)
    return all(lay.is_plain(axis) or (k, s, p) == (1, 1, 0) for axis, k, s, p in seen)


def _product(source: Source, plan: Plan, weight: Tensor, bias: Tensor | None) -> Tensor:
    """By a kernel of one position, or of as many as its stride."""
    if plan.is_pointwise:
        seen, matrix = source.strided(plan), weight.flatten(1)
    else:
        seen, matrix = _side_by_side(source.values, plan), weight.movedim(1, -1).flatten(1)  # (N, *out, taps * C)
    rows = product(seen, matrix, bias)  # (N, *out, O)
    return from_rows(rows.flatten(0, -2), plan.out) if plan.outputs == 1 else rows.movedim(-1, 1)


def _side_by_side(values: Tensor, plan: Plan) -> Tensor:
    """(N, C, *patch) -> (N, *out, prod(kernel) * C), of kernels that lie side by side."""
    dims = len(plan.kernel)
    split = [n for axis in zip(plan.out, plan.kernel, strict=True) for n in axis]
    apart = values.movedim(1, -1).reshape(values.shape[0], *split, values.shape[1])
    order = (0, *range(1, 2 * dims, 2), *range(2, 2 * dims + 1, 2), 2 * dims + 1)
    return apart.permute(order).flatten(1 + dims)


def _looked_at(
    x: VisiblePatches,
    weight: Tensor,
    stride: int | tuple[int, ...],
    padding: int | str | tuple[int, ...],
    dilation: int | tuple[int, ...],
) -> tuple[Source, Plan, Sizes]:
    """What a convolution runs on, what it sees, and its own padding."""
    kernel = tuple(weight.shape[2:])
    dims = len(kernel)
    strides, dilations = per_axis(stride, dims), per_axis(dilation, dims)
    pads = _paddings(padding, kernel, dilations)
    source = source_of(x, pads, dims=dims)
    return source, source.plan(kernel, strides, dilations, source.pads(pads)), pads


def _conditional(func, x, weight: PerImage, bias, stride, padding, dilation, groups: int) -> VisiblePatches:
    """A kernel for each image (CondConv): x is (1, N * C, *positions), weight (B * O, C / groups, *kernel)."""
    grid = weight.grid
    if not isinstance(x, VisiblePatches) or x.axes[0] or groups % max(grid.num_visible, 1):
        raise Refusal("its weights were computed from the images, and its input is not arranged one group a patch")
    source, plan, pads = _looked_at(x, weight, stride, padding, dilation)
    weights = _repeated_weights(weight, grid)  # (B * O, ...) -> (N * O, ...)
    biases = bias if bias is None else _repeated_weights(bias, grid)
    if source.is_padded_otherwise(pads):
        raise Refusal("its weights were computed from the images, and F.pad padded its input otherwise than by zeros")
    windows = source.window(plan).reshape(1, -1, *plan.size)
    values = func(windows, weights, biases, plan.stride, 0, plan.dilation, groups)
    channels: lay.Axis = lay.merged([(lay.PATCH, grid.num_visible), (lay.PLAIN, values.shape[1] // grid.num_visible)])
    return as_patches(values, grid, ((), channels, *lay.canonical(values.shape)[2:]))


def _repeated_weights(rows: Tensor, grid: PatchGrid) -> Tensor:
    if not isinstance(rows, PerImage) or not rows.axes[0] or rows.axes[0][0][0] != lay.IMAGE:
        raise Refusal("its weights were not computed image by image")
    return repeat_per_patch(rows.reshape(grid.batch_size, -1, *rows.shape[1:]), grid).flatten(0, 1)


def _paddings(
    padding: int | str | tuple[int, ...], kernel: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[int, ...]:
    """Symmetric padding of each axis; refuses a 'same' that is not symmetric."""
    if padding == "valid":
        return (0,) * len(kernel)
    if padding == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        if any(t % 2 for t in total):
            raise Refusal("padding='same' with an even kernel pads one side more than the other; use F.pad instead")
        return tuple(t // 2 for t in total)
    assert not isinstance(padding, str)
    return per_axis(padding, len(kernel))


def _way(source: Source, plan: Plan, weight: Tensor, groups: int) -> Literal["local", "product"] | Way:
    """Choose how to run, by what was measured on CPUs (`benchmarks/`).

    "local": the dense convolution of the patches as they are; "product": one product, of a kernel of one position.
    """
    grid, few = source.grid, plan.outputs <= FEW
    if groups == 1 and plan.is_side_by_side and source.values.device.type in registered().product_devices:
        return "product"
    if plan.is_pointwise:
        return "product" if groups == 1 and few else "local"
    if source.has_zeros_around:
        way = faster(source.values, weight, groups, grid, plan)
        if way is not None:
            return way
    # PyTorch 2.14 on CPUs leaves such results unwritten where the only channel counts as the last axis in memory.
    thin = groups == weight.shape[1] == plan.out[-1] == 1 < plan.stride[-1] and grid.num_visible > 0
    if plan.is_alone and not thin and (groups > 1 or not few or not grid.num_visible):
        return "local"
    near = plan.is_alone or math.prod(plan.patch) <= 4 * FEW
    pays = few and near and grid.num_visible and _products_pay(source.values, weight.shape[1], groups, plan.outputs)
    if thin or pays:
        copy = grid.copy(plan, source.outside)
        return Gathered(copy, plan.kernel, plan.stride, plan.dilation, groups, taps_of=plan.out)
    if groups > 1 and source.has_zeros_around and min(*plan.after, *plan.before) >= 0:
        # A window's halo is gathered for each patch, and outputs at masked positions are computed in vain: a position
        # gathered takes as long as 12 multiplications (depthwise, patches of 1 to 8 positions, kernels of 3 to 7).
        size, work = source.image_size(plan), plan.outputs * math.prod(plan.kernel) / 12
        windows = grid.num_visible * (math.prod(plan.size) + work)
        if windows > grid.batch_size * (math.prod(size) + math.prod(grid.shape) * work):
            into = grid.into_images(plan.patch, plan.before, plan.after)
            crop = grid.out_of_images(plan.out), plan.out
            return Gathered(into, size, plan.stride, plan.dilation, groups, crop=crop)
    return Gathered(grid.copy(plan.window, source.outside), plan.size, plan.stride, plan.dilation, groups)


def _products_pay(values: Tensor, channels: int, groups: int, outputs: int) -> bool:
    """Whether a matrix product of few outputs' taps beats a convolution with so many input channels a group.

    A group's taps are gathered apart, which pays where groups are wide or the library is slowest, at a single output;
    tables for groups are made on CPUs only.
    """
    if groups == 1:
        return True
    narrowest = 8 if outputs == 1 else 24
    return channels >= narrowest and values.device.type == "cpu" and not torch.compiler.is_compiling()


@meaning(functional.unfold)
def unfold(func, input: GridTensor, kernel_size: Size, dilation: Size = 1, padding: Size = 0, stride: Size = 1):
    """Each window's values as channels, (N, C * taps, positions): by a convolution with one weight of 1 for each."""
    if isinstance(input, PerImage):
        return dense_batch(func, input, kernel_size, dilation, padding, stride)
    if not lay.is_canonical(input.axes):
        raise Refusal("its axes are not (patches, channels, height, width)")
    channels = input.shape[1]
    weight = _taps(input, kernel_size, channels)
    with torch.autocast(input.device.type, enabled=False):
        out = convolve(functional.conv2d, input, weight, None, stride, padding, dilation, channels)
    return as_same_kind(out.flatten(2), out, lay.flattened(out.axes, 2, 3))


def _taps(x: Tensor, kernel_size: Size, channels: int) -> Tensor:
    """(channels * taps, 1, *kernel): for each channel and each tap of a window, the kernel that is 1 there."""
    kernel = per_axis(kernel_size, 2)
    return torch.eye(math.prod(kernel), dtype=x.dtype, device=x.device).view(-1, 1, *kernel).repeat(channels, 1, 1, 1)


@meaning(functional.fold)
def fold(
    func,
    input: GridTensor,
    output_size: Size,
    kernel_size: Size,
    dilation: Size = 1,
    padding: Size = 0,
    stride: Size = 1,
):
    """Windows summed where they overlap: `unfold` turned round, to a size that the network read off a patch."""
    x = unpadded(input)
    if isinstance(x, PerImage):
        return dense_batch(func, x, output_size, kernel_size, dilation, padding, stride)
    if x.dim() != 3 or not lay.is_plain(x.axes[1]) or [role for role, _ in x.axes[2]] != [0, 1]:
        raise Refusal("its axes are not (patches, channels * taps, positions)")
    arguments = [per_axis(n, 2) for n in (output_size, kernel_size, dilation, padding, stride)]
    axes = [*zip([n for _, n in x.axes[2]], *arguments, strict=True)]
    if any(size != p * step for p, size, _, _, _, step in axes):
        raise Refusal(f"its output_size {output_size} is not that of a patch")
    missing = tuple([step + 2 * pad - apart * (taps - 1) - 1 for _, _, taps, apart, pad, step in axes])
    channels = x.shape[1] // math.prod(arguments[1])
    weight = _taps(x, kernel_size, channels)
    windows = as_patches(x.unflatten(2, [p for p, *_ in axes]), x.grid)
    transposed = functional.conv_transpose2d
    with torch.autocast(x.device.type, enabled=False):
        return conv_transpose(transposed, windows, weight, None, stride, padding, missing, channels, dilation)


@meaning(functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)
def conv_transpose(
    func,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    output_padding: int | tuple[int, ...] = 0,
    groups: int = 1,
    dilation: int | tuple[int, ...] = 1,
):
    """Within each patch where the kernel is as wide as the stride; else on whole images."""
    x, arguments = input, (weight, bias, stride, padding, output_padding, groups, dilation)
    if isinstance(x, PerImage):
        return dense_batch(func, x, *arguments)
    dims = weight.dim() - 2
    strides = per_axis(stride, dims)
    zeros = [per_axis(padding, dims), per_axis(output_padding, dims)]
    if not isinstance(x, VisiblePatches) or any(isinstance(t, GridTensor) for t in (weight, bias)):
        raise Refusal("its weights were computed from patches")
    wide = any(d > 1 < k for d, k in zip(per_axis(dilation, dims), weight.shape[2:], strict=True))
    if tuple(weight.shape[2:]) == strides and not wide and not any(map(any, zeros)):  # stays within each patch
        out = func(canonical_values(x), *arguments)
        return as_patches(out, x.grid, lay.canonical(out.shape))
    out = through_images(x, lambda maps: func(maps, *arguments))
    grown = tuple(p * s for p, s in zip(x.shape[2:], strides, strict=True))
    if tuple(out.shape[2:]) != grown:
        raise Refusal(f"patches of {tuple(x.shape[2:])} positions become {tuple(out.shape[2:])}, expected {grown}")
    return out
