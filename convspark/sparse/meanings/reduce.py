"""Reductions: over channels they stay per position; over an image's positions they give one row an image."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .. import axes as lay
from ..backward import once
from ..grid import PatchGrid
from ..registry import Refusal, meaning
from ..tensor import (
    GridTensor,
    PerImage,
    VisiblePatches,
    as_patches,
    as_same_kind,
    become_per_image,
    sum_per_image,
)
from .operands import (
    along,
    dimension,
    dimensions,
    joined_layout,
    named,
    patch_axis,
    repeat_along,
    require_plain,
    unpadded,
    with_rows_of,
)
from .pointwise import elementwise


def reduced_kind(x: GridTensor, dims: tuple[int, ...]) -> str:
    """What is left after reducing these axes: "rows" (as before), "image" or "batch"; refuses anything between."""
    factors = {role for dim in dims for role, _ in x.axes[dim]}
    if not factors.isdisjoint(lay.BLOCKS):
        raise Refusal(
            "the map was cut into blocks as large as a patch, or axes of size 1 were put in, and nothing says which"
        )
    rows = lay.PATCH if isinstance(x, VisiblePatches) else lay.IMAGE
    spatial = {role for role in factors if lay.is_spatial(role)}
    if not spatial and rows not in factors:
        return "rows"
    if isinstance(x, PerImage):
        return "batch"
    if not spatial:
        raise Refusal("it reduces over patches but not over their positions")
    for axis in (x.axes[at] for at in range(x.dim()) if at not in dims):
        if any(lay.is_spatial(role) for role, _ in axis):
            raise Refusal("it reduces some spatial axes and not others, which mixes masked and visible positions")
    if rows in factors:
        return "batch"
    if not any([axis and axis[0][0] == lay.PATCH and lay.is_plain(axis[1:]) for axis in x.axes]):
        raise Refusal("the axis of patches has been merged with positions")
    return "image"


def reduced_layout(layout: Sequence[lay.Axis], dims: tuple[int, ...], keepdim: bool) -> lay.Layout:
    if keepdim:
        return tuple([() if at in dims else axis for at, axis in enumerate(layout)])
    return tuple([axis for at, axis in enumerate(layout) if at not in dims])


Compute = Callable[[VisiblePatches, tuple[int, ...]], Tensor]
"""From patches with an axis of their own, (N, ...), and axes to reduce over each image: (B, ...), axes kept."""


def per_image(x: VisiblePatches, dims: tuple[int, ...], keepdim: bool, compute: Compute) -> PerImage:
    """What `compute` makes of the positions (and channels) `dims` of each image."""
    out, rows = compute(*apart(x, dims)), patch_axis(x)
    factors = x.axes[rows]
    out = out.flatten(rows, rows + 1) if len(factors) > 1 else out
    image = ((lay.IMAGE, x.grid.batch_size), *factors[1:])
    layout = reduced_layout((*x.axes[:rows], image, *x.axes[rows + 1 :]), dims, keepdim)
    return become_per_image(out if keepdim else out.squeeze(dims), x.grid, layout, (x.axes, x.shape))


def apart(x: VisiblePatches, dims: tuple[int, ...]) -> tuple[VisiblePatches, tuple[int, ...]]:
    """Patches that share an axis with channels, (N * C, ...), in one of their own, (N, C, ...), and the axes there."""
    rows = patch_axis(x)
    axis = x.axes[rows]
    if len(axis) == 1:
        return x, dims
    values = x.unflatten(rows, (x.grid.num_visible, lay.size_of(axis[1:])))
    layout = (*x.axes[:rows], axis[:1], axis[1:], *x.axes[rows + 1 :])
    return as_patches(values, x.grid, layout), tuple([dim + (dim > rows) for dim in dims])


def reduced(
    x: GridTensor, dims: tuple[int, ...], keepdim: bool, plain: Callable[[], Any], image: Compute | None = None
) -> Any:
    """What reducing these axes makes.

    Args:
        plain: the function itself, of one result or several, where it stays within positions or takes all there are.
        image: of the visible positions of each image; None: refused.
    """
    kind = reduced_kind(x, dims)
    if kind == "image":
        if image is None:
            raise Refusal("what the masked positions of an image would add is not known")
        assert isinstance(x, VisiblePatches)
        return per_image(x, dims, keepdim, image)
    out = plain()
    if kind == "batch":
        return out
    layout = reduced_layout(x.axes, dims, keepdim)
    if isinstance(out, Tensor):
        return as_same_kind(out, x, layout)
    return type(out)([as_same_kind(part, x, layout) for part in out])


def over_image(x: VisiblePatches, reduction: str, dims: tuple[int, ...]) -> Tensor:
    """Reduce the positions (and channels) `dims` of each image; an image without visible patches gives 0.

    Args:
        reduction: "sum", "mean", "amax" or "amin"; sums are taken in float32 at least, and rounded once.

    Returns:
        The reduced values with B in place of N and all axes, plain.
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
        result = _sum_over_image(x, dims)
        kind = x.dtype if x.is_floating_point() or x.is_complex() else result.dtype
        if reduction == "mean":
            result = result / _per_image_column(x, dims).to(result.dtype)
        result = result.to(kind)
    return result


