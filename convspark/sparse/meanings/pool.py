"""Poolings: over a window, and over the whole image."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .. import axes as lay
from ..registry import Refusal, meaning
from ..tensor import PerImage, VisiblePatches, as_per_image
from .neighbourhood import Reach, Source, source_of
from .operands import arguments, dense_batch, named, per_axis
from .reduce import over_image

_MAX_POOL, _AVERAGE_POOL = "max_pool1d max_pool2d max_pool3d", "avg_pool1d avg_pool2d avg_pool3d"
_DIMS = {
    function: dims
    for names in (_MAX_POOL, _AVERAGE_POOL)
    for dims, name in enumerate(names.split(), start=1)
    for function in named(name, torch, functional)
}


@meaning(*named(_MAX_POOL, torch, functional))
def max_pool(func, args, kwargs):
    x = args[0]
    if isinstance(x, PerImage):
        return dense_batch(func, x, args, kwargs)
    given = arguments(args, kwargs, "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    if given.get("return_indices"):
        raise Refusal("positions within a map mean nothing among patches (return_indices=True)")
    dims = _DIMS[func]
    kernel = per_axis(given["kernel_size"], dims)
    stride = per_axis(given.get("stride") or kernel, dims)
    dilation = per_axis(given.get("dilation", 1), dims)
    padding = per_axis(given.get("padding", 0), dims)
    source = source_of(x, padding, -math.inf, dims)
    if source.mode != "constant":
        return source.through_padded_images(lambda maps: func(maps, *args[1:], **kwargs))
    reach = source.reach(PoolReach, kernel, stride, dilation, padding, given.get("ceil_mode", False))
    # Behind the map ceil_mode sees nothing, whatever F.pad wrote before it.
    if reach.overhang and source.outside != -math.inf:
        raise Refusal("ceil_mode reaches behind what F.pad padded")
    return source.patches(func(source.window(reach), kernel, stride, 0, dilation))


@meaning(*named(_AVERAGE_POOL, torch, functional))
def average_pool(func, args, kwargs):
    x = args[0]
    if isinstance(x, PerImage):
        return dense_batch(func, x, args, kwargs)
    given = arguments(
        args, kwargs, "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"
    )
    dims = _DIMS[func]
    kernel = per_axis(given["kernel_size"], dims)
    stride = per_axis(given.get("stride") or kernel, dims)
    padding = per_axis(given.get("padding", 0), dims)
    ceil_mode = given.get("ceil_mode", False)
    source = source_of(x, padding, 0.0, dims)
    if source.mode != "constant":
        return source.through_padded_images(lambda maps: func(maps, *args[1:], **kwargs))
    reach = source.reach(PoolReach, kernel, stride, (1,) * dims, padding, ceil_mode)
    if reach.overhang and not source.has_zeros_around:
        raise Refusal("ceil_mode reaches behind what F.pad padded")
    means = func(source.window(reach), kernel, stride)
    divisor = given.get("divisor_override")
    if divisor:
        return source.patches(means * (math.prod(kernel) / divisor))
    if any(padding) or reach.overhang:
        means = means * reach.share_counted(source, given.get("count_include_pad", True))
    return source.patches(means)


class PoolReach(Reach):
    """Reach of a pooling, whose windows may hang over the end of the padded map (`ceil_mode`)."""

    def __init__(self, *arguments: Any) -> None:
        """As of `Reach`, and whether `ceil_mode` is on."""
        *reach, self.ceil_mode = arguments
        super().__init__(*reach)

    def _outputs(self, axis: int) -> int:
        if not self.ceil_mode:
            return super()._outputs(axis)
        side, stride, (lo, hi) = self.sides[axis], self.stride[axis], self.pads[axis]
        out = -(-(side + lo + hi - self.extent[axis]) // stride) + 1
        # torch: a window may not begin in the padding behind the map
        return out - 1 if (out - 1) * stride >= side + lo else out

    @property
    def overhang(self) -> bool:
        """Whether some window reaches beyond the padding."""
        return any(a > hi for a, (_, hi) in zip(self.after, self.pads, strict=True))

    def share_counted(self, source: Source, count_include_pad: bool) -> Tensor:
        """Kernel size over the dense op's divisor at each output position: (N, 1, *out)."""
        counts = []
        for axis, side in enumerate(self.sides):
            lo, hi = self.announced[axis]
            begin = torch.arange(source.grid.shape[axis] * self.out[axis], device=source.values.device)
            begin = begin * self.stride[axis] - self.before[axis]
            end = begin + self.kernel[axis]
            own = self.padding[axis] if count_include_pad else 0
            counted = end.clamp(max=side + hi + own) - begin.clamp(min=-lo - own)
            counts.append(counted.view(source.grid.shape[axis], self.out[axis]))
        share = torch.ones((), device=source.values.device, dtype=source.values.dtype)
        places = source.grid.cells % math.prod(source.grid.shape)
        result = share.expand(source.grid.num_visible, 1, *(1,) * len(counts))
        for axis, counted in enumerate(counts):
            inner = math.prod(source.grid.shape[axis + 1 :])
            at = places // inner % source.grid.shape[axis]
            view = [-1, 1] + [1] * len(counts)
            view[2 + axis] = self.out[axis]
            result = result * (self.kernel[axis] / counted[at].view(view).to(share.dtype))
        return result


@meaning(*named("adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d", torch, functional))
def adaptive_average_pool(func, args, kwargs):
    return _adaptive(func, args, kwargs, "mean")


@meaning(*named("adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d", torch, functional))
def adaptive_max_pool(func, args, kwargs):
    return _adaptive(func, args, kwargs, "amax")


def _adaptive(func, args, kwargs, reduction: str):
    x = args[0]
    if isinstance(x, PerImage):
        return dense_batch(func, x, args, kwargs)
    size = kwargs.get("output_size", args[1] if len(args) > 1 else None)
    if any(n != 1 for n in per_axis(size, 1)):
        raise Refusal(f"it pools to a map of {size}, which no longer lines up with the patches; only 1 is known")
    if kwargs.get("return_indices") or not isinstance(x, VisiblePatches) or not lay.is_canonical(x.axes):
        raise Refusal("its axes are not (patches, channels, *positions)")
    rows = over_image(x, reduction, tuple(range(2, x.dim())), keepdim=True)
    return as_per_image(rows, x.grid)
