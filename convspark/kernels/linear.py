"""Matrix products with a bias, whose gradient is a sum over all rows: PyTorch's own takes several times as long as
reading them does (H200)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..sparse.convolve import as_autocast_casts, cast_dtype
from ..sparse.faster import Linear
from .ops import computes, declare, is_chosen, wide


def offer(values: Tensor, weight: Tensor, bias: Tensor | None) -> Linear | None:
    """A way to multiply values (..., C) by weight (O, C); None in graphs that are compiled, which have their own."""
    if bias is None or torch.compiler.is_compiling() or not computes(values, weight, "column_sums"):
        return None
    return linear if cast_dtype(bias) == cast_dtype(weight) else None


def linear(values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As `functional.linear`."""
    return _Linear.apply(*as_autocast_casts(values, weight, bias))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(values, weight)
        # Detached, so that autograd does not take it for a view, which may not be changed in place.
        return functional.linear(values, weight, bias).detach()

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        values, weight = ctx.saved_tensors
        rows, slopes = values.reshape(-1, values.shape[-1]), grad.reshape(-1, grad.shape[-1])
        of_values, of_weight, of_bias = ctx.needs_input_grad
        to_values = (slopes @ weight).view(values.shape) if of_values else None
        to_weight = (rows.t() @ slopes).t() if of_weight else None
        to_bias = None
        if of_bias:  # the operator has no gradient of its own, which create_graph asks for
            to_bias = slopes.sum(0) if torch.is_grad_enabled() else column_sums(slopes)
        return to_values, to_weight, to_bias


def column_sums(rows: Tensor) -> Tensor:
    """(rows, C) -> (C,)"""
    if torch.compiler.is_compiling() or not is_chosen("column_sums"):
        return rows.sum(0)
    return torch.ops.convspark.column_sums(rows)


# ---------------------------------------------------------------- operator


def _column_sums(rows: Tensor) -> Tensor:
    return rows.sum(0, dtype=wide(rows)).to(rows.dtype)


declare(
    "column_sums",
    "Tensor rows",
    "Tensor",
    _column_sums,
    lambda rows: rows.new_empty(rows.shape[1]),
)
