"""Resizing by whole factors, patch by patch."""

from __future__ import annotations

from torch.nn import functional

from .. import layout as lay
from ..patches import PerImage, VisiblePatches, as_patches
from ..registry import Refusal, meaning
from .operands import arguments, dense_batch, per_axis, unpadded


@meaning(functional.interpolate, functional.upsample)
def interpolate(func, args, kwargs):
    x = unpadded(args[0])
    if isinstance(x, PerImage):
        return dense_batch(func, x, args, kwargs)
    given = arguments(args, kwargs, "size", "scale_factor", "mode", "align_corners")
    mode = given.get("mode", "nearest")
    if not isinstance(x, VisiblePatches) or not lay.is_canonical(x.axes):
        raise Refusal("its axes are not (patches, channels, *positions)")
    dims = x.dim() - 2
    if given.get("size") is not None:
        sizes = per_axis(given["size"], dims)
        factors = [size / p for size, p in zip(sizes, x.shape[2:], strict=True)]
    else:
        factor = given["scale_factor"]
        factors = list(factor) if isinstance(factor, (tuple, list)) else [factor] * dims
    if all(factor == 1 for factor in factors):
        return as_patches(x.clone(), x.grid, x.axes)
    if mode != "nearest" and mode != "nearest-exact":
        raise Refusal(f"mode={mode!r} mixes neighbouring patches; only nearest neighbours stay within a patch")
    for factor, p in zip(factors, x.shape[2:], strict=True):
        grows = factor >= 1 and factor == int(factor)
        shrinks = mode == "nearest" and factor < 1 and (1 / factor) == int(1 / factor) and p % int(1 / factor) == 0
        if not grows and not shrinks:
            raise Refusal(f"a factor of {factor} does not map patches of {p} positions onto whole positions")
    out = func(x, scale_factor=tuple(float(factor) for factor in factors), mode=mode)
    return as_patches(out, x.grid, lay.canonical(out.shape))
