"""Faster ways to carry out a plan: kernels for one kind of device register here, and the engine runs without any."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .convolve import Kernel


class Rows(Protocol):
    """A kernel that copies and sums rows of patches as a plan says.

    around: int32 (blocks, block), `Around.slots` of `patches` visible patches; entries: int32 (results, most, 2), what
    each result of a block sees; positions: of a patch that is read.
    """

    def runs_on(self, device: torch.device) -> bool:
        """Whether it can be called here and now: on real tensors, outside of a graph that is being traced."""
        ...

    def bags(self, around: Tensor, entries: Tensor, patches: int, positions: int, groups: int) -> tuple[Tensor, Tensor]:
        """The visible rows of each result, int32, and where each result's begin; one group after the other."""
        ...

    def copy(
        self, rows: Tensor, around: Tensor, entries: Tensor, patches: int, positions: int, outside: float
    ) -> Tensor:
        """Of results that see one position each: (patches * positions, C) -> (blocks * results, C)."""
        ...


@dataclass
class Faster:
    """What is registered: convolutions in the order in which they are asked."""

    convolutions: list[Kernel] = field(default_factory=list)
    rows: list[Rows] = field(default_factory=list)
    is_complete: bool = False


_registered = Faster()


def registered() -> Faster:
    """What the package's kernels register when they are first asked for."""
    _load()
    return _registered


@torch.compiler.assume_constant_result
def _load() -> bool:
    if not _registered.is_complete:
        _registered.is_complete = True
        import_module("convspark.kernels").register(_registered)
    return True


def rows_kernel(device: torch.device) -> Rows | None:
    """The kernel for rows on this device, here and now."""
    return next((kernel for kernel in registered().rows if kernel.runs_on(device)), None)