def wide(x: Tensor) -> torch.dtype:
    """The dtype to sum in: 16 bits would overflow or lose what is small."""
    return torch.promote_types(x.dtype, torch.float32) if x.is_floating_point() else x.dtype


def _sum_over_image(x: VisiblePatches, dims: tuple[int, ...]) -> Tensor:
    """(N, ...) -> (B, ...), axes kept, wide."""
    rows = patch_axis(x)
    kind = wide(x) if x.is_floating_point() else None
    return sum_per_image(x.sum(dims, keepdim=True, dtype=kind).movedim(rows, 0), x.grid).movedim(0, rows)


def _per_image_column(x: VisiblePatches, dims: tuple[int, ...], less: float = 0) -> Tensor:
    """How many values of each image are reduced, less so many, 1 at least; broadcastable to the result."""
    count = x.grid.counts() * math.prod([x.shape[dim] for dim in dims])
    view = [1] * x.dim()
    view[patch_axis(x)] = x.grid.batch_size
    return (count - less).clamp(min=1).view(view)


def _extreme_per_image(rows: Tensor, grid, reduction: str) -> Tensor:
    if grid.visible_per_image:
        per_image = rows.reshape(grid.batch_size, grid.visible_per_image, *rows.shape[1:])
        return getattr(per_image, reduction)(1)
    result = rows.new_zeros(grid.batch_size, *rows.shape[1:])
    index = grid.image.view(-1, *(1,) * (rows.dim() - 1)).expand(rows.shape)
    return result.scatter_reduce(0, index, rows, reduction, include_self=False)


def _reduce(x: GridTensor, dim, keepdim: bool, dtype, reduction: str):
    dims = dimensions(x, dim)
    options = {} if dtype is None else {"dtype": dtype}
    if isinstance(x, VisiblePatches):
        unpadded(x, partially=x.partial == reduction)
        if _leaves_positions(x, dims):
            values = getattr(x, reduction)(dims, keepdim=keepdim, **options)
            patches = as_patches(values, x.grid, reduced_layout(x.axes, dims, keepdim))
            patches.partial = reduction
            patches.unreadable = (
                f"it was reduced ({reduction}) over some spatial axes and not others, and only the same reduction of "
                "the others can follow"
            )
            return patches
    kind = reduced_kind(x, dims)
    if kind == "image":
        x = as_same_kind(x.to(dtype), x, x.axes) if dtype else x
    else:
        unpadded(x)  # refuses what was reduced over some spatial axes
    nothing = kind == "batch" and isinstance(x, VisiblePatches) and not x.numel()
    run = x.sum if nothing else getattr(x, reduction)  # of nothing visible 0, also for means

    def of_image(x: VisiblePatches, dims: tuple[int, ...]) -> Tensor:
        values = over_image(x, reduction, dims)
        return values if dtype is None else values.to(dtype)  # sums of whole numbers are int64

    return reduced(x, dims, keepdim, lambda: run(dims, keepdim=keepdim, **options), of_image)


