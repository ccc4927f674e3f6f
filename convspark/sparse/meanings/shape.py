"""Functions that move, split or merge axes without looking at the values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor

from .. import axes as lay
from ..registry import Refusal, meaning
from ..tensor import (
    GridTensor,
    PerImage,
    VisiblePatches,
    as_patches,
    as_same_kind,
    as_view,
    before_change,
    may_be_in_another_order,
)
from .operands import (
    along,
    as_sizes,
    dimension,
    image_axis,
    joined_layout,
    named,
    of_patches,
    parts_along,
    repeat_along,
    require_plain,
    row_hint,
    sizes_for,
    spread_over_positions,
    unpadded,
    with_rows_of,
)
from .pad import announce


@meaning(*named("reshape", torch, Tensor), Tensor.view)
def view(func, input, *sizes, shape=None, size=None):
    """Axes split and merged; `view` as `reshape`, since patches have channels last where a dense tensor has not."""
    if sizes and isinstance(sizes[0], torch.dtype):
        x = unpadded(input)
        if sizes[0].itemsize != x.element_size():
            raise Refusal("it reads the bytes as a type of another size")
        return as_same_kind(x.view(sizes[0]), x, x.axes)
    new_shape = as_sizes(sizes if sizes else (shape if shape is not None else size,))
    return _reshaped(unpadded(input), sizes_for(unpadded(input), new_shape), func is not Tensor.view)


@meaning(Tensor.view_as, Tensor.reshape_as)
def view_as(func, input, other):
    """Of the shape of another tensor of patches."""
    if not isinstance(other, GridTensor):
        raise Refusal("it takes the shape of a plain tensor")
    x = of_patches(input)
    return _reshaped(x, sizes_for(x, list(unpadded(other).shape)), func is Tensor.reshape_as)


def _reshaped(x: GridTensor, sizes: list[int], may_copy: bool) -> GridTensor:
    if -1 in sizes:
        shape = [max(n, 1) if at == 0 else n for at, n in enumerate(x.shape)]  # nothing visible: as if one patch were
        known = math.prod([max(n, 1) if at == 0 else n for at, n in enumerate(sizes) if n != -1])
        sizes = list(sizes)
        sizes[sizes.index(-1)] = math.prod(shape) // max(known, 1)
    if math.prod(sizes) != x.numel():
        raise Refusal(f"a shape of {tuple(sizes)} does not fit {tuple(x.shape)}; it may with larger patches")
    out = as_same_kind(x.reshape(sizes), x, _layout_after(x, sizes))
    return as_view(out, x, may_copy and may_be_in_another_order(x))


def _layout_after(x: GridTensor, sizes: Sequence[int]) -> lay.Layout:
    """Of x with these sizes; with nothing visible, as if one patch were."""
    if x.numel() or not any(role == lay.PATCH and n == 0 for axis in x.axes for role, n in axis):
        return lay.reshaped(x.axes, sizes)
    layout = lay.reshaped(_with_patches(x.axes, 1), [1 if n == 0 else n for n in sizes])
    return _with_patches(layout, 0)


def _with_patches(layout: lay.Layout, count: int) -> lay.Layout:
    return tuple(tuple((role, count if role == lay.PATCH else n) for role, n in axis) for axis in layout)


@meaning(*named("flatten", torch, Tensor))
def flatten(func, input, start_dim=0, end_dim=-1):
    """Axes merged."""
    x = unpadded(input)
    start, end = dimension(x, start_dim), dimension(x, end_dim)
    out = as_same_kind(x.flatten(start, end), x, lay.flattened(x.axes, start, end))
    return as_view(out, x, may_be_in_another_order(x))


@meaning(*named("unflatten", torch, Tensor))
def unflatten(func, input, dim, sizes):
    """An axis split."""
    x = unpadded(input)
    at, parts = dimension(x, dim), list(sizes)
    if -1 in parts:
        parts[parts.index(-1)] = x.shape[at] // max(1, -math.prod(parts))
    if math.prod(parts) != x.shape[at]:
        raise Refusal(f"an axis of {x.shape[at]} cannot be split into {tuple(sizes)}")
    out = x.reshape(*x.shape[:at], *parts, *x.shape[at + 1 :])  # `unflatten` itself is none that old Dynamos trace
    return as_view(as_same_kind(out, x, _layout_after(x, out.shape)), x)


@meaning(*named("permute", torch, Tensor))
def permute(func, input, *order, dims=None):
    """Axes in another order."""
    x = unpadded(input)
    new_order = [dimension(x, dim) for dim in as_sizes(order if dims is None else (dims,))]
    return as_same_kind(x.permute(new_order), x, tuple(x.axes[dim] for dim in new_order))


@meaning(*named("transpose swapdims", torch, Tensor))
def transpose(func, input, dim0, dim1):
    """Two axes exchanged."""
    x = unpadded(input)
    first, second = dimension(x, dim0), dimension(x, dim1)
    axes = list(x.axes)
    axes[first], axes[second] = axes[second], axes[first]
    return as_same_kind(x.transpose(first, second), x, tuple(axes))


@meaning(*named("swapaxes", torch, Tensor))
def swapaxes(func, input, axis0, axis1):
    """The same."""
    return transpose(func, input, axis0, axis1)


@meaning(*named("movedim moveaxis", torch, Tensor))
def movedim(func, input, source, destination):
    """Axes moved."""
    x = unpadded(input)
    # A tensor whose sizes number its axes, moved in the same way, shows the permutation.
    moved = torch.empty(tuple(range(2, 2 + x.dim())), device="meta").movedim(source, destination)
    return as_same_kind(x.movedim(source, destination), x, tuple(x.axes[size - 2] for size in moved.shape))


@meaning(vars(torch._C.TensorBase)["mT"].__get__)
def matrices_transposed(func, input, owner=None):
    """The last two axes exchanged."""
    return transpose(func, input, -2, -1)


@meaning(*named("unsqueeze", torch, Tensor), Tensor.unsqueeze_)
def unsqueeze(func, input, dim):
    """An axis of size 1 more."""
    x = unpadded(input)
    dim = dim + x.dim() + 1 if dim < 0 else dim
    layout = (*x.axes[:dim], (), *x.axes[dim:])
    out = func(x, dim)
    if out is x:
        x.axes = layout
        return x
    return as_same_kind(out, x, layout)


@meaning(*named("squeeze", torch, Tensor))
def squeeze(func, input, dim=None):
    """Axes of size 1 less; positions of a patch of one stay: in the dense network that axis is longer."""
    x = unpadded(input)
    dims = range(x.dim()) if dim is None else [dim] if isinstance(dim, int) else dim
    gone = {at for at in (dimension(x, dim) for dim in dims) if x.shape[at] == 1 and not x.axes[at]}
    return as_same_kind(x.squeeze(tuple(gone)), x, tuple(axis for at, axis in enumerate(x.axes) if at not in gone))


@meaning(*named("cat concat concatenate", torch))
def cat(func, tensors, dim=0):
    """Along channels."""
    leader = next((t for t in tensors if isinstance(t, VisiblePatches)), None)
    leader = leader if leader is not None else next(t for t in tensors if isinstance(t, GridTensor))
    at = dimension(leader, dim)
    require_plain(leader, [at], "joining along this axis")
    tensors = [_beside(other, leader, at) for other in tensors]
    for other in tensors:
        if not isinstance(other, type(leader)):
            raise Refusal(
                "a tensor without patches is joined to visible patches; make it from them (torch.zeros_like(x), "
                "x.new_zeros)"
            )
        if unpadded(other).grid is not leader.grid:
            raise Refusal("its operands belong to different grids")
        if [a for i, a in enumerate(other.axes) if i != at] != [a for i, a in enumerate(leader.axes) if i != at]:
            raise Refusal("its operands have different axes at the same place")
        require_plain(other, [at], "joining along this axis")
    out = torch.cat(tuple(tensors), at)
    return as_same_kind(out, leader, _resized(leader, at, out.shape[at]))


def _beside(other: Tensor, leader: GridTensor, at: int) -> Tensor:
    """What is joined along axis `at`, as patches: values of an image that were expanded to a map of one position a
    patch, which changed no size; or a plain tensor as large that is the same everywhere, as PyramidNet joins zeros.
    """
    if not isinstance(leader, VisiblePatches):
        return other
    one = lay.is_canonical(leader.axes) and set(leader.shape[2:]) == {1}
    if one and isinstance(other, PerImage) and other.shape[2:] == leader.shape[2:]:
        return spread_over_positions(other, leader.shape[2:])
    if isinstance(other, GridTensor) or torch.compiler.is_compiling() or other.dim() != leader.dim():
        return other
    is_as_large = all(n == m for axis, (n, m) in enumerate(zip(other.shape, leader.shape, strict=True)) if axis != at)
    first = other[tuple([slice(None) if lay.is_plain(axis) else slice(1) for axis in leader.axes])]
    if not is_as_large or not bool((other == first).all()):
        return other
    return as_patches(other, leader.grid, _resized(leader, at, other.shape[at]))


@meaning(torch.stack)
def stack(func, tensors, dim=0):
    """Along a new axis."""
    leader, layout = joined_layout(tensors)
    at = dim + len(layout) + 1 if dim < 0 else dim
    out = torch.stack(torch.broadcast_tensors(*[with_rows_of(t, leader) for t in tensors]), at)
    return as_same_kind(out, leader, (*layout[:at], lay.plain_axis(len(tensors)), *layout[at:]))


@meaning(*named("chunk unsafe_chunk", torch, Tensor))
def chunk(func, input, chunks, dim=0):
    """Channels in parts."""
    return parts_along(input, dim, lambda x, at: func(x, chunks, at))


@meaning(*named("split unsafe_split split_with_sizes", torch, Tensor))
def split(func, input, split_size_or_sections=None, dim=0, *, split_size=None, split_sizes=None, tensor=None):
    """Channels in parts."""
    parts = next(n for n in (split_size_or_sections, split_size, split_sizes) if n is not None)
    return parts_along(input, dim, lambda x, at: func(x, parts, at))


@meaning(*named("tensor_split", torch, Tensor))
def tensor_split(func, input, indices_or_sections=None, dim=0, *, indices=None, sections=None):
    """Channels in parts."""
    parts = next(n for n in (indices_or_sections, indices, sections) if n is not None)
    return parts_along(input, dim, lambda x, at: func(x, parts, at))


@meaning(*named("unbind", torch, Tensor))
def unbind(func, input, dim=0):
    """Channels one by one."""
    return along(input, dim, func)


@meaning(*named("narrow", torch, Tensor))
def narrow(func, input, dim, start, length):
    """Some channels."""
    x = unpadded(input)
    at = dimension(x, dim)
    axis = _sliced(x.axes[at], slice(start, start + length), x.shape[at])
    return as_same_kind(x.narrow(at, start, length), x, (*x.axes[:at], axis, *x.axes[at + 1 :]))


@meaning(*named("select index_select", torch, Tensor))
def select(func, input, dim, index):
    """Channels by number."""
    if isinstance(index, VisiblePatches):
        raise Refusal("its numbers were computed from single patches")
    return along(input, dim, lambda x, at: func(x, at, index))


@meaning(Tensor.__getitem__)
def getitem(func, input, index):
    """Slices; channels also by a number, a list or a vector of numbers; a map without its border as F.pad crops it."""
    if border := _border(input, index):
        return announce(input if input.pending is not None else unpadded(input), border, view=True)
    x = of_patches(input)
    parts, layout = _indexed(x, index)
    return as_same_kind(x[parts], x, layout)


@meaning(Tensor.__setitem__)
def setitem(func, input, index, value):
    """Writes into such a part."""
    x = unpadded(input)
    if not isinstance(x, GridTensor):
        raise Refusal("it writes visible patches into a tensor that has no patches")
    parts, layout = _indexed(x, index)
    if isinstance(value, Tensor):
        part = as_same_kind(x[parts], x, layout)
        leader, joined = joined_layout([part, value])
        if type(leader) is not type(x) or joined != layout:
            raise Refusal("what it writes has other axes than what it writes into")
        value = with_rows_of(value, leader)
    before_change(x)
    func(x, parts, value)


def _indexed(x: GridTensor, index) -> tuple[tuple, lay.Layout]:
    """An index without ellipsis, and the axes of what it takes."""
    parts = _without_ellipsis(x, index)
    axes: list[lay.Axis] = []
    at = vectors = 0
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
        elif lay.is_plain(axis) and isinstance(part, int) and not isinstance(part, bool):
            continue
        elif lay.is_plain(axis) and _is_vector(part):
            vectors += 1
            device = part.device if isinstance(part, Tensor) else None
            axes.append(lay.plain_axis(len(torch.arange(size, device=device)[part])))
        else:
            raise Refusal(f"it picks single patches or positions, or indexes with a mask{row_hint(axis)}")
    if vectors > 1 or (vectors and any(isinstance(part, int) for part in parts)):
        raise Refusal("it indexes several axes at once")
    return tuple(parts), (*axes, *x.axes[at:])


def _without_ellipsis(x: Tensor, index) -> list:
    parts = list(index) if isinstance(index, tuple) else [index]
    if any(part is Ellipsis for part in parts):
        at = next(i for i, part in enumerate(parts) if part is Ellipsis)
        indexed = sum(part is not None for part in parts) - 1
        parts[at : at + 1] = [slice(None)] * (x.dim() - indexed)
    return parts


def _border(x: Tensor, index) -> dict[int, tuple[int, int]]:
    """What slices leave out at both ends of axes of positions, as F.pad takes it; {} where they do something else."""
    cut: dict[int, tuple[int, int]] = {}
    if not isinstance(x, VisiblePatches):
        return cut
    for at, part in enumerate(_without_ellipsis(x, index)):
        if not isinstance(part, slice) or part.step not in (None, 1):
            return {}
        start, stop = part.start or 0, part.stop or 0
        if start == 0 and part.stop is None:
            continue
        of_positions = at < x.dim() and any(lay.is_spatial(role) for role, _ in x.axes[at])
        if not of_positions or start < 0 or stop > 0 or part.stop == 0:
            return {}
        cut[at] = (-start, stop)
    return cut


def _is_vector(part) -> bool:
    if isinstance(part, Tensor):
        return part.dim() == 1 and not isinstance(part, GridTensor)
    return isinstance(part, list) and all(isinstance(n, int) for n in part)


def _sliced(axis: lay.Axis, part: slice, size: int) -> lay.Axis:
    chosen = range(size)[part]  # not `part.indices`, which old Dynamos do not know
    start, stop, step = chosen.start, chosen.stop, chosen.step
    if (start, stop, step) == (0, size, 1) and (lay.is_plain(axis) or (not part.start and part.stop in (None, size))):
        return axis  # all of it; a stop that was read off a patch, but no start counted from the end of one
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
    hint = row_hint(axis) or "; a map is cropped by negative numbers in F.pad"
    raise Refusal(f"it takes a part of the patches or positions{hint}")


@meaning(Tensor.expand_as)
def expand_as(func, input, other):
    """To the axes of another tensor of patches."""
    x = unpadded(input)
    if not isinstance(other, GridTensor):
        raise Refusal("it expands to the shape of a plain tensor")
    leader, layout = joined_layout([x, unpadded(other)])
    return as_view(as_same_kind(with_rows_of(x, leader).expand(other.shape), leader, layout), x)


def _is_pooled_map(x: GridTensor) -> TypeGuard[PerImage]:
    """Whether it has one value of each image in place of a map, (B, C, 1, 1)."""
    return isinstance(x, PerImage) and x.dim() == len(x.grid.shape) + 2 and set(x.shape[2:]) == {1}


@meaning(*named("expand broadcast_to", Tensor, torch))
def expand(func, input, *lengths, size=None, implicit=False):
    """Axes of size 1 repeated; an image's values also to each of its patches and positions."""
    x = unpadded(input)
    sizes = as_sizes(lengths if lengths else (size,))
    if isinstance(x, PerImage) and x.origin is not None and tuple(sizes) == tuple(x.origin[1]):
        axes, shape = x.origin
        return as_view(as_patches(repeat_along(x, image_axis(x), x.grid).expand(shape), x.grid, axes), x)
    lead = len(sizes) - x.dim()
    if isinstance(x, PerImage):
        grows = [n not in (-1, own) for n, own in zip(sizes, x.shape, strict=False)]
        if lead == 0 and _is_pooled_map(x) and any(grows[2:]) and not grows[1]:
            return as_view(spread_over_positions(x, [max(n, 1) for n in sizes[2:]]), x)
        sizes = sizes_for(x, sizes)
    out = x.expand(sizes)
    axes = []
    for at, n in enumerate(out.shape):
        axis = x.axes[at - lead] if at >= lead else ()
        grown = at < lead or n != x.shape[at - lead]
        if grown and not lay.is_plain(axis):
            raise Refusal("it repeats patches or positions")
        axes.append(lay.plain_axis(n) if grown else axis)
    return as_same_kind(out, x, tuple(axes))


