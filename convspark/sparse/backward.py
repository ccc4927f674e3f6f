"""Backward passes whose own gradients are refused."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from ..errors import NotExactError

Slopes = tuple[Any, ...]


def once(backward: Callable[..., Slopes]) -> Callable[..., Slopes]:
    """Decorator of a `Function`'s backward pass: gradients of its gradients are refused.

    `once_differentiable` of PyTorch says so to `backward()` only: `autograd.grad` does not come by its error, and
    leaves out what should have come from there.
    """

    @wraps(backward)
    def run(ctx: Any, *grads: Tensor) -> Slopes:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return backward(ctx, *grads)
        saved = _Saved(ctx)
        with torch.no_grad():
            slopes = backward(saved, *grads)
        of = [tensor for tensor in (*grads, *saved.saved_tensors) if tensor is not None]
        return tuple(None if slope is None else _Refused.apply(slope, *of) for slope in slopes)

    return run


class _Saved:
    """A function's context whose tensors are read once, as checkpoints want it."""

    def __init__(self, ctx: Any) -> None:
        self._ctx, self.saved_tensors = ctx, ctx.saved_tensors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)


class _Refused(torch.autograd.Function):
    """A gradient as it is, which depends on other tensors in a way that is not known."""

    @staticmethod
    def forward(ctx, slope: Tensor, *of: Tensor) -> Tensor:  # type: ignore[override]
        return slope.clone()

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        raise NotExactError(
            "The gradient of a gradient (create_graph=True) of what looks around in a map, or normalises it, is not "
            "known on visible patches. Take gradients once, or of the dense network."
        )
