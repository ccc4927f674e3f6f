"""Depthwise convolution on CPUs, with a weight gradient several times faster than the library's.

PyTorch's CPU backend has a quick kernel for the weight gradient of depthwise convolutions whose kernel is three
positions wide, and a slow general one for wider kernels. The gradient of a wider kernel is that of its columns, three
at a time, each on the input moved sideways.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

_QUICK = 3  # columns


def suits(x: Tensor, weight: Tensor, dilation: tuple[int, ...], groups: int) -> bool:
    """Whether `depthwise_conv` computes this convolution, and faster than the library."""
    if torch.compiler.is_compiling() or x.device.type != "cpu" or x.dim() != 4 or max(dilation) > 1:
        return False
    return groups == x.shape[1] == weight.shape[0] and weight.shape[3] > _QUICK


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...]) -> Tensor:
    """`functional.conv2d` of (N, C, H, W) with one kernel a channel, (C, 1, kh, kw), and no padding; see `suits`."""
    if torch.is_autocast_enabled("cpu"):
        lower = torch.get_autocast_dtype("cpu")
        x, weight = x.to(lower), weight.to(lower)
        bias = None if bias is None else bias.to(lower)
    return _Depthwise.apply(x, weight, bias, stride)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...]) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return functional.conv2d(x, weight, bias, stride, groups=x.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias, _ = ctx.needs_input_grad
        to_x = _input_gradient(grad, x, weight, ctx.stride) if wants_x else None
        to_weight = _weight_gradient(grad, x, weight, ctx.stride) if wants_weight else None
        return to_x, to_weight, grad.sum((0, 2, 3)) if wants_bias else None, None


def _input_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, ...]) -> Tensor:
    if max(stride) > 1 and x.dtype == torch.bfloat16:  # a hundred times slower than in float32
        return _gradients(grad.float(), x.float(), weight.float(), stride, of_input=True).to(x.dtype)
    return _gradients(grad, x, weight, stride, of_input=True)


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, ...]) -> Tensor:
    width, last = weight.shape[3], weight.shape[3] - _QUICK
    seen = (grad.shape[3] - 1) * stride[1] + _QUICK  # columns of x that three columns of the kernel see
    result = torch.empty_like(weight)
    for start in (min(column, last) for column in range(0, width, _QUICK)):
        columns = slice(start, start + _QUICK)
        part = _gradients(grad, x[..., start : start + seen], weight[..., columns], stride, of_input=False)
        result[..., columns] = part
    return result


def _gradients(grad: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, ...], of_input: bool) -> Tensor:
    still, groups = [0, 0], x.shape[1]
    wanted = [of_input, not of_input, False]
    both = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, still, [1, 1], False, still, groups, wanted
    )
    return both[0] if of_input else both[1]
