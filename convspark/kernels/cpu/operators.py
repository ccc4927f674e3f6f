"""The package's operators by compiled kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from ...sparse.plans import Plan, Sizes, seeing_by_tap, seen_by_tap
from ..ops import run_on, wide
from ..pairs import own_patch, pairs_like, weight_gradient_like
from . import build

# ---------------------------------------------------------------- depthwise convolutions


def depthwise(rows: Tensor, weight: Tensor, bias: Tensor | None, around: Tensor, *sizes: Sizes) -> Tensor:
    bias = None if bias is None else bias.to(wide(rows)).contiguous()
    return _gathered(rows, weight, bias, around, seen_by_tap(Plan.of(sizes), around.device))


def depthwise_input_gradient(grad: Tensor, weight: Tensor, around: Tensor, *sizes: Sizes) -> Tensor:
    return _gathered(grad, weight, None, around, seeing_by_tap(Plan.of(sizes), around.device))


def _gathered(rows: Tensor, weight: Tensor, bias: Tensor | None, around: Tensor, entries: Tensor) -> Tensor:
    rows = rows.contiguous()
    taps = weight.flatten(1).t().to(wide(weight)).contiguous()
    result = rows.new_empty(around.shape[0] * entries.shape[0], rows.shape[1])
    _run_depthwise("gather", entries, around, rows, rows, taps, bias, result)
    return result


def depthwise_weight_gradient(grad: Tensor, rows: Tensor, around: Tensor, *sizes: Sizes) -> Tensor:
    plan = Plan.of(sizes)
    entries, grad, rows = seen_by_tap(plan, around.device), grad.contiguous(), rows.contiguous()
    sums = torch.zeros(entries.shape[1], rows.shape[1], dtype=wide(rows))
    _run_depthwise("products", entries, around, rows, grad, rows, sums)
    return sums.t().contiguous().view(-1, 1, *plan.kernel).to(rows.dtype)


def _run_depthwise(entry: str, entries: Tensor, around: Tensor, source: Tensor, *tensors: Tensor | None) -> None:
    """Call a kernel whose entries point to `source`, rows of patches, (N * others, C)."""
    patches, (rows, channels) = around.shape[0], source.shape
    if patches:
        sizes = {"patches": patches, "others": rows // patches, "channels": channels}
        build.run(entry, around, entries, *tensors, dtype=source.dtype, **sizes)


# ---------------------------------------------------------------- pairs


def pairs(around: Tensor, across: bool, *sizes: Sizes) -> tuple[Tensor, Tensor, Tensor]:
    plan = Plan.of(sizes)
    outputs = pairs_like(around, across, *sizes)
    entries, left_out = seen_by_tap(plan, around.device), own_patch(plan) if across else -1
    build.run("make_pairs", around, entries, left_out, *outputs, patches=around.shape[0], others=plan.positions)
    return outputs


def add_pairs(
    sums: Tensor, rows: Tensor, taps: Tensor, source: Tensor, target: Tensor, ends: Tensor, groups: int, back: bool
) -> None:
    rows = rows.contiguous()
    build.run_pairs("multiply", source, target, ends, int(back), rows, taps, sums, groups=groups, numbered=(rows, sums))


def pairs_weight_gradient(
    grads: Tensor, rows: Tensor, results: Tensor, sources: Tensor, ends: Tensor, groups: int
) -> Tensor:
    sums = weight_gradient_like(grads, rows, results, sources, ends, groups)
    numbered = grads.contiguous(), rows.contiguous()
    build.run_pairs("correlate", results, sources, ends, *numbered, sums, groups=groups, numbered=numbered)
    return sums


for _kernel in (depthwise, depthwise_input_gradient, depthwise_weight_gradient):
    _dtypes = torch.float32, torch.bfloat16, torch.float64
    run_on("cpu", _kernel.__name__, _kernel, _dtypes, build.library_is_there)
for _kernel in (pairs, add_pairs, pairs_weight_gradient):
    # Not for bfloat16: processors multiply whole matrices of it at twice the rate or more.
    run_on("cpu", _kernel.__name__, _kernel, (torch.float32, torch.float64), build.library_is_there)
