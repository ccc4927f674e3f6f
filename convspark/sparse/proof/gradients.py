"""Gradients for some tensors alone, also through checkpoints, which have no such option."""

from collections.abc import Sequence

from torch import Tensor
from torch.autograd.graph import _engine_run_backward


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