@meaning(*named("repeat_interleave", torch, Tensor))
def repeat_interleave(func, input, repeats, dim=None, *, output_size=None):
    """Channels repeated; positions too, which makes the map larger."""
    x = of_patches(input)
    if dim is None:
        raise Refusal("it flattens patches and positions")
    if isinstance(repeats, GridTensor):
        raise Refusal("its numbers were computed from patches")
    at = dimension(x, dim)
    out = x.repeat_interleave(repeats, at)
    axis = x.axes[at]
    if lay.is_plain(axis):
        return as_same_kind(out, x, _resized(x, at, out.shape[at]))
    if isinstance(repeats, int) and len(axis) == 1 and lay.is_spatial(axis[0][0]):
        return as_same_kind(out, x, (*x.axes[:at], ((axis[0][0], out.shape[at]),), *x.axes[at + 1 :]))
    raise Refusal("it repeats patches")


@meaning(Tensor.repeat, *named("tile", torch, Tensor))
def repeat(func, input, *times, dims=None, repeats=None):
    """Channels one copy after the other."""
    x = unpadded(input)
    copies = as_sizes(times if times else (dims if dims is not None else repeats,))
    copies = [1] * (x.dim() - len(copies)) + copies if func is not Tensor.repeat else copies
    if len(copies) == x.dim() and _is_pooled_map(x) and max(copies[2:]) > 1 == max(copies[:2]):
        return spread_over_positions(x, copies[2:])
    lead = len(copies) - x.dim()
    layout: lay.Layout = (*[()] * lead, *x.axes)
    for axis, n in zip(layout, copies, strict=True):
        if n != 1 and not lay.is_plain(axis):
            raise Refusal("it repeats patches or positions")
    out = x.repeat(copies)
    return as_same_kind(
        out, x, tuple(lay.plain_axis(out.shape[at]) if n != 1 else layout[at] for at, n in enumerate(copies))
    )


