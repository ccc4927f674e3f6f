"""Random numbers for each image: tensors made from visible patches (`x.new_empty`), and stochastic depth by rows."""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor
from torch._guards import TracingContext

from .. import axes as lay
from ..grid import PatchGrid
from ..registry import Refusal, meaning, name_of
from ..tensor import GridTensor, PerImage, VisiblePatches, as_patches, as_per_image
from .operands import as_sizes, named

# Networks drop whole images by one number for each row of their input, drawn from its shape alone
# (`torch.rand(x.shape[0], 1, 1, 1)`), which no dispatch can see: the code that uses them, or what it calls, draws.
_DRAWS = set("rand randn rand_like randn_like randint bernoulli bernoulli_ uniform_ normal_ Bernoulli".split())
_NO_NETWORK = tuple(f"{folder}{os.sep}" for folder in (Path(__file__).parents[1], Path(torch.__file__).parent))
_FRAMES = 3  # how many of the network's functions are looked at, from where the numbers are used up to a `forward`


@meaning(*named("new_empty new_zeros new_ones", Tensor))
def new(func, x: GridTensor, *sizes: Any, size: Any = None, **kwargs: Any):
    """A tensor with a row a patch becomes one with a row an image where it has one number a row."""
    shape, may_be_drawn = as_sizes(sizes if size is None else (size,)), name_of(func) != "new_zeros"
    return _new(x, shape, lambda shape: func(x, shape, **kwargs), may_be_drawn)


@meaning(Tensor.new_full)
def new_full(func, x: GridTensor, size: Any, fill_value: Any, **kwargs: Any):
    """The same."""
    return _new(x, list(size), lambda shape: func(x, shape, fill_value, **kwargs))


@meaning(Tensor.new_tensor)
def new_tensor(func, x: GridTensor, data: Any, **kwargs: Any):
    """Numbers of the network's own, of the type of patches."""
    if isinstance(data, GridTensor):
        raise Refusal("it copies patches into a tensor without; use their clone().detach()")
    return func(x, data, **kwargs)


def _new(
    x: GridTensor, sizes: list[int], make: Callable[[Sequence[int]], Tensor], may_be_drawn: bool = False
) -> Tensor:
    """`may_be_drawn`: whether networks make such a tensor to fill it with random numbers."""
    grid = x.grid
    rows = grid.num_visible if isinstance(x, VisiblePatches) else x.shape[0]
    if len(sizes) < 2 or sizes[0] != rows or (isinstance(x, PerImage) and sizes[0] == 1):
        return make(sizes)
    if all(size == 1 for size in sizes[1:]) or isinstance(x, PerImage):
        # One number a row: the dense network has one row an image (stochastic depth drops whole images).
        return as_per_image(make((grid.batch_size, *sizes[1:])), grid)
    if len(sizes) == x.dim() and tuple(sizes[2:]) == tuple(x.shape[2:]):
        if may_be_drawn and set(sizes[2:]) == {1}:
            raise Refusal(
                "patches have one position, and nothing says whether numbers are drawn for positions or for an image's "
                "channels: make them from the patches (torch.empty_like(x), ones_like), or use F.dropout2d for channels"
            )
        layout = (x.axes[0], lay.plain_axis(sizes[1]), *x.axes[2:])
        return as_patches(make(sizes), grid, layout)
    raise Refusal(f"it makes a tensor of shape {sizes}, and nothing says which of its axes are patches or positions")


def is_row_noise(operand: Any, grid: PatchGrid, rank: int) -> bool:
    """Whether this plain tensor holds one number a patch that was drawn at random, and so means one an image.

    Args:
        rank: number of axes of the patches that it meets. With fewer axes it would hold a number a channel.
    """
    if isinstance(operand, GridTensor) or not isinstance(operand, Tensor) or operand.requires_grad:
        return False
    if operand.dim() != rank or rank < 2 or not operand.shape[0] == operand.numel() == grid.num_visible > 1:
        return False
    return _traced_code_draws() if torch.compiler.is_compiling() else _running_code_draws()


def _running_code_draws() -> bool:
    """Whether the network's code that is running now draws random numbers, itself or by a function that it calls."""
    frame: FrameType | None = sys._getframe(1)
    looked_at = 0
    while frame is not None and looked_at < _FRAMES:
        code = frame.f_code
        if not _is_ours(code.co_filename):
            looked_at += 1
            if _draws(code) or any(_draws(called) for called in _called_by(frame)):
                return True
            if code.co_name == "forward":
                return False
        frame = frame.f_back
    return False


@torch.compiler.assume_constant_result
def _traced_code_draws() -> bool:
    """The same of the code that is being traced, of which only files and lines are known."""
    network = [frame for frame in TracingContext.extract_stack() if not _is_ours(frame.filename)]
    for frame in network[: -_FRAMES - 1 : -1]:
        functions = list(_functions_in("".join(linecache.getlines(frame.filename))))
        running = [f for f in functions if f.co_name == frame.name and f.co_firstlineno <= (frame.lineno or 0)]
        if not running:
            continue
        code = max(running, key=lambda f: f.co_firstlineno)
        if any(_draws(f) for f in functions if f is code or f.co_name in code.co_names):
            return True
        if frame.name == "forward":
            return False
    return False


def _is_ours(filename: str) -> bool:
    """Whether this is no network's code, but the engine's or PyTorch's."""
    return filename.startswith(_NO_NETWORK)


def _draws(code: CodeType) -> bool:
    inner = (_draws(const) for const in code.co_consts if isinstance(const, CodeType))
    return not _DRAWS.isdisjoint(code.co_names) or any(inner)


def _called_by(frame: FrameType) -> Iterator[CodeType]:
    """Functions, methods and modules by the names that they have in this frame's code."""
    owner = frame.f_locals.get("self")
    for name in frame.f_code.co_names:
        submodule = getattr(owner, "_modules", {}).get(name)
        for called in (
            frame.f_globals.get(name),
            getattr(type(owner), name, None),
            getattr(submodule, "forward", None),
        ):
            code = getattr(called, "__code__", None)
            if isinstance(code, CodeType):
                yield code


def _functions_in(source: str) -> Iterator[CodeType]:
    waiting = [compile(source, "", "exec")]
    while waiting:
        code = waiting.pop()
        yield code
        waiting += [const for const in code.co_consts if isinstance(const, CodeType)]


def one_an_image(noise: Tensor, grid: PatchGrid) -> PerImage:
    """(N, 1, ...) independent draws -> (B, 1, ...): each image takes that of its first patch."""
    return as_per_image(torch.index_select(noise, 0, grid.first_patches()), grid)
