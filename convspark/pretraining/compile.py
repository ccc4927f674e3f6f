"""The loss of pre-training through `torch.compile`, as one graph for all masks."""

import torch
from torch import Tensor

from ..errors import UsageError
from ..model.spark import SparK
from ..runs.graphs import Loss


def compiled(model: SparK) -> Loss:
    """The model's loss, compiled on its first call, which takes minutes for a large network.

    The model stays as it is, and so do the names of its parameters. Batches of another size or precision are compiled
    anew, and so is evaluation mode.
    """
    return torch.compile(lambda images, grid: model(images, grid).loss, fullgraph=True, dynamic=False)


def check_compiler(device: torch.device) -> None:
    """Compile something small.

    Raises:
        UsageError: `torch.compile` does not work on this machine; most often because it has no C++ compiler.
    """
    try:
        torch.compile(_something)(torch.ones(64, device=device))
    except Exception as error:  # whatever a compiler that is missing, broken or too old leads to
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"compile is True, but torch.compile does not work on this machine: {reason}. It needs a C++ compiler such "
            "as g++, and on a GPU Triton. Install what is missing, or leave --compile out (`compile: false` in the "
            "config.yaml of a run that goes on): the run is the same, but for rounding and speed"
        ) from error


def _something(x: Tensor) -> Tensor:
    return (x * 2 + 1).sin()
