"""Batch norms of rows in training: moments, normalised rows and gradients, in as few passes over the rows as there are.

PyTorch's own kernels for channels last take several times as long for the moments as reading the rows does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..sparse.backward import once
from ..sparse.faster import BatchNorm
from ..sparse.tensor import flat_rows, from_rows
from .ops import declare, has_kernel, wide

Moments = tuple[Tensor, Tensor]


def offer(values: Tensor) -> BatchNorm | None:
    """A way to normalise values that have their channels last in memory; None in graphs that are compiled.

    In those, PyTorch's norms become one kernel with what follows them.
    """
    if torch.compiler.is_compiling() or not values.movedim(1, -1).is_contiguous():
        return None
    return batch_norm if has_kernel(values, "batch_moments") else None


def batch_norm(
    values: Tensor,
    running_mean: Tensor | None,
    running_variance: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    """values (N, C, *positions), two positions or more -> the same shape, as `functional.batch_norm` trains."""
    return _BatchNorm.apply(values, running_mean, running_variance, weight, bias, momentum, eps)


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, running_mean, running_variance, weight, bias, momentum, eps):  # type: ignore[override]
        run, rows = torch.ops.convspark, flat_rows(values)
        mean, scale = run.batch_moments(rows, running_mean, running_variance, momentum, eps)
        ctx.save_for_backward(rows, weight, mean, scale)
        ctx.kinds = [None if t is None else t.dtype for t in (weight, bias)]
        ctx.positions = tuple(values.shape[2:])
        # Detached, so that autograd does not take it for a view, on which operations in place are slow.
        return from_rows(run.normalise(rows, mean, scale, weight, bias), ctx.positions).detach()

    @staticmethod
    @once
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        rows, weight, mean, scale = ctx.saved_tensors
        run, grad = torch.ops.convspark, flat_rows(grad).contiguous()
        sums = run.normalise_slopes(grad, rows, mean, scale)
        to_values = None
        if ctx.needs_input_grad[0]:
            to_values = from_rows(run.normalise_gradient(grad, rows, mean, scale, weight, sums), ctx.positions)
        to_bias, to_weight = sums
        of_weight, of_bias = ctx.kinds
        to_weight = None if of_weight is None else to_weight.to(of_weight)
        return to_values, None, None, to_weight, None if of_bias is None else to_bias.to(of_bias), None, None


# ---------------------------------------------------------------- plain versions


def _moments(
    rows: Tensor, running_mean: Tensor | None, running_variance: Tensor | None, momentum: float, eps: float
) -> Moments:
    variance, mean = torch.var_mean(rows.to(wide(rows)), 0, correction=0)
    if running_mean is not None and running_variance is not None:
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        unbiased = variance * (len(rows) / max(1, len(rows) - 1))
        running_variance.lerp_(unbiased.to(running_variance.dtype), momentum)
    return mean, (variance + eps).rsqrt()


def _normalise(rows: Tensor, mean: Tensor, scale: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    out = (rows - mean) * (scale if weight is None else scale * weight)
    return (out if bias is None else out + bias).to(rows.dtype)


def _slopes(grad: Tensor, rows: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    slope = grad.to(mean.dtype)
    return torch.stack([slope.sum(0), (slope * ((rows - mean) * scale)).sum(0)])


def _gradient(grad: Tensor, rows: Tensor, mean: Tensor, scale: Tensor, weight: Tensor | None, sums: Tensor) -> Tensor:
    shift, along = sums / len(rows)
    slope = grad - shift - (rows - mean) * scale * along
    return (slope * (scale if weight is None else scale * weight)).to(rows.dtype)


# ---------------------------------------------------------------- operators


def _of_channels(rows: Tensor, *lead: int) -> Tensor:
    return rows.new_empty(*lead, rows.shape[1], dtype=wide(rows))


declare(
    "batch_moments",
    "Tensor rows, Tensor(a!)? running_mean, Tensor(b!)? running_variance, float momentum, float eps",
    "(Tensor, Tensor)",
    _moments,
    lambda rows, *_: (_of_channels(rows), _of_channels(rows)),
)
declare(
    "normalise",
    "Tensor rows, Tensor mean, Tensor scale, Tensor? weight, Tensor? bias",
    "Tensor",
    _normalise,
    lambda rows, *_: torch.empty_like(rows),
)
declare(
    "normalise_slopes",
    "Tensor grad, Tensor rows, Tensor mean, Tensor scale",
    "Tensor",
    _slopes,
    lambda grad, rows, *_: _of_channels(rows, 2),
)
declare(
    "normalise_gradient",
    "Tensor grad, Tensor rows, Tensor mean, Tensor scale, Tensor? weight, Tensor sums",
    "Tensor",
    _gradient,
    lambda grad, rows, *_: torch.empty_like(rows),
)
