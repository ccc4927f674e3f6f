"""Convolutions of pairs: a position is multiplied with those around it that are visible, and with no others.

A kernel tap by tap: the rows that each tap sees are gathered, multiplied by the tap's matrix at once, and the products
summed for each result. With 60 % masked, a 3x3 kernel on patches of one position has 4.2 visible taps of 9. Where
patches are larger, most taps stay within the patch; those are left to a dense convolution of the patches as they are,
and only pairs of positions in different patches, across, are gathered.

How many pairs a tap has depends on the mask, and the host must know it: this is for CPUs, and not for compiled graphs.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import compiled
from .convolve import CONVOLUTION, as_autocast_casts, cast_dtype
from .grid import PatchGrid
from .patch_kernel import PatchKernel
from .patches import flat_rows, from_rows
from .rows import Bags, offsets_of, sum_bags

# bfloat16 products would be rounded one by one before they are summed.
_DTYPES = (torch.float32, torch.float64)


def can_run(values: Tensor) -> bool:
    """Whether pairs can be counted here and now, and their sums lose nothing."""
    return compiled.is_eager(values.device) and cast_dtype(values) in _DTYPES


def can_split(kernel: PatchKernel) -> bool:
    """Whether a dense convolution of each patch, padded as the image is, has the results that are within it."""
    extents = [(k - 1) * d + 1 for k, d in zip(kernel.kernel, kernel.dilation, strict=True)]
    axes = zip(kernel.patch, kernel.before, extents, kernel.stride, kernel.out, strict=True)
    return all(b >= 0 and (p + 2 * b - e) // s + 1 == out for p, b, e, s, out in axes)


def convolve(
    values: Tensor, weight: Tensor, bias: Tensor | None, grid: PatchGrid, kernel: PatchKernel, across: bool
) -> Tensor:
    """Convolve the visible patches of a grid.

    Args:
        values: (N, C, *patch), 0 at masked positions and outside the image.
        weight: (O, C, *kernel).
        bias: (O,) or None.
        across: look for pairs of different patches only.

    Returns:
        (N, O, *out), channels last in memory.
    """
    pairs = grid.cached(("pairs", kernel, across), lambda: Pairs(grid, kernel, across))
    return _PairedConvolution.apply(*as_autocast_casts(values, weight, bias), pairs)


# ---------------------------------------------------------------- pairs


class _Looks:
    """Each look from a position of a patch's result to a position of a patch around, K of them, tap by tap.

    The same for every mask, and kept from step to step.

    Attributes:
        cell: (K,) the patch around.
        place: int32 (K, 1) the position of it.
        position: int32 (K, 1) of the result.
        ends: (taps + 1,) where each tap's begin, and the last one's end.
        by_position, by_place: (K,) the looks sorted by those.
        position_starts, place_starts: where in them those of each begin.
        mirrored: (K,) sorted by place, the patch around the one looked at from which the look comes.
    """

    def __init__(self, kernel: PatchKernel, across: bool) -> None:
        cell, place = kernel.result_plan().transpose(0, 1).long().unbind(-1)  # (taps, positions)
        cells = math.prod(2 * reach + 1 for reach in kernel.reach)
        chosen = (cell != cells // 2) if across else torch.ones_like(cell, dtype=torch.bool)
        position = torch.arange(cell.shape[1]).expand_as(cell)[chosen]
        self.cell, place = cell[chosen], place[chosen]
        self.place, self.position = place.to(torch.int32)[:, None], position.to(torch.int32)[:, None]
        self.ends = offsets_of(chosen.sum(1))
        self.by_position, self.by_place = position.argsort(stable=True), place.argsort(stable=True)
        self.position_starts = offsets_of(position.bincount(minlength=math.prod(kernel.out)))[:-1]
        self.place_starts = offsets_of(place.bincount(minlength=math.prod(kernel.patch)))[:-1]
        self.mirrored = cells - 1 - self.cell[self.by_place]


_looks = functools.lru_cache(maxsize=512)(_Looks)


class Pairs:
    """Which visible positions see which: all, or across patches.

    Attributes, of M pairs, each tap's behind those of the one before:
        sources: int32 (M,) the row that is seen.
        results: int32 (M,) the row that sees it.
        ends: (taps + 1,) where each tap's pairs begin, and the last one's end.
        by_result, by_source: the pairs of each row that sees, and of each that is seen.
    """

    def __init__(self, grid: PatchGrid, kernel: PatchKernel, across: bool) -> None:
        self.kernel, self.across = kernel, across
        looks, patches = _looks(kernel, across), grid.num_visible
        around = grid.around(kernel.reach).flatten(1).t().contiguous()  # (cells, N)
        patch = torch.arange(patches, dtype=torch.int32)
        seen = around.index_select(0, looks.cell)  # (K, N)
        paired = seen < patches
        self.sources = (seen * math.prod(kernel.patch) + looks.place).masked_select(paired)
        self.results = (patch * math.prod(kernel.out) + looks.position).masked_select(paired)
        ends = offsets_of(paired.flatten())
        self.ends: list[int] = ends[looks.ends * patches].tolist()
        numbers = ends[:-1].view(paired.shape)  # of the pair that each look of each patch is
        self.by_result = _bags(
            numbers.index_select(0, looks.by_position),
            paired.index_select(0, looks.by_position),
            looks.position_starts,
        )
        seers = around.index_select(0, looks.mirrored)  # (K, N) by place, of the patch that is seen
        numbers = numbers.index_select(0, looks.by_place).gather(1, seers.long() % max(patches, 1))
        self.by_source = _bags(numbers, seers < patches, looks.place_starts)

    def tap_by_tap(self, *rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Of tensors of M rows, those of each tap."""
        for start, end in itertools.pairwise(self.ends):
            yield tuple(each[start:end] for each in rows)


