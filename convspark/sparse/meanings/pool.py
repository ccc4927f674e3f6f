"""Poolings: over a window, and over the whole image."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .. import axes as lay
from ..faster import offered, registered
from ..plans import Plan, Sizes
from ..registry import Refusal, meaning
from ..tensor import (
    GridTensor,
    PerImage,
    VisiblePatches,
    as_patches,
    as_per_image,
    scatter,
    unpadded,
    visible_positions,
)
from .neighbourhood import Pads, Source, source_of
from .operands import WHOLE_MAP, dense_batch, named, per_axis
from .pad import pad
from .reduce import nowhere, over_image, per_image, reduced_kind, wide

_MAX_POOL, _AVERAGE_POOL = "max_pool1d max_pool2d max_pool3d", "avg_pool1d avg_pool2d avg_pool3d"
_DIMS = {
    function: dims
    for names in (_MAX_POOL, _AVERAGE_POOL)
    for dims, name in enumerate(names.split(), start=1)
    for function in named(name, torch, functional)
}
_ADAPTIVE = {
    function: dims
    for kind in ("avg", "max")
    for dims in (1, 2, 3)
    for function in named(f"adaptive_{kind}_pool{dims}d", torch, functional)
}


Size = int | Sequence[int]


@meaning(*named(_MAX_POOL, torch, functional))
def max_pool(
    func,
    input: GridTensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
):
    """The largest in each window: masked positions are 0, those outside the image nothing.

    Where it was, which a decoder may ask for (SegNet), nothing can read among patches.
    """
    if return_indices:
        pooled = max_pool(func, input, kernel_size, stride, padding, dilation, ceil_mode)
        return pooled, nowhere(pooled)
    if isinstance(input, PerImage):
        return dense_batch(func, input, kernel_size, stride or kernel_size, padding, dilation, ceil_mode)
    if _is_whole_map(input, kernel_size, stride):
        return _adaptive(getattr(functional, f"adaptive_max_pool{_DIMS[func]}d"), input, 1, "amax")
    dims = _DIMS[func]
    kernel, dilations, pads = per_axis(kernel_size, dims), per_axis(dilation, dims), per_axis(padding, dims)
    strides = per_axis(stride or kernel, dims)
    assert isinstance(input, VisiblePatches)
    source = source_of(input, pads, -math.inf, dims)
    around = source.pads(pads)
    if lost := _positions_lost(source, kernel, strides, dilations, around):
        return _cropped(input, lost, -math.inf, lambda x: max_pool(func, x, kernel, 1, padding, dilation))
    plan = source.plan(kernel, strides, dilations, around, pads if ceil_mode else None)
    # After the map ceil_mode sees nothing, whatever F.pad wrote before it.
    if source.is_padded_otherwise(pads) or (_overhangs(plan, around) and source.outside != -math.inf):
        return source.through_padded_images(lambda maps: func(maps, kernel, strides, pads, dilations, ceil_mode))
    pooled = offered(registered().max_pools, source.values, source.grid, plan, source.outside)
    return source.patches(func(source.window(plan), kernel, strides, 0, dilations) if pooled is None else pooled)


@meaning(*named(" ".join(f"{name}_with_indices" for name in _MAX_POOL.split()), functional))
def max_pool_with_indices(func, input: GridTensor, *args, **kwargs):
    """What `max_pool2d(..., return_indices=True)` calls."""
    pool = getattr(functional, func.__name__.removesuffix("_with_indices"))
    return max_pool(pool, input, *args, **{**kwargs, "return_indices": True})


@meaning(*named(_AVERAGE_POOL, torch, functional))
def average_pool(
    func,
    input: GridTensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
):
    """The mean of each window, masked positions 0, over the dense op's divisor."""
    dims = _DIMS[func]
    more = (divisor_override,) if dims > 1 else ()
    options = (ceil_mode, count_include_pad, *more)
    if isinstance(input, PerImage):
        return dense_batch(func, input, kernel_size, stride or kernel_size, padding, *options)
    if _is_whole_map(input, kernel_size, stride):
        return _adaptive(getattr(functional, f"adaptive_avg_pool{dims}d"), input, 1, "mean")
    kernel, pads = per_axis(kernel_size, dims), per_axis(padding, dims)
    strides = per_axis(stride or kernel, dims)
    assert isinstance(input, VisiblePatches)
    source = source_of(input, pads, 0.0, dims)
    around = source.pads(pads)
    lost = _positions_lost(source, kernel, strides, (1,) * dims, around)
    if lost and (count_include_pad or not any(pads)):  # or else what is added would count
        return _cropped(input, lost, 0.0, lambda x: average_pool(func, x, kernel, 1, padding, False, *options[1:]))
    plan = source.plan(kernel, strides, (1,) * dims, around, pads if ceil_mode else None)
    overhangs = _overhangs(plan, around)
    if source.is_padded_otherwise(pads) or (overhangs and not source.has_zeros_around):
        return source.through_padded_images(lambda maps: func(maps, kernel, strides, pads, *options))
    means = func(source.window(plan), kernel, strides)
    if divisor_override:
        return source.patches(means * (math.prod(kernel) / divisor_override))
    if any(pads) or overhangs:
        means = means * _share_counted(source, plan, around, pads, count_include_pad)
    return source.patches(means)


def _positions_lost(source: Source, kernel: Sizes, strides: Sizes, dilations: Sizes, around: Pads) -> list[int]:
    """Along each axis, by how much a window that moves by single positions makes the map smaller, if by a part of a
    patch: the next layer may make up for it (YOLOv9's ADown, a blur after an unpadded pooling). Else nothing.
    """
    lost = [max(0, (k - 1) * d - lo - hi) for k, d, (lo, hi) in zip(kernel, dilations, around, strict=True)]
    is_part = all(n < p for n, p in zip(lost, source.values.shape[2:], strict=True))
    return lost if max(strides) == 1 and any(lost) and is_part else []


