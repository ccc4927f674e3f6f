"""New tensors made from visible patches (`x.new_empty`), which is how stochastic depth draws its numbers."""

from __future__ import annotations

from torch import Tensor

from .. import layout as lay
from ..patches import PerImage, VisiblePatches, as_patches, as_per_image
from ..registry import Refusal, meaning
from .operands import named


@meaning(*named("new_empty new_zeros new_ones new_full", Tensor))
def new(func, args, kwargs):
    x = args[0]
    kwargs = dict(kwargs)
    given = kwargs.pop("size", args[1] if len(args) > 1 else ())
    sizes, rest = (args[1:], ()) if isinstance(given, int) else (tuple(given), args[2:])
    grid = x.grid
    rows = grid.num_visible if isinstance(x, VisiblePatches) else x.shape[0]
    if not sizes or sizes[0] != rows or (isinstance(x, PerImage) and sizes[0] == 1):
        return func(x, sizes, *rest, **kwargs)
    if all(size == 1 for size in sizes[1:]) or isinstance(x, PerImage):
        # One number a row: the dense network has one row an image (stochastic depth drops whole images).
        return as_per_image(func(x, (grid.batch_size, *sizes[1:]), *rest, **kwargs), grid)
    if len(sizes) == x.dim() and sizes[2:] == tuple(x.shape[2:]):
        layout = (x.axes[0], lay.plain_axis(sizes[1]), *x.axes[2:])
        return as_patches(func(x, sizes, *rest, **kwargs), grid, layout)
    raise Refusal(f"it makes a tensor of shape {sizes}, and it cannot be told which axes are patches or positions")