def _bags(numbers: Tensor, found: Tensor, starts: Tensor) -> Bags:
    """Bags of the (K, N) numbers that were found; for each of the N, one from each start in K to the next."""
    found = found.t().contiguous()
    begin = torch.arange(found.shape[0])[:, None] * found.shape[1] + starts
    offsets = offsets_of(found.flatten())
    return numbers.t().masked_select(found), torch.cat([offsets[begin.flatten()], offsets[-1:]])


# ---------------------------------------------------------------- convolution


class _PairedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: Tensor, weight: Tensor, bias: Tensor | None, pairs: Pairs) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(values, weight)
        ctx.pairs = pairs
        taps, sees = _taps(weight), pairs.kernel
        seen = _taken(flat_rows(values), pairs.sources)
        products = seen.new_empty(seen.shape[0], weight.shape[0])
        for t, (rows, product) in enumerate(pairs.tap_by_tap(seen, products)):
            torch.mm(rows, taps[:, t].t(), out=product)
        result = sum_bags(products, *pairs.by_result)
        if pairs.across:
            within = CONVOLUTION[values.dim()](values, weight, bias, sees.stride, sees.before, sees.dilation)
            result += flat_rows(within)
        elif bias is not None:
            result += bias
        # Detached, so that autograd does not take it for a view, on which operations in place are slow.
        return from_rows(result, sees.out).detach()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        values, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        with torch._C.DisableTorchFunctionSubclass():  # what was saved are visible patches
            found = _gradients(grad, values, weight, ctx.pairs, wanted)
        return *found, None


def _gradients(
    grad: Tensor, values: Tensor, weight: Tensor, pairs: Pairs, wanted: tuple[bool, ...]
) -> list[Tensor | None]:
    """Of values, weight and bias, those that are wanted."""
    sees, taps = pairs.kernel, _taps(weight)
    found: list[Tensor | None] = [None, None, grad.sum([0, *range(2, grad.dim())]) if wanted[2] else None]
    grads = _taken(flat_rows(grad), pairs.results)
    if wanted[0]:
        products = grads.new_empty(grads.shape[0], weight.shape[1])
        for t, (rows, product) in enumerate(pairs.tap_by_tap(grads, products)):
            torch.mm(rows, taps[:, t], out=product)
        found[0] = from_rows(sum_bags(products, *pairs.by_source), sees.patch)
    if wanted[1]:
        seen = _taken(flat_rows(values), pairs.sources)
        products = torch.stack([rows.t() @ each for rows, each in pairs.tap_by_tap(grads, seen)], 1)
        found[1] = products.view(weight.shape[0], *sees.kernel, weight.shape[1]).movedim(-1, 1)
    if pairs.across:
        sizes = sees.stride, sees.before, sees.dilation, False, [0] * len(sees.stride), 1
        within = torch.ops.aten.convolution_backward(grad, values, weight, None, *sizes, [*wanted[:2], False])
        found[:2] = [across if across is None else across.add_(within[i]) for i, across in enumerate(found[:2])]
    return found


def _taps(weight: Tensor) -> Tensor:
    """(O, C, *kernel) -> (O, taps, C), channels contiguous; no copy where they are last in memory."""
    return weight.movedim(1, -1).contiguous().flatten(1, -2)


def _taken(rows: Tensor, index: Tensor) -> Tensor:
    """(S, C) -> (M, C): the rows of these numbers."""
    each = torch.arange(index.shape[0] + 1, dtype=index.dtype)
    return sum_bags(rows.detach(), index, each)  # quicker than index_select