def _leaves_positions(x: VisiblePatches, dims: tuple[int, ...]) -> bool:
    """Whether these are axes of positions, each whole, and there are others."""
    if not dims or not all(len(x.axes[dim]) == 1 and lay.is_spatial(x.axes[dim][0][0]) for dim in dims):
        return False
    return any(lay.is_spatial(role) for at, axis in enumerate(x.axes) if at not in dims for role, _ in axis)


Dims = int | Sequence[int] | None


@meaning(*named("sum mean amax amin", torch, Tensor))
def total(func, input, dim: Dims = None, keepdim: bool = False, *, dtype=None):
    """Over channels: of each position. Over an image's positions: of those that are visible. Over all: likewise."""
    if not isinstance(dim, (int, tuple, list, type(None))):
        raise Refusal("its axes are not numbers")
    return _reduce(unpadded(input, partially=True), dim, keepdim, dtype, func.__name__)


@meaning(*named("max min", torch, Tensor))
def max_or_min(func, input, dim: Any = None, keepdim: bool = False, *, other: Any = None):
    """Of all, along an axis with where it was, or of two tensors element by element."""
    if isinstance(dim, Tensor) or other is not None:
        return elementwise(func, input, dim if other is None else other)
    x = unpadded(input, partially=True)
    if dim is None or not lay.is_plain(x.axes[dim]):
        values = _reduce(x, dim, keepdim, None, f"a{func.__name__}")
        return values if dim is None else getattr(torch.return_types, func.__name__)((values, nowhere(values)))
    return along(x, dim, lambda x, at: func(x, at, keepdim))


def nowhere(values: Any) -> GridTensor:
    """In place of the positions of these values, which the dense network would number otherwise."""
    if not isinstance(values, GridTensor):
        raise Refusal(
            "it returns positions among all visible ones; without an axis it is the largest or smallest of all"
        )
    places = as_same_kind(torch.zeros_like(values, dtype=torch.int64), values, values.axes)
    places.unreadable = "these indices are of positions in a map, which are not known among visible patches"
    return places


_ALONG = "median nanmedian mode cummax cummin argmax argmin prod cumsum cumprod logcumsumexp"


@meaning(*named(_ALONG, torch, Tensor))
def chosen(func, input, dim: int | None = None, *args, **kwargs):
    """Along channels: values, places or both."""
    if dim is None and func.__name__ != "mode":
        raise Refusal("it reduces over all patches")
    return along(input, -1 if dim is None else dim, lambda x, at: func(x, at, *args, **kwargs))


@meaning(*named("sort argsort", torch, Tensor))
def sort(func, input, dim: int = -1, descending: bool = False, *, stable: bool = False):
    """Along channels."""
    return along(input, dim, lambda x, at: func(x, dim=at, descending=descending, stable=stable))


@meaning(*named("topk kthvalue", torch, Tensor))
def topk(func, input, k: int, dim: int = -1, *args, **kwargs):
    """Along channels."""
    return along(input, dim, lambda x, at: func(x, k, at, *args, **kwargs))


@meaning(*named("all any", torch, Tensor))
def every_or_some(func, input, dim: Dims = None, keepdim: bool = False):
    """Of all visible values, or along channels."""
    x = unpadded(input)
    dims = dimensions(x, dim)

    def some(x: VisiblePatches, dims: tuple[int, ...]) -> Tensor:
        return over_image(as_patches((x != 0).to(torch.float32), x.grid, x.axes), "amax", dims) != 0

    return reduced(x, dims, keepdim, lambda: func(x, dims, keepdim), some if func.__name__ == "any" else None)


