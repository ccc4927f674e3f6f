"""Faster ways to carry out the engine's plans, by kind of device. `sparse/` computes the same without any of them.

What each gains of a whole step is measured by `benchmarks/kernels.py`.
"""

from __future__ import annotations

from ..sparse.faster import Faster
from . import depthwise, pairs
from .cpu import operators as cpu


def register(faster: Faster) -> None:
    """Offer all kernels to the engine; they are asked in this order."""
    faster.convolutions += [depthwise.offer, pairs.offer]
    faster.rows += [cpu.Rows()]
