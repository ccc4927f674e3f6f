"""Layer norms of rows over their channels, in as few passes over the rows as there are.

PyTorch's own kernels take five times as long as reading and writing the rows does, as channels are few (H200).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..sparse.backward import once
from ..sparse.faster import LayerNorm
from .ops import declare, has_kernel, wide

_MOST_CHANNELS = 2048  # that a program holds in registers


def offer(values: Tensor, weight: Tensor | None, bias: Tensor | None) -> LayerNorm | None:
    """A way to normalise values (..., C) over their last axis; None in graphs that are compiled.

    In those, PyTorch's norms become one kernel with what is around them.
    """
    if torch.compiler.is_compiling() or not values.is_contiguous() or not 0 < values.shape[-1] <= _MOST_CHANNELS:
        return None
    kinds = {_result(values), *[t.dtype for t in (weight, bias) if t is not None]}
    return layer_norm if len(kinds) == 1 and has_kernel(values, "layer_norm") else None


def layer_norm(values: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """values (..., C), weight and bias (C,) -> (..., C), as `functional.layer_norm`, autocast included."""
    return _LayerNorm.apply(values, weight, bias, eps, _result(values))


def _result(values: Tensor) -> torch.dtype:
    """Autocast has them in float32."""
    return wide(values) if torch.is_autocast_enabled(values.device.type) else values.dtype


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, weight, bias, eps, dtype):  # type: ignore[override]
        rows = values.flatten(0, -2)
        out, mean, scale = torch.ops.convspark.layer_norm(rows, weight, bias, eps, dtype)
        ctx.save_for_backward(rows, weight, mean, scale)
        ctx.has_bias, ctx.shape = bias is not None, values.shape
        # Detached, so that autograd does not take it for a view, on which operations in place are slow.
        return out.view(values.shape).detach()

    @staticmethod
    @once
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        rows, weight, mean, scale = ctx.saved_tensors
        slopes = grad.reshape(rows.shape)
        to_rows, sums = torch.ops.convspark.layer_norm_gradient(slopes, rows, mean, scale, weight)
        to_bias, to_weight = sums.to(grad.dtype)
        to_weight = None if weight is None else to_weight
        return to_rows.view(ctx.shape), to_weight, to_bias if ctx.has_bias else None, None, None


# ---------------------------------------------------------------- plain versions


def _layer_norm(
    rows: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    variance, mean = torch.var_mean(rows.to(wide(rows)), 1, correction=0)
    scale = (variance + eps).rsqrt()
    out = (rows - mean[:, None]) * scale[:, None]
    out = out if weight is None else out * weight
    return (out if bias is None else out + bias).to(dtype), mean, scale


def _gradient(grad: Tensor, rows: Tensor, mean: Tensor, scale: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    grad, normal = grad.to(mean.dtype), (rows - mean[:, None]) * scale[:, None]
    slope = grad if weight is None else grad * weight
    along = (slope * normal).mean(1, keepdim=True)
    to_rows = (slope - slope.mean(1, keepdim=True) - normal * along) * scale[:, None]
    return to_rows.to(rows.dtype), torch.stack([grad.sum(0), (grad * normal).sum(0)])


# ---------------------------------------------------------------- operators


def _of_rows(rows: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[0], dtype=wide(rows))


def _like(rows: Tensor, weight: Any, bias: Any, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(rows, dtype=dtype), _of_rows(rows), _of_rows(rows)


declare(
    "layer_norm",
    "Tensor rows, Tensor? weight, Tensor? bias, float eps, ScalarType dtype",
    "(Tensor, Tensor, Tensor)",
    _layer_norm,
    _like,
)
declare(
    "layer_norm_gradient",
    "Tensor grad, Tensor rows, Tensor mean, Tensor scale, Tensor? weight",
    "(Tensor, Tensor)",
    _gradient,
    lambda grad, rows, *_: (torch.empty_like(rows), rows.new_empty(2, rows.shape[1], dtype=wide(rows))),
)
