"""Gradients for some tensors alone, also through checkpoints, which have no such option; and those that have none."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import _engine_run_backward

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


def gradients(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], slopes: Sequence[Tensor], retain_graph: bool = False
) -> Sequence[Tensor | None]:
    """As `torch.autograd.grad(..., allow_unused=True)`, whatever functions are overridden.

    `torch.utils.checkpoint(use_reentrant=True)` refuses that: it runs a part of the network again, and a backward pass
    of its own that fills `.grad` of the parameters. Where there is such a checkpoint, all gradients come from `.grad`;
    what was in `.grad` of `inputs` is put back.
    """
    outputs, slopes = tuple(outputs), tuple(slopes)
    if not _reenters(outputs):
        return _engine_run_backward(outputs, slopes, retain_graph, False, tuple(inputs), True, accumulate_grad=False)
    before = [tensor.grad for tensor in inputs]
    try:
        for tensor in inputs:
            tensor.grad = None
        _engine_run_backward(outputs, slopes, retain_graph, False, (), True, accumulate_grad=True)
        return [tensor.grad for tensor in inputs]
    finally:
        for tensor, grad in zip(inputs, before, strict=True):
            tensor.grad = grad


def _reenters(outputs: Sequence[Tensor]) -> bool:
    nodes, visited = [output.grad_fn for output in outputs], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in visited:
            continue
        if node.name() == "CheckpointFunctionBackward":
            return True
        visited.add(node)
        nodes += [following for following, _ in node.next_functions]
    return False
