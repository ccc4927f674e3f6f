"""Functions that move, split or merge axes without looking at the values."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import axes as lay
from ..registry import Refusal, meaning
from ..tensor import GridTensor, PerImage, VisiblePatches, as_patches, as_same_kind
from .operands import (
    dimension,
    each_patch,
    image_axis,
    joined_layout,
    named,
    require_plain,
    sizes_for,
    spread_over_positions,
    unpadded,
    with_rows_of,
)


def _sizes(args: tuple) -> list[int]:
    """The sizes of view(2, 3) or view((2, 3))."""
    return list(args[0]) if len(args) == 1 and not isinstance(args[0], int) else list(args)


@meaning(*named("reshape", torch, Tensor), Tensor.view)
def view(func, args, kwargs):
    x = unpadded(args[0])
    given = kwargs.get("shape", kwargs.get("size", args[1:]))
    if len(args) > 1 and isinstance(args[1], torch.dtype):
        raise Refusal("it reads the bytes as another type")
    sizes = sizes_for(x, _sizes(tuple(given)) if given and not isinstance(given[0], int) else list(given))
    if -1 in sizes:
        sizes[sizes.index(-1)] = x.numel() // max(math.prod([n for n in sizes if n != -1]), 1)
    return as_same_kind(x.reshape(sizes) if func is not Tensor.view else x.view(sizes), x, lay.reshaped(x.axes, sizes))


@meaning(*named("flatten", torch, Tensor))
def flatten(func, args, kwargs):
    x = unpadded(args[0])
    start = dimension(x, kwargs.get("start_dim", args[1] if len(args) > 1 else 0))
    end = dimension(x, kwargs.get("end_dim", args[2] if len(args) > 2 else -1))
    return as_same_kind(x.flatten(start, end), x, lay.flattened(x.axes, start, end))


@meaning(*named("unflatten", torch, Tensor))
def unflatten(func, args, kwargs):
    x = unpadded(args[0])
    out = func(*args, **kwargs)
    return as_same_kind(out, x, lay.reshaped(x.axes, out.shape))


@meaning(*named("permute", torch, Tensor))
def permute(func, args, kwargs):
    x = unpadded(args[0])
    order = [dimension(x, dim) for dim in _sizes(kwargs.get("dims", args[1:]))]
    return as_same_kind(x.permute(order), x, tuple(x.axes[dim] for dim in order))


@meaning(*named("transpose swapaxes swapdims", torch, Tensor))
def transpose(func, args, kwargs):
    x = unpadded(args[0])
    first, second = (dimension(x, dim) for dim in (*args[1:], *kwargs.values()))
    axes = list(x.axes)
    axes[first], axes[second] = axes[second], axes[first]
    return as_same_kind(x.transpose(first, second), x, tuple(axes))


@meaning(*named("movedim moveaxis", torch, Tensor))
def movedim(func, args, kwargs):
    x = unpadded(args[0])
    # A tensor whose sizes number its axes, moved in the same way, tells the permutation.
    moved = func(torch.empty(tuple(range(2, 2 + x.dim())), device="meta"), *args[1:], **kwargs)
    return as_same_kind(func(*args, **kwargs), x, tuple(x.axes[size - 2] for size in moved.shape))


@meaning(*named("unsqueeze", torch, Tensor))
def unsqueeze(func, args, kwargs):
    x = unpadded(args[0])
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    dim = dim + x.dim() + 1 if dim < 0 else dim
    return as_same_kind(x.unsqueeze(dim), x, (*x.axes[:dim], (), *x.axes[dim:]))


@meaning(*named("squeeze", torch, Tensor))
def squeeze(func, args, kwargs):
    x = unpadded(args[0])
    dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
    wanted = range(x.dim()) if dims is None else [dims] if isinstance(dims, int) else dims
    # Positions of a 1×1 patch stay: in the dense network that axis is longer. So do the rows of a single patch.
    gone = {d for d in (dimension(x, dim) for dim in wanted) if x.shape[d] == 1 and not x.axes[d]}
    kept = [dim for dim in range(x.dim()) if dim not in gone]
    return as_same_kind(x.squeeze(tuple(gone)), x, tuple(x.axes[dim] for dim in kept))


@meaning(*named("cat concat concatenate", torch))
def cat(func, args, kwargs):
    tensors = kwargs.get("tensors", args[0] if args else None)
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    leader = next((t for t in tensors if isinstance(t, VisiblePatches)), None)
    leader = leader if leader is not None else next(t for t in tensors if isinstance(t, GridTensor))
    at = dimension(leader, dim)
    require_plain(leader, [at], "joining along this axis")
    tensors = [_beside(other, leader) for other in tensors]
    for other in tensors:
        if not isinstance(other, type(leader)):
            raise Refusal("a tensor without patches is joined to visible patches")
        if unpadded(other).grid is not leader.grid:
            raise Refusal("its operands belong to different grids")
        if [a for i, a in enumerate(other.axes) if i != at] != [a for i, a in enumerate(leader.axes) if i != at]:
            raise Refusal("its operands have different axes at the same place")
        require_plain(other, [at], "joining along this axis")
    out = torch.cat(tuple(tensors), at)
    axes = list(leader.axes)
    axes[at] = lay.plain_axis(out.shape[at])
    return as_same_kind(out, leader, tuple(axes))


def _beside(other: Tensor, leader: GridTensor) -> Tensor:
    """Values of an image that were expanded to a map of one position a patch, which changed no size."""
    one = isinstance(leader, VisiblePatches) and lay.is_canonical(leader.axes) and set(leader.shape[2:]) == {1}
    if one and isinstance(other, PerImage) and other.shape[2:] == leader.shape[2:]:
        return spread_over_positions(other, leader.shape[2:])
    return other


@meaning(*named("stack", torch))
def stack(func, args, kwargs):
    tensors = kwargs.get("tensors", args[0] if args else None)
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    leader, layout = joined_layout(tensors)
    at = dim + leader.dim() + 1 if dim < 0 else dim
    out = torch.stack([with_rows_of(t, leader) for t in tensors], at)
    return as_same_kind(out, leader, (*layout[:at], lay.plain_axis(len(tensors)), *layout[at:]))


@meaning(*named("chunk split tensor_split split_with_sizes unsafe_chunk unsafe_split", torch, Tensor))
def split(func, args, kwargs):
    x = unpadded(args[0])
    dim = dimension(x, kwargs.get("dim", args[2] if len(args) > 2 else 0))
    require_plain(x, [dim], "splitting this axis")
    parts = func(*args, **kwargs)
    return type(parts)(as_same_kind(part, x, _resized(x, dim, part.shape[dim])) for part in parts)


@meaning(*named("unbind", torch, Tensor))
def unbind(func, args, kwargs):
    x = unpadded(args[0])
    dim = dimension(x, kwargs.get("dim", args[1] if len(args) > 1 else 0))
    require_plain(x, [dim], "splitting this axis")
    return tuple(as_same_kind(part, x, _without(x, dim)) for part in x.unbind(dim))


@meaning(*named("narrow", torch, Tensor))
def narrow(func, args, kwargs):
    x = unpadded(args[0])
    out = func(*args, **kwargs)
    dim = dimension(x, kwargs.get("dim", args[1] if len(args) > 1 else 0))
    require_plain(x, [dim], "taking a part of this axis")
    return as_same_kind(out, x, _resized(x, dim, out.shape[dim]))


@meaning(*named("select", torch, Tensor))
def select(func, args, kwargs):
    x = unpadded(args[0])
    dim = dimension(x, kwargs.get("dim", args[1] if len(args) > 1 else 0))
    require_plain(x, [dim], "taking a part of this axis")
    return as_same_kind(func(*args, **kwargs), x, _without(x, dim))


@meaning(*named("index_select", torch, Tensor))
def index_select(func, args, kwargs):
    x = unpadded(args[0])
    dim = dimension(x, kwargs.get("dim", args[1] if len(args) > 1 else 0))
    require_plain(x, [dim], "choosing along this axis")
    out = func(*args, **kwargs)
    return as_same_kind(out, x, _resized(x, dim, out.shape[dim]))


@meaning(Tensor.__getitem__)
def getitem(func, args, kwargs):
    x, index = args
    unpadded(x)
    parts = list(index) if isinstance(index, tuple) else [index]
    if any(part is Ellipsis for part in parts):
        at = next(i for i, part in enumerate(parts) if part is Ellipsis)
        taken = sum(part is not None for part in parts) - 1
        parts[at : at + 1] = [slice(None)] * (x.dim() - taken)
    axes: list[lay.Axis] = []
    at = 0
    for part in parts:
        if part is None:
            axes.append(())
            continue
        if at >= x.dim():
            raise Refusal("it has more indices than axes")
        axis, size = x.axes[at], x.shape[at]
        at += 1
        if isinstance(part, slice):
            axes.append(_sliced(axis, part, size))
        elif lay.is_plain(axis) and isinstance(part, int):
            continue
        else:
            raise Refusal("it picks single patches or positions, or indexes with a tensor")
    out = x[tuple(parts)]
    return as_same_kind(out, x, (*axes, *x.axes[at:]))


def _sliced(axis: lay.Axis, part: slice, size: int) -> lay.Axis:
    start, stop, step = part.indices(size)
    if part == slice(None) or (start, stop, step) == (0, size, 1):
        # A slice that happens to end at the patch's edge would end inside the dense map.
        if not lay.is_plain(axis) and part.stop is not None:
            raise Refusal("it cuts the map at a fixed position")
        return axis
    if lay.is_plain(axis):
        return lay.plain_axis(len(range(start, stop, step)))
    if (
        len(axis) == 1
        and lay.is_spatial(axis[0][0])
        and part.stop is None
        and size % step == 0
        and 0 <= (part.start or 0) < step
    ):
        return ((axis[0][0], size // step),)
    raise Refusal("it takes a part of the patches or positions")


@meaning(*named("expand broadcast_to", Tensor, torch), Tensor.expand_as)
def expand(func, args, kwargs):
    x = unpadded(args[0])
    if func is Tensor.expand_as:
        other = args[1]
        if not isinstance(other, GridTensor):
            raise Refusal("it expands to the shape of a plain tensor")
        leader, layout = joined_layout([x, unpadded(other)])
        return as_same_kind(with_rows_of(x, leader).expand(other.shape), leader, layout)
    sizes = _sizes(kwargs.get("size", args[1:]))
    if isinstance(x, PerImage) and x.origin is not None and tuple(sizes) == tuple(x.origin[1]):
        axes, shape = x.origin
        return as_patches(each_patch(x, image_axis(x), x.grid).expand(shape), x.grid, axes)
    lead = len(sizes) - x.dim()
    if isinstance(x, PerImage):
        grows = [size not in (-1, n) for size, n in zip(sizes, x.shape, strict=False)]
        if lead == 0 and x.dim() > 2 and any(grows[2:]) and not grows[1] and set(x.shape[2:]) == {1}:
            return spread_over_positions(x, [max(size, 1) for size in sizes[2:]])
        sizes = sizes_for(x, sizes)
    out = x.expand(sizes)
    axes = []
    for at, size in enumerate(out.shape):
        axis = x.axes[at - lead] if at >= lead else ()
        grown = at < lead or size != x.shape[at - lead]
        if grown and at - lead > 1 and isinstance(x, PerImage):
            raise Refusal("it expands per-image values over positions by sizes; multiply or add them instead")
        axes.append(lay.plain_axis(size) if grown else axis)
    return as_same_kind(out, x, tuple(axes))


@meaning(*named("repeat_interleave", torch, Tensor))
def repeat_interleave(func, args, kwargs):
    x = unpadded(args[0])
    dim = kwargs.get("dim", args[2] if len(args) > 2 else None)
    if dim is None:
        raise Refusal("it flattens patches and positions")
    repeats = kwargs.get("repeats", args[1] if len(args) > 1 else None)
    at = dimension(x, dim)
    out = func(*args, **kwargs)
    axis = x.axes[at]
    if lay.is_plain(axis):
        return as_same_kind(out, x, _resized(x, at, out.shape[at]))
    if isinstance(repeats, int) and len(axis) == 1 and lay.is_spatial(axis[0][0]):
        return as_same_kind(out, x, (*x.axes[:at], ((axis[0][0], out.shape[at]),), *x.axes[at + 1 :]))
    raise Refusal("it repeats patches")


@meaning(*named("pixel_shuffle", torch))
def pixel_shuffle(func, args, kwargs):
    x = unpadded(args[0])
    out = func(*args, **kwargs)
    return _rescaled(x, out)


@meaning(*named("pixel_unshuffle", torch))
def pixel_unshuffle(func, args, kwargs):
    x = unpadded(args[0])
    factor = kwargs.get("downscale_factor", args[1] if len(args) > 1 else None)
    if any(size % factor for size in x.shape[-2:]):
        raise Refusal(f"a patch of {tuple(x.shape[-2:])} positions cannot be cut into blocks of {factor}")
    return _rescaled(x, func(*args, **kwargs))


@meaning(*named("channel_shuffle native_channel_shuffle", torch))
def channel_shuffle(func, args, kwargs):
    x = unpadded(args[0])
    require_plain(x, [1], "shuffling this axis")
    return as_same_kind(func(*args, **kwargs), x, x.axes)


@meaning(*named("roll flip", torch, Tensor))
def roll(func, args, kwargs):
    x = unpadded(args[0])
    dims = kwargs.get("dims", args[-1])
    require_plain(x, [dimension(x, d) for d in ([dims] if isinstance(dims, int) else dims)], "moving along this axis")
    return as_same_kind(func(*args, **kwargs), x, x.axes)


def _rescaled(x: GridTensor, out: Tensor) -> GridTensor:
    if not isinstance(x, VisiblePatches) or not lay.is_canonical(x.axes):
        raise Refusal("its axes are not (patches, channels, height, width)")
    return as_patches(out, x.grid, lay.canonical(out.shape))


def _resized(x: GridTensor, dim: int, size: int) -> lay.Layout:
    return (*x.axes[:dim], lay.plain_axis(size), *x.axes[dim + 1 :])


def _without(x: GridTensor, dim: int) -> lay.Layout:
    return (*x.axes[:dim], *x.axes[dim + 1 :])
