"""Matrix products: over channels they stay per position, over an image's positions they give one result an image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .. import axes as lay
from ..registry import Refusal, meaning
from ..tensor import GridTensor, PerImage, VisiblePatches, as_patches, as_per_image, as_same_kind, sum_per_image
from .operands import joined_layout, named, require_plain, unpadded, with_rows_of


@meaning(functional.linear)
def linear(func, input, weight, bias=None):
    """Of each position's channels, which are the last axis."""
    x = unpadded(input)
    if not isinstance(x, GridTensor) or isinstance(weight, GridTensor) or isinstance(bias, GridTensor):
        raise Refusal("its weights were computed from patches")
    require_plain(x, [x.dim() - 1], "multiplying along the last axis")
    out = func(x, weight, bias)
    return as_same_kind(out, x, (*x.axes[:-1], lay.plain_axis(out.shape[-1])))


@meaning(*named("matmul mm bmm", torch, torch.Tensor), torch.Tensor.__matmul__)
def matmul(func, input, other):
    """By a matrix of weights, or of two tensors whose leading axes are patches or images."""
    a, b = unpadded(input), unpadded(other)
    if isinstance(a, GridTensor) and not isinstance(b, GridTensor) and b.dim() == 2:
        require_plain(a, [a.dim() - 1], "multiplying along the last axis")
        return as_same_kind(a @ b, a, (*a.axes[:-1], lay.plain_axis(b.shape[-1])))
    if not isinstance(a, GridTensor) or not isinstance(b, GridTensor) or a.dim() < 3 or b.dim() < 3:
        raise Refusal("it multiplies matrices whose rows or columns may be patches or positions")
    # The leading axes pair up as those of an elementwise function do.
    leader, batch = joined_layout([_first_of_matrix(a), _first_of_matrix(b)])
    row, inner, column = a.axes[-2], (a.axes[-1], b.axes[-2]), b.axes[-1]
    out = with_rows_of(a, leader) @ with_rows_of(b, leader)
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


def _first_of_matrix(x: GridTensor) -> GridTensor:
    """The tensor without its two matrix axes: what is left pairs up with the other operand's."""
    rest: Tensor = x[..., 0, 0]
    if isinstance(x, PerImage):
        return as_per_image(rest, x.grid, x.axes[:-2])
    return as_patches(rest, x.grid, x.axes[:-2])


@meaning(torch.einsum)
def einsum(func, equation, *operands):
    """Over channels, by tensors of weights: the axes of patches and positions are all kept, each as it is."""
    if not isinstance(equation, str):
        raise Refusal("its equation is not given as a text")
    operands = tuple(operands[0]) if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else operands
    sides, _, result = equation.replace(" ", "").partition("->")
    names = sides.split(",")
    marked = [(unpadded(o), n) for o, n in zip(operands, names, strict=True) if isinstance(o, GridTensor)]
    if len(marked) != 1 or not result or "." in equation:
        raise Refusal("only equations of one tensor of patches, with all axes named and a result, are known")
    x, own = marked[0]
    axis_of = dict(zip(own, x.axes, strict=True))
    others = {name for operand, given in zip(operands, names, strict=True) if operand is not x for name in given}
    for name, axis in axis_of.items():
        if not lay.is_plain(axis) and (name not in result or name in others or own.count(name) > 1):
            raise Refusal("it would mix patches or positions")
    out = torch.einsum(equation, *operands)
    layout = tuple(
        axis_of[name] if name in axis_of and not lay.is_plain(axis_of[name]) else lay.plain_axis(size)
        for name, size in zip(result, out.shape, strict=True)
    )
    return as_same_kind(out, x, layout)
