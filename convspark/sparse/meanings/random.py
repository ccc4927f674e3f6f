"""Random numbers for each image: tensors made from visible patches (`x.new_empty`), and stochastic depth by rows."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._guards import TracingContext

from .. import axes as lay
from ..grid import PatchGrid
from ..registry import Refusal, meaning
from ..tensor import GridTensor, PerImage, VisiblePatches, as_patches, as_per_image
from .operands import as_sizes, named

# Functions that draw one number for each row of their input from its shape alone (`torch.rand(x.shape[0], 1, 1, 1)`),
# which no dispatch can see, to drop whole images. Known by the names that they or their classes go by.
_ROW_NOISE = re.compile(r"stochastic_?depth|drop_?path|drop_?connect", re.IGNORECASE)


@meaning(*named("new_empty new_zeros new_ones", Tensor))
def new(func, x: GridTensor, *sizes: Any, size: Any = None, **kwargs: Any):
    """A tensor with a row a patch becomes one with a row an image where it has one number a row."""
    return _new(x, as_sizes(sizes if size is None else (size,)), lambda wanted: func(x, wanted, **kwargs))


@meaning(Tensor.new_full)
def new_full(func, x: GridTensor, size: Any, fill_value: Any, **kwargs: Any):
    """The same."""
    return _new(x, list(size), lambda wanted: func(x, wanted, fill_value, **kwargs))


def _new(x: GridTensor, sizes: list[int], make: Callable[[Sequence[int]], Tensor]) -> Tensor:
    grid = x.grid
    rows = grid.num_visible if isinstance(x, VisiblePatches) else x.shape[0]
    if len(sizes) < 2 or sizes[0] != rows or (isinstance(x, PerImage) and sizes[0] == 1):
        return make(sizes)
    if all(size == 1 for size in sizes[1:]) or isinstance(x, PerImage):
        # One number a row: the dense network has one row an image (stochastic depth drops whole images).
        return as_per_image(make((grid.batch_size, *sizes[1:])), grid)
    if len(sizes) == x.dim() and tuple(sizes[2:]) == tuple(x.shape[2:]):
        layout = (x.axes[0], lay.plain_axis(sizes[1]), *x.axes[2:])
        return as_patches(make(sizes), grid, layout)
    raise Refusal(f"it makes a tensor of shape {sizes}, and it cannot be told which axes are patches or positions")


def is_row_noise(operand: Any, grid: PatchGrid) -> bool:
    """Whether this plain tensor holds one number a patch, drawn by a function known to mean one number an image."""
    if isinstance(operand, GridTensor) or not isinstance(operand, Tensor) or operand.dim() < 2:
        return False
    return operand.shape[0] == operand.numel() == grid.num_visible > 1 and drops_images()


def drops_images() -> bool:
    """Whether the code that is running now is some network's stochastic depth."""
    if torch.compiler.is_compiling():
        return _traces_stochastic_depth()
    frame = sys._getframe(1)
    for _ in range(8):  # the dispatcher's own frames, then the network's
        if frame is None or _ROW_NOISE.search(frame.f_code.co_qualname):
            return frame is not None
        frame = frame.f_back
    return False


@torch.compiler.assume_constant_result
def _traces_stochastic_depth() -> bool:
    """The same of the code that is being traced, of which only the functions' own names are known."""
    return any(_ROW_NOISE.search(frame.name) for frame in TracingContext.extract_stack()[-8:])


def one_an_image(noise: Tensor, grid: PatchGrid) -> PerImage:
    """(N, 1, ...) independent draws -> (B, 1, ...): each image takes that of its first patch."""

    def build() -> Tensor:
        counts = grid.counts()
        return (counts.cumsum(0) - counts).clamp(max=grid.num_visible - 1)

    first = grid.cached("first patch", build)
    return as_per_image(torch.index_select(noise, 0, first), grid)