@meaning(*named("var std", torch, Tensor), torch.var_mean, torch.std_mean)
def spread(func, input, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *, correction=None):
    """Variance or deviation, over what `total` sums."""
    x = unpadded(input)
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    if correction is None:
        correction = 1 if unbiased else 0
    dims, deviates = dimensions(x, dim), func in _DEVIATIONS
    if func in _WITH_MEANS:
        first = Tensor.std if deviates else Tensor.var
        return spread(first, x, dims, correction=correction, keepdim=keepdim), _reduce(x, dims, keepdim, None, "mean")

    def of_image(x: VisiblePatches, dims: tuple[int, ...]) -> Tensor:
        variance = image_moments(x, dims, correction)[1]
        spread = _root(variance) if deviates else variance
        return spread if x.is_complex() else spread.to(x.dtype)

    def plain() -> Tensor:
        if not x.numel():
            return x.sum(dims, keepdim=keepdim)  # nothing visible: 0, as means are
        return func(x, dims, correction=correction, keepdim=keepdim)

    return reduced(x, dims, keepdim, plain, of_image)


_DEVIATIONS = {torch.std, Tensor.std, torch.std_mean}  # Dynamo could not distinguish them by name
_WITH_MEANS = {torch.var_mean, torch.std_mean}


def _root(squares: Tensor) -> Tensor:
    """With a gradient of 0 where it is 0, as that of a single position's deviation must be."""
    some = squares > 0
    return torch.where(some, torch.where(some, squares, 1).sqrt(), 0)


def image_moments(x: VisiblePatches, dims: tuple[int, ...], correction: float = 0) -> tuple[Tensor, Tensor]:
    """Mean and variance over the visible positions of each image, axes kept, B rows; 0 where nothing is visible.

    In float32 at least; the variance of complex values is real.
    """
    mean = _sum_over_image(x, dims) / _per_image_column(x, dims).to(wide(x))
    centred = x.to(wide(x)) - _repeated(mean, x)
    centred = centred.abs() if x.is_complex() else centred
    squares = _sum_over_image(as_patches(centred.square(), x.grid, x.axes), dims)
    return mean, squares / _per_image_column(x, dims, correction).to(squares.dtype)


@meaning(*named("norm", torch, Tensor))
def norm(func, input, p: Any = "fro", dim: Dims = None, keepdim: bool = False, dtype=None):
    """Over what `total` sums."""
    return _norm(unpadded(input), 2 if p in ("fro", None) else p, dim, keepdim, dtype)


@meaning(torch.linalg.vector_norm)
def vector_norm(func, input, ord: Any = 2, dim: Dims = None, keepdim: bool = False, *, dtype=None):
    """The same."""
    return _norm(unpadded(input), ord, dim, keepdim, dtype)


@meaning(torch.linalg.norm)
def linalg_norm(func, input, ord: Any = None, dim: Dims = None, keepdim: bool = False, *, dtype=None):
    """The same, of vectors: over one axis, or over all where no order is given."""
    x = unpadded(input)
    if len(dimensions(x, dim)) > 1 and not (dim is None and ord is None):
        raise Refusal("it is a matrix norm")
    return _norm(x, 2 if ord in ("fro", None) else ord, dim, keepdim, dtype)


def _norm(x: GridTensor, order: Any, dim: Dims, keepdim: bool, dtype: torch.dtype | None):
    dims = dimensions(x, dim)
    if not isinstance(order, (int, float)):
        raise Refusal("it is a matrix norm")
    if dtype is not None:
        x = as_same_kind(x.to(dtype), x, x.axes)
    return reduced(
        x,
        dims,
        keepdim,
        lambda: torch.linalg.vector_norm(x, order, dims, keepdim=keepdim),
        lambda x, dims: _image_norm(x, order, dims),
    )


def _image_norm(x: VisiblePatches, order: float, dims: tuple[int, ...]) -> Tensor:
    x = as_patches(x.abs(), x.grid, x.axes) if x.is_complex() else x
    if math.isinf(order):
        magnitude = as_same_kind(x.abs(), x, x.axes)
        assert isinstance(magnitude, VisiblePatches)
        return over_image(magnitude, "amax" if order > 0 else "amin", dims)
    if order <= 0:
        raise Refusal(f"a norm of order {order} is not known")
    if order == 2:
        return _RootOfSquares.apply(x.values, x.grid, dims, patch_axis(x))
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
    return result.movedim(0, rows)


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
    @once
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        x, root = ctx.saved_tensors
        slope = torch.where(root > 0, grad / root, 0).to(x.dtype)
        return x * repeat_along(slope, ctx.rows, ctx.grid), None, None, None


