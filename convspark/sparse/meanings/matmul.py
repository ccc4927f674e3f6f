"""Matrix products: over channels they stay per position, over an image's positions they give one result an image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .. import axes as lay
from ..convolve import product
from ..registry import Refusal, meaning
from ..tensor import GridTensor, PerImage, VisiblePatches, as_patches, as_per_image, as_same_kind, sum_per_image
from .operands import (
    image_axis,
    joined_layout,
    named,
    repeat_along,
    require_plain,
    rowed,
    unpadded,
    with_rows_of,
)


@meaning(functional.linear)
def linear(func, input, weight, bias=None):
    """Of each position's channels, which are the last axis."""
    x = unpadded(input)
    if not isinstance(x, GridTensor) or isinstance(weight, GridTensor) or isinstance(bias, GridTensor):
        raise Refusal("its weights were computed from patches")
    require_plain(x, [x.dim() - 1], "multiplying along the last axis")
    if weight.dim() == 1:  # to a single channel, which has no axis
        return as_same_kind(func(x, weight, bias), x, x.axes[:-1])
    out = product(x.values, weight, bias) if isinstance(x, VisiblePatches) else func(x, weight, bias)
    return as_same_kind(out, x, (*x.axes[:-1], lay.plain_axis(out.shape[-1])))


@meaning(*named("matmul mm bmm", torch, torch.Tensor), torch.Tensor.__matmul__)
def matmul(func, input, other):
    """By weights, or of two tensors whose leading axes are patches or images."""
    a, b = unpadded(input), unpadded(other)
    if isinstance(a, GridTensor) and not isinstance(b, GridTensor) and b.dim() == 2:
        require_plain(a, [a.dim() - 1], "multiplying along the last axis")
        return as_same_kind(a @ b, a, (*a.axes[:-1], lay.plain_axis(b.shape[-1])))
    if isinstance(b, GridTensor) and not isinstance(a, GridTensor) and a.dim() == 2 <= b.dim():
        require_plain(b, [b.dim() - 2], "multiplying along the last axis but one")
        return as_same_kind(a @ b, b, (*b.axes[:-2], lay.plain_axis(a.shape[0]), b.axes[-1]))
    if a.dim() < 3 or b.dim() < 3:
        raise Refusal("it multiplies matrices whose rows or columns may be patches or positions")
    # The leading axes pair up as those of an elementwise function do.
    leader, batch = joined_layout([_first_of_matrix(a), _first_of_matrix(b)])
    left, right = _axes_of_matrix(a), _axes_of_matrix(b)
    row, inner, column = left[0], (left[1], right[0]), right[1]
    out = with_rows_of(a, leader, 2) @ with_rows_of(b, leader, 2)
    if all(lay.is_plain(axis) for axis in inner):
        if not lay.is_plain(row) and not lay.is_plain(column):
            raise Refusal(
                "it relates positions to each other (attention), within a patch where it should be the whole image"
            )
        return as_same_kind(out, leader, (*batch, row, column))
    if (
        not (lay.is_plain(row) and lay.is_plain(column))
        or inner[0] != inner[1]
        or not isinstance(leader, VisiblePatches)
    ):
        raise Refusal("it sums over some positions and not others")
    spatial = {role for role, _ in inner[0]}
    if spatial != {role for role in lay.spatial_roles(a.axes)} or [r for r, _ in batch[0]] != [lay.PATCH]:
        raise Refusal("it sums over some positions and not others")
    return as_per_image(sum_per_image(out, leader.grid), leader.grid)


def _first_of_matrix(x: Tensor) -> Tensor:
    """The tensor without its two matrix axes: what is left pairs up with the other operand's."""
    rest: Tensor = x[..., 0, 0]
    if isinstance(x, PerImage):
        return as_per_image(rest, x.grid, x.axes[:-2])
    return as_patches(rest, x.grid, x.axes[:-2]) if isinstance(x, VisiblePatches) else rest


def _axes_of_matrix(x: Tensor) -> lay.Layout:
    return x.axes[-2:] if isinstance(x, GridTensor) else tuple(map(lay.plain_axis, x.shape[-2:]))


@meaning(torch.einsum)
def einsum(func, equation, *operands):
    """Over channels, where the axes of patches, images and positions are all kept; or over an image's positions."""
    if not isinstance(equation, str):
        raise Refusal("its equation is not a string")
    operands = tuple(operands[0]) if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else operands
    sides, arrow, result = equation.replace(" ", "").partition("->")
    names = [_without_ellipsis(n, o.dim()) for n, o in zip(sides.split(","), operands, strict=True)]
    used = [name for own in names for name in own]
    rest = max([sum(name.isdigit() for name in own) for own in names])
    if arrow:
        out_names = _without_ellipsis(result, len(result.replace("...", "")) + rest)
    else:
        out_names = [
            *map(str, range(rest, 0, -1)),
            *sorted(n for n in used if used.count(n) == 1 and not n.isdigit()),
        ]
    marked = [unpadded(o) for o in operands if isinstance(o, GridTensor)]
    leader = next((o for o in marked if isinstance(o, VisiblePatches)), marked[0])
    axis_of: dict[str, lay.Axis] = {}
    for own, operand in zip(names, operands, strict=True):
        if isinstance(operand, GridTensor) and operand.grid is not leader.grid:
            raise Refusal("its operands belong to different grids")
        layout = rowed(operand, leader) if isinstance(operand, GridTensor) else [*map(lay.plain_axis, operand.shape)]
        for name, axis in zip(own, layout, strict=True):
            known = axis_of.setdefault(name, axis)
            if (known != axis and not (lay.is_plain(known) and lay.is_plain(axis))) or own.count(name) > 1:
                raise Refusal(f"axis {name!r} is of patches or positions in one operand and not in another")
    summed = [role for name, axis in axis_of.items() if name not in out_names for role, _ in axis if role != lay.PLAIN]
    rows = [at for at, name in enumerate(out_names) if [role for role, _ in axis_of[name]] == [lay.PATCH]]
    if summed and not (rows and sorted(summed, key=str) == [*range(len(leader.grid.shape))]):
        raise Refusal("it sums over some patches or positions and not others")
    sparse_axes = [axis_of[name] for name in out_names if not lay.is_plain(axis_of[name])]
    if len({role for axis in sparse_axes for role, _ in axis}) != sum(map(len, sparse_axes)):
        raise Refusal("it relates positions to each other, within a patch where it should be the whole image")
    if isinstance(leader, VisiblePatches):
        operands = [repeat_along(o, image_axis(o), leader.grid) if isinstance(o, PerImage) else o for o in operands]
    out = torch.einsum(equation, *operands)
    if summed:
        out = sum_per_image(out.movedim(rows[0], 0), leader.grid).movedim(0, rows[0])
        axis_of[out_names[rows[0]]] = ((lay.IMAGE, leader.grid.batch_size),)
    axes = zip(out_names, out.shape, strict=True)
    layout = tuple(lay.plain_axis(n) if lay.is_plain(axis_of[name]) else axis_of[name] for name, n in axes)
    return as_per_image(out, leader.grid, layout) if summed else as_same_kind(out, leader, layout)


def _without_ellipsis(names: str, dims: int) -> list[str]:
    """One name for each of so many axes; those that an ellipsis stands for are numbered from the last one on."""
    before, dots, after = names.partition("...")
    count = dims - len(before) - len(after) if dots else 0
    return [*before, *map(str, range(count, 0, -1)), *after]
