"""Faster ways to convolve: kernels for one kind of device register here, and the engine runs without any."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .convolve import Kernel

_registered: list[Kernel] = []


def registered() -> list[Kernel]:
    """What the package's kernels offer, in the order in which they are asked; they register when they are first."""
    _load()
    return _registered


@torch.compiler.assume_constant_result
def _load() -> bool:
    if not _registered:
        import_module("convspark.kernels").register(_registered)
    return True
