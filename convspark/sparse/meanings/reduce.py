"""Reductions: over channels they stay per position; over an image's positions they give one row an image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from .. import axes as lay
from ..grid import PatchGrid
from ..registry import Refusal, meaning
from ..tensor import (
    GridTensor,
    PerImage,
    VisiblePatches,
    as_patches,
    as_per_image,
    as_same_kind,
    become_per_image,
    sum_per_image,
)
from .operands import arguments, dimension, dimensions, each_patch, named, patch_axis, require_plain, unpadded


def reduced_kind(x: GridTensor, dims: tuple[int, ...]) -> str:
    """What is left after reducing these axes: "rows" (as before), "image" or "batch"; refuses anything between."""
    factors = {role for dim in dims for role, _ in x.axes[dim]}
    rows = lay.PATCH if isinstance(x, VisiblePatches) else lay.IMAGE
    spatial = {role for role in factors if lay.is_spatial(role)}
    if not spatial and rows not in factors:
        return "rows"
    if isinstance(x, PerImage):
        return "batch"
    for axis in (x.axes[at] for at in range(x.dim()) if at not in dims):
        if any(lay.is_spatial(role) for role, _ in axis):
            raise Refusal("it reduces some spatial axes and not others, which mixes masked and visible positions")
    if not spatial:
        raise Refusal("it reduces over patches but not over their positions")
    if rows in factors:
        return "batch"
    if not any(len(axis) == 1 and axis[0][0] == lay.PATCH for axis in x.axes):
        raise Refusal("the axis of patches has been merged with another one")
    return "image"


def reduced_layout(layout: Sequence[lay.Axis], dims: tuple[int, ...], keepdim: bool) -> lay.Layout:
    if keepdim:
        return tuple([() if at in dims else axis for at, axis in enumerate(layout)])
    return tuple([axis for at, axis in enumerate(layout) if at not in dims])


def over_image(x: VisiblePatches, reduction: str, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    """Reduce the positions (and channels) `dims` of each image; an image without visible patches gives 0.

    Args:
        reduction: "sum", "mean", "amax" or "amin".

    Returns:
        The reduced values with B in place of N, plain.
    """
    grid = x.grid
    rows = patch_axis(x)
    if reduction in ("amax", "amin"):
        per_patch = getattr(x, reduction)(dims, keepdim=True) if grid.num_visible else x.sum(dims, keepdim=True)
        result = _extreme_per_image(per_patch.movedim(rows, 0), grid, reduction).movedim(0, rows)
    elif reduction == "mean" and grid.visible_per_image:
        # One function instead of four, whose time is mostly that of calling them.
        images = x.view(*x.shape[:rows], grid.batch_size, grid.visible_per_image, *x.shape[rows + 1 :])
        result = images.mean((rows + 1, *[dim + (dim > rows) for dim in dims]), keepdim=True).squeeze(rows + 1)
    else:
        result = sum_per_image(x.sum(dims, keepdim=True).movedim(rows, 0), grid).movedim(0, rows)
        if reduction == "mean":
            positions = math.prod([x.shape[dim] for dim in dims])
            view = [1] * x.dim()
            view[rows] = grid.batch_size
            result = result / (grid.counts() * positions).clamp(min=1).view(view).to(result.dtype)
    return result if keepdim else result.squeeze(dims)


def _extreme_per_image(rows: Tensor, grid, reduction: str) -> Tensor:
    if grid.visible_per_image:
        per_image = rows.reshape(grid.batch_size, grid.visible_per_image, *rows.shape[1:])
        return getattr(per_image, reduction)(1)
    result = rows.new_zeros(grid.batch_size, *rows.shape[1:])
    index = grid.image.view(-1, *(1,) * (rows.dim() - 1)).expand(rows.shape)
    return result.scatter_reduce(0, index, rows, reduction, include_self=False)


def _unpack(args: tuple, kwargs: dict, *names: str) -> tuple[GridTensor, dict]:
    return unpadded(args[0]), arguments(args, kwargs, *names)


def _reduce(x: GridTensor, dim, keepdim: bool, dtype, reduction: str):
    dims = dimensions(x, dim)
    kind = reduced_kind(x, dims)
    if kind == "image":
        assert isinstance(x, VisiblePatches)
        x = as_patches(x.to(dtype), x.grid, x.axes) if dtype else x
        layout = _image_layout(x, dims, keepdim)
        return become_per_image(over_image(x, reduction, dims, keepdim), x.grid, layout, (x.axes, x.shape))
    if kind == "batch" and isinstance(x, VisiblePatches) and not x.numel():
        out = x.sum(dims, keepdim=keepdim)  # nothing visible: 0, also for means
    elif reduction in ("amax", "amin"):
        out = getattr(x, reduction)(dims, keepdim=keepdim)
    else:
        out = getattr(x, reduction)(dims, keepdim=keepdim, dtype=dtype)
    return as_same_kind(out, x, reduced_layout(x.axes, dims, keepdim)) if kind == "rows" else out


def _image_layout(x: VisiblePatches, dims: tuple[int, ...], keepdim: bool) -> lay.Layout:
    """Of what is left of each image."""
    image: lay.Axis = ((lay.IMAGE, x.grid.batch_size),)
    layout = [image if axis and axis[0][0] == lay.PATCH else axis for axis in x.axes]
    return reduced_layout(layout, dims, keepdim)


@meaning(*named("sum mean", torch, Tensor))
def total(func, args, kwargs):
    x, given = _unpack(args, kwargs, "dim", "keepdim")
    dim, keepdim = given.get("dim", given.get("axis")), given.get("keepdim", False)
    if not isinstance(dim, (int, tuple, list, type(None))):
        raise Refusal("its axes are not given as numbers")
    return _reduce(x, dim, keepdim, given.get("dtype"), func.__name__)


@meaning(*named("amax amin", torch, Tensor))
def extreme(func, args, kwargs):
    x, given = _unpack(args, kwargs, "dim", "keepdim")
    return _reduce(x, given.get("dim"), given.get("keepdim", False), None, func.__name__)


@meaning(*named("max min", torch, Tensor))
def max_or_min(func, args, kwargs):
    x, given = _unpack(args, kwargs, "dim", "keepdim")
    dim = given.get("dim")
    if dim is None and not given:
        return _reduce(x, None, False, None, f"a{func.__name__}")
    if isinstance(dim, Tensor) or "other" in given:
        from .pointwise import elementwise

        return elementwise(func, args, kwargs)
    require_plain(x, [dimension(x, dim or 0)], "choosing along this axis")
    out = func(*args, **kwargs)
    layout = reduced_layout(x.axes, dimensions(x, dim), given.get("keepdim", False))
    return type(out)(as_same_kind(part, x, layout) for part in out)


@meaning(*named("var std", torch, Tensor), torch.var_mean, torch.std_mean)
def spread(func, args, kwargs):
    x, given = _unpack(args, kwargs, "dim", "unbiased", "keepdim")
    if isinstance(given.get("dim"), bool):
        given = {"unbiased": given["dim"]}
    keepdim = given.get("keepdim", False)
    correction = given.get("correction")
    if correction is None:
        correction = 1 if given.get("unbiased", True) else 0
    dims = dimensions(x, given.get("dim"))
    kind = reduced_kind(x, dims)
    if kind != "image":
        out = func(x, dims, correction=correction, keepdim=keepdim)
        if kind == "batch":
            return out
        layout = reduced_layout(x.axes, dims, keepdim)
        parts = out if isinstance(out, tuple) else (out,)
        parts = tuple(as_same_kind(part, x, layout) for part in parts)
        return parts if isinstance(out, tuple) else parts[0]
    assert isinstance(x, VisiblePatches)
    mean, variance = image_moments(x, dims, correction)
    layout = _image_layout(x, dims, keepdim)
    first = variance.sqrt() if func.__name__.startswith("std") else variance
    origin = (x.axes, x.shape)
    both = tuple(as_per_image(v if keepdim else v.squeeze(dims), x.grid, layout, origin) for v in (first, mean))
    return both if func.__name__.endswith("mean") else both[0]


def image_moments(x: VisiblePatches, dims: tuple[int, ...], correction: float = 0) -> tuple[Tensor, Tensor]:
    """Mean and variance over the visible positions of each image, axes kept, B rows; 0 where nothing is visible."""
    grid = x.grid
    rows = patch_axis(x)
    mean = over_image(x, "mean", dims, keepdim=True)
    centred = x - _repeated(mean, x)
    squares = sum_per_image(centred.square().sum(dims, keepdim=True).movedim(rows, 0), grid).movedim(0, rows)
    count = grid.counts() * math.prod([x.shape[dim] for dim in dims])
    view = [1] * x.dim()
    view[rows] = grid.batch_size
    return mean, squares / (count - correction).clamp(min=1).view(view).to(squares.dtype)


@meaning(*named("norm", torch, Tensor), torch.linalg.vector_norm, torch.linalg.norm)
def norm(func, args, kwargs):
    vector = func is torch.linalg.vector_norm or func is torch.linalg.norm
    x, given = _unpack(args, kwargs, "ord" if vector else "p", "dim", "keepdim", "dtype")
    order = given.get("ord", given.get("p", 2))
    if order in ("fro", None):
        order = 2
    dims = dimensions(x, given.get("dim"))
    keepdim = given.get("keepdim", False)
    if (func is torch.linalg.norm and len(dims) > 1) or not isinstance(order, (int, float)):
        raise Refusal("it is a matrix norm")
    if given.get("dtype") is not None:
        x = as_same_kind(x.to(given["dtype"]), x, x.axes)
    kind = reduced_kind(x, dims)
    if kind == "rows":
        out = torch.linalg.vector_norm(x, order, dims, keepdim=keepdim)
        return as_same_kind(out, x, reduced_layout(x.axes, dims, keepdim))
    if kind == "batch":
        return torch.linalg.vector_norm(x, order, dims, keepdim=keepdim)
    assert isinstance(x, VisiblePatches)
    layout = _image_layout(x, dims, keepdim)
    return as_per_image(_image_norm(x, order, dims, keepdim), x.grid, layout, (x.axes, x.shape))


def _image_norm(x: VisiblePatches, order: float, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    if math.isinf(order):
        magnitude = as_same_kind(x.abs(), x, x.axes)
        assert isinstance(magnitude, VisiblePatches)
        return over_image(magnitude, "amax" if order > 0 else "amin", dims, keepdim)
    if order <= 0:
        raise Refusal(f"a norm of order {order} is not known")
    if order == 2:
        result = _RootOfSquares.apply(x.values, x.grid, dims, patch_axis(x))
        return result if keepdim else result.squeeze(dims)
    # Norms of norms: each patch first, as torch computes it (finite gradient at 0), then the patches of an image.
    per_patch = torch.linalg.vector_norm(x, order, dims, keepdim=True)
    rows = patch_axis(x)
    per_patch = per_patch.movedim(rows, 0)
    grid = x.grid
    if grid.visible_per_image:
        stacked = per_patch.reshape(grid.batch_size, grid.visible_per_image, *per_patch.shape[1:])
        result = torch.linalg.vector_norm(stacked, order, 1)
    else:
        powers = sum_per_image(per_patch.pow(order), grid)
        some = powers > 0  # the root has no gradient at 0
        result = torch.where(some, torch.where(some, powers, 1).pow(1 / order), 0)
    result = result.movedim(0, rows)
    return result if keepdim else result.squeeze(dims)


class _RootOfSquares(torch.autograd.Function):
    """Norm of order 2 over each image's positions, (N, ...) -> (B, ...), with a gradient of 0 where it is 0.

    Squares and plain sums, because torch's own norm is slow over axes that are not the last in memory.
    """

    @staticmethod
    def forward(ctx, x: Tensor, grid: PatchGrid, dims: tuple[int, ...], rows: int) -> Tensor:  # type: ignore[override]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        squares = sum_per_image(wide.square().sum(dims, keepdim=True).movedim(rows, 0), grid).movedim(0, rows)
        root = squares.sqrt()
        ctx.save_for_backward(x, root)
        ctx.grid, ctx.rows = grid, rows
        return root.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        x, root = ctx.saved_tensors
        slope = torch.where(root > 0, grad / root, 0).to(x.dtype)
        return x * each_patch(slope, ctx.rows, ctx.grid), None, None, None


@meaning(*named("softmax log_softmax", torch, Tensor, functional))
def softmax(func, args, kwargs):
    x, given = _unpack(args, kwargs, "dim")
    dim = given.get("dim")
    if not isinstance(dim, int):
        raise Refusal("its axis is not given")
    dims = (dimension(x, dim),)
    if reduced_kind(x, dims) == "rows":
        return as_same_kind(func(*args, **kwargs), x, x.axes)
    if reduced_kind(x, dims) != "image" or not isinstance(x, VisiblePatches) or func.__name__ != "softmax":
        raise Refusal("normalising along this axis would mix patches or positions")
    x = x if given.get("dtype") is None else as_patches(x.to(given["dtype"]), x.grid, x.axes)
    exponentials = (x - _repeated(over_image(x, "amax", dims, keepdim=True).detach(), x)).exp()
    total = over_image(as_patches(exponentials, x.grid, x.axes), "sum", dims, keepdim=True)
    return as_patches(exponentials / _repeated(total, x), x.grid, x.axes)


@meaning(*named("logsumexp", torch, Tensor))
def logsumexp(func, args, kwargs):
    x, given = _unpack(args, kwargs, "dim", "keepdim")
    dims = dimensions(x, given.get("dim"))
    require_plain(x, dims, "summing along this axis")
    return as_same_kind(func(*args, **kwargs), x, reduced_layout(x.axes, dims, given.get("keepdim", False)))


def _repeated(rows: Tensor, x: VisiblePatches) -> Tensor:
    """Per-image values with the axes of x, one row for each patch."""
    return each_patch(rows, patch_axis(x), x.grid)


@meaning(*named("normalize", functional))
def normalize(func, args, kwargs):
    x, given = _unpack(args, kwargs, "p", "dim", "eps")
    require_plain(x, dimensions(x, given.get("dim", 1)), "normalising along this axis")
    return as_same_kind(func(*args, **kwargs), x, x.axes)