@meaning(*named("softmax log_softmax", torch, Tensor, functional), functional.softmin)
def softmax(func, input, dim: Any = None, *args, dtype=None, **kwargs):
    """Over channels, or over an image's visible positions."""
    x = unpadded(input)
    if not isinstance(dim, int):
        raise Refusal("it names no axis")
    dims = (dimension(x, dim),)
    if dtype is None and args and isinstance(args[-1], torch.dtype):
        dtype = args[-1]
    x = x if dtype is None else as_same_kind(x.to(dtype), x, x.axes)
    kind = reduced_kind(x, dims)
    if kind == "rows":
        return as_same_kind(func(x, dim, *args, **kwargs), x, x.axes)
    if kind != "image" or not isinstance(x, VisiblePatches) or func.__name__ == "softmin":
        raise Refusal("normalising along this axis would mix patches or positions")
    alone, dims = apart(x, dims)
    shifted = alone - _repeated(over_image(alone, "amax", dims).detach(), alone)
    sums = _repeated(over_image(as_patches(shifted.exp(), x.grid, alone.axes), "sum", dims), alone)
    out = shifted - sums.log() if func in _LOGARITHMS else shifted.exp() / sums
    return as_patches(out.reshape(x.shape), x.grid, x.axes)


_LOGARITHMS = {*named("log_softmax", torch, Tensor, functional)}


@meaning(*named("logsumexp", torch, Tensor))
def logsumexp(func, input, dim: Dims, keepdim: bool = False):
    """Over channels, or over an image's visible positions; 0 where there is none."""
    x = unpadded(input)
    dims = dimensions(x, dim)
    return reduced(x, dims, keepdim, lambda: func(x, dims, keepdim), _log_of_sums)


def _log_of_sums(x: VisiblePatches, dims: tuple[int, ...]) -> Tensor:
    largest = over_image(x, "amax", dims).detach()
    sums = over_image(as_patches((x - _repeated(largest, x)).exp(), x.grid, x.axes), "sum", dims)
    return largest + torch.where(sums > 0, sums, 1).log()


def _repeated(rows: Tensor, x: VisiblePatches) -> Tensor:
    """Per-image values with the axes of x, one row for each patch."""
    return repeat_along(rows, patch_axis(x), x.grid)


@meaning(functional.normalize)
def normalize(func, input, p: float = 2.0, dim: Any = 1, eps: float = 1e-12):
    """By a norm over what `total` sums."""
    x = unpadded(input)
    norms = _norm(x, p, dim, True, None)
    least = norms.clamp_min(eps)
    return elementwise(torch.div, x, as_same_kind(least, norms, norms.axes) if isinstance(norms, GridTensor) else least)


@meaning(*named("cosine_similarity pairwise_distance", functional, torch))
def similarity(func, x1, x2, *args, **kwargs):
    """Of two positions' channels: `cosine_similarity` along axis 1 or `dim`, `pairwise_distance` along the last."""
    marked = [x for x in (x1, x2) if isinstance(x, GridTensor)]
    along = -1 if func.__name__ == "pairwise_distance" else kwargs.get("dim", args[0] if args else 1)
    leader, layout = joined_layout([x1, x2])
    at = dimension(leader, along)
    for x in marked:
        require_plain(unpadded(x), [dimension(x, along)], "comparing along this axis")
    out = func(with_rows_of(x1, leader), with_rows_of(x2, leader), *args, **kwargs)
    kept = ((),) if out.dim() == len(layout) else ()
    remaining = (*layout[:at], *kept, *layout[at + 1 :])
    return as_same_kind(out, leader, remaining)