@meaning(*named("pixel_shuffle", torch))
def pixel_shuffle(func, input, upscale_factor):
    """Depth to space, within each patch."""
    x = unpadded(input)
    if not x.numel():  # for which PyTorch's gradient has a wrong shape
        n, c, h, w = x.shape
        return _rescaled(x, x.reshape(n, c // upscale_factor**2, h * upscale_factor, w * upscale_factor))
    return _rescaled(x, func(x, upscale_factor))


@meaning(*named("pixel_unshuffle", torch))
def pixel_unshuffle(func, input, downscale_factor):
    """Space to depth, within each patch."""
    x = unpadded(input)
    if any(size % downscale_factor for size in x.shape[-2:]):
        raise Refusal(f"a patch of {tuple(x.shape[-2:])} positions cannot be cut into blocks of {downscale_factor}")
    if not x.numel():  # which PyTorch leaves as it is
        n, c, h, w = x.shape
        return _rescaled(x, x.reshape(n, c * downscale_factor**2, h // downscale_factor, w // downscale_factor))
    return _rescaled(x, func(x, downscale_factor))


@meaning(*named("channel_shuffle native_channel_shuffle", torch))
def channel_shuffle(func, input, groups):
    """Channels of each position."""
    x = unpadded(input)
    require_plain(x, [1], "shuffling this axis")
    return as_same_kind(func(x, groups), x, x.axes)


@meaning(*named("roll", torch, Tensor))
def roll(func, input, shifts, dims=None):
    """Along channels."""
    x = unpadded(input)
    if dims is None or dims == ():
        raise Refusal("it moves values from patch to patch (no dims are given)")
    moved = [dims] if isinstance(dims, int) else dims
    require_plain(x, [dimension(x, dim) for dim in moved], "moving along this axis")
    return as_same_kind(x.roll(shifts, dims), x, x.axes)


@meaning(*named("flip", torch, Tensor))
def flip(func, input, *numbers, dims=None):
    """Along channels."""
    x = unpadded(input)
    flipped = [dimension(x, dim) for dim in as_sizes(numbers if numbers else (dims,))]
    require_plain(x, flipped, "turning round this axis")
    return as_same_kind(x.flip(flipped), x, x.axes)


def _rescaled(x: GridTensor, out: Tensor) -> GridTensor:
    if not isinstance(x, VisiblePatches) or not lay.is_canonical(x.axes):
        raise Refusal("its axes are not (patches, channels, height, width)")
    return as_patches(out, x.grid, lay.canonical(out.shape))


def _resized(x: GridTensor, dim: int, size: int) -> lay.Layout:
    return (*x.axes[:dim], lay.plain_axis(size), *x.axes[dim + 1 :])
