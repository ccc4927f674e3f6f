"""Resizing: patch by patch where each position stays its own neighbour, on whole images where neighbours mix."""

from __future__ import annotations

from torch.nn import functional

from .. import axes as lay
from ..registry import Refusal, meaning
from ..tensor import PerImage, VisiblePatches, as_patches
from .neighbourhood import through_images
from .operands import arguments, dense_batch, per_axis, spread_over_positions, unpadded


@meaning(functional.interpolate, functional.upsample)
def interpolate(func, args, kwargs):
    x = unpadded(args[0])
    given = arguments(args, kwargs, "size", "scale_factor", "mode", "align_corners")
    if isinstance(x, PerImage):
        if given.get("size") is not None and all(n == 1 for n in x.shape[2:]):
            return spread_over_positions(x, per_axis(given["size"], x.dim() - 2))
        return dense_batch(func, x, args, kwargs)
    if not isinstance(x, VisiblePatches) or not lay.is_canonical(x.axes):
        raise Refusal("its axes are not (patches, channels, *positions)")
    dims = x.dim() - 2
    if given.get("size") is not None:
        # What the network read off a patch; the whole map has as many positions for each patch along it.
        sizes = per_axis(given.pop("size"), dims)
        factors = [size / p for size, p in zip(sizes, x.shape[2:], strict=True)]
        given["size"] = tuple(size * h for size, h in zip(sizes, x.grid.shape, strict=True))
    else:
        factor = given["scale_factor"]
        factors = list(factor) if isinstance(factor, (tuple, list)) else [factor] * dims
    if all(factor == 1 for factor in factors):
        return as_patches(x.clone(), x.grid, x.axes)
    if given.get("mode", "nearest") in ("nearest", "nearest-exact") and all(f >= 1 and f == int(f) for f in factors):
        out = func(x, scale_factor=tuple(float(factor) for factor in factors), mode=given.get("mode", "nearest"))
        return as_patches(out, x.grid, lay.canonical(out.shape))
    if any(p * factor != int(p * factor) for p, factor in zip(x.shape[2:], factors, strict=True)):
        raise Refusal(
            f"a factor of {factors} makes no whole number of positions out of patches of {tuple(x.shape[2:])}"
        )
    return through_images(x, lambda maps: func(maps, **given))
