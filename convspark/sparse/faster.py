"""Faster ways to compute: kernels for one kind of device register here, and the engine runs without any."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .convolve import Kernel
    from .rows import SumKernel

T = TypeVar("T")

BatchNorm = Callable[..., Tensor]
"""Values (N, C, ...), running mean and variance, weight, bias, momentum, eps: as `functional.batch_norm` trains."""

LayerNorm = Callable[[Tensor, Tensor | None, Tensor | None, float], Tensor]
"""Values (..., C), weight, bias, eps: as `functional.layer_norm` over the last axis."""

Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""As `functional.linear`."""

MaxPool = Callable[..., Tensor | None]
"""Values (N, C, *patch), grid, plan, what lies outside the image -> (N, C, *out), or None."""


@dataclass
class Faster:
    """What the package's kernels offer, in the order in which they are asked."""

    convolutions: list[Kernel] = field(default_factory=list)
    sums: list[SumKernel] = field(default_factory=list)
    max_pools: list[MaxPool] = field(default_factory=list)
    batch_norms: list[Callable[[Tensor], BatchNorm | None]] = field(default_factory=list)
    layer_norms: list[Callable[[Tensor, Tensor | None, Tensor | None], LayerNorm | None]] = field(default_factory=list)
    linears: list[Callable[[Tensor, Tensor, Tensor | None], Linear | None]] = field(default_factory=list)
    product_devices: set[str] = field(default_factory=set)
    """Where products are quicker than the library's convolutions that do not overlap."""
    is_loaded: bool = False


_registered = Faster()


def offered(kernels: Iterable[Callable[..., T | None]], *arguments: Any) -> T | None:
    """What the first of these kernels that takes such arguments offers; None if none does."""
    offers = (kernel(*arguments) for kernel in kernels)
    return next((offer for offer in offers if offer is not None), None)


def registered() -> Faster:
    """All kernels; they register at the first call."""
    _load()
    return _registered


@torch.compiler.assume_constant_result
def _load() -> bool:
    if not _registered.is_loaded:
        _registered.is_loaded = True
        import_module("convspark.kernels").register(_registered)
    return True
