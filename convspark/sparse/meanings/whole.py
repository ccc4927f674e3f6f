"""A ready-made meaning for functions of whole maps that have none of their own: mask-and-multiply."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import axes as lay
from ..grid import PatchGrid
from ..registry import Refusal
from ..tensor import PerImage, VisiblePatches, as_per_image
from .neighbourhood import cut, put_back
from .operands import rows_first, tensors_in


def whole_images(func, *args, **kwargs):
    """Meaning of a function that looks around in a map: `meaning(torch.ops.torchvision.deform_conv2d)(whole_images)`.

    Each operand is put back into whole images, with 0 at masked positions, the function runs as the dense network runs
    it, and the visible patches are cut out of the maps that it returns. That is the definition of exactness, and
    nothing of its cost is saved. Wrong for a function that averages over positions or normalises by them: it would
    count masked ones.
    """
    operands = tensors_in((*args, *kwargs.values()))
    leader = next((o for o in operands if isinstance(o, VisiblePatches)), None)
    if leader is None:
        raise Refusal("none of its operands is visible patches")
    out = func(*map(_whole, args), **{key: _whole(value) for key, value in kwargs.items()})
    if isinstance(out, (list, tuple)):
        return type(out)(_visible(o, leader.grid) for o in out)
    return _visible(out, leader.grid)


def _whole(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_whole(v) for v in value)
    if isinstance(value, VisiblePatches):
        return put_back(value)
    return rows_first(value).values if isinstance(value, PerImage) else value


def _visible(value: Any, grid: PatchGrid) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.dim() == 2 and value.shape[0] == grid.batch_size:
        return as_per_image(value, grid, lay.per_image(value.shape))
    return cut(value, grid)
