"""Faster ways to carry out the engine's plans, by kind of device. `sparse/` computes the same without any of them.

What each gains of a whole step is measured by `benchmarks/kernels.py`.
"""

from __future__ import annotations

from ..sparse.convolve import Kernel
from . import depthwise, pairs
from .cpu import operators  # noqa: F401  (registers the kernels for CPUs)


def register(kernels: list[Kernel]) -> None:
    """Offer all kernels to the engine; they are asked in this order."""
    kernels += [depthwise.offer, pairs.offer]
