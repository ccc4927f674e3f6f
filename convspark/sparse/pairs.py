"""Convolutions of pairs: a position is multiplied with those around it that are visible, and with no others.

With 60 % masked, a 3x3 kernel on patches of one position has 4.2 visible taps of 9. A compiled kernel (kernels.cpp)
lists, tap by tap, which row sees which, multiplies the rows where they lie by the tap's matrix and adds the products to
the results. Where patches are larger, most taps stay within the patch; those are left to a dense convolution of the
patches as they are, and only pairs of positions in different patches, across, are listed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import compiled
from .convolve import CONVOLUTION, as_autocast_casts, cast_dtype, kernels_compute
from .grid import PatchGrid
from .plans import DECLARED, Plan, Sizes, seen_by_tap
from .tensor import flat_rows, from_rows


def can_run(values: Tensor, weight: Tensor) -> bool:
    """Whether there is a kernel for these numbers, here and now.

    There is none for bfloat16: processors multiply whole matrices of it at twice the rate or more.
    """
    return kernels_compute(values, weight) and cast_dtype(values) != torch.bfloat16


def can_split(kernel: Plan) -> bool:
    """Whether a dense convolution of each patch, padded as the image is, has the results that are within it."""
    extents = [(k - 1) * d + 1 for k, d in zip(kernel.kernel, kernel.dilation, strict=True)]
    axes = zip(kernel.patch, kernel.before, extents, kernel.stride, kernel.out, strict=True)
    return all(b >= 0 and (p + 2 * b - e) // s + 1 == out for p, b, e, s, out in axes)


class Pairs(NamedTuple):
    """Which visible positions see which, M pairs, each tap's behind those of the one before.

    Attributes:
        sources: int32, (M,) and more, the row that is seen.
        results: int32, (M,) and more, the row that sees it.
        ends: int64 (taps + 1,) where each tap's pairs begin, and the last one's end, M.
    """

    sources: Tensor
    results: Tensor
    ends: Tensor


def convolve(
    values: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    groups: int,
    grid: PatchGrid,
    kernel: Plan,
    across: bool,
) -> Tensor:
    """Convolve the visible patches of a grid.

    Args:
        values: (N, C, *patch), 0 at masked positions and outside the image.
        weight: (O, C / groups, *kernel).
        bias: (O,) or None.
        across: list pairs of different patches only.

    Returns:
        (N, O, *out), channels last in memory.
    """

    def build() -> Pairs:
        return Pairs(*torch.ops.convspark.pairs(grid.around(kernel.reach).slots, across, *kernel.sizes))

    pairs = grid.cached(("pairs", kernel, across), build)
    return _PairedConvolution.apply(*as_autocast_casts(values, weight, bias), groups, kernel, across, *pairs)


class _PairedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx,
        values: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        groups: int,
        kernel: Plan,
        across: bool,
        sources: Tensor,
        results: Tensor,
        ends: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(values, weight, sources, results, ends)
        ctx.groups, ctx.kernel, ctx.across = groups, kernel, across
        rows = flat_rows(values)
        if across:
            sizes = kernel.stride, kernel.before, kernel.dilation, groups
            sums = flat_rows(CONVOLUTION[values.dim()](values, weight, bias, *sizes)).contiguous()
        else:
            size = values.shape[0] * math.prod(kernel.out), weight.shape[0]
            sums = rows.new_zeros(size) if bias is None else bias.repeat(size[0], 1)
        torch.ops.convspark.add_pairs(sums, rows, _taps(weight), sources, results, ends, groups, False)
        # Detached, so that autograd does not take it for a view, on which operations in place are slow.
        return from_rows(sums, kernel.out).detach()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        values, weight, *pairs = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        with torch._C.DisableTorchFunctionSubclass():  # what was saved are visible patches
            found = _gradients(grad, values, weight, ctx.groups, ctx.kernel, ctx.across, Pairs(*pairs), wanted)
        return *found, *[None] * 6


def _gradients(
    grad: Tensor,
    values: Tensor,
    weight: Tensor,
    groups: int,
    kernel: Plan,
    across: bool,
    pairs: Pairs,
    wanted: tuple[bool, ...],
) -> list[Tensor | None]:
    """Of values, weight and bias, those that are wanted."""
    rows, grads = flat_rows(values), flat_rows(grad)
    found: list[Tensor | None] = [None, None, grads.sum(0) if wanted[2] else None]
    within: list[Tensor | None] = [None, None]
    if across:
        sizes = kernel.stride, kernel.before, kernel.dilation, False, [0] * len(kernel.stride), groups
        *within, _ = torch.ops.aten.convolution_backward(grad, values, weight, None, *sizes, [*wanted[:2], False])
    if wanted[0]:
        own = within[0]
        sums = rows.new_zeros(rows.shape) if own is None else flat_rows(own).contiguous()
        torch.ops.convspark.add_pairs(
            sums, grads, _taps(weight), pairs.results, pairs.sources, pairs.ends, groups, True
        )
        found[0] = from_rows(sums, kernel.patch)
    if wanted[1]:
        taps = torch.ops.convspark.pairs_weight_gradient(grads, rows, pairs.results, pairs.sources, pairs.ends, groups)
        total = taps.unflatten(1, kernel.kernel).movedim(-1, 1)  # channels last in memory
        found[1] = total if within[1] is None else total.add_(within[1])
    return found


def _taps(weight: Tensor) -> Tensor:
    """(O, C, *kernel) -> (O, taps, C), contiguous; no copy where channels are last in memory."""
    return weight.movedim(1, -1).contiguous().flatten(1, -2)


# ---------------------------------------------------------------- operators


def _pairs(around: Tensor, across: bool, *sizes: Sizes) -> tuple[Tensor, Tensor, Tensor]:
    kernel = Plan.of(sizes)
    outputs = _pairs_like(around, across, *sizes)
    left_out = math.prod(2 * reach + 1 for reach in kernel.reach) // 2 if across else -1  # of the patches around
    patches, positions = around.shape[0], math.prod(kernel.patch)
    compiled.run(
        "make_pairs", around, seen_by_tap(kernel, around.device), left_out, *outputs, patches=patches, others=positions
    )
    return outputs


def _pairs_like(around: Tensor, across: bool, *sizes: Sizes) -> tuple[Tensor, Tensor, Tensor]:
    kernel = Plan.of(sizes)
    most = around.shape[0] * (kernel.across() if across else kernel.cells)
    ends = around.new_empty(math.prod(kernel.kernel) + 1, dtype=torch.int64)
    return around.new_empty(most), around.new_empty(most), ends


def _add_pairs(
    sums: Tensor, rows: Tensor, taps: Tensor, source: Tensor, target: Tensor, ends: Tensor, groups: int, back: bool
) -> None:
    rows = rows.contiguous()
    compiled.run_pairs(
        "multiply", source, target, ends, int(back), rows, taps, sums, groups=groups, numbered=(rows, sums)
    )


def _weight_gradient(
    grads: Tensor, rows: Tensor, results: Tensor, sources: Tensor, ends: Tensor, groups: int
) -> Tensor:
    sums = _weight_gradient_like(grads, rows, results, sources, ends, groups)
    numbered = grads.contiguous(), rows.contiguous()
    compiled.run_pairs("correlate", results, sources, ends, *numbered, sums, groups=groups, numbered=numbered)
    return sums


def _weight_gradient_like(
    grads: Tensor, rows: Tensor, results: Tensor, sources: Tensor, ends: Tensor, groups: int
) -> Tensor:
    size = grads.shape[1], ends.shape[0] - 1, rows.shape[1] // groups
    return rows.new_empty(size)


def _operations(one: Sizes, other: Sizes, groups: int, pairs: Sizes) -> int:
    """Multiplications and additions, those of pairs with a masked side as well."""
    return 2 * pairs[0] * one[1] * other[1] // groups


compiled.declare(
    "pairs",
    f"Tensor around, bool across, {DECLARED}",
    "(Tensor, Tensor, Tensor)",
    _pairs,
    _pairs_like,
)
compiled.declare(
    "add_pairs",
    "Tensor(a!) sums, Tensor rows, Tensor taps, Tensor source, Tensor target, Tensor ends, int groups, bool back",
    "()",
    _add_pairs,
    lambda *_: None,
    lambda sums, rows, taps, source, target, ends, groups, back, **_: _operations(sums, rows, groups, source),
)
compiled.declare(
    "pairs_weight_gradient",
    "Tensor grads, Tensor rows, Tensor results, Tensor sources, Tensor ends, int groups",
    "Tensor",
    _weight_gradient,
    _weight_gradient_like,
    lambda grads, rows, results, sources, ends, groups, **_: _operations(grads, rows, groups, results),
)
