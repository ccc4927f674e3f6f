"""Mask-and-multiply, as well as it can be done: dense operations on whole maps, with masked positions set to 0.

This is how sparsity is usually imitated, and what `bench` compares with. A map is masked where something is about to
look around in it, and nowhere else, which is less often than after every layer. It knows the functions that usual
convnets are made of; `bench` compares its features with those of the visible patches before it measures anything.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..sparse import PatchGrid

_CONVS = {F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d}
_AROUND = {F.avg_pool2d, F.avg_pool3d, F.max_pool2d, F.max_pool3d, torch.max_pool2d, F.pad, torch.norm, Tensor.norm}
_BATCH_NORMS = {F.batch_norm, torch.batch_norm}
_MEANS = {Tensor.mean, torch.mean, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d}


class MaskAndMultiply(TorchFunctionMode):
    """Within this context, networks run on whole images (B, C, *sides) as if masked patches were not there.

    Args:
        grid: which patches are visible, equally many in each image.
    """

    def __init__(self, grid: PatchGrid):
        super().__init__()
        assert grid.visible_per_image is not None, "images with equally many visible patches are compared"
        self.grid = grid
        self._surplus = math.prod(grid.shape) / grid.visible_per_image  # a mean over all to one over the visible
        self._masks: dict[Any, Tensor] = {}
        self._rows: dict[Any, Tensor] = {}

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None):
        kwargs = kwargs or {}
        x: Any = args[0] if args else None
        axes = self._axes_of(x)
        if axes is None:
            return func(*args, **kwargs)
        if func in _BATCH_NORMS and axes == self._CHANNELS_FIRST:
            return self._on_rows(x, lambda rows: func(rows, *args[1:], **kwargs))
        if func in _AROUND or (func in _CONVS and _looks_around(args[1], args, kwargs)):
            return func(self.masked(x), *args[1:], **kwargs)
        if func in _MEANS and self._over_positions(func, axes, args, kwargs):
            return func(self.masked(x), *args[1:], **kwargs) * self._surplus
        return func(*args, **kwargs)

    _CHANNELS_FIRST, _CHANNELS_LAST = 2, 1  # the first spatial axis

    def masked(self, maps: Tensor) -> Tensor:
        """(B, C, *sides) or (B, *sides, C), 0 at masked positions."""
        if self._axes_of(maps) == self._CHANNELS_LAST:
            return maps * self._mask(tuple(maps.shape[1:-1]), maps.dtype).movedim(1, -1)
        return maps * self._mask(tuple(maps.shape[2:]), maps.dtype)

    def _axes_of(self, x: Any) -> int | None:
        """Where the positions of a map begin; None for what is no map."""
        dims = len(self.grid.shape)
        if not isinstance(x, Tensor) or x.dim() != dims + 2 or x.shape[0] != self.grid.batch_size:
            return None
        fitting = {}
        for first in (self._CHANNELS_LAST, self._CHANNELS_FIRST):
            sides = x.shape[first : first + dims]
            if not any(side % h or side < h for side, h in zip(sides, self.grid.shape, strict=True)):
                fitting[first] = len({side // h for side, h in zip(sides, self.grid.shape, strict=True)})
        # Channels may divide like positions do: the axes along which patches have equal sides are the positions.
        return min(fitting, key=lambda first: (fitting[first], -first), default=None)

    def _over_positions(self, func: Callable[..., Any], first: int, args: Any, kwargs: Any) -> bool:
        if func not in (Tensor.mean, torch.mean):
            return True
        dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
        dims = dims if isinstance(dims, (tuple, list)) else ()
        return {d % args[0].dim() for d in dims} == set(range(first, first + len(self.grid.shape)))

    def _mask(self, sides: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """(B, 1, *sides) of 0 and 1."""
        if (sides, dtype) not in self._masks:
            mask = self.grid.visible[:, None]
            for axis, side in enumerate(sides, start=2):
                mask = mask.repeat_interleave(side // mask.shape[axis], axis)
            self._masks[sides, dtype] = mask.to(dtype)
        return self._masks[sides, dtype]

    def _visible_rows(self, sides: tuple[int, ...]) -> Tensor:
        """Visible positions of the flattened (B, *sides)."""
        if sides not in self._rows:
            self._rows[sides] = self._mask(sides, torch.bool).flatten().nonzero().squeeze(1)
        return self._rows[sides]

    def _on_rows(self, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """A function of (visible positions, C), put back into zeros: what norms over visible positions are."""
        last = x.movedim(1, -1)
        index = self._visible_rows(tuple(last.shape[1:-1]))
        flat = last.reshape(-1, last.shape[-1])
        rows = function(flat.index_select(0, index))
        out = rows.new_zeros(flat.shape[0], rows.shape[1]).index_copy(0, index, rows)
        return out.view(last.shape).movedim(-1, 1)


def _looks_around(weight: Tensor, args: Any, kwargs: Any) -> bool:
    """Whether a convolution sees more than the positions of one patch: not 1x1, nor with a stride like its kernel."""
    kernel = tuple(weight.shape[2:])
    stride = kwargs.get("stride", args[3] if len(args) > 3 else 1)
    strides = (stride,) * len(kernel) if isinstance(stride, int) else tuple(stride)
    return max(kernel) > 1 and kernel != strides
