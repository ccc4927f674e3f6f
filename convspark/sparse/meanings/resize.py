"""Resizing: patch by patch where each position stays its own neighbour, on whole images where neighbours mix."""

from __future__ import annotations

from typing import Any

from torch.nn import functional

from .. import axes as lay
from ..registry import Refusal, meaning
from ..tensor import GridTensor, PerImage, VisiblePatches, as_patches
from .neighbourhood import cut, through_images
from .operands import dense_batch, per_axis, rows_first, spread_over_positions, unpadded


@meaning(functional.interpolate, functional.upsample)
def interpolate(
    func,
    input: GridTensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    *more: Any,
    **kwargs: Any,
):
    """To a size that the network read off a patch, or by a factor."""
    x = unpadded(input)
    if isinstance(x, PerImage):
        if size is None or x.dim() != len(x.grid.shape) + 2:
            return dense_batch(func, x, size, scale_factor, mode, align_corners, *more, **kwargs)
        sizes = per_axis(size, x.dim() - 2)
        if all(n == 1 for n in x.shape[2:]):
            return spread_over_positions(x, sizes)
        # Bins of the map, back to a size read off a patch.
        sides = [n * h for n, h in zip(sizes, x.grid.shape, strict=True)]
        return cut(func(rows_first(x).values, sides, None, mode, align_corners, *more, **kwargs), x.grid)
    if not isinstance(x, VisiblePatches) or not lay.is_canonical(x.axes):
        raise Refusal("its axes are not (patches, channels, *positions)")
    dims = x.dim() - 2
    if size is not None:
        # What the network read off a patch; the whole map has as many positions for each patch along it.
        sizes = per_axis(size, dims)
        factors = [n / p for n, p in zip(sizes, x.shape[2:], strict=True)]
        size = tuple(n * h for n, h in zip(sizes, x.grid.shape, strict=True))
    else:
        factors = list(scale_factor) if isinstance(scale_factor, (tuple, list)) else [scale_factor] * dims
    if all(factor == 1 for factor in factors):
        return as_patches(x.clone(), x.grid, x.axes)
    if mode in ("nearest", "nearest-exact") and all(f >= 1 and f == int(f) for f in factors):
        out = func(x, scale_factor=tuple(float(factor) for factor in factors), mode=mode)
        return as_patches(out, x.grid, lay.canonical(out.shape))
    if any(p * factor != int(p * factor) for p, factor in zip(x.shape[2:], factors, strict=True)):
        raise Refusal(
            f"a factor of {factors} makes no whole number of positions out of patches of {tuple(x.shape[2:])}"
        )
    return through_images(x, lambda maps: func(maps, size, scale_factor, mode, align_corners, *more, **kwargs))
