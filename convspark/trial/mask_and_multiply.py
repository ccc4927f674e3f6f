"""Mask-and-multiply, as well as it can be done: dense operations on whole maps, masked positions set to 0 after each.

This is how sparsity is usually imitated, and what `bench` compares with. It knows the functions that usual convnets are
made of; `bench` compares its features with those of the visible patches, so that it measures the same thing.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..sparse import PatchGrid

_AROUND = {
    F.conv1d,
    F.conv2d,
    F.conv3d,
    torch.conv1d,
    torch.conv2d,
    torch.conv3d,
    F.avg_pool2d,
    F.avg_pool3d,
    F.max_pool2d,
    F.max_pool3d,
    torch.max_pool2d,
}
_GLOBAL_POOLS = {F.adaptive_avg_pool2d, F.adaptive_avg_pool3d}


class MaskAndMultiply(TorchFunctionMode):
    """Within this context, networks run on whole images (B, C, *sides) as if masked patches were not there.

    Args:
        grid: which patches are visible.
    """

    def __init__(self, grid: PatchGrid):
        super().__init__()
        self.grid = grid
        self._masks: dict[Any, Tensor] = {}
        self._rows: dict[Any, Tensor] = {}

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None):
        kwargs = kwargs or {}
        if func in _AROUND:
            return self.masked(func(*args, **kwargs))
        x: Any = args[0] if args else None
        if func in (F.batch_norm, torch.batch_norm) and self._is_map(x):
            return self._on_rows(x, lambda rows: func(rows, *args[1:], **kwargs), channels_last=False)
        if func is F.layer_norm and isinstance(x, Tensor) and x.dim() == len(self.grid.shape) + 2:
            return self._on_rows(x, lambda rows: func(rows, *args[1:], **kwargs), channels_last=True)
        if func in (Tensor.mean, torch.mean) and self._is_map(x) and self._over_positions(args, kwargs):
            return func(*args, **kwargs) * self._surplus(x)
        if func in _GLOBAL_POOLS and self._is_map(x):
            return func(*args, **kwargs) * self._surplus(x)
        return func(*args, **kwargs)

    def masked(self, maps: Tensor) -> Tensor:
        """(B, C, *sides), 0 at masked positions."""
        return maps * self._mask(tuple(maps.shape[2:]), maps.dtype)

    def _is_map(self, x: Any) -> bool:
        dims = len(self.grid.shape)
        if not isinstance(x, Tensor) or x.dim() != dims + 2 or x.shape[0] != self.grid.batch_size:
            return False
        return not any(side % h for side, h in zip(x.shape[2:], self.grid.shape, strict=True))

    def _over_positions(self, args: Any, kwargs: Any) -> bool:
        dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
        if not isinstance(dims, (tuple, list)):
            return False
        return {d % args[0].dim() for d in dims} == set(range(2, args[0].dim()))

    def _surplus(self, x: Tensor) -> float:
        """What a mean over all positions is to be multiplied by: visible ones alone count. Counts are equal here."""
        per_image = self.grid.visible_per_image
        assert per_image is not None, "mask-and-multiply is compared on images with equally many visible patches"
        return math.prod(self.grid.shape) / per_image

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

    def _on_rows(self, x: Tensor, function: Callable[[Tensor], Tensor], channels_last: bool) -> Tensor:
        """A function of (visible positions, C), put back into zeros: what norms over visible positions are."""
        last = x if channels_last else x.movedim(1, -1)
        index = self._visible_rows(tuple(last.shape[1:-1]))
        flat = last.reshape(-1, last.shape[-1])
        rows = function(flat.index_select(0, index))
        out = rows.new_zeros(flat.shape[0], rows.shape[1]).index_copy(0, index, rows).view(last.shape)
        return out if channels_last else out.movedim(-1, 1)
