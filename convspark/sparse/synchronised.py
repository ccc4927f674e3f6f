"""Batch normalisation with the statistics of all processes.

`nn.SyncBatchNorm` does this on CUDA alone, by replacing layers. Here the layers stay: a grid that belongs to a process
group has its batch norms' statistics taken over the visible positions of the whole group.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from .backward import once


def synchronised_batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
    group: dist.ProcessGroup,
) -> Tensor:
    """`functional.batch_norm` in training, over the values of all processes of a group.

    Each process calls it with its own values, (N, C, ...); N may differ, and be 0. Where no process has a value, the
    running statistics stay as they are.
    """
    weight = x.new_ones(x.shape[1]) if weight is None else weight
    bias = x.new_zeros(x.shape[1]) if bias is None else bias
    out, mean, variance, count = _BatchNorm.apply(x, weight, bias, eps, group)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            step = momentum * (count > 0).to(running_mean.dtype)
            unbiased = variance * (count / (count - 1).clamp(min=1))
            running_mean.lerp_(mean.to(running_mean.dtype), step)
            running_var.lerp_(unbiased.to(running_var.dtype), step)
    return out


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float, group: dist.ProcessGroup):  # type: ignore[override]
        channels = x.shape[1]
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        own = values.new_full((1,), x.numel() // max(channels, 1))
        mean = _sum(values) / own.clamp(min=1)
        spread = _sum((values - _along(mean, x)).square())
        # Means and sums of squares about them, joined as Chan et al. (1979) do: sums of plain squares would cancel.
        parts = [torch.empty_like(own).new_empty(2 * channels + 1) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, torch.cat([own, mean, spread]), group)
        counts, means, spreads = torch.stack(parts).split([1, channels, channels], 1)
        count = counts.sum()
        mean = (counts * means).sum(0) / count.clamp(min=1)
        variance = (spreads + counts * (means - mean).square()).sum(0) / count.clamp(min=1)
        scale = (variance + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, scale, count)
        ctx.group = group
        ctx.mark_non_differentiable(mean, variance, count)
        normalised = (values - _along(mean, x)) * _along(scale, x)
        return (normalised * _along(weight, x) + _along(bias, x)).to(x.dtype), mean, variance, count

    @staticmethod
    @once
    def backward(ctx, grad: Tensor, *_: Tensor):  # type: ignore[override]
        x, weight, mean, scale, count = ctx.saved_tensors
        slope = grad.to(mean.dtype)
        normalised = (x.to(mean.dtype) - _along(mean, x)) * _along(scale, x)
        own = torch.cat([_sum(slope), _sum(slope * normalised)])
        totals = own.clone()
        dist.all_reduce(totals, group=ctx.group)
        shift, stretch = (total / count.clamp(min=1) for total in totals.chunk(2))
        slope = slope - _along(shift, x) - normalised * _along(stretch, x)
        to_bias, to_weight = own.to(weight.dtype).chunk(2)
        return (slope * _along(scale * weight.to(mean.dtype), x)).to(x.dtype), to_weight, to_bias, None, None


def _sum(values: Tensor) -> Tensor:
    """(N, C, ...) -> (C,)."""
    return values.sum([dim for dim in range(values.dim()) if dim != 1])


def _along(rows: Tensor, x: Tensor) -> Tensor:
    """(C,) as (1, C, 1, ...)."""
    return rows.view(1, -1, *[1] * (x.dim() - 2))