def _cropped(
    x: VisiblePatches, lost: Sequence[int], fill: float, pool: Callable[[VisiblePatches], Any]
) -> VisiblePatches:
    """As if the map went on after its end, and then without what this adds to the result."""
    whole = pool(pad(functional.pad, x, [n for k in reversed(lost) for n in (0, k)], "constant", fill))
    return pad(functional.pad, whole, [n for k in reversed(lost) for n in (0, -k)])


def _is_whole_map(x: GridTensor, kernel_size: Size, stride: Size | None) -> bool:
    """Whether it is `x.shape[2:]`, as networks write that pool over the whole map; a layer's is no `torch.Size`."""
    if isinstance(kernel_size, torch.Size):
        return kernel_size == x.shape[2:]
    if not isinstance(kernel_size, int) and {*kernel_size, *per_axis(stride or 1, 1), *x.shape[2:]} == {1}:
        raise Refusal(f"it pools nothing, a position alone{WHOLE_MAP}")
    return False


def _overhangs(plan: Plan, pads: Pads) -> bool:
    """Whether some window reaches beyond the padding (`ceil_mode`)."""
    return any(after > hi for after, (_, hi) in zip(plan.after, pads, strict=True))


def _share_counted(source: Source, plan: Plan, pads: Pads, padding: Sizes, count_include_pad: bool) -> Tensor:
    """Kernel size over the dense op's divisor at each output position: (N, 1, *out)."""
    grid, device, dtype = source.grid, source.values.device, source.values.dtype
    places = grid.cells % math.prod(grid.shape)
    share = torch.ones((grid.num_visible, 1, *(1,) * len(pads)), device=device, dtype=dtype)
    for axis, ((lo, hi), p) in enumerate(zip(pads, padding, strict=True)):
        side, out, kernel = grid.shape[axis] * plan.patch[axis], plan.out[axis], plan.kernel[axis]
        begin = torch.arange(grid.shape[axis] * out, device=device) * plan.stride[axis] - plan.before[axis]
        own = p if count_include_pad else 0  # besides what F.pad announced
        counted = (begin + kernel).clamp(max=side + hi - p + own) - begin.clamp(min=p - lo - own)
        at = places // math.prod(grid.shape[axis + 1 :]) % grid.shape[axis]
        view = [-1, 1] + [1] * len(pads)
        view[2 + axis] = out
        share = share * (kernel / counted.view(-1, out)[at].view(view).to(dtype))
    return share


@meaning(*named("adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d", torch, functional))
def adaptive_average_pool(func, input: GridTensor, output_size: Any):
    """To one value an image, or one in each of so many bins along each axis: the mean of visible positions."""
    return _adaptive(func, input, output_size, "mean")


@meaning(*named("adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d", torch, functional))
def adaptive_max_pool(func, input: GridTensor, output_size: Any, return_indices: bool = False):
    """Likewise, the largest."""
    if return_indices:
        raise Refusal("positions within a map mean nothing among patches (return_indices=True)")
    return _adaptive(func, input, output_size, "amax")


def _adaptive(func, input: GridTensor, output_size: Any, reduction: str):
    x = unpadded(input)
    if isinstance(x, PerImage):
        return dense_batch(func, x, output_size)
    dims = _ADAPTIVE[func]
    size = per_axis(output_size, dims)
    canonical = isinstance(x, VisiblePatches) and lay.is_canonical(x.axes) and x.dim() == dims + 2
    divides = canonical and all(n is None or n > 0 == p % n for n, p in zip(size, x.shape[2:], strict=True))
    if divides and (isinstance(output_size, torch.Size) or set(size) == {None}):  # read off patches: of each patch
        out = func(x, output_size)
        return as_patches(out, x.grid, lay.canonical(out.shape))
    positions = tuple(range(2, x.dim()))
    if set(size) == {1} and x.dim() == dims + 2 and reduced_kind(x, positions) == "image":
        assert isinstance(x, VisiblePatches)
        return per_image(x, positions, True, lambda x, dims: over_image(x, reduction, dims))
    if not isinstance(x, VisiblePatches) or not canonical:
        raise Refusal(f"its axes are not (patches, channels, {dims} of positions)")
    if None in size:
        raise Refusal(f"it pools to {output_size}, which leaves rows or columns of masked and visible positions")
    if divides and not isinstance(output_size, int):
        raise Refusal(
            f"{output_size} may be a size that was read off a patch, or a number of bins: write x.shape[2:] for the "
            f"former, {size[0]} for the latter"
        )
    return _in_bins(x, size, reduction)


def _in_bins(x: VisiblePatches, size: tuple[int, ...], reduction: str) -> PerImage:
    """(N, C, *patch) -> (B, C, *size): of the visible positions in each part of the map; 0 where there is none."""
    kind, functions = wide(x), {"mean": "adaptive_avg_pool", "amax": "adaptive_max_pool"}
    pool = getattr(functional, f"{functions[reduction]}{len(size)}d")
    share = pool(visible_positions(x.grid, x.shape[2:]).to(kind), size)  # of positions that are visible, or whether any
    maps = scatter(as_patches(x.to(kind), x.grid), 0.0 if reduction == "mean" else -math.inf)
    rows = torch.where(share > 0, pool(maps, size) / torch.where(share > 0, share, 1), 0)
    return as_per_image(rows.to(x.dtype), x.grid)
